"""Many calls at once: `map`, `gather` and `first_of`, and the one watch behind them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any

import pytest
import trio

from repid import (
    CallRecord,
    ConfigurationError,
    Connection,
    Envelope,
    InMemoryServer,
    Job,
    JobFailed,
    JobHandle,
    NotConnected,
    Outcomes,
    PayloadError,
    Publish,
    Queue,
    QueueFull,
    Repid,
    ResultError,
    Router,
    Server,
    SQLiteServer,
    UsageError,
)
from repid.delivery import StoredResult
from repid.ports import Cancelled

router = Router(queue="many")
running: list[int] = []


@router.actor
async def square(number: int, *, plus: int = 0) -> int:
    return number * number + plus


@router.actor
async def wait(seconds: int) -> int:
    running.append(seconds)
    try:
        await trio.sleep(seconds)
    finally:
        running.remove(seconds)
    return seconds


@router.actor
async def fail(number: int) -> int:
    if number % 2:
        raise LookupError(number)
    return number


@router.actor
async def wait_on_the_host(seconds: float) -> float:
    await asyncio.sleep(seconds / 1000)
    return seconds


def make(server: Server) -> Repid:
    app = Repid(Connection(server))
    app.include_router(router)
    return app


@asynccontextmanager
async def at_work(app: Repid) -> AsyncGenerator[Repid]:
    async with app.magic(), trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        yield app
        nursery.cancel_scope.cancel()


@pytest.fixture
async def many(autojump_clock: object) -> AsyncGenerator[Repid]:
    async with at_work(make(InMemoryServer())) as app:
        yield app


def of_server(app: Repid) -> Server:
    server = app.server()
    assert isinstance(server, Server)
    return server


async def numbers(end: int, log: list[str] | None = None) -> AsyncIterator[int]:
    try:
        for number in range(end):
            await trio.sleep(0.01)
            yield number
    finally:
        if log is not None:
            log.append("closed")


async def nothing_is_left(app: Repid) -> None:
    await trio.sleep(1)
    counts = await Queue("many").counts()
    assert (counts.ready, counts.scheduled, counts.leased, running) == (0, 0, 0, [])
    assert not of_server(app)._watchers.watched


# map


async def test_the_results_of_a_map_cannot_be_read_when_its_block_was_left(many: Repid) -> None:
    async def read_on(results: AsyncIterator[int]) -> None:
        with pytest.raises(UsageError, match="the block of this map was left"):
            await anext(results)
        ended.set()

    ended = trio.Event()
    with trio.fail_after(100):
        async with many.map(square, [1, 2]) as results:
            assert await anext(results) == 1
        with pytest.raises(UsageError, match="the block of this map was left"):
            await anext(results)
        async with trio.open_nursery() as nursery, many.map(wait, [1000]) as slow:
            nursery.start_soon(read_on, slow)
            await trio.sleep(1)
        assert ended.is_set()
    await nothing_is_left(many)


@pytest.mark.parametrize("limit", [1, 3, 1000])
async def test_results_come_in_the_order_of_the_items_or_as_the_calls_end(many: Repid, limit: int) -> None:
    seconds = [5, 1, 4, 2, 3]
    async with many.map(wait, seconds, limit=limit) as results:
        assert [result async for result in results] == seconds
    async with many.map(wait, seconds, limit=limit, ordered=False) as results:
        assert [result async for result in results] == {1: seconds, 3: [1, 2, 4, 5, 3], 1000: [1, 2, 3, 4, 5]}[limit]
    await nothing_is_left(many)


async def test_no_more_calls_than_the_limit_are_under_way_also_while_the_loop_is_busy(many: Repid) -> None:
    most = 0
    async with many.map(wait, (1 for _ in range(20)), limit=4) as results:
        async for _ in results:
            await trio.sleep(3)
            most = max(most, len(running))
            counts = await Queue("many").counts()
            assert counts.ready + counts.leased <= 4
    assert most == 0  # they have all ended, and wait to be taken
    started = trio.current_time()
    async with many.map(wait, [1] * 20, limit=4) as results:
        assert len([result async for result in results]) == 20
    assert trio.current_time() - started == pytest.approx(5)  # four at a time, all the time


async def test_an_async_source_is_read_ahead_while_the_loop_waits_and_closed_with_the_block(many: Repid) -> None:
    log: list[str] = []
    async with many.map(square, numbers(30, log), limit=7) as results:
        assert [result async for result in results] == [n * n for n in range(30)]
    assert log == ["closed"]
    async with many.map(wait, numbers(1000, log), limit=3) as results:
        async for result in results:
            if result == 2:
                break
    assert log == ["closed", "closed"]
    await nothing_is_left(many)


async def test_an_endless_source_is_mapped_until_the_loop_is_left_which_cancels_what_is_under_way(many: Repid) -> None:
    async with many.map(square, count(), limit=10) as results:
        async for result in results:
            if result == 400:
                break
    await nothing_is_left(many)
    with trio.move_on_after(0.5) as scope:
        async with many.map(wait, [1000] * 30, limit=10) as results:
            async for _ in results:
                pass
    assert scope.cancelled_caught
    await nothing_is_left(many)


async def test_a_failure_is_raised_in_its_place_and_the_loop_may_go_on(many: Repid) -> None:
    found: list[object] = []
    async with many.map(fail, range(4)) as results:
        while True:
            try:
                found.append(await anext(results))
            except JobFailed as error:
                found.append(error.text)
            except StopAsyncIteration:
                break
    assert found == [0, "1", 2, "3"]
    with pytest.raises(JobFailed, match="LookupError: 1"):
        async with many.map(fail, range(4)) as results:
            async for _ in results:
                pass
    await nothing_is_left(many)


async def test_failures_can_be_yielded_as_results(many: Repid) -> None:
    async with many.map(fail, range(4), on_error="yield") as results:
        found = [result async for result in results]
    assert [result.state for result in found] == ["success", "failure", "success", "failure"]
    assert found[2].value == 2


async def test_what_the_source_raises_is_raised_behind_the_results_of_what_came_before(many: Repid) -> None:
    def broken() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("disk")

    async def broken_slowly() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise OSError("disk")

    for source in (broken(), broken_slowly()):
        found = []
        with pytest.raises(OSError, match="disk"):
            async with many.map(square, source) as results:
                async for result in results:
                    found.append(result)  # noqa: PERF401  an error ends it
        assert found == [1, 4]


async def test_what_the_body_raises_comes_out_as_it_is(many: Repid) -> None:
    for source in (range(5), numbers(5)):
        with pytest.raises(KeyError, match="body"):
            async with many.map(square, source) as results:
                await anext(results)
                raise KeyError("body")
    await nothing_is_left(many)


async def test_an_item_that_does_not_fit_and_arguments_that_are_shared(many: Repid) -> None:
    async with many.map(partial(square, plus=1), [1, 2]) as results:
        assert [result async for result in results] == [2, 5]
    async with many.map(square, [1, "2", 3]) as results:  # type: ignore[arg-type]
        assert await anext(results) == 1
        with pytest.raises(PayloadError, match=r"square\(\)"):
            await anext(results)
        assert [result async for result in results] == [9]


async def test_an_item_whose_own_code_raises_is_an_error_in_its_place(many: Repid) -> None:
    class Odd:
        def __getattribute__(self, name: str) -> object:
            raise KeyError("odd")

    items: list[Any] = [1, "2", Odd(), 3]
    async with many.map(square, items) as results:
        assert await anext(results) == 1
        for expected in (PayloadError, KeyError):
            with pytest.raises(expected):
                await anext(results)
        assert [result async for result in results] == [9]


async def test_what_fails_to_begin_or_to_close_a_source_comes_out_as_it_is(many: Repid) -> None:
    class NoSource:
        def __iter__(self) -> Iterator[int]:
            raise OSError("no source")

    async def breaks() -> AsyncIterator[int]:
        try:
            for number in count():
                yield number
        finally:
            raise OSError("cannot close")

    with pytest.raises(OSError, match="no source"):
        async with many.map(square, NoSource()):
            raise AssertionError
    with pytest.raises(OSError, match="cannot close"):
        async with many.map(square, breaks()) as results:
            assert await anext(results) == 0
    await nothing_is_left(many)


async def test_a_map_without_a_block_and_with_wrong_options_is_refused(many: Repid) -> None:
    mapped = many.map(square, [1])
    with pytest.raises(UsageError, match=r"async with app.map\(...\) as results"):
        aiter(mapped)  # type: ignore[arg-type]  # what it is about
    async with mapped as results:
        assert [result async for result in results] == [1]
    with pytest.raises(UsageError, match="entered before"):
        await mapped.__aenter__()
    with pytest.raises(ConfigurationError, match="limit of map must be a whole number of at least 1"):
        many.map(square, [1], limit=0)
    with pytest.raises(ConfigurationError, match="limit of map must be finite"):
        many.map(square, [1], limit=float("inf"))  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="on_error of map must be one of 'raise', 'yield'"):
        many.map(square, [1], on_error="no")  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="items of map must be an iterable or an async iterable"):
        many.map(square, 5)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="id_ cannot be given for many calls"):
        many.using(id_="x").map(square, [1])
    with pytest.raises(ConfigurationError, match="call_timeout=1 is for call"):
        many.using(call_timeout=1).map(square, [1])


async def test_a_read_that_is_cancelled_loses_nothing_wherever_it_was(autojump_clock: object) -> None:
    async def slowly(call_next: Publish, envelopes: Sequence[Envelope]) -> Outcomes:
        await trio.sleep(1)
        return await call_next(envelopes)

    class Slow(InMemoryServer):
        async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
            await trio.sleep(1)
            return await super().fetch_results(ids)

    app = Repid(Connection(InMemoryServer()), producer_middlewares=[slowly], result_store=Slow())
    app.include_router(router)
    async with at_work(app), app.map(wait, [3, 1, 2], limit=2) as results:
        found: list[int] = []
        for number in range(1000):
            with trio.move_on_after(0.7 + number % 10 / 10):
                found.append(await anext(results))
            if len(found) == 3:
                break
        assert found == [3, 1, 2]


async def test_no_call_is_run_twice_where_reads_are_cancelled_while_a_full_queue_takes_the_calls(many: Repid) -> None:
    runs: Counter[int] = Counter()
    patience = cycle([0.25, 0.45, 0.65, 5.0])
    queue = Router(queue="full")

    @queue.actor
    async def note(number: int) -> int:
        await trio.sleep(0.1)
        runs[number] += 1
        return number

    many.include_router(queue)
    await Queue("full", max_size=2, app=many).declare()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(many.run_worker, tasks_limit=1))

        async def send_others() -> None:
            for number in range(100, 120):
                await many.enqueue(note, number)

        for _ in range(3):
            nursery.start_soon(send_others)
        found: list[int] = []
        async with many.map(note, range(20), limit=10) as results:
            while len(found) < 20:
                with trio.move_on_after(next(patience)):
                    found.append(await anext(results))
        nursery.cancel_scope.cancel()
    assert sorted(found) == list(range(20))
    assert max(runs[number] for number in range(20)) == 1


async def test_calls_that_are_due_later_are_followed_also_if_a_read_was_cancelled_before_they_were_sent(
    many: Repid,
) -> None:
    scope = trio.CancelScope()

    def numbers() -> Iterator[int]:
        scope.cancel()  # so that asking the server for its time is cancelled
        yield 3

    due = datetime.now(UTC) - timedelta(seconds=1)
    async with many.using(deferred_until=due).map(square, numbers()) as results:
        with scope:
            await anext(results)
        assert scope.cancelled_caught
        with trio.fail_after(5):
            assert await anext(results) == 9


async def test_a_map_that_is_left_waits_five_seconds_at_most_for_a_server_to_cancel_its_calls(
    autojump_clock: object,
) -> None:
    class Deaf(InMemoryServer):
        async def cancel_each(self, ids: Iterable[str]) -> list[Cancelled]:
            await trio.sleep_forever()
            raise AssertionError

    async with at_work(make(Deaf())) as app:
        async with app.map(wait, [50, 50]) as results:
            with trio.move_on_after(1):
                await anext(results)
            left = trio.current_time()
        assert trio.current_time() - left == 5


async def test_two_tasks_that_read_one_map_are_told(many: Repid) -> None:
    async with many.map(wait, [5, 5]) as results, trio.open_nursery() as nursery:
        nursery.start_soon(anext, results)
        await trio.sleep(1)
        with pytest.raises(UsageError, match="by one task at a time"):
            await anext(results)


async def test_results_that_were_taken_are_kept_by_nobody(many: Repid) -> None:
    async with many.map(square, range(1000), limit=50) as results:
        async for _ in results:
            assert len(of_server(many)._driver.store.results.kept) <= 50 + 256  # type: ignore[attr-defined]
    assert not of_server(many)._driver.store.results.kept  # type: ignore[attr-defined]


async def test_the_server_in_memory_hands_results_to_a_map_and_is_asked_for_nothing(many: Repid) -> None:
    calls: list[CallRecord] = []
    of_server(many).add_instrument(calls.append)
    async with many.map(square, range(1000), limit=50) as results:
        assert [result async for result in results] == [n * n for n in range(1000)]
    assert {call.name for call in calls} - {"news", "claim"} == {"publish", "settle"}


async def test_the_server_in_memory_is_asked_about_a_call_once_whose_results_are_elsewhere(
    autojump_clock: object,
) -> None:
    calls: list[CallRecord] = []
    app = Repid(Connection(InMemoryServer()), result_store=InMemoryServer())
    app.include_router(router)
    async with at_work(app):
        of_server(app).add_instrument(calls.append)
        async with app.map(square, range(1000), limit=50) as results:
            assert [result async for result in results] == [n * n for n in range(1000)]
    assert sum(call.count for call in calls if call.name == "snapshots") == 1000


async def test_a_map_that_is_cancelled_by_its_loop_gives_no_further_result_that_is_there_already(many: Repid) -> None:
    seen = []
    async with many.map(square, range(50), limit=50) as results:
        with trio.CancelScope() as scope:
            async for result in results:
                seen.append(result)
                await trio.sleep(1)  # all have ended
                if result == 4:
                    scope.cancel()
        assert seen == [0, 1, 4]
        assert [result async for result in results] == [n * n for n in range(3, 50)]


async def test_a_call_that_a_full_queue_refused_is_an_error_of_the_loop_and_does_not_hang(
    autojump_clock: object,
) -> None:
    router = Router(channel="narrow", max_size=1, when_full="raise")
    router.actor(square)
    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    async with at_work(app), app.map(square, range(3), limit=3) as results:
        with pytest.raises(QueueFull, match="queue 'narrow' is full"):
            await anext(results)
        assert await anext(results) == 0
        for _ in range(2):
            with pytest.raises(ResultError, match="has ended, and no result of it is stored"):
                await anext(results)


async def test_a_call_that_was_flushed_is_an_error_of_the_loop_and_does_not_hang(autojump_clock: object) -> None:
    app = make(InMemoryServer())
    async with app.magic(), app.map(square, [1, 2]) as results:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def flush() -> None:
                await trio.sleep(1)
                await Queue("many").flush()

            with pytest.raises(ResultError, match="was flushed or deleted"):
                await anext(results)


async def test_calls_with_a_ttl_expire_in_the_loop(autojump_clock: object) -> None:
    app = make(InMemoryServer())
    async with app.magic():
        async with app.using(ttl=5).map(square, [1, 2], on_error="yield") as results:
            assert [result.state async for result in results] == ["expired", "expired"]
    assert trio.current_time() >= 5


@pytest.mark.real_time
async def test_a_map_and_a_gathering_over_a_file(tmp_path: Path) -> None:
    async with at_work(make(SQLiteServer(tmp_path / "jobs.db"))) as app:
        async with app.map(square, range(30), limit=8) as results:
            assert [result async for result in results] == [n * n for n in range(30)]
        handles = await app.using(store_result=True).enqueue_many(square, range(30))
        assert await app.gather(handles, timeout=30) == [n * n for n in range(30)]


def test_under_asyncio_items_come_from_there_and_so_do_the_ends() -> None:
    app, log = make(InMemoryServer()), list[str]()

    async def items(end: int) -> AsyncIterator[int]:
        try:
            for number in range(end):
                await asyncio.sleep(0)
                yield number
        finally:
            log.append("closed")

    async def main() -> None:
        async with app.magic():
            worker = asyncio.create_task(app.run_worker())
            for source in (range(10), items(10)):
                async with app.map(square, source, limit=3) as results:
                    assert [result async for result in results] == [n * n for n in range(10)]
            async with app.map(wait_on_the_host, items(10**6), limit=3) as results:
                async for result in results:
                    if result == 5:
                        break
            assert log == ["closed", "closed"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), app.map(wait_on_the_host, [10**6] * 5) as results:
                    await anext(results)
            await asyncio.sleep(0.05)
            counts = await Queue("many").counts()
            assert (counts.ready, counts.leased) == (0, 0)
            handles = await app.using(store_result=True).enqueue_many(square, range(5))
            assert await app.gather(handles) == [0, 1, 4, 9, 16]
            assert (await app.first_of(handles)).is_success
            worker.cancel()

    asyncio.run(main())


# gather and first_of


async def test_ten_thousand_results_are_one_watch_and_not_ten_thousand_requests(many: Repid) -> None:
    calls: Counter[str] = Counter()
    handles = await many.using(store_result=True).enqueue_many(square, range(10_000))
    of_server(many).add_instrument(lambda call: calls.update([call.name]))
    assert await many.gather(handles) == [n * n for n in range(10_000)]
    assert calls["fetch_results"] == 0
    assert calls["snapshots"] < 1000
    assert not of_server(many)._watchers.watched


async def test_a_call_is_looked_at_when_it_is_followed_and_when_it_has_ended_and_not_at_each_step(
    autojump_clock: object,
) -> None:
    app, looks = make(InMemoryServer()), Counter[str]()
    async with app.magic(), trio.open_nursery() as nursery:
        handles = await app.using(store_result=True).enqueue_many(wait, [5] * 50)
        of_server(app).add_instrument(lambda call: looks.update({call.name: call.count}))
        nursery.start_soon(app.gather, handles)
        await trio.sleep(1)
        await nursery.start(app.run_worker)
        await trio.sleep(1)
        assert len(running) == 50
        assert looks["snapshots"] == 50
        await trio.sleep(10)
        assert looks["snapshots"] == 100
        nursery.cancel_scope.cancel()


async def test_who_watches_a_job_is_told_of_its_steps_although_another_task_follows_it_to_its_end(many: Repid) -> None:
    handle = await many.using(store_result=True, delay=1).enqueue(wait, 1)
    states: list[str] = []

    async def watch() -> None:
        states.extend([status.state async for status in handle.watch()])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(many.gather, [handle])
        await trio.sleep(0.1)
        nursery.start_soon(watch)
        await trio.sleep(0.1)
        nursery.start_soon(many.gather, [handle])
    seen = [state for state in states if state != "ready"]  # which it is for a moment, and may be seen so
    assert seen == ["scheduled", "running", "success"]
    assert not of_server(many)._watchers.watched


async def test_gathering_raises_all_failures_together_or_gives_results(many: Repid) -> None:
    handles = await many.using(store_result=True).enqueue_many(fail, range(4))
    with pytest.raises(ExceptionGroup, match="2 of 4 jobs gave no value") as caught:
        await many.gather(handles)
    assert [error.text for error in caught.value.exceptions if isinstance(error, JobFailed)] == ["1", "3"]
    results = await many.gather(handles, on_error="return")
    assert [result.is_success for result in results] == [True, False, True, False]
    assert await many.gather([]) == []
    silent = await many.enqueue_many(square, [1])
    with pytest.raises(ExceptionGroup) as caught:
        await many.gather(silent, on_error="return")
    assert "no result was asked for" in str(caught.value.exceptions[0])


async def test_the_item_that_does_not_fit_is_named_and_a_tuple_is_told_to_be_one_argument() -> None:
    odd: Any = [1, 2, "three", 4], [(1, 2)], ["one"]
    app = make(InMemoryServer())
    async with app.magic():
        with pytest.raises(PayloadError) as caught:
            await app.enqueue_many(wait, odd[0])
        assert caught.value.__notes__ == ["this was item 2, counted from 0, of 4: 'three'"]
        with pytest.raises(PayloadError) as caught:
            await app.enqueue_many(square, odd[1])
        [note] = caught.value.__notes__
        assert "an item is the first argument of its call alone; for several make each call a job" in note
        with pytest.raises(PayloadError) as caught:
            await app.enqueue_many(wait, odd[2])
        assert not hasattr(caught.value, "__notes__")


async def test_gathering_handles_of_several_servers_and_one_handle_twice(autojump_clock: object) -> None:
    app = make(InMemoryServer())
    app.servers.register_server("other", InMemoryServer())
    async with app.magic(), trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        await nursery.start(partial(app.run_worker, server_name="other"))
        here = await app.using(store_result=True).enqueue(square, 2)
        there = await app.using(store_result=True, server_name="other").enqueue(square, 3)
        assert await app.gather([there, here, there]) == [9, 4, 9]
        assert await app.gather(there, here) == [9, 4]
        assert await app.gather(here) == [4]
        assert await app.gather() == []
        assert (await app.first_of(here, there)).value in {4, 9}
        with pytest.raises(TimeoutError, match="0 of 1 jobs have ended within 5 seconds, not 1"):
            await app.gather([await app.using(delay=10).enqueue(square, 3)], timeout=5)
        nursery.cancel_scope.cancel()


async def test_the_first_that_ends_is_given_and_the_others_are_cancelled_if_asked(many: Repid) -> None:
    handles = await many.using(store_result=True).enqueue_many(wait, [50, 2, 60])
    first = await many.first_of(handles)
    assert (first.value, sorted(running)) == (2, [50, 60])
    assert (await many.first_of([handles[0], handles[2]], cancel_others=True)).value == 50
    assert (await handles[2].wait()).state == "cancelled"
    with pytest.raises(ConfigurationError, match="at least one handle"):
        await many.first_of([])
    with pytest.raises(ConfigurationError, match="first_of takes the handles that enqueueing gives, but was given 5"):
        await many.first_of([5])  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        await many.first_of(await many.enqueue_many(wait, [100]), timeout=1)


async def test_the_others_are_cancelled_with_one_call(autojump_clock: object) -> None:
    calls: list[CallRecord] = []
    app = make(InMemoryServer(instruments=[calls.append]))
    async with app.magic(), trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        handles = await app.using(store_result=True).enqueue_many(wait, [50, 2, 60, 70])
        assert (await app.first_of(handles, cancel_others=True)).value == 2
        nursery.cancel_scope.cancel()
    assert [call.count for call in calls if call.name == "cancel"] == [3]


async def test_waiting_for_many_on_two_servers_that_fail_raises_one_error_of_a_server() -> None:
    app = Repid()
    for name in ("one", "two"):
        app.servers.register_server(name, InMemoryServer())
    async with app.magic():
        for name in ("one", "two"):
            await Queue(server_name=name).declare()
        handles = [await Job("j", server_name=name).enqueue() for name in ("one", "two")]
    for wait in (app.gather, app.first_of):
        with pytest.raises(NotConnected):
            await wait(handles)


async def test_waiting_for_many_on_a_server_that_is_not_open_raises_what_waiting_for_one_does() -> None:
    app = make(InMemoryServer())
    async with app.magic():
        handles = await app.enqueue_many(square, range(3))
    for waiting in (handles[0].wait(), app.gather(handles), app.first_of(handles)):
        with pytest.raises(NotConnected):
            await waiting


async def test_a_result_kept_elsewhere_is_gathered_from_there(autojump_clock: object) -> None:
    results = InMemoryServer()
    app = Repid(Connection(InMemoryServer()), result_store=results)
    app.include_router(router)
    async with at_work(app):
        handles: list[JobHandle[Any]] = await app.using(store_result=True).enqueue_many(square, [1, 2])
        handles.append(await Job("square", queue="many", args={"number": 3}, store_result=True).enqueue())
        assert await app.gather(handles) == [1, 4, 9]
        async with app.map(square, [1, 2, 3]) as mapped:
            assert [result async for result in mapped] == [1, 4, 9]


async def test_a_timeout_of_zero_asks_for_what_is_there_as_that_of_one_handle(many: Repid) -> None:
    ended = await many.using(store_result=True).enqueue_many(square, [1, 2])
    assert await many.gather(ended) == [1, 4]
    assert await many.gather(ended, timeout=0) == [1, 4]
    waits = await many.using(store_result=True).enqueue(wait, 100)
    assert (await many.first_of([waits, ended[1]], timeout=0)).value == 4
    with pytest.raises(TimeoutError, match="2 of 3 jobs have ended within 0 seconds, not 3"):
        await many.gather([*ended, waits], timeout=0)
