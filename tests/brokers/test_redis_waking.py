"""Who waits on Redis asks nothing, is woken at once, and no wake-up is swallowed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from engines.redis import Redis, embedded
from trio.testing import wait_all_tasks_blocked

from repid import Connection, Repid, Router
from repid.brokers.consumer import Consumer
from repid.brokers.redis import RedisServer, driver
from repid.brokers.redis.layout import keys_of, to_key
from repid.delivery import Ack, Delivery, Release, Settlement
from repid.envelope import Envelope, PrioritiesT
from repid.errors import UsageError
from repid.ports import SETTLED, AtMost, LeaseEvent, Topics

from .broker_aids import message

pytestmark = pytest.mark.real_time

SOON = 3.0
"""Seconds that are far less than those after which it is asked again without a wake-up, on a busy machine."""


def is_asleep(redis: Redis, prefix: str, consumer: Consumer) -> bool:
    """Whether the server believes that it waits, and has not woken it or given it a message."""
    takes = "local entered = redis.call('HGET', KEYS[1], ARGV[1]) return entered and #cmsgpack.unpack(entered)[2]"
    return bool(redis.execute("EVAL", takes, 1, f"{{{prefix}}}:sleepers", consumer.key))


def is_given(redis: Redis, prefix: str, consumer: Consumer) -> bool:
    """Whether the server believes that it was given a message, and has not taken it."""
    given = "return type(({cmsgpack.unpack(redis.call('HGET', KEYS[1], ARGV[1]) or '')})[2]) == 'string'"
    return bool(redis.execute("EVAL", given, 1, f"{{{prefix}}}:sleepers", consumer.key))


async def falls_asleep(redis: Redis, prefix: str, consumer: Consumer) -> None:
    while not is_asleep(redis, prefix, consumer):
        await trio.sleep(0.01)


@asynccontextmanager
async def waiting(
    redis: Redis, prefix: str, topics: Topics = None, at_most: AtMost | None = None
) -> AsyncGenerator[list[str], None]:
    """A client of its own that receives and acknowledges; the ids of what it got."""
    got: list[str] = []

    async def receive(consumer: Consumer) -> None:
        while True:
            deliveries = await consumer.receive(10, at_most=at_most)
            got.extend(delivery.envelope.id for delivery in deliveries)
            await consumer.settle([Settlement(delivery, Ack()) for delivery in deliveries])

    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": topics}) as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(receive, consumer)
            await falls_asleep(redis, prefix, consumer)
            yield got
            nursery.cancel_scope.cancel()


def unheard(redis: Redis, prefix: str, call: Callable[[RedisServer], Awaitable[object]]) -> None:
    """Make a call of another client while nothing is heard in this loop."""

    async def connect() -> None:
        server = RedisServer(redis.url, prefix=prefix)
        async with server.connection():
            await call(server)

    thread = threading.Thread(target=trio.run, args=[connect])
    thread.start()
    thread.join()


def received_by_another(redis: Redis, prefix: str, *, within: float) -> list[Delivery]:
    """What another client is given while nothing is heard in this loop, within so many seconds."""
    received: list[Delivery] = []

    async def receive(other: RedisServer) -> None:
        async with other.consume({"q": None}) as consumer:
            with trio.move_on_after(within):
                received.extend(await consumer.receive(1))

    unheard(redis, prefix, receive)
    return received


def publish_unheard(redis: Redis, prefix: str, *messages: Envelope) -> None:
    unheard(redis, prefix, lambda server: server.publish(messages))


def cut_links(redis: Redis) -> None:
    """Break the connections of all clients but ours."""
    for kind in ("normal", "pubsub"):
        redis.execute("CLIENT", "KILL", "TYPE", kind)


def leased(redis: Redis, prefix: str) -> int:
    count: int = redis.execute("ZCARD", f"{{{prefix}}}:leases")
    return count


async def arrives(got: list[str], *ids: str) -> None:
    with trio.fail_after(SOON):
        while not set(ids) <= set(got):
            await trio.sleep(0.005)


async def test_a_client_that_waits_asks_nothing(redis: Redis, prefix: str) -> None:
    async with waiting(redis, prefix):
        redis.execute("CONFIG", "RESETSTAT")
        await trio.sleep(1.5)
        stats = redis.execute("INFO", "commandstats").decode()
    asked = {line.partition(":")[0] for line in stats.splitlines() if line.startswith("cmdstat_")}
    assert asked <= {"cmdstat_config|resetstat", "cmdstat_info"}


async def test_one_message_wakes_one_of_many_clients(redis: Redis, prefix: str) -> None:
    async with waiting(redis, prefix) as one, waiting(redis, prefix) as two, waiting(redis, prefix) as three:
        server = RedisServer(redis.url, prefix=prefix)
        async with server.connection():
            await server.publish([message("0")])
            await arrives_anywhere({"0"}, one, two, three)
            sleeping = redis.execute("HLEN", f"{{{prefix}}}:sleepers")
            assert sleeping >= 2
            await server.publish([message(str(number)) for number in range(1, 30)])
            await arrives_anywhere({str(number) for number in range(30)}, one, two, three)


async def arrives_anywhere(ids: set[str], *clients: list[str]) -> None:
    with trio.fail_after(SOON):
        while {id_ for got in clients for id_ in got} != ids:
            await trio.sleep(0.005)


async def test_a_message_is_for_whoever_takes_its_topic_and_has_room(redis: Redis, prefix: str) -> None:
    full = AtMost(topics={("q", "b"): 0})
    async with (
        waiting(redis, prefix, frozenset({"a"})) as others,
        waiting(redis, prefix, frozenset({"b"}), full) as no_room,
        waiting(redis, prefix, frozenset({"b"})) as mine,
    ):
        server = RedisServer(redis.url, prefix=prefix)
        async with server.connection():
            for number in range(5):
                await server.publish([message(str(number), topic="b")])
                await arrives(mine, str(number))
        assert others == no_room == []


async def kill_a_sleeper(redis: Redis, prefix: str) -> None:
    program = f"""
