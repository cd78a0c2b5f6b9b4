"""What the memory broker promises about schedules, a sentence each. Time is virtual."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from repid.brokers import InMemoryServer
from repid.brokers.memory.schedules import _FEWEST_TO_COMPACT, Schedules, _Order
from repid.brokers.memory.store import Store
from repid.delivery import ACK, Delivery, Retry
from repid.envelope import Envelope
from repid.errors import ConfigurationError
from repid.ports import Counts, Schedule, StoredSchedule
from repid.schedule import paused as held

from .broker_aids import ids, message, now_ready
from .memory_aids import browsed, consuming, finishes, settle

NOT_BYTES = Envelope("x", "q", "text")  # type: ignore[arg-type]  # on purpose


def every(seconds: float = 60, name: str = "s") -> Schedule:
    return Schedule(name=name, envelope=message(name), every=seconds)


async def test_a_tick_wakes_who_waits_for_its_queue_and_only_one(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    await server.put_schedule(every(), 1.0)
    got: list[Delivery] = []

    async with consuming(server) as consumer, trio.open_nursery() as nursery:

        async def receive() -> None:
            got.extend(await consumer.receive(1))

        nursery.start_soon(receive)
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        assert await server.tick("s", 1.0, 2.0, message("1")) == "fired"
        await trio.testing.wait_all_tasks_blocked()
        assert ids(got) == ["1"]
        nursery.cancel_scope.cancel()


async def test_a_tick_into_a_paused_queue_waits_there(server: InMemoryServer) -> None:
    await server.put_schedule(every(), 1.0)
    await server.pause("q")
    assert await server.tick("s", 1.0, 2.0, message("1")) == "fired"
    async with consuming(server) as consumer:
        assert await now_ready(consumer) == []
        await server.resume("q")
        assert ids(await now_ready(consumer)) == ["1"]


async def test_a_tick_declares_a_queue_even_for_consumers_that_were_open(server: InMemoryServer) -> None:
    await server.put_schedule(every(), 1.0)
    await server.declare(["new"])
    async with server.consume({"new": None}) as consumer:
        await server.delete("new")
        assert await server.tick("s", 1.0, 2.0, message("1", "new")) == "fired"
        assert ids(await now_ready(consumer)) == ["1"]


async def test_a_bad_envelope_neither_ticks_nor_is_stored(server: InMemoryServer) -> None:
    await server.put_schedule(every(), 1.0)
    with pytest.raises(ConfigurationError, match="payload"):
        await server.tick("s", 1.0, 2.0, NOT_BYTES)
    with pytest.raises(ConfigurationError, match="payload"):
        await server.put_schedule(Schedule(name="t", envelope=NOT_BYTES, every=1), 1.0)
    assert await server.schedules() == [StoredSchedule(schedule=every(), next_at=1.0)]
    assert await server.counts("q") == Counts()


async def test_a_retry_a_namesake_and_a_cancelled_message_decide_whether_the_next_tick_overlaps(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    await server.put_schedule(every(), 0.0)
    async with consuming(server) as consumer:
        assert await server.tick("s", 0.0, 1.0, message("a")) == "fired"
        [delivery] = await now_ready(consumer)
        await settle(consumer, delivery, Retry(100))
        assert await server.tick("s", 1.0, 2.0, message("b")) == "skipped"
        assert await server.cancel("a") == "cancelled"
        assert await server.tick("s", 2.0, 3.0, message("b")) == "fired"
        [delivery] = await now_ready(consumer)
        await settle(consumer, delivery, ACK)
        await server.publish([message("c")])
        assert await server.tick("s", 3.0, 4.0, message("c")) == "skipped"
        assert await server.tick("s", 4.0, 5.0, message("d")) == "fired"
    [stored] = await server.schedules()
    assert (stored.fired, stored.skipped, stored.last_id, stored.next_at) == (3, 2, "d", 5.0)
    assert await browsed(server, "ready") == ["c", "d"]


async def test_a_schedule_that_was_removed_and_put_again_starts_anew(server: InMemoryServer) -> None:
    await server.put_schedule(every(), 0.0)
    await server.tick("s", 0.0, 1.0, message("a"))
    assert await server.remove_schedule("s")
    assert not await server.remove_schedule("s")
    await server.put_schedule(every(5), 7.0)
    assert await server.schedules() == [StoredSchedule(schedule=every(5), next_at=7.0)]
    assert await server.tick("s", 7.0, 8.0, message("b")) == "fired"


async def test_schedules_outlive_connections_and_runs() -> None:
    server = InMemoryServer()
    async with server.connection():
        await server.put_schedule(every(name="b"), 1.0)
        await server.put_schedule(every(name="a"), 2.0)
        [first] = await server.schedules(["a"])
        assert await server.replace_schedule(first, held(first))
    async with server.connection():
        found = [(stored.schedule.name, stored.next_at, stored.paused) for stored in await server.schedules()]
    assert found == [("a", 2.0, True), ("b", 1.0, False)]


async def test_a_watcher_sees_the_message_of_a_tick(server: InMemoryServer) -> None:
    await server.put_schedule(every(), 0.0)
    seen = await server.watch("a", "a")
    states: list[str] = []

    async def watch() -> None:
        states.append((await server.watch("a", "a", seen)).state)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.testing.wait_all_tasks_blocked()
        await server.tick("s", 0.0, 1.0, message("a"))
    assert states == ["ready"]


@pytest.mark.parametrize("turns", range(3))
async def test_a_cancelled_tick_fired_and_says_so_or_did_nothing(server: InMemoryServer, turns: int) -> None:
    await server.put_schedule(every(), 0.0)
    outcomes: list[str] = []

    async def tick(scope: trio.CancelScope) -> None:
        with scope:
            outcomes.append(await server.tick("s", 0.0, 1.0, message("a")))

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick, scope)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        scope.cancel()
    [stored] = await server.schedules()
    assert (stored.fired, stored.next_at) == ((1, 1.0) if outcomes else (0, 0.0))
    assert await browsed(server, "ready") == ["a"] * len(outcomes)


async def test_every_call_about_schedules_can_be_cancelled(server: InMemoryServer) -> None:
    for call in (server.now, server.schedules, lambda: server.put_schedule(every(), 1.0)):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught
    assert await finishes(server.schedules)


class Change(NamedTuple):
    """One schedule as it is stored, or removed (`at` is None)."""

    name: str
    at: int | None
    every: int | None = None
    paused: bool = False


changes = st.builds(
    Change, st.sampled_from("abcdef"), st.none() | st.integers(0, 9), st.none() | st.integers(1, 4), st.booleans()
)


@given(st.lists(changes, max_size=40), st.integers(0, 9), st.integers(1, 7))
def test_what_is_due_is_what_going_through_all_schedules_finds(changes: list[Change], now: int, limit: int) -> None:
    schedules = Schedules(Store(60))
    stored: dict[str, StoredSchedule] = {}
    for name, at, interval, paused in changes:
        old = stored.pop(name, None)
        if at is None:
            schedules.remove(name)
            continue
        cron = None if interval else "* * * * *"
        schedule = Schedule(name=name, envelope=message(name), every=interval, cron=cron)
        stored[name] = StoredSchedule(schedule=schedule, next_at=at, paused=paused)
        assert schedules.replace(old, stored[name])
    active = [each for each in stored.values() if not each.paused]
    due = sorted((each.next_at, each.schedule.name) for each in active if each.next_at <= now)
    ahead = {each.schedule.name for each in active if each.schedule.every and each.next_at - each.schedule.every > now}
    found = schedules.due(limit, now)
    names = [each.schedule.name for each in found.due]
    assert names[: len(due)] == [name for _, name in due][:limit]
    assert set(names[len(due) :]) <= ahead
    assert len(names) == min(limit, len(due) + len(ahead))
    others = sorted(each.next_at for each in active if (each.next_at, each.schedule.name) not in due[:limit])
    assert found.next_at == (others[0] if others else math.inf)


def test_schedules_that_tick_often_take_no_more_memory_than_others() -> None:
    order = _Order(stored := {"s": StoredSchedule(schedule=every(), next_at=0)}, lambda each: each.next_at)
    for number in range(10_000):
        stored["s"] = StoredSchedule(schedule=every(), next_at=-number)
        order.add(stored["s"])
    assert len(order._entries) <= 2 + _FEWEST_TO_COMPACT
    assert order.up_to(0, 10) == ([stored["s"]], math.inf)
