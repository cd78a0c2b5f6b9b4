"""What the memory broker promises about results and about watching, a sentence each. Time is virtual."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from repid.brokers import InMemoryServer
from repid.brokers.memory.results import SWEEP_SPAN, SWEPT_AT_ONCE, Results
from repid.delivery import (
    ACK,
    DAY,
    ON_PLAIN_RETURN,
    Cancel,
    DeadLetter,
    Failure,
    NewResult,
    Progress,
    Release,
    Retry,
    Settlement,
    StoredResult,
)
from repid.envelope import Envelope, Options
from repid.errors import ConfigurationError, NotConnected
from repid.ports import REFUSED, Sight, Snapshot

from .broker_aids import message, now_ready
from .memory_aids import consuming, driver_of, finishes, settle


def success(id_: str, ttl: float = DAY) -> NewResult:
    return NewResult(id=id_, state="success", payload=b"1", ttl=ttl)


async def state(server: InMemoryServer, id_: str) -> str | None:
    [result] = await server.fetch_results([id_])
    return None if result is None else result.state


async def changed(server: InMemoryServer, seen: Snapshot, cause: Callable[[], Awaitable[object]], id_: str) -> Snapshot:
    """What a watcher that waits sees after `cause`, and nothing before."""
    snapshots: list[Snapshot] = []

    async def watch() -> None:
        snapshots.append(await server.watch(id_, id_, seen))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.testing.wait_all_tasks_blocked()
        assert snapshots == []
        await cause()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return snapshots[0]


# Results


async def test_times_of_results_are_seconds_since_1970_on_the_clock_of_the_broker(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    before = await server.now()
    assert before == pytest.approx(time.time(), abs=60)
    await trio.sleep(1000)
    await server.store_results([success("1", ttl=50)])
    [result] = await server.fetch_results(["1"])
    at = before + 1000
    expected = StoredResult(id="1", state="success", payload=b"1", failure=None, finished_at=at, expires_at=at + 50)
    assert result == expected


async def test_a_result_expires_to_the_moment(autojump_clock: MockClock, server: InMemoryServer) -> None:
    await server.store_results([success("1", ttl=5), success("ever", ttl=float("inf")), success("never", ttl=0)])
    assert [await state(server, id_) for id_ in ("1", "ever", "never")] == ["success", "success", None]
    await trio.sleep(4.999)
    assert await state(server, "1") == "success"
    await trio.sleep(0.001)
    assert await state(server, "1") is None
    await trio.sleep(80_000)
    assert await state(server, "ever") == "success"


async def test_results_that_expired_are_forgotten_without_being_asked_for(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    await server.store_results([success(str(n), ttl=1 + n / 10) for n in range(1000)])
    await trio.sleep(100 + 1 + SWEEP_SPAN)
    for _ in range(10):
        await server.counts("q")
    assert driver_of(server).store.results.kept == {}
    assert driver_of(server).store.results._spans == {}


def test_results_are_swept_out_in_bites() -> None:
    results = Results()
    for number in range(3 * SWEPT_AT_ONCE):
        results.store([success(str(number), ttl=number % 7)], 0.0)
    there = len(results.kept)
    results.sweep(SWEEP_SPAN - 0.001)
    assert len(results.kept) == there
    for _ in range(3):
        results.sweep(SWEEP_SPAN)
        there = max(0, there - SWEPT_AT_ONCE)
        assert len(results.kept) == there


def test_results_that_are_replaced_or_removed_leave_nothing_behind() -> None:
    results = Results()
    for number in range(10_000):
        results.store([success(str(number % 2), ttl=DAY + number / 1000)], 0.0)
        results.remove("1")
    assert list(results.kept) == ["0"]
    assert sum(map(len, results._spans.values())) == 1
    assert len(results._numbers) == len(results._spans) == 1


@pytest.mark.parametrize("ttl", [float("nan"), "5", None])
async def test_a_bad_ttl_stores_nothing_at_all(server: InMemoryServer, ttl: float) -> None:
    bad = NewResult(id="2", state="success", ttl=ttl)
    with pytest.raises(ConfigurationError, match="the ttl of the result '2' must be a number"):
        await server.store_results([success("1"), bad])
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        [delivery] = await now_ready(consumer)
        with pytest.raises(ConfigurationError):
            await consumer.settle(
                [Settlement(delivery, ACK, result=success("1")), Settlement(delivery, ACK, result=bad)]
            )
        assert await consumer.extend([delivery]) == [True]
    assert await server.fetch_results(["1", "2"]) == [None, None]


async def test_a_message_in_its_own_outbox_does_not_inherit_the_result(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        [delivery] = await now_ready(consumer)
        await consumer.settle([Settlement(delivery, ACK, (message("1"),), success("1"))])
        assert await server.watch("1", "1") == Snapshot(state="ready", attempt=1)


@pytest.mark.parametrize("has_result", [False, True])
async def test_a_message_in_an_outbox_does_not_inherit_a_result_that_was_settled_before_it_in_the_same_call(
    server: InMemoryServer, has_result: bool
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1"), message("2")])
        one, two = await now_ready(consumer)
        own = success("1") if has_result else None
        first = Settlement(one, ON_PLAIN_RETURN, result=success("1"))
        await consumer.settle([first, Settlement(two, ON_PLAIN_RETURN, (message("1"),), own)])
        assert await server.watch("1", "1") == Snapshot(state="ready", attempt=1)


async def test_reviving_removes_the_old_result(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        [delivery] = await now_ready(consumer)
        failure = NewResult(id="1", state="failure", failure=Failure("E", "e"))
        await consumer.settle([Settlement(delivery, DeadLetter("failed"), result=failure)])
        assert await state(server, "1") == "failure"
        assert await server.revive("q") == [None]
        assert await state(server, "1") is None


async def test_a_result_the_worker_gives_with_cancel_is_the_one_that_is_stored(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1"), message("2", store_result=False)])
        one, two = await now_ready(consumer)
        given = NewResult(id="1", state="cancelled", ttl=5)
        await consumer.settle([Settlement(one, Cancel(), result=given), Settlement(two, Cancel())])
        [result, none] = await server.fetch_results(["1", "2"])
        assert result is not None
        assert result.expires_at - result.finished_at == pytest.approx(5)
        assert none is None


async def test_results_and_schedules_outlive_connections(autojump_clock: MockClock) -> None:
    server = InMemoryServer()
    async with server.connection():
        await server.store_results([success("1", ttl=5)])
    await trio.sleep(4)
    async with server.connection():
        assert await state(server, "1") == "success"
        await trio.sleep(1)
        assert await state(server, "1") is None


def test_time_goes_on_from_one_run_to_the_next() -> None:
    server = InMemoryServer()
    times: list[float] = []

    async def main() -> None:
        async with server.connection():
            times.append(await server.now())
            await trio.sleep(1000)
            times.append(await server.now())
            await server.store_results([success(str(len(times)), ttl=60)])

    async def fetch() -> None:
        async with server.connection():
            assert await state(server, "2") == "success"

    trio.run(main, clock=MockClock(autojump_threshold=0))
    trio.run(fetch)
    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert times[1] - times[0] == pytest.approx(1000)
    assert 0 <= times[2] - times[1] < 60


# Watching


async def test_watch_answers_at_once_what_was_not_seen(server: InMemoryServer) -> None:
    await server.publish([message("1")])
    ready = Snapshot(state="ready", attempt=1)
    assert await server.watch("1", "1") == ready
    assert await server.watch("1", "1", Snapshot(state="gone")) == ready
    assert not await finishes(lambda: server.watch("1", "1", ready))


async def test_progress_is_shown_until_the_next_run_begins(autojump_clock: MockClock, server: InMemoryServer) -> None:
    half = Progress(1, 2)
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        [delivery] = await now_ready(consumer)
        await consumer.report([(delivery, half)])
        await settle(consumer, delivery, Retry(0))
        assert await server.watch("1", "1") == Snapshot(state="ready", attempt=2, progress=half)
        [delivery] = await now_ready(consumer)
        assert await server.watch("1", "1") == Snapshot(state="leased", attempt=2)
        await consumer.report([(delivery, half)])
        await settle(consumer, delivery, DeadLetter("failed"))
        assert await server.watch("1", "1") == Snapshot(state="dead", attempt=2, progress=half)


async def test_a_watcher_sees_what_time_alone_does(autojump_clock: MockClock, server: InMemoryServer) -> None:
    await server.publish([message("1", delay=3, ttl=4, result_ttl=5)])
    seen: Snapshot | None = None
    story: list[tuple[float, str, str | None]] = []
    for _ in range(4):
        seen = await server.watch("1", "1", seen)
        story.append((trio.current_time(), seen.state, seen.result.state if seen.result else None))
    assert story == [(0, "scheduled", None), (3, "ready", None), (7, "dead", "expired"), (12, "dead", None)]


async def test_the_timer_of_a_watcher_fires_once_whatever_the_rounding(autojump_clock: MockClock) -> None:
    server = InMemoryServer()
    async with server.connection():
        await server.declare(["q"])
    driver_of(server)._clock._offset = 0.1 + 1e8  # as another run might have left it
    async with server.connection():
        await server.publish([message("1", ttl=1 / 3)])
        seen = await server.watch("1", "1")
        assert (await server.watch("1", "1", seen)).state == "dead"
        assert trio.current_time() == pytest.approx(1 / 3)


async def test_a_watcher_sees_what_else_takes_a_message_away(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        causes: list[Callable[[], Awaitable[object]]] = [
            lambda: server.flush("q"),
            lambda: server.delete("q"),
            lambda: server.cancel("1"),
        ]
        for cause in causes:
            await server.declare(["q"])
            await server.publish([message("1", store_result=False)])
            seen = await server.watch("1", "1")
            assert await changed(server, seen, cause, "1") == Snapshot(state="gone")
        await server.declare(["q"])
        await server.publish([message("1")])
        [delivery] = await now_ready(consumer)
        await settle(consumer, delivery, DeadLetter("failed"))
        seen = await server.watch("1", "1")
        assert (await changed(server, seen, lambda: server.revive("q"), "1")).state == "ready"
        [delivery] = await now_ready(consumer)
        await settle(consumer, delivery, DeadLetter("failed"))
        seen = await server.watch("1", "1")
        assert (await changed(server, seen, lambda: server.delete("q"), "1")).state == "gone"


async def test_a_watcher_sees_results_that_come_and_go_under_their_own_id(server: InMemoryServer) -> None:
    seen = await server.watch("1", "result")
    snapshots: list[Snapshot] = []

    async def watch() -> None:
        for _ in range(2):
            snapshots.append(await server.watch("1", "result", snapshots[-1] if snapshots else seen))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.testing.wait_all_tasks_blocked()
        await server.store_results([success("result")])
        await trio.testing.wait_all_tasks_blocked()
        await server.publish([Envelope("2", "q", b"", options=Options(result_id="result"))])
    assert [snapshot.result and snapshot.result.state for snapshot in snapshots] == ["success", None]


async def test_of_dead_namesakes_the_last_is_shown(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        for attempt in (1, 2, 3):
            await server.publish([message("1")])
            for _ in range(attempt - 1):
                [delivery] = await now_ready(consumer)
                await settle(consumer, delivery, Retry(0))
            [delivery] = await now_ready(consumer)
            await settle(consumer, delivery, DeadLetter("failed"))
        assert (await server.watch("1", "1")).attempt == 3
        last = (await server.browse("q", "dead"))[-1]
        assert await server.revive("q", [last.key]) == [None]
        assert (await server.watch("1", "1")).state == "ready"
        await server.flush("q")
        assert (await server.watch("1", "1")).attempt == 2
        await server.delete("q")
        assert await server.watch("1", "1") == Snapshot(state="gone")


async def test_what_happens_to_others_costs_a_watcher_nothing(
    server: InMemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.publish([message("1")])
    seen = await server.watch("1", "1")
    looks = 0
    snapshots = driver_of(server).snapshots

    async def counting(ids: Sequence[tuple[str, str]]) -> list[Sight]:
        nonlocal looks
        looks += 1
        return await snapshots(ids)

    monkeypatch.setattr(driver_of(server), "snapshots", counting)
    async with trio.open_nursery() as nursery, consuming(server) as consumer:
        nursery.start_soon(server.watch, "1", "1", seen)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            await server.publish([message(str(n), "r") for n in range(2, 10)])
            await server.flush("r")
            await server.store_results([success("2")])
        assert looks == 1
        [delivery] = await now_ready(consumer)
        await consumer.extend([delivery])
        await trio.testing.wait_all_tasks_blocked()
        assert looks == 2


@pytest.mark.parametrize("turns", range(4))
async def test_whoever_stops_watching_leaves_nothing_behind(server: InMemoryServer, turns: int) -> None:
    seen = await server.watch("1", "2")
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(server.watch, "1", "2", seen)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert not server._watchers.watched


async def test_closing_the_connection_ends_watching() -> None:
    server = InMemoryServer()
    async with trio.open_nursery() as nursery, server.connection():
        seen = await server.watch("1", "1")

        async def watch() -> None:
            with pytest.raises(NotConnected):
                await server.watch("1", "1", seen)

        nursery.start_soon(watch)
        await trio.testing.wait_all_tasks_blocked()
    assert not server._watchers.watched


async def test_a_late_verdict_changes_nothing_that_is_watched(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        [delivery] = await now_ready(consumer)
        await settle(consumer, delivery, Release())
        seen = await server.watch("1", "1")
        late = Settlement(delivery, ACK, (message("2"),), success("1"))
        assert await consumer.settle([late]) == [REFUSED]
        await consumer.report([(delivery, Progress(1))])
        assert not await finishes(lambda: server.watch("1", "1", seen))
        assert await server.watch("2", "2") == Snapshot(state="gone")


async def test_a_result_that_never_expires_is_replaced_and_removed(server: InMemoryServer) -> None:
    for payload in (b"1", b"2"):
        await server.store_results([NewResult(id="ever", state="success", payload=payload, ttl=math.inf)])
    [found] = await server.fetch_results(["ever"])
    assert found is not None
    assert (found.payload, found.expires_at) == (b"2", math.inf)
    await server.publish([message("ever")])
    assert await server.fetch_results(["ever"]) == [None]