import trio
from repid import RedisServer

async def main():
    server = RedisServer({redis.url!r}, prefix={prefix!r})
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({{"q": None}}) as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(consumer.receive, 1)
            await trio.sleep(0.3)
            print("waits", flush=True)

trio.run(main)
"""
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(trio.run_process, [sys.executable, "-c", program], stdout=-1, check=False)
        )
        assert (await process.stdout.receive_some(100)).strip() == b"waits"
        process.kill()
        await process.wait()
        await trio.sleep(0.05)


async def test_a_wake_up_for_a_client_that_was_killed_goes_to_another(redis: Redis, prefix: str) -> None:
    await kill_a_sleeper(redis, prefix)
    async with waiting(redis, prefix) as got:
        server = RedisServer(redis.url, prefix=prefix)
        async with server.connection():
            for number in range(3):
                await server.publish([message(str(number))])
                await arrives(got, str(number))


async def test_a_client_that_was_killed_is_given_nothing(redis: Redis, prefix: str) -> None:
    await kill_a_sleeper(redis, prefix)
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.publish([message("1")])
        assert (await server.counts("q")).ready == 1


async def test_a_client_that_was_woken_and_does_not_wait_passes_it_on(redis: Redis, prefix: str) -> None:
    idle = RedisServer(redis.url, prefix=prefix)
    async with idle.connection():
        await idle.declare(["q"])
        async with idle.consume({"q": None}) as looked:
            assert await looked.receive(1, max_wait=0) == []  # it is entered among the sleepers, and goes away
            async with waiting(redis, prefix) as got:
                for number in range(3):
                    await idle.publish([message(str(number))])
                    await arrives(got, str(number))


async def test_a_client_that_stops_waiting_before_it_hears_that_it_was_woken_has_another_woken(
    redis: Redis, prefix: str
) -> None:
    async def receive(consumer: Consumer) -> None:
        with scope:
            await consumer.receive(1)

    scope = trio.CancelScope()
    stopped = RedisServer(redis.url, prefix=prefix)
    async with stopped.connection():
        await stopped.declare(["q"])
        async with stopped.consume({"q": None}) as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(receive, consumer)
            await falls_asleep(redis, prefix, consumer)
            async with waiting(redis, prefix) as got:
                publish_unheard(redis, prefix, message("0"), message("1"))
                assert not is_asleep(redis, prefix, consumer)
                scope.cancel()
                await arrives(got, "0", "1")


async def test_a_client_that_was_woken_for_one_message_and_takes_another_has_the_next_one_woken(
    redis: Redis, prefix: str
) -> None:
    got: list[Delivery] = []

    async def receive(consumer: Consumer) -> None:
        got.extend(await consumer.receive(1))

    both = RedisServer(redis.url, prefix=prefix)
    async with both.connection(), trio.open_nursery() as nursery:
        await both.declare(["q"])
        async with both.consume({"q": frozenset({"a", "b"})}) as consumer:
            nursery.start_soon(receive, consumer)
            await falls_asleep(redis, prefix, consumer)
            async with waiting(redis, prefix, frozenset({"a"})) as others:
                payload = b"x" * 65_537  # so it is not sent with the wake-up
                publish_unheard(redis, prefix, message("1", topic="a", payload=payload))
                publish_unheard(redis, prefix, message("2", topic="b", payload=payload, priority=PrioritiesT.HIGH))
                await arrives(others, "1")
    assert [delivery.envelope.id for delivery in got] == ["2"]


async def test_a_delay_that_ends_earlier_than_the_others_is_heeded_by_who_waits(redis: Redis, prefix: str) -> None:
    async with waiting(redis, prefix) as got:
        server = RedisServer(redis.url, prefix=prefix)
        async with server.connection():
            await server.publish([message("late", delay=60)])
            await trio.sleep(0.1)
            await server.publish([message("soon", delay=0.5)])
            await arrives(got, "soon")
    assert got == ["soon"]


async def test_a_record_that_cannot_be_read_is_a_dead_letter_and_harms_no_other(redis: Redis, prefix: str) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("1"), message("2")])
        redis.execute("HSET", f"{{{prefix}}}:messages", "t1", "nonsense")
        async with server.consume({"q": None}) as consumer:
            found = await consumer.receive(10, max_wait=0)
            assert [delivery.envelope.id for delivery in found] == ["2"]
        [dead] = await server.browse("q", "dead")
        assert (dead.envelope.id, dead.reason) == ("1", "payload")
        assert "cannot be read" in (dead.failure.text if dead.failure else "")
        assert await server.delete_messages("q") == 1


async def test_a_call_gets_what_is_behind_messages_that_cannot_be_read(redis: Redis, prefix: str) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("1"), message("2"), message("3")])
        for id_ in ("1", "2"):
            redis.execute("HSET", f"{{{prefix}}}:messages", to_key(id_), "nonsense")
        async with server.consume({"q": None}) as consumer:
            [delivery] = await consumer.receive(1, max_wait=0)
            assert delivery.envelope.id == "3"
        assert (await server.counts("q")).dead == 2


async def test_a_replica_that_must_have_it_has_it(redis: Redis, prefix: str) -> None:
    from repid.brokers.redis.address import parse_address

    with embedded("--replicaof", f"127.0.0.1 {parse_address(redis.url).port}") as replica:
        with trio.fail_after(20):
            while b"connected_slaves:1" not in redis.execute("INFO", "replication") or (
                b"state=online" not in redis.execute("INFO", "replication")
            ):
                await trio.sleep(0.05)
        server = RedisServer(redis.url, prefix=prefix, wait_replicas=1)
        async with server.connection():
            await server.declare(["q"])
            await server.publish([message("1")])
            assert replica.execute("HLEN", keys_of(prefix)[1]) == 1


async def test_calls_that_are_followed_before_they_are_published_are_told_of(redis: Redis, prefix: str) -> None:
    router = Router(queue="q")

    @router.actor
    async def double(number: int) -> int:
        return 2 * number

    app = Repid(Connection(RedisServer(redis.url, prefix=prefix)))
    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        with trio.fail_after(SOON):
            async with app.map(double, range(50), limit=7) as results:
                assert [result async for result in results] == [2 * number for number in range(50)]
        nursery.cancel_scope.cancel()


async def test_messages_of_very_many_queues_fall_due_in_several_steps(redis: Redis, prefix: str) -> None:
    queues = [f"q{n}" for n in range(500)]
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(queues)
        await server.publish([message(queue, queue, delay=0.3) for queue in queues])
        await trio.sleep(0.4)
        await server.counts("q0")
        left = redis.execute("ZCARD", f"{{{prefix}}}:scheduled")
        assert 0 < left < 500
        async with server.consume(dict.fromkeys(queues)) as consumer:
            received: list[str] = []
            with trio.fail_after(10):
                while len(received) < 500:
                    received += [delivery.envelope.id for delivery in await consumer.receive(100)]
    assert sorted(received) == sorted(queues)


class Sleeper:
    """A consumer whose one `receive` sleeps. `got`: what it gave; `scope`: its scope."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.got: list[Delivery] = []
        self.scope = trio.CancelScope()

    async def receive(self) -> None:
        with self.scope, suppress(UsageError):  # the consumer may be closed meanwhile
            self.got = await self.consumer.receive(10)


