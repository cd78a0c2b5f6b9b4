"""Claims that wait for messages in a file: the file's thread leases what comes, without being asked again."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from repid import Connection, Handle, Repid, Router, SQLiteServer
from repid.brokers.consumer import Consumer
from repid.brokers.sqlite import change_watch, claiming
from repid.brokers.sqlite.clock import Clock
from repid.brokers.sqlite.driver import SQLiteDriver
from repid.brokers.sqlite.requests import RESTING, RequestQueue
from repid.brokers.sqlite.schema import Opening
from repid.delivery import ACK, Delivery, Release, Settlement
from repid.errors import BrokerUnavailable, UsageError
from repid.ports import ANYTHING, AtMost, CallRecord

from .broker_aids import message

pytestmark = pytest.mark.real_time

SOON = 5.0
"""Seconds within which all that is awaited here must come."""


@pytest.fixture(autouse=True)
def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims are not looked at again only because a second has passed."""
    monkeypatch.setattr(change_watch, "CHECK", 600.0)


@asynccontextmanager
async def linked(path: Path, *consumers: str) -> AsyncGenerator[SQLiteDriver, None]:
    """A driver with the queue "q" and these consumers."""
    driver = SQLiteDriver(Opening(str(path), "NORMAL", 0o600), 60.0, Clock())
    async with driver.link(set()):
        await driver.declare(["q"])
        for consumer in consumers:
            await driver.subscribe(consumer, {"q": None})
        yield driver


async def wait_for(driver: SQLiteDriver, consumer: str, seconds: float = SOON, limit: int = 10) -> list[str]:
    """The ids of what a claim gets that waits at most so long; all is settled."""
    taken: list[Delivery] = []
    claim = driver.claim_or_wait(consumer, limit, ANYTHING, trio.current_time() + seconds, taken.extend)
    assert await claim == taken
    await driver.settle(consumer, [Settlement(delivery, ACK) for delivery in taken])
    return [delivery.envelope.id for delivery in taken]


async def rest(driver: SQLiteDriver, count: int = 1) -> None:
    """Wait until so many claims rest."""
    queue: RequestQueue = driver._file.queue
    with trio.fail_after(SOON):
        while len(queue._resting) < count:
            await trio.sleep(0.001)
    assert all(request.state is RESTING for request in queue._resting)


@asynccontextmanager
async def waiting(driver: SQLiteDriver, *consumers: str, limit: int = 10) -> AsyncGenerator[list[str], None]:
    """A claim of each of the consumers that waits, for a block; what they get by its end."""
    got: list[str] = []

    async def wait(consumer: str) -> None:
        got.extend(await wait_for(driver, consumer, limit=limit))

    async with trio.open_nursery() as nursery:
        for consumer in consumers:
            nursery.start_soon(wait, consumer)
        await rest(driver, len(consumers))
        yield got


async def test_a_claim_that_waits_gets_what_is_published(path: Path) -> None:
    async with linked(path, "c") as driver:
        async with waiting(driver, "c") as got:
            await driver.publish([message("1"), message("2")])
        assert got == ["1", "2"]


async def test_a_claim_that_waits_gets_what_another_process_publishes(path: Path) -> None:
    async with linked(path, "c") as driver, linked(path) as other:
        async with waiting(driver, "c") as got:
            await other.publish([message("1")])
        assert got == ["1"]


async def test_a_claim_that_waits_gets_what_falls_due(path: Path) -> None:
    async with linked(path, "c") as driver:
        await driver.publish([message("1", delay=0.3)])
        assert await wait_for(driver, "c") == ["1"]


async def test_a_claim_that_waits_gets_what_another_consumer_gives_back(path: Path) -> None:
    async with linked(path, "c", "d") as driver:
        await driver.publish([message("1")])
        (delivery,) = (await driver.claim("d", 1, ANYTHING)).deliveries
        async with waiting(driver, "c") as got:
            await driver.settle("d", [Settlement(delivery, Release())])
        assert got == ["1"]


async def test_claims_that_wait_share_what_comes(path: Path) -> None:
    async with linked(path, "c", "d") as driver:
        async with waiting(driver, "c", "d", limit=1) as got:
            await driver.publish([message("1"), message("2")])
        assert sorted(got) == ["1", "2"]


async def test_a_claim_that_has_waited_in_vain_gets_nothing_and_leaves_nothing_behind(path: Path) -> None:
    async with linked(path, "c") as driver:
        assert await wait_for(driver, "c", 0.05) == []
        await driver.publish([message("1")])
        assert not driver._file.queue.is_resting
        assert await wait_for(driver, "c") == ["1"]


