"""Redis goes away, in every way a network and an operator have: nothing confirmed is lost, and workers go on by themselves."""

from __future__ import annotations

import logging
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from engines.proxy import Proxy, proxy_to
from engines.redis import Redis, embedded

from repid import BrokerUnavailable, Connection, DuplicateId, Job, PublishUnknown, QueueFull, Repid, Router
from repid.brokers.redis import RedisServer, driver, wire
from repid.brokers.redis.address import parse_address
from repid.delivery import UNBOUNDED, Ack, Bounds, Delivery, Settlement
from repid.ports import SETTLED, UNKNOWN

from .broker_aids import message

pytestmark = pytest.mark.real_time

BACK = 2.0
"""Seconds within which workers go on once the server is back. Twice that is allowed here: machines of tests are busy."""


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with embedded("--appendonly", "yes", "--appendfsync", "everysec") as server:
        yield server


@pytest.fixture
async def proxy(redis: Redis) -> AsyncGenerator[Proxy, None]:
    async with proxy_to("127.0.0.1", parse_address(redis.url).port) as proxy:
        yield proxy


def server_at(proxy: Proxy, prefix: str) -> RedisServer:
    return RedisServer(f"redis://127.0.0.1:{proxy.port}/0", prefix=prefix, lease_timeout=2.0)


async def is_up(server: RedisServer) -> None:
    with trio.fail_after(2 * BACK):
        while server.link.state != "up":
            await trio.sleep(0.01)


@asynccontextmanager
async def cut_before_the_answer(proxy: Proxy) -> AsyncGenerator[None, None]:
    """The server carries out what is asked in this block, and its answer does not arrive."""
    proxy.swallows_answers = True

    async def cut() -> None:
        await trio.sleep(0.5)
        proxy.swallows_answers = False
        proxy.cut()

    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut)
        try:
            yield
        except (PublishUnknown, BrokerUnavailable) as caught:
            error = caught
    if error is not None:
        raise error


class Runs:
    """An app whose actor counts its runs by number."""

    def __init__(self, server: RedisServer) -> None:
        self.app = Repid(Connection(server))
        self.seen: Counter[int] = Counter()
        router = Router()

        @router.actor
        async def work(number: int) -> None:
            self.seen[number] += 1

        self.app.include_router(router)

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None, None]:
        async with self.app.magic(), trio.open_nursery() as nursery:
            handle = await nursery.start(self.app.run_worker)
            await self.sees(-1)
            yield
            handle.stop()

    async def sees(self, number: int, within: float = 5.0) -> None:
        """Send this number and wait until it was run."""
        with trio.fail_after(within):
            while True:
                try:
                    await Job("work", id_=f"job-{number}", args={"number": number}).enqueue()
                except (BrokerUnavailable, PublishUnknown):
                    await trio.sleep(0.05)
                except DuplicateId:
                    break
                else:
                    break
            while not self.seen[number]:
                await trio.sleep(0.01)


async def test_a_worker_whose_connections_are_killed_goes_on(redis: Redis, proxy: Proxy, prefix: str) -> None:
    runs = Runs(server_at(proxy, prefix))
    async with runs.at_work():
        for number in range(3):
            redis.execute("CLIENT", "KILL", "TYPE", "normal")
            redis.execute("CLIENT", "KILL", "TYPE", "pubsub")
            await runs.sees(number, 2 * BACK)
    assert runs.seen == Counter([-1, 0, 1, 2])