@asynccontextmanager
async def sleeping(
    redis: Redis, prefix: str, lease_timeout: float = 60.0
) -> AsyncGenerator[tuple[RedisServer, Sleeper], None]:
    server = RedisServer(redis.url, prefix=prefix, lease_timeout=lease_timeout)
    async with server.connection():
        await server.declare(["q"])
        async with trio.open_nursery() as nursery, server.consume({"q": None}) as consumer:
            sleeper = Sleeper(consumer)
            nursery.start_soon(sleeper.receive)
            await falls_asleep(redis, prefix, consumer)
            yield server, sleeper


async def until_got(sleeper: Sleeper) -> Delivery:
    with trio.fail_after(SOON):
        while not sleeper.got:
            await trio.sleep(0.005)
    [delivery] = sleeper.got
    return delivery


async def test_a_message_that_is_published_alone_is_leased_to_who_waits_in_the_same_step(
    redis: Redis, prefix: str
) -> None:
    async with sleeping(redis, prefix) as (server, sleeper):
        publish_unheard(redis, prefix, message("1", topic="t", ttl=60))
        assert leased(redis, prefix) == 1
        redis.execute("CONFIG", "RESETSTAT")
        delivery = await until_got(sleeper)
        assert b"cmdstat_evalsha" not in redis.execute("INFO", "commandstats")  # it needed not ask
        assert (delivery.envelope.id, delivery.attempt, delivery.lost) == ("1", 1, 0)
        assert delivery.ttl_left is not None
        assert 59 < delivery.ttl_left <= 60
        assert await sleeper.consumer.receive(1, max_wait=0) == []  # what it has taken is not put back
        assert await sleeper.consumer.settle([Settlement(delivery, Ack())]) == [SETTLED]
        assert await server.find(["1"]) == [[]]


