"""Whoever waits for a job in a queue that nobody reads is told so. A sentence each."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from aids import UnreliableServer

from repid import Job, Queue, Repid, Router, SQLiteServer
from repid.brokers.shared import unserved

Wait = Callable[[Repid], Awaitable[object]]


async def add(a: int, b: int = 1) -> int:
    return a + b


async def other() -> None: ...


async def wait_for_call(app: Repid) -> object:
    return await app.call(add, 1)


async def wait_for_handle(app: Repid) -> object:
    return await (await app.enqueue(add, 1)).wait()


async def wait_for_job(app: Repid) -> object:
    job = Job("add", args={"a": 1}, store_result=True)
    await job.enqueue()
    return await job.wait()


async def watch_handle(app: Repid) -> object:
    return [status async for status in (await app.enqueue(add, 1)).watch()]


async def wait_for_all(app: Repid) -> object:
    return await app.gather([await app.enqueue(add, n) for n in range(3)])


async def wait_for_first(app: Repid) -> object:
    return await app.first_of([await app.enqueue(add, n) for n in range(3)])


async def map_items(app: Repid) -> object:
    return await take_all(app, add)


async def take_all(app: Any, actor: Any) -> list[object]:
    async with app.map(actor, range(50), limit=10) as results:
        return [result async for result in results]


WAITS = [wait_for_call, wait_for_handle, wait_for_job, watch_handle, wait_for_all, wait_for_first, map_items]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if "No worker reads" in record.getMessage()]
    assert all((record.name, record.levelno) == ("repid.server", logging.WARNING) for record in records)
    return [record.getMessage() for record in records]


@pytest.mark.parametrize("wait", WAITS)
async def test_a_wait_for_a_job_that_nobody_reads_is_told_once_after_five_seconds_and_goes_on(
    wait: Wait, app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    router.actor(store_result=True)(add)
    ended = trio.Event()

    async def waiting() -> None:
        await wait(app)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting)
        await trio.sleep(4.9)
        assert (server.calls["readers"], told(caplog)) == (0, [])
        await trio.sleep(1000)
        [text] = told(caplog)
        assert text == (
            "a call has waited for 5 s for a job in queue 'default'. No worker reads that queue now: the call waits until "
            "one does; messages in memory need one in this process: run app.run_worker() in a task"
        )
        assert server.calls["readers"] <= 9  # ever more rarely
        nursery.start_soon(app.run_worker)
        with trio.fail_after(5):
            await ended.wait()
        nursery.cancel_scope.cancel()


async def test_a_job_that_runs_long_or_is_delayed_or_has_a_busy_worker_is_no_reason_to_tell(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    @router.actor(store_result=True, concurrency=1)
    async def nap(number: int = 0) -> None:
        await trio.sleep(60)

    async with trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        await app.gather([await app.enqueue(nap) for _ in range(2)])
        async with trio.open_nursery() as waiting:
            for _ in range(3):
                waiting.start_soon(app.call, nap)
        nursery.cancel_scope.cancel()
    server.calls.clear()
    late = app.using(delay=3600)
    with trio.move_on_after(600):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(late.call, nap)
            waiting.start_soon(app.gather, [await late.enqueue(nap)])
            waiting.start_soon(take_all, late, nap)
    assert (server.calls["readers"], told(caplog)) == (0, [])


async def test_many_waits_at_once_cost_one_look_and_each_queue_is_told_of(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    router.actor(store_result=True)(add)
    router.actor(channel="others", store_result=True)(other)
    with trio.move_on_after(9):
        async with trio.open_nursery() as nursery:
            for n in range(50):
                nursery.start_soon(app.call, add, n)
            nursery.start_soon(app.gather, [await app.enqueue(other), await app.enqueue(add, 1)])
    assert ["'others'" in each for each in sorted(told(caplog))] == [False, True]
    assert server.calls["readers"] == 2


async def test_a_map_whose_items_are_slow_to_come_is_no_reason_to_tell(
    app: Repid, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    router.actor(store_result=True)(add)

    async def items() -> AsyncIterator[int]:
        await trio.sleep(60)
        yield 1

    with trio.move_on_after(50):
        async with app.map(add, items()) as results:
            async for _ in results:
                pass
    assert told(caplog) == []


async def test_a_queue_that_lost_its_worker_again_is_told_of_again(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    @router.actor(store_result=True)
    async def nap() -> None:
        await trio.sleep(10)

    for _ in range(2):
        caplog.clear()
        with trio.move_on_after(20):
            await app.call(nap)
        assert len(told(caplog)) == 1
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(app.run_worker, tasks_limit=1))
            async with trio.open_nursery() as waiting:
                for _ in range(2):
                    waiting.start_soon(app.call, nap)
            nursery.cancel_scope.cancel()


async def test_a_server_that_does_not_answer_the_look_does_not_end_the_wait(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    router.actor(store_result=True)(add)
    server.failures["readers"] = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.call, add, 1)
        await trio.sleep(8)
        assert server.calls["readers"] == 1
        await app.run_worker(burst=True)
    assert told(caplog) == []


@pytest.mark.real_time
async def test_where_processes_share_the_server_the_command_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unserved, "UNSERVED_AFTER", 0.01)
    app, router = Repid(), Router()
    app.servers.register_server("default", SQLiteServer(tmp_path / "jobs.db"))
    router.actor(store_result=True)(add)
    app.include_router(router)
    async with app.magic():
        with trio.move_on_after(0.5):
            await app.call(add, 1)
    [text] = told(caplog)
    assert text.endswith("one does; start one with `python -m repid worker MODULE:APP`")


def why(caplog: pytest.LogCaptureFixture) -> list[str]:
    texts = [record.getMessage() for record in caplog.records if record.name == "repid.server"]
    return [text.partition(". ")[2] for text in texts]


HOW_TO_START = "messages in memory need one in this process: run app.run_worker() in a task"


@pytest.mark.parametrize("wait", WAITS)
async def test_a_wait_for_a_worker_of_this_process_that_has_ended_is_told_so(
    wait: Wait, app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    router.actor(store_result=True)(add)
    await app.run_worker(burst=True)
    with trio.move_on_after(6):
        await wait(app)
    [text] = why(caplog)
    assert text == (
        f"No worker reads that queue now, and the one of this process has ended: the call waits until one does; {HOW_TO_START}"
    )


@pytest.mark.parametrize("wait", WAITS)
async def test_a_wait_whose_worker_ends_while_it_drains_is_told_so_later(
    wait: Wait, app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    @router.actor(channel="long", store_result=True)
    async def nap() -> None:
        await trio.sleep(20)

    router.actor(store_result=True)(add)
    async with trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        await app.enqueue(nap)
        await trio.sleep(1)
        worker.stop()
        await trio.sleep(1)
        nursery.start_soon(wait, app)
        await trio.sleep(10)
        assert why(caplog) == []  # it has not ended yet
        await trio.sleep(30)
        [text] = why(caplog)
        assert "the one of this process has ended" in text
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("wait", WAITS)
async def test_a_wait_on_a_paused_queue_is_told_once_with_how_to_resume_it(
    wait: Wait, app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    router.actor(store_result=True)(add)
    async with trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        await Queue("default").pause()
        with trio.move_on_after(1000):
            await wait(app)
        [text] = why(caplog)
        assert text == (
            "That queue is paused, so no worker gets its messages: `python -m repid resume MODULE:APP default`, or "
            "Queue('default').resume(), lets workers have them"
        )
        await Queue("default").resume()
        with trio.fail_after(5):
            await wait(app)
        nursery.cancel_scope.cancel()


async def test_a_wait_on_a_queue_that_is_paused_meanwhile_and_has_no_reader_is_told_both(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    router.actor(store_result=True)(add)
    with trio.move_on_after(500):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.call, add, 1)
            await trio.sleep(20)
            await Queue("default").pause()
    [first, second] = why(caplog)
    assert first.startswith("No worker reads that queue now: ")
    assert second.startswith("That queue is paused")
    assert second.endswith(first)


async def test_a_send_that_waits_for_room_in_a_paused_queue_is_told_so(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    router.actor(channel="lines", max_size=1)(add)
    async with trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        await Queue("lines").pause()
        with trio.move_on_after(80):
            for n in range(2):
                await app.enqueue(add, n)
        nursery.cancel_scope.cancel()
    [text] = [record.getMessage() for record in caplog.records if "for room" in record.getMessage()]
    assert "That queue is paused" in text


async def test_of_queues_without_end_those_are_remembered_that_were_looked_at_last(
    caplog: pytest.LogCaptureFixture, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unserved, "MOST_REMEMBERED", 3)

    async def ask() -> list[Any]:
        return []

    async def look_at(*queues: str) -> int:
        before = len(told(caplog))
        await trio.sleep(unserved.UNSERVED_AFTER)
        await found.look(queues, 5)
        return len(told(caplog)) - before

    found = unserved.UnservedQueues(ask, None, "start one")
    assert await look_at("a", "b", "c") == 3
    assert await look_at("a", "b", "c") == 0
    found.closed(["c", "d"])  # "a" is forgotten
    assert await look_at("b", "c") == 1  # it is another reason for "c"
    assert await look_at("a") == 1
    assert await look_at("b", "c") == 0
    assert await look_at("a", "b", "c", "e") == 0  # so many are looked at in one call
    for number in range(100):
        found.closed([f"reply-{number}"])
    assert await look_at("a") == 1
