"""`client.map`: many calls from code that blocks, their results in a loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from repid import (
    Client,
    ConfigurationError,
    Connection,
    InMemoryServer,
    JobFailed,
    PayloadError,
    Queue,
    Repid,
    Router,
    SQLiteServer,
    UsageError,
)

pytestmark = pytest.mark.real_time

router = Router(queue="many")
ended: list[int] = []


@router.actor
async def square(number: int, times: int = 1) -> int:
    return number * number * times


@router.actor
async def odd_ones_fail(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


@router.actor
async def wait(number: int) -> int:
    try:
        await trio.sleep(0 if number < 2 else 60)
    finally:
        ended.append(number)
    return number


@router.actor(batch=5, batch_wait=0.01)
async def double(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


@pytest.fixture(params=["memory", "sqlite"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    server = InMemoryServer() if request.param == "memory" else SQLiteServer(tmp_path / "jobs.db", synchronous="NORMAL")
    app = Repid(Connection(server))
    app.include_router(router)
    ended.clear()
    with app.sync() as client, client.worker():
        yield client


def test_results_come_in_the_order_of_the_items(client: Client) -> None:
    with client.map(square, range(50), limit=7) as results:
        assert list(results) == [number * number for number in range(50)]
    with client.map(partial(square, times=2), [3]) as results:
        assert list(results) == [18]
    with client.map(square, []) as results:
        assert list(results) == []
    with client.map(double, range(20)) as results:
        assert list(results) == [2 * number for number in range(20)]
    with client.using(priority=None).map(square, [2], ordered=False) as results:
        assert list(results) == [4]


def test_failures_are_raised_in_their_places_and_the_loop_may_go_on(client: Client) -> None:
    with client.map(odd_ones_fail, range(3), limit=5) as results:
        assert next(results) == 0
        with pytest.raises(JobFailed, match="1 is odd"):
            next(results)
        assert list(results) == [2]
    with client.map(odd_ones_fail, range(3), on_error="yield") as outcomes:
        assert [outcome.state for outcome in outcomes] == ["success", "failure", "success"]


def test_items_may_be_endless_and_are_read_in_the_thread_of_the_loop(client: Client) -> None:
    threads: set[int] = set()
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        for read in itertools.count():
            threads.add(threading.get_ident())
            time.sleep(0.001)
            yield read

    with client.map(square, numbers(), limit=5) as results:
        for number, result in enumerate(results):
            assert result == number * number
            assert read <= number + 10
            if number == 50:
                break
    assert threads == {threading.get_ident()}
    with pytest.raises(UsageError, match="read the results inside of the block"):
        list(results)


def test_what_the_items_raise_comes_behind_the_results_before(client: Client) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"), client.map(square, numbers()) as results:
        list(results)
    with client.map(square, numbers()) as results:
        assert list(itertools.islice(results, 2)) == [1, 4]


def test_an_item_that_does_not_fit_is_an_error_in_its_place(client: Client) -> None:
    items: list[Any] = [1, "two", 3]
    with client.map(square, items) as results:
        assert next(results) == 1
        with pytest.raises(PayloadError):
            next(results)
        assert next(results) == 9


def test_leaving_the_block_has_the_other_calls_cancelled(client: Client) -> None:
    with client.map(wait, range(10), limit=4) as results:
        assert [next(results), next(results)] == [0, 1]
    deadline = time.monotonic() + 10
    while client.run(Queue("many").counts).leased and time.monotonic() < deadline:
        time.sleep(0.01)
    counts = client.run(Queue("many").counts)
    assert (counts.ready, counts.leased) == (0, 0)


@pytest.mark.parametrize("items", [5, "text", b"bytes"])
def test_what_gives_no_items_is_refused(client: Client, items: Any) -> None:
    with pytest.raises(ConfigurationError, match="the items of map"):
        client.map(square, items)


def test_items_that_cannot_be_read_open_no_block(client: Client) -> None:
    class Lines:
        is_there = False

        def __iter__(self) -> Iterator[int]:
            if not self.is_there:
                raise FileNotFoundError("no such file yet")
            return iter([2, 3])

    lines = Lines()
    mapped = client.map(square, lines)
    with pytest.raises(FileNotFoundError, match="no such file yet"):
        mapped.__enter__()
    lines.is_there = True
    with mapped as results:
        assert list(results) == [4, 9]


def test_a_map_needs_a_block_and_has_one(client: Client) -> None:
    mapped = client.map(square, [1])
    with pytest.raises(UsageError, match="map needs a block"):
        iter(mapped)  # type: ignore[call-overload]  # what it is about
    with mapped as results:
        assert list(results) == [1]
    with pytest.raises(UsageError, match="was entered before"):
        mapped.__enter__()


def run_asyncio(main: Callable[..., Any]) -> Any:
    return asyncio.run(main(asyncio.to_thread))


def run_trio(main: Callable[..., Any]) -> Any:
    return trio.run(main, trio.to_thread.run_sync)


@pytest.mark.parametrize("run", [run_asyncio, run_trio])
def test_a_map_in_a_thread_of_a_program_that_has_the_app_open(run: Callable[..., Any]) -> None:
    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)

    def in_thread() -> list[int]:
        with app.sync().map(square, range(30), limit=4) as results:
            return list(results)

    asking = Router(queue="asking")

    @asking.actor
    def ask() -> int:
        with app.sync().map(square, range(5), limit=2) as results:
            return sum(results)

    app.include_router(asking)

    async def main(to_thread: Callable[..., Any]) -> None:
        async with app.magic():
            if run is run_trio:
                async with trio.open_nursery() as nursery:
                    worker = await nursery.start(app.run_worker)
                    assert await to_thread(in_thread) == [number * number for number in range(30)]
                    assert await app.call(ask) == 30
                    worker.stop()
            else:
                running = asyncio.create_task(app.run_worker(messages_limit=36))
                assert await to_thread(in_thread) == [number * number for number in range(30)]
                assert await app.call(ask) == 30
                await running

    run(main)