async def test_a_worker_goes_on_when_the_server_can_be_reached_again(
    proxy: Proxy, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = Runs(server_at(proxy, prefix))
    async with runs.at_work():
        with caplog.at_level(logging.INFO, logger="repid"):
            proxy.refuses = True
            proxy.cut()
            await trio.sleep(2.5)
            server = runs.app.servers.default
            assert server.link.state == "down"
            assert "cannot be reached" in (server.link.error or "") or "closed" in (server.link.error or "")
            proxy.refuses = False
            await runs.sees(0, 2 * BACK)
    ours = [record.levelname for record in caplog.records if record.name.startswith("repid.link")]
    assert ours == ["WARNING", "INFO"]


async def test_what_a_waiting_client_was_sent_and_runs_stays_its_own_when_its_link_comes_back_at_a_later_attempt(
    redis: Redis, proxy: Proxy, prefix: str
) -> None:
    received: list[Delivery] = []

    async def receive() -> None:
        received.extend(await consumer.receive(1))

    publisher = RedisServer(redis.url, prefix=prefix)
    server = RedisServer(f"redis://127.0.0.1:{proxy.port}/0", prefix=prefix)
    async with publisher.connection(), server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                while not redis.execute("HLEN", f"{{{prefix}}}:sleepers"):
                    await trio.sleep(0.01)
                await publisher.publish([message("1")])
            refused = proxy.refusals
            proxy.refuses = True
            proxy.cut()
            while proxy.refusals < refused + 3:
                await trio.sleep(0.01)
            proxy.refuses = False
            assert await consumer.receive(1, max_wait=BACK) == []
            assert await consumer.settle([Settlement(received[0], Ack())]) == [SETTLED]


async def test_a_connection_that_is_half_open_is_noticed_by_the_next_call(proxy: Proxy, prefix: str) -> None:
    server = server_at(proxy, prefix)
    async with server.connection():
        await server.declare(["q"])
        proxy.is_frozen = True
        with trio.fail_after(7), pytest.raises(PublishUnknown):
            await server.publish([message("1")])
        assert server.link.state == "down"
        proxy.is_frozen = False
        await is_up(server)
        [outcome] = await server.publish([message("1")])
        assert outcome is None or isinstance(outcome, DuplicateId)


@pytest.mark.parametrize(
    ("size", "delay"),
    [(1, 0.2), (8_000_000, 0.01)],
    ids=["waiting for the answer", "sending what does not fit at once"],
)
async def test_a_publish_is_seen_through_although_its_caller_is_cancelled(
    proxy: Proxy, prefix: str, size: int, delay: float
) -> None:
    server = server_at(proxy, prefix)
    async with server.connection():
        await server.set_bounds({"q": UNBOUNDED, "full": Bounds(max_bytes=1, when_full="raise")})
        await server.publish([message("0")])  # the script is known from now on
        proxy.delay = (delay, delay)
        with trio.move_on_after(0.1) as scope:
            outcomes = await server.publish([message("1", payload=b"x" * size), message("2", "full", payload=b"xx")])
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert [type(outcome) for outcome in outcomes] == [type(None), QueueFull]
        proxy.delay = (0.0, 0.0)
        assert (await server.counts("q")).ready == 2
        assert server.link.state == "up"


async def test_a_publish_that_is_not_answered_is_unknown_also_if_its_caller_was_cancelled(
    proxy: Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "ANSWER_TIME", 0.5)
    monkeypatch.setattr(wire, "IDLE_TIME", 0.05)
    server = server_at(proxy, prefix)
    async with server.connection():
        await server.declare(["q"])
        proxy.is_frozen = True
        with trio.move_on_after(0.1), pytest.raises(PublishUnknown):
            await server.publish([message("1")])
        assert server.link.state == "down"
        assert str(server.link.error).endswith(" did not answer within 0.5 s")


async def test_a_connection_that_is_half_open_is_noticed_without_any_call(
    proxy: Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "BEAT_TIME", 0.2)
    monkeypatch.setattr(driver, "ANSWER_TIME", 1.0)
    server = server_at(proxy, prefix)
    async with server.connection():
        await trio.sleep(1)
        assert server.link.state == "up"
        proxy.is_frozen = True
        with trio.fail_after(2 * BACK):
            while server.link.state == "up":
                await trio.sleep(0.01)
        proxy.is_frozen = False
        await is_up(server)


async def test_a_slow_network_loses_and_doubles_nothing(proxy: Proxy, prefix: str) -> None:
    runs = Runs(server_at(proxy, prefix))
    async with runs.at_work():
        proxy.delay = (0.05, 0.15)
        for number in range(3):
            await runs.sees(number)
        proxy.delay = (0.0, 0.0)
    assert runs.seen == Counter([-1, 0, 1, 2])


async def test_a_publish_whose_answer_is_cut_off_is_unknown_and_proved_by_its_id(proxy: Proxy, prefix: str) -> None:
    server = server_at(proxy, prefix)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("0")])  # the script is known from now on
        with pytest.raises(PublishUnknown) as caught:
            async with cut_before_the_answer(proxy):
                await server.publish([message("1"), message("2")])
        assert caught.value.ids == ("1", "2")
        await is_up(server)
        outcomes = await server.publish([message("1"), message("2")])
        assert [type(outcome) for outcome in outcomes] == [DuplicateId, DuplicateId]


async def test_a_settlement_whose_answer_is_cut_off_is_unknown_and_was_carried_out(proxy: Proxy, prefix: str) -> None:
    server = server_at(proxy, prefix)
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            await server.publish([message("0"), message("1")])
            zero, one = await consumer.receive(2)
            await consumer.settle([Settlement(zero, Ack())])
            with pytest.raises(BrokerUnavailable):
                async with cut_before_the_answer(proxy):
                    await consumer.settle([Settlement(one, Ack())])
            await is_up(server)
            assert await consumer.settle([Settlement(one, Ack())]) == [UNKNOWN]
            assert await consumer.receive(1, max_wait=0) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_a_server_that_is_started_again_has_all_that_was_confirmed(
    how: signal.Signals, redis: Redis, proxy: Proxy, prefix: str
) -> None:
    assert redis.process is not None
    runs = Runs(server_at(proxy, prefix))
    confirmed: set[int] = set()
    async with runs.at_work():
        for number in range(200):
            await Job("work", id_=f"job-{number}", args={"number": number}).enqueue()
            confirmed.add(number)
        later = Job("work", id_="job-later", args={"number": 1000}, deferred_by=3.0)
        await later.enqueue()
        redis.process.stop(how)
        redis.process.start()
        await runs.sees(500, 2 * BACK)
        with trio.fail_after(10):
            while not confirmed | {1000} <= runs.seen.keys():
                await trio.sleep(0.05)
    assert set(runs.seen) == confirmed | {-1, 500, 1000}


async def test_what_a_killed_worker_held_is_run_by_another(redis: Redis, prefix: str) -> None:
    program = f"""
import trio
from repid import RedisServer

async def main():
    server = RedisServer({redis.url!r}, prefix={prefix!r}, lease_timeout=1.0)
    async with server.connection(), server.consume({{"default": None}}) as consumer:
        print(len(await consumer.receive(10)), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
    server = RedisServer(redis.url, prefix=prefix, lease_timeout=1.0)
    runs = Runs(server)
    async with server.connection():
        await server.declare(["default"])
        for number in range(10):
            await Job("work", args={"number": number}, app=runs.app).enqueue()
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                partial(trio.run_process, [sys.executable, "-c", program], capture_stdout=False, stdout=-1, check=False)
            )
            assert (await process.stdout.receive_some(100)).strip() == b"10"
            process.kill()
        async with runs.at_work():
            with trio.fail_after(10):
                while not set(range(10)) <= runs.seen.keys():
                    await trio.sleep(0.05)
    assert runs.seen == Counter(range(-1, 10))
