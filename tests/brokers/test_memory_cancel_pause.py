"""What the memory broker promises about cancelling and pausing, a sentence each. Time is virtual."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import chain

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from repid.brokers import InMemoryServer
from repid.brokers.consumer import Consumer
from repid.brokers.memory import tending
from repid.brokers.memory.record import Lease, Record, Subscription, is_gone
from repid.brokers.memory.store import Store
from repid.delivery import (
    ACK,
    Cancel,
    DeadLetter,
    Delivery,
    Disposition,
    NewResult,
    Progress,
    Release,
    Retry,
    Settlement,
    Token,
)
from repid.errors import NotConnected, QueueNotDeclared, UsageError
from repid.ports import ANYTHING, SETTLED, Counts, Snapshot

from .broker_aids import ids, message, now_ready
from .memory_aids import browsed, consuming, driver_of, finishes, settle


async def cancelled(consumer: Consumer) -> list[Token]:
    """The tokens that `events` gives."""
    return [event.token for event in await consumer.events()]


async def told(consumer: Consumer) -> list[Token]:
    """What `events` gives at once."""
    with trio.move_on_after(0.05):
        return await cancelled(consumer)
    return []


# Cancelling


async def test_a_request_is_given_once_to_whoever_asks_first(server: InMemoryServer) -> None:
    async with consuming(server) as consumer, consuming(server), trio.open_nursery() as nursery:
        await server.publish([message("1"), message("2")])
        one, two = await now_ready(consumer)
        given: list[Token] = []

        async def listen() -> None:
            given.extend(await cancelled(consumer))

        nursery.start_soon(listen)
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        for id_ in ("1", "1", "2", "1"):
            assert await server.cancel(id_) == "requested"
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sorted(given) == [one.token, two.token]


async def test_a_request_of_a_run_that_has_ended_is_given_to_nobody(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer, consuming(server) as other:
        await server.publish([message(id_) for id_ in "1234"])
        one, two, three, _ = await consumer.receive(4)
        for id_ in "1234":
            await server.cancel(id_)
        await settle(consumer, one, ACK)
        await settle(consumer, two, Release())
        await trio.sleep(60)
        assert await other.extend([three]) == [True]
        assert await other.rescue() == 1
        assert await told(consumer) == [three.token]
        assert await told(other) == []
        assert await server.counts("q") == Counts(leased=1)
        await server.delete("q")
        assert driver_of(server)._subscriptions[consumer.key].requests == {}


async def test_a_request_still_finds_its_consumer_after_the_lease_was_extended(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message(str(n)) for n in range(50)])
        deliveries = await consumer.receive(50)
        await consumer.extend(deliveries[::3])
        for delivery in deliveries:
            assert await server.cancel(delivery.envelope.id) == "requested"
        assert await told(consumer) == [delivery.token for delivery in deliveries]


async def test_cancelling_beats_expiry_and_poison(autojump_clock: MockClock, server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1", ttl=5), message("2")])
        for _ in range(9):
            await now_ready(consumer)
            await trio.sleep(60)
            await consumer.rescue()
        await server.publish([message("1", ttl=5)])
        assert [(await now_ready(consumer))[0].envelope.id for _ in range(2)] == ["2", "1"]  # the suspect alone
        assert [await server.cancel("1"), await server.cancel("2")] == ["requested", "requested"]
        await trio.sleep(60)
        assert await consumer.rescue() == 2
        assert [result and result.state for result in await server.fetch_results(["1", "2"])] == ["cancelled"] * 2
        assert (await server.watch("2", "2")).state == "gone"


@pytest.mark.parametrize("disposition", [Cancel(), Retry(0), Retry(9), Release(), Release(9), Release(unrouted=True)])
async def test_what_is_cancelled_never_comes_back_and_its_id_is_free(
    autojump_clock: MockClock, server: InMemoryServer, disposition: Disposition
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1", ttl=100)])
        [delivery] = await now_ready(consumer)
        await server.cancel("1")
        verdicts = await consumer.settle([Settlement(delivery, disposition, (message("1"), message("2")))])
        assert verdicts == [SETTLED]
        assert (await server.watch("1", "1")).result is None  # that of the new one
        assert await browsed(server, "ready") == ["1", "2"]
        await trio.sleep(100)
        assert ids(await now_ready(consumer)) == ["1", "2"]


async def test_closing_the_consumer_ends_its_waiting_for_cancellations(server: InMemoryServer) -> None:
    async with trio.open_nursery() as nursery, consuming(server) as consumer:

        async def wait() -> None:
            with pytest.raises(UsageError, match="this consumer is closed"):
                await consumer.events()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()


async def test_closing_the_connection_ends_its_waiting_for_cancellations() -> None:
    server = InMemoryServer()
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery, server.connection():
        await server.declare(["q"])
        consumer = await stack.enter_async_context(server.consume({"q": None}))

        async def wait() -> None:
            with pytest.raises(NotConnected):
                await consumer.events()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("turns", range(5))
async def test_a_wait_for_cancellations_that_is_cancelled_takes_none(server: InMemoryServer, turns: int) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        [delivery] = await now_ready(consumer)
        given: list[Token] = []
        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                given.extend(await cancelled(consumer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(server.cancel, "1")
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            scope.cancel()
        assert given + await told(consumer) == [delivery.token]


async def test_many_cancelled_messages_leave_nothing_behind(server: InMemoryServer) -> None:
    await server.publish([message("stays"), message("waits", delay=1e9, ttl=1e9)])
    for number in range(3000):
        await server.publish([message(f"r{number}", ttl=1e9), message(f"s{number}", delay=1e8, ttl=1e9)])
        assert [await server.cancel(f"{kind}{number}") for kind in "rs"] == ["cancelled", "cancelled"]
    store = driver_of(server).store
    assert len(store.scheduled) <= 1025
    assert len(store._expiring) <= 2050
    assert sum(map(len, store.channels["q"].lanes[None].fresh.values())) <= 1025
    assert await server.counts("q") == Counts(ready=1, scheduled=1)


async def test_cancelling_the_last_message_of_a_lane_forgets_the_lane(server: InMemoryServer) -> None:
    async with consuming(server, frozenset("a")) as consumer:
        await server.publish([message("1", topic="a"), message("2", topic="b")])
        await server.cancel("1")
        await server.cancel("2")
        assert driver_of(server).store.channels["q"].lanes == driver_of(server).store.channels["q"].strays == {}
        assert await now_ready(consumer) == []


async def test_a_report_about_many_runs_passes_over_those_that_have_ended(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1"), message("2"), message("3", "r")])
        one, two = await now_ready(consumer)
        await settle(consumer, one, ACK)
        await server.delete("r")
        await consumer.report([(one, Progress(1)), (two, Progress(2)), (two, Progress(3)), (two, Progress(4, 5, "x"))])
        assert await server.watch("2", "2") == Snapshot(state="leased", attempt=1, progress=Progress(4, 5, "x"))
        assert (await server.watch("1", "1")).progress is None


# Pausing


async def test_a_paused_queue_hands_out_nothing_to_anybody_strays_included(server: InMemoryServer) -> None:
    async with server.consume({"q": frozenset("a"), "r": None}) as one, server.consume({"q": frozenset("b")}) as two:
        await server.publish([message(topic, topic=topic) for topic in "abc"])
        await server.publish([message("other", "r")])
        await server.pause("q")
        await server.pause("q")
        assert (ids(await now_ready(one)), ids(await now_ready(two))) == (["other"], [])
        assert await server.counts("q") == Counts(ready=3, paused=True)
        await server.resume("q")
        await server.resume("q")
        assert ids(await one.receive(1, at_most={("q", "a"): 0}, max_wait=0)) == ["c"]
        assert (ids(await now_ready(one)), ids(await now_ready(two))) == (["a"], ["b"])


async def test_resuming_wakes_as_many_as_there_are_messages_for(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    await server.pause("q")
    got: list[Delivery] = []

    async with consuming(server) as consumer, trio.open_nursery() as nursery:

        async def receive() -> None:
            got.extend(await consumer.receive(2))

        for _ in range(4):
            nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await server.publish([message(str(n)) for n in range(4)])
        await trio.sleep(1)
        assert got == []
        await server.resume("q")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(ids(got)) == ["0", "1", "2", "3"]
        assert len(driver_of(server)._waiting.waiters) == 2
        nursery.cancel_scope.cancel()


async def test_what_becomes_due_in_a_paused_queue_does_not_keep_a_waiter_busy(
    autojump_clock: MockClock, server: InMemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = 0
    receive: Callable[..., list[Delivery]] = driver_of(server).store.receive

    def counting(*arguments: object) -> list[Delivery]:
        nonlocal claims
        claims += 1
        return receive(*arguments)

    monkeypatch.setattr(driver_of(server).store, "receive", counting)
    await server.publish([message(str(n), delay=1 + n / 10) for n in range(10)])
    await server.pause("q")
    async with server.consume({"q": None, "r": None}) as consumer:
        assert await consumer.receive(1, max_wait=100) == []
        assert trio.current_time() == 100
        assert claims <= 12
        assert await server.counts("q") == Counts(ready=10, paused=True)
        await server.resume("q")
        assert ids(await now_ready(consumer)) == [str(n) for n in range(10)]


async def test_what_is_leased_goes_on_while_its_queue_is_paused(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message(id_) for id_ in "123"])
        one, two, three = await now_ready(consumer)
        await server.pause("q")
        assert await consumer.extend([one]) == [True]
        assert await settle(consumer, one, ACK) == SETTLED
        assert await settle(consumer, two, Release()) == SETTLED
        await settle(consumer, three, DeadLetter("nacked"))
        await server.revive("q")
        assert await now_ready(consumer) == []
        assert await server.cancel("2") == "cancelled"
        assert not await finishes(lambda: consumer.receive(1))
        await server.resume("q")
        assert ids(await now_ready(consumer)) == ["3"]


async def test_a_queue_that_was_deleted_while_paused_is_declared_anew_without_the_pause(
    server: InMemoryServer,
) -> None:
    await server.pause("q")
    await server.delete("q")
    for call in (server.pause, server.resume):
        with pytest.raises(QueueNotDeclared):
            await call("q")
    await server.declare(["q"])
    assert await server.counts("q") == Counts()


# All of it together


NUMBERS = st.integers(0, 7)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), NUMBERS, st.sampled_from([{}, {"ttl": 2}, {"delay": 2}, {"delay": 1, "ttl": 3}])),
        st.tuples(st.just("receive"), st.integers(1, 3), st.none()),
        st.tuples(
            st.just("settle"),
            NUMBERS,
            st.sampled_from([ACK, Retry(0), Retry(2), Release(), DeadLetter("failed"), Cancel()]),
        ),
        st.tuples(
            st.sampled_from(["cancel", "cancel", "extend", "report", "rescue", "revive", "flush", "delete", "take"]),
            NUMBERS,
            st.none(),
        ),
        st.tuples(st.just("pass"), st.integers(1, 3), st.none()),
    ),
    max_size=40,
)


@given(OPERATIONS)
@settings(max_examples=300)
def test_whatever_is_done_in_whatever_order_every_count_and_index_agrees(
    operations: list[tuple[str, int, object]],
) -> None:
    store, subscription, now = Store(4.0), Subscription({"q": None}), 0.0
    store.directory.declare(["q"])
    store.directory.open(subscription)
    deliveries: list[Delivery] = []
    for name, number, detail in operations:
        chosen = deliveries[-1 - number : len(deliveries) - number]
        store.directory.declare(["q"])
        if name == "publish":
            assert isinstance(detail, dict)
            store.publish([message(str(number), topic=str(number % 2), **detail)], now)
        elif name == "receive":
            deliveries += store.receive(subscription, number, ANYTHING, now)
        elif name == "settle":
            result = NewResult(id=str(number), state="success", ttl=number)
            store.settle([Settlement(d, detail, result=result) for d in chosen], now)  # type: ignore[arg-type]  # is one
        elif name == "cancel":
            store.cancel(str(number), now)
        elif name == "take":
            assert all(token in store.channels["q"].leases for token in subscription.requests)
        elif name == "pass":
            now += number
        elif name == "rescue":
            store.rescue(now)
        elif name == "extend":
            store.extend(chosen, now)
        elif name == "report":
            store.report([(delivery, Progress(number)) for delivery in chosen], now)
        elif name == "revive":
            tending.revive(store, "q", None, now)
        else:
            getattr(tending, name)(store, "q", now)
        check(store, subscription)


def check(store: Store, subscription: Subscription) -> None:
    channels = store.channels.values()
    ready = [record for channel in channels for lane in channel.all_lanes() for record in lane.records()]
    leased = [record for channel in channels for record in channel.leases.values()]
    scheduled = live(store.scheduled._entries)
    assert Counter(record.envelope.id for record in chain(ready, leased, scheduled)) == Counter(store._ids.keys())
    assert all(record.place is None for record in ready)
    assert all(isinstance(record.place, Lease) for record in leased)
    assert all(isinstance(record.place, float) for record in scheduled)
    for timetable in (store.scheduled, store._expiring):
        assert timetable._stale == len(timetable) - len(live(timetable._entries))
    for channel in channels:
        assert all(len(lane) == len(list(lane.records())) > 0 for lane in channel.lanes.values())
        assert channel.scheduled == sum(record.envelope.queue == channel.name for record in scheduled)
        assert subscription.requests.keys() <= channel.leases.keys()
    dead = sorted(id(dead) for channel in channels for dead in channel.dead.values())
    assert dead == sorted(id(dead) for namesakes in store.dead._by_id.values() for dead in namesakes)
    results = store.results
    assert sorted(chain.from_iterable(results._spans.values())) == sorted(results.kept)
    assert sorted(results._numbers) == sorted(results._spans)


def live(entries: list[tuple[float, int, Record]]) -> list[Record]:
    return [record for _, _, record in entries if not is_gone(record)]