class Steps(trio.abc.Instrument):
    """The names of the tasks that have had their turn."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.tasks.append(task.name)


async def test_a_message_wakes_who_waits_for_it_and_no_task_that_waits_for_other_news(
    redis: Redis, prefix: str
) -> None:
    async def listen(consumer: Consumer) -> None:
        await consumer.events()

    server, steps = RedisServer(redis.url, prefix=prefix), Steps()
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            nursery.start_soon(listen, consumer, name="listener")
            await wait_all_tasks_blocked()  # it is the first to wait for news
            sleeper = Sleeper(consumer)
            nursery.start_soon(sleeper.receive, name="sleeper")
            await falls_asleep(redis, prefix, consumer)
            await wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(steps)
            publish_unheard(redis, prefix, message("1"))
            await until_got(sleeper)
            trio.lowlevel.remove_instrument(steps)
            nursery.cancel_scope.cancel()
    assert "sleeper" in steps.tasks
    assert "listener" not in steps.tasks


async def test_what_a_client_is_given_is_taken_before_the_task_that_waits_has_its_turn(
    redis: Redis, prefix: str
) -> None:
    async def listen(consumer: Consumer) -> None:
        await consumer.events()

    async def receive(consumer: Consumer) -> None:
        with trio.fail_after(SOON):
            await consumer.receive(1, take=lambda deliveries: steps.tasks.append(deliveries[0].envelope.id))

    server, steps = RedisServer(redis.url, prefix=prefix), Steps()
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            nursery.start_soon(listen, consumer)
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as receiving:
                receiving.start_soon(receive, consumer, name="sleeper")
                await falls_asleep(redis, prefix, consumer)
                await wait_all_tasks_blocked()
                trio.lowlevel.add_instrument(steps)
                publish_unheard(redis, prefix, message("1"))
            trio.lowlevel.remove_instrument(steps)
            nursery.cancel_scope.cancel()
    assert "sleeper" not in steps.tasks[: steps.tasks.index("1")]


async def test_the_ttl_of_what_a_client_was_given_goes_on_until_it_is_heard_of(redis: Redis, prefix: str) -> None:
    async with sleeping(redis, prefix) as (_, sleeper):
        publish_unheard(redis, prefix, message("1", ttl=0.2))
        sent_at = trio.current_time()
        while trio.current_time() < sent_at + 0.3:
            pass  # nothing is heard here meanwhile
        ttl_left = (await until_got(sleeper)).ttl_left
        assert ttl_left is not None
        assert ttl_left < 0


async def test_what_a_client_was_given_that_stops_waiting_goes_to_another_as_if_nobody_had_had_it(
    redis: Redis, prefix: str
) -> None:
    async with sleeping(redis, prefix) as (_, stopping), sleeping(redis, prefix) as (_, other):
        other.scope.cancel()
        while is_asleep(redis, prefix, other.consumer):
            await trio.sleep(0.01)
        publish_unheard(redis, prefix, message("1"))
        assert leased(redis, prefix) == 1
        stopping.scope.cancel()
        with trio.fail_after(SOON):
            [delivery] = await other.consumer.receive(1)
        assert (stopping.got, delivery.attempt, delivery.lost) == ([], 1, 0)
        assert await stopping.consumer.receive(1, max_wait=0) == []


async def test_what_a_client_was_given_is_ready_again_where_its_consumer_is_closed(redis: Redis, prefix: str) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        async with sleeping(redis, prefix) as (_, sleeper):
            publish_unheard(redis, prefix, message("1"))
        assert sleeper.got == []
        assert (await server.counts("q")).ready == 1


async def test_what_a_client_was_given_and_has_no_room_for_any_more_is_ready_again(redis: Redis, prefix: str) -> None:
    async with sleeping(redis, prefix) as (server, sleeper):
        publish_unheard(redis, prefix, message("1", topic="t"))
        sleeper.consumer.set_limits({("q", "t"): 0})
        with trio.fail_after(SOON):
            await falls_asleep(redis, prefix, sleeper.consumer)
        assert (await server.counts("q")).ready == 1
        sleeper.consumer.set_limits({("q", "t"): 1})
        assert (await until_got(sleeper)).lost == 0


async def test_what_a_client_was_given_and_never_heard_of_is_there_when_its_link_is_back(
    redis: Redis, prefix: str
) -> None:
    async with sleeping(redis, prefix) as (_, sleeper):
        publish_unheard(redis, prefix, message("1"))
        cut_links(redis)
        delivery = await until_got(sleeper)
        assert (delivery.envelope.id, delivery.lost) == ("1", 0)


async def test_what_a_client_was_given_that_stops_waiting_when_its_link_breaks_is_ready_again_when_that_is_back(
    redis: Redis, prefix: str
) -> None:
    async with sleeping(redis, prefix) as (server, sleeper):
        publish_unheard(redis, prefix, message("1"))
        cut_links(redis)
        sleeper.scope.cancel()
        with trio.fail_after(SOON):
            while leased(redis, prefix) or server.link.state != "up":
                await trio.sleep(0.01)
        assert sleeper.got == []
        [delivery] = await sleeper.consumer.receive(1, max_wait=0)
        assert (delivery.envelope.id, delivery.lost) == ("1", 0)


async def test_what_was_given_and_cancelled_before_it_was_heard_of_is_not_run(redis: Redis, prefix: str) -> None:
    async with sleeping(redis, prefix) as (server, sleeper):
        publish_unheard(redis, prefix, message("1"))
        unheard(redis, prefix, lambda other: other.cancel_each(["1"]))
        sleeper.scope.cancel()
        assert await sleeper.consumer.receive(1, max_wait=0) == []
        [result] = await server.fetch_results(["1"])
        assert result is not None
        assert result.state == "cancelled"


async def test_what_was_given_and_cancelled_before_it_was_heard_of_is_cancelled_when_it_is_heard_of(
    redis: Redis, prefix: str
) -> None:
    events: list[LeaseEvent] = []

    async def listen(consumer: Consumer) -> None:
        with suppress(UsageError):  # the consumer is closed in the end
            events.extend(await consumer.events())

    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            nursery.start_soon(listen, consumer)
            await wait_all_tasks_blocked()  # it is the first to hear of news
            sleeper = Sleeper(consumer)
            nursery.start_soon(sleeper.receive)
            await falls_asleep(redis, prefix, consumer)
            publish_unheard(redis, prefix, message("1"))
            unheard(redis, prefix, lambda other: other.cancel_each(["1"]))
            delivery = await until_got(sleeper)
            with trio.fail_after(SOON):
                while not events:
                    await trio.sleep(0.005)
            assert events == [LeaseEvent(delivery.token, "cancel")]


async def test_what_a_client_was_given_and_hears_of_after_its_lease_is_another_s(redis: Redis, prefix: str) -> None:
    others: list[Delivery] = []

    async def receive(other: RedisServer) -> None:
        async with other.consume({"q": None}) as consumer:
            while not others:
                await consumer.rescue()
                others.extend(await consumer.receive(1, max_wait=0))

    async with sleeping(redis, prefix, lease_timeout=0.3) as (server, sleeper):
        publish_unheard(redis, prefix, message("1"))
        unheard(redis, prefix, receive)
        with trio.fail_after(SOON):
            await falls_asleep(redis, prefix, sleeper.consumer)
        assert sleeper.got == []
        assert await sleeper.consumer.settle([Settlement(others[0], Ack())]) == [SETTLED]
        await server.publish([message("2")])
        assert (await until_got(sleeper)).envelope.id == "2"


@pytest.fixture
def short_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "BEAT_TIME", 0.1)
    monkeypatch.setattr(driver, "LATE_TIME", 0.4)


@pytest.mark.usefixtures("short_beats")
async def test_what_a_client_was_given_whose_loop_is_blocked_goes_to_another_long_before_the_lease_ends(
    redis: Redis, prefix: str
) -> None:
    async with sleeping(redis, prefix) as (server, sleeper):
        publish_unheard(redis, prefix, message("1"))
        others = received_by_another(redis, prefix, within=SOON)
        assert [(one.envelope.id, one.lost) for one in others] == [("1", 0)]
        with trio.fail_after(SOON):
            await falls_asleep(redis, prefix, sleeper.consumer)
        assert sleeper.got == []
        assert await sleeper.consumer.settle([Settlement(others[0], Ack())]) == [SETTLED]
        await server.publish([message("2")])
        assert (await until_got(sleeper)).envelope.id == "2"


@pytest.mark.usefixtures("short_beats")
async def test_what_a_client_was_given_stays_with_it_while_nobody_could_give_signs_of_life(
    redis: Redis, prefix: str
) -> None:
    async with sleeping(redis, prefix) as (_, sleeper):
        publish_unheard(redis, prefix, message("1"))
        time.sleep(0.6)  # noqa: ASYNC251  no client gives any
        publish_unheard(redis, prefix, message("2"))  # by one whose link has just been opened
        assert leased(redis, prefix) == 1
        sleeper.scope.cancel()


@pytest.mark.usefixtures("short_beats")
async def test_what_a_client_was_given_and_has_taken_stays_with_it_although_it_claims_no_more_and_is_blocked_at_once(
    redis: Redis, prefix: str
) -> None:
    async with sleeping(redis, prefix) as (_, sleeper):
        publish_unheard(redis, prefix, message("1"))
        delivery = await until_got(sleeper)
        others = received_by_another(
            redis, prefix, within=1
        )  # in the next step, before its client gives a sign of life
        assert others == []
        assert await sleeper.consumer.settle([Settlement(delivery, Ack())]) == [SETTLED]


async def test_what_a_client_was_given_and_has_taken_stays_with_it_although_the_server_refused_to_note_that(
    redis: Redis, prefix: str
) -> None:
    async with sleeping(redis, prefix) as (_, sleeper):
        publish_unheard(redis, prefix, message("1"))
        redis.execute("CONFIG", "SET", "min-replicas-to-write", 1)  # it has none, and refuses whatever writes
        try:
            delivery = await until_got(sleeper)
            await trio.sleep(0.1)
        finally:
            redis.execute("CONFIG", "SET", "min-replicas-to-write", 0)
        assert is_given(redis, prefix, sleeper.consumer)
        assert await sleeper.consumer.receive(10, max_wait=0) == []
        assert await sleeper.consumer.settle([Settlement(delivery, Ack())]) == [SETTLED]


@pytest.mark.usefixtures("short_beats")
async def test_what_a_client_takes_stays_with_it_if_that_blocks_it_while_another_call_waited_for_the_news(
    redis: Redis, prefix: str
) -> None:
    taken: list[Delivery] = []
    runs = trio.Event()

    def take(deliveries: list[Delivery]) -> None:
        taken.extend(deliveries)
        runs.set()

    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["p", "q"])
        async with server.consume({"p": None}) as first, server.consume({"q": None}) as consumer:
            nursery.start_soon(first.receive, 1)
            await falls_asleep(redis, prefix, first)
            nursery.start_soon(partial(consumer.receive, 1, take=take))
            await falls_asleep(redis, prefix, consumer)
            publish_unheard(redis, prefix, message("1"))
            with trio.fail_after(SOON):
                await runs.wait()
            others = received_by_another(redis, prefix, within=1)  # in the step after that in which it was taken
            assert others == []
            assert await consumer.settle([Settlement(taken[0], Ack())]) == [SETTLED]
            nursery.cancel_scope.cancel()


async def test_a_call_that_stops_waiting_is_struck_off_although_others_were_answered_at_the_same_moment(
    redis: Redis, prefix: str
) -> None:
    async def receive(consumer: Consumer, scope: trio.CancelScope) -> None:
        with scope:
            await consumer.receive(1)
            await wait_all_tasks_blocked()

    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            for number in range(20):  # the order in which trio runs what is due at once is chance
                await server.publish([message(str(number))])
                async with trio.open_nursery() as nursery:
                    for scope in (one := trio.CancelScope(), other := trio.CancelScope()):
                        nursery.start_soon(receive, consumer, scope)
                    await trio.lowlevel.checkpoint()
                    unheard(redis, prefix, lambda other: other.queues())  # meanwhile both are answered
                    await falls_asleep(redis, prefix, consumer)
                    one.cancel()
                    other.cancel()
                with trio.fail_after(SOON):
                    while is_asleep(redis, prefix, consumer):
                        await trio.sleep(0.005)


async def test_who_does_not_wait_is_given_nothing(redis: Redis, prefix: str) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            assert await consumer.receive(1, max_wait=0) == []
            publish_unheard(redis, prefix, message("1"))
            assert leased(redis, prefix) == 0


@pytest.mark.parametrize("found", ["1", ""])
async def test_who_waits_is_woken_although_another_call_of_its_consumer_has_not_waited(
    redis: Redis, prefix: str, found: str
) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            sleeper = Sleeper(consumer)
            nursery.start_soon(sleeper.receive)
            await falls_asleep(redis, prefix, consumer)
            sleeper.consumer.set_limits({("q", "t"): 0})
            await trio.sleep(0.05)
            await falls_asleep(redis, prefix, consumer)
            if found:
                await server.publish([message(found, topic="t")])
            assert "".join(one.envelope.id for one in await consumer.receive(1, max_wait=0)) == found
            await trio.sleep(0.05)
            await server.publish([message("2")])
            assert (await until_got(sleeper)).envelope.id == "2"


async def test_what_was_given_and_cannot_be_read_any_more_is_a_dead_letter(redis: Redis, prefix: str) -> None:
    async with sleeping(redis, prefix) as (server, sleeper):
        publish_unheard(redis, prefix, message("1"))
        redis.execute("HSET", f"{{{prefix}}}:messages", to_key("1"), "nonsense")
        sleeper.scope.cancel()
        with trio.fail_after(SOON):
            while not (dead := await server.browse("q", "dead")):
                await trio.sleep(0.01)
        assert [(one.envelope.id, one.reason) for one in dead] == [("1", "payload")]


@pytest.mark.parametrize("why", ["paused", "big", "several"])
async def test_nobody_is_given_what_is_paused_or_big_or_one_of_several(redis: Redis, prefix: str, why: str) -> None:
    async with sleeping(redis, prefix) as (server, sleeper):
        if why == "paused":
            await server.pause("q")
        messages = [message("1", payload=b"x" * (65_537 if why == "big" else 1))]
        publish_unheard(redis, prefix, *messages, *([message("2")] if why == "several" else []))
        assert leased(redis, prefix) == 0
        if why != "paused":
            with trio.fail_after(SOON):
                while not sleeper.got:
                    await trio.sleep(0.005)


async def test_nobody_is_given_what_is_sent_while_an_older_message_becomes_ready(redis: Redis, prefix: str) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("1"), message("2")])
        async with server.consume({"q": None}) as holder:
            one, two = await holder.receive(2)

    async def settle(server: RedisServer) -> None:
        async with server.consume({"q": None}) as another:
            settlements = [Settlement(one, Release()), Settlement(two, Ack(), (message("3"),))]
            assert await another.settle(settlements) == [SETTLED, SETTLED]

    async with sleeping(redis, prefix) as (_, sleeper):
        unheard(redis, prefix, settle)
        assert leased(redis, prefix) == 0
        with trio.fail_after(SOON):
            while not sleeper.got:
                await trio.sleep(0.005)
        assert [delivery.envelope.id for delivery in sleeper.got] == ["1", "3"]