async def test_a_claim_that_is_cancelled_while_it_waits_has_leased_nothing(path: Path) -> None:
    async with linked(path, "c") as driver:
        for number in range(20):
            got: list[Delivery] = []
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(driver.claim_or_wait, "c", 1, ANYTHING, trio.current_time() + SOON, got.extend)
                    await rest(driver)
                    nursery.start_soon(driver.publish, [message(f"{number}")])
                    await trio.sleep(number / 10_000)
                    scope.cancel()
            got += (await driver.claim("c", 10, ANYTHING)).deliveries
            assert [delivery.envelope.id for delivery in got] == [f"{number}"] or not got  # not: it was not published


async def test_a_claim_that_waits_heeds_new_limits(path: Path) -> None:
    async with linked(path, "c") as driver:
        await driver.publish([message("1")])
        nothing = AtMost(groups=[([("q", None)], 0)])
        got: list[Delivery] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.claim_or_wait, "c", 1, nothing, trio.current_time() + SOON, got.extend)
            await rest(driver)
            assert not got
            driver.set_limits("c", ANYTHING)
        assert [delivery.envelope.id for delivery in got] == ["1"]


async def test_limits_that_are_set_while_a_claim_finds_nothing_are_heeded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = AtMost(groups=[([("q", None)], 0)])
    has_any, asked = claiming.has_any, list[bool]()
    async with linked(path, "c") as driver:
        token = trio.lowlevel.current_trio_token()

        def ask(*arguments: Any) -> bool:
            asked.append(has_any(*arguments))
            if len(asked) == 2:  # the claim is about to rest
                trio.from_thread.run_sync(driver.set_limits, "c", ANYTHING, trio_token=token)
            return asked[-1]

        await driver.publish([message("1")])
        assert not await driver.claim_or_wait("c", 1, nothing, trio.current_time() + 0.1, lambda _: None)
        monkeypatch.setattr(claiming, "has_any", ask)  # from here on nothing has changed but the limits
        with trio.fail_after(SOON):
            assert await driver.claim_or_wait("c", 1, nothing, trio.current_time() + 2 * SOON, lambda _: None)
    assert asked[:3] == [False, False, True]


async def test_an_actor_that_runs_once_at_a_time_gets_one_message_after_the_other(path: Path) -> None:
    """Each claim begins while the actor has no room, and has some when its run has ended."""
    app, router = Repid(Connection(SQLiteServer(path))), Router(queue="q")

    @router.actor(concurrency=1)
    async def job(number: int) -> None:
        await trio.lowlevel.checkpoint()
        if number == 0:
            worker.stop()

    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        await app.enqueue_many(job, range(50, -1, -1))
        with trio.fail_after(SOON):
            worker: Handle = await nursery.start(app.run_worker)
            assert (await worker.wait()).succeeded == 51


async def test_a_receive_that_waits_is_told_that_its_consumer_was_closed(path: Path) -> None:
    server = SQLiteServer(path)
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["q"])

        async def receive(consumer: Consumer) -> None:
            with trio.fail_after(SOON), pytest.raises(UsageError, match="is closed"):
                await consumer.receive(1)

        async with server.consume({"q": None}) as consumer:
            nursery.start_soon(receive, consumer)
            await trio.sleep(0.1)


async def test_a_receive_that_waits_is_told_that_the_file_is_gone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_watch, "CHECK", 0.1)
    server = SQLiteServer(path)
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer, trio.open_nursery() as nursery:

            async def receive() -> None:
                with trio.fail_after(SOON), pytest.raises(BrokerUnavailable, match=path.name):
                    await consumer.receive(1)

            nursery.start_soon(receive)
            await trio.sleep(0.1)
            path.unlink()


async def test_what_was_claimed_for_a_blocked_event_loop_is_given_to_others(path: Path) -> None:
    got: list[str] = []

    async def elsewhere() -> None:
        async with linked(path, "d") as driver:
            await driver.publish([message("1"), message("2")])
            await trio.sleep(0.3)  # the first one has them now
            assert not (await driver.claim("d", 10, ANYTHING)).deliveries
            got.extend(await wait_for(driver, "d"))

    async with linked(path, "c") as driver:
        other = threading.Thread(target=trio.run, args=(elsewhere,))
        async with waiting(driver, "c") as here:
            other.start()
            other.join()  # the event loop is blocked
            await driver.publish([message("3")])
        assert (got, here) == (["1", "2"], [])
        assert await wait_for(driver, "c") == ["3"]


async def test_an_instrument_is_shown_a_claim_that_waits(path: Path) -> None:
    calls: list[CallRecord] = []
    server = SQLiteServer(path, instruments=[calls.append])
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            assert await consumer.receive(1, max_wait=0.05) == []
    assert [call.outcome for call in calls if call.name == "claim"] == ["done"]
