"""Sync actors: in threads, which can only be asked to stop, and in processes, which can be killed. Real time."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Literal

import aids_processes
import pytest
import trio
import trio.testing
from aids import UnreliableServer, send

from repid import Counts, Handle, Job, Message, Repid, Report, Router
from repid.errors import DuplicateId

pytestmark = pytest.mark.real_time

word: ContextVar[str] = ContextVar("word", default="unset")


@pytest.fixture
async def app(server: UnreliableServer) -> AsyncGenerator[Repid, None]:
    """As everywhere, but on the real clock: a thread does not wait for a virtual one."""
    app = Repid()
    app.servers.register_server("default", server)
    async with app.magic():
        await server.declare(["default"])
        yield app


async def test_a_sync_actor_runs_in_a_thread_and_the_loop_goes_on(app: Repid, router: Router) -> None:
    threads: list[int] = []
    both = threading.Barrier(2, timeout=5)

    @router.actor
    def blocking() -> None:
        threads.append(threading.get_ident())
        both.wait()

    await send(app, "blocking")
    await send(app, "blocking")
    assert await app.run_worker(burst=True) == Report(processed=2, succeeded=2)
    assert threading.get_ident() not in threads
    assert len(set(threads)) == 2


async def test_what_a_sync_actor_raises_is_its_failure(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    def fails() -> None:
        raise ValueError("in a thread")

    await send(app, "fails")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert (dead.failure.type, dead.failure.text) == ("ValueError", "in a thread")
    assert "in fails" in dead.failure.traceback


async def test_a_thread_sees_the_context_of_its_run_alone(app: Repid, router: Router) -> None:
    seen: list[str] = []

    @router.actor
    def job() -> None:
        seen.append(word.get())
        word.set("changed")

    word.set("worker's")
    for _ in range(3):
        await send(app, "job")
    await app.run_worker(burst=True, tasks_limit=1)
    assert seen == ["worker's"] * 3


async def test_a_deadline_asks_a_thread_to_stop_and_run_2_never_overlaps_run_1(app: Repid, router: Router) -> None:
    spans: list[tuple[float, float]] = []

    @router.actor(timeout=0.05, retries=1, retry_policy=lambda _: 0)
    def polite(message: Message) -> None:
        started = time.monotonic()
        try:
            if message.attempt == 1:
                while True:
                    time.sleep(0.001)
                    trio.from_thread.check_cancelled()
        finally:
            time.sleep(0.05)  # its last wish
            spans.append((started, time.monotonic()))

    await send(app, "polite")
    report = await app.run_worker(burst=True)
    assert (report.processed, report.retried) == (2, 1)
    assert spans[0][1] <= spans[1][0]
    assert spans[0][1] - spans[0][0] < 5  # it was asked to stop


async def test_what_a_thread_returns_after_its_timeout_counts_with_a_warning(
    app: Repid, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    @router.actor(timeout=0.02, retries=2, store_result=True)
    def deaf() -> str:
        time.sleep(0.15)
        return "sent the mail"

    handle = await Job("deaf").enqueue()
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    result = await handle.result
    assert result is not None
    assert result.payload == b'"sent the mail"'
    assert "returned after its timeout" in caplog.text


async def test_what_a_thread_raises_after_its_timeout_counts(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(timeout=0.02)
    def deaf() -> None:
        time.sleep(0.15)
        raise ValueError("mine")

    await send(app, "deaf")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert (dead.failure.type, dead.failure.text) == ("ValueError", "mine")


async def test_what_a_thread_raises_when_it_is_asked_to_stop_is_the_context_of_its_timeout(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(timeout=0.02)
    def polite() -> None:
        try:
            while True:
                time.sleep(0.001)
                trio.from_thread.check_cancelled()
        finally:
            raise ConnectionError("rollback failed")

    await send(app, "polite")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert dead.failure.type == "TimeoutError"
    assert "rollback failed" in dead.failure.traceback


@pytest.mark.parametrize("outcome", ["returns", "raises", "gives up"])
async def test_a_thread_has_a_moment_to_end_when_the_grace_is_over(
    app: Repid, router: Router, server: UnreliableServer, outcome: str
) -> None:
    began, stopped = threading.Event(), threading.Event()

    @router.actor
    def job() -> None:
        began.set()
        stopped.wait(5)
        time.sleep(0.1)
        if outcome == "raises":
            raise ValueError
        if outcome == "gives up":
            trio.from_thread.check_cancelled()

    await send(app, "job")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.to_thread.run_sync(began.wait)
        handle.cut_short()
        stopped.set()
    assert (
        handle.report
        == {
            "returns": Report(processed=1, succeeded=1),
            "raises": Report(processed=1, failed=1, dead=1),
            "gives up": Report(processed=1, released=1),
        }[outcome]
    )


async def test_waiting_for_a_thread_slot_does_not_count_as_running(app: Repid, router: Router) -> None:
    @router.actor(timeout=0.5)
    def job() -> None:
        time.sleep(0.15)

    for _ in range(5):
        await send(app, "job")
    assert await app.run_worker(burst=True, threads_limit=1) == Report(processed=5, succeeded=5)


async def test_at_the_end_of_the_grace_a_thread_is_abandoned_to_its_lease_and_reported(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    began, let_go = threading.Event(), threading.Event()

    @router.actor
    def deaf() -> None:
        began.set()
        let_go.wait(5)

    await send(app, "deaf")
    started = time.monotonic()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(partial(app.run_worker, graceful_shutdown_time=0.05))
        await trio.to_thread.run_sync(began.wait)
        handle.stop()
    assert time.monotonic() - started < 1
    assert handle.report == Report(processed=1, abandoned=1)
    assert await server.counts("default") == Counts(leased=1)
    assert "is left behind" in caplog.text
    let_go.set()


async def test_what_waited_for_a_slot_was_never_run(app: Repid, router: Router, server: UnreliableServer) -> None:
    began, let_go = threading.Event(), threading.Event()

    @router.actor
    def deaf() -> None:
        began.set()
        let_go.wait(5)

    try:
        await send(app, "deaf")
        await send(app, "deaf")
        async with trio.open_nursery() as nursery:
            handle: Handle = await nursery.start(partial(app.run_worker, threads_limit=1))
            await trio.to_thread.run_sync(began.wait)
            handle.cut_short()
    finally:
        let_go.set()
    assert handle.report == Report(processed=1, abandoned=1)
    assert await server.counts("default") == Counts(ready=1, leased=1)


async def test_a_thread_that_ends_within_the_grace_is_settled(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    began = threading.Event()

    @router.actor
    def job() -> None:
        began.set()
        time.sleep(0.1)

    await send(app, "job")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.to_thread.run_sync(began.wait)
        handle.stop()
    assert handle.report == Report(processed=1, succeeded=1)
    assert await server.counts("default") == Counts()


@pytest.mark.parametrize("checkpoints", range(0, 30, 3))
async def test_cancelled_at_any_moment_a_message_whose_thread_never_started_is_released(
    app: Repid, router: Router, server: UnreliableServer, checkpoints: int
) -> None:
    ran: list[str] = []
    let_go = threading.Event()

    @router.actor
    def job() -> None:
        ran.append("started")
        let_go.wait(5)

    await send(app, "job")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run_worker)
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    await trio.sleep(0.02)  # a thread that was begun may take a moment to get there
    let_go.set()
    expected = Counts(leased=1) if ran else Counts(ready=1)
    assert await server.counts("default") == expected


async def test_the_verbs_of_a_message_can_be_used_from_its_thread(app: Repid, router: Router) -> None:
    @router.actor
    def job(message: Message) -> None:
        trio.from_thread.run(message.nack)

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)


async def test_a_sync_function_that_returns_a_coroutine_is_told_so(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    async def real() -> None: ...

    @router.actor
    def wrong() -> object:
        return real()

    await send(app, "wrong")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert "declare the actor with async def" in dead.failure.text


async def test_middlewares_go_around_sync_actors_too(app: Repid) -> None:
    seen: list[str] = []

    async def around(call_next, message, actor):  # type: ignore[no-untyped-def]
        seen.append("before")
        result = await call_next(message, actor)
        seen.append(f"after {result}")
        return result

    router = Router(middlewares=[around])
    app.include_router(router)

    @router.actor
    def job() -> int:
        seen.append("job")
        return 5

    await send(app, "job")
    await app.run_worker(burst=True)
    assert seen == ["before", "job", "after 5"]


# Processes


async def test_a_process_does_the_work_elsewhere(app: Repid, router: Router, server: UnreliableServer) -> None:
    router.actor(run_in_process=True)(aids_processes.check_other_process)
    await send(app, "check_other_process", parent=os.getpid())
    with trio.fail_after(30):
        assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


async def test_a_process_is_killed_at_its_timeout(
    app: Repid, router: Router, server: UnreliableServer, tmp_path: Path
) -> None:
    """It says who it is, and is no more when the run has ended. The one before it has started the process."""
    file = tmp_path / "pid"
    router.actor(run_in_process=True)(aids_processes.check_other_process)
    router.actor(run_in_process=True, timeout=2)(aids_processes.hang)
    await send(app, "check_other_process", parent=os.getpid())
    await send(app, "hang", file=str(file))
    with trio.fail_after(50):  # it would sleep for longer
        report = await app.run_worker(burst=True, processes_limit=1)
    assert report == Report(processed=2, succeeded=1, failed=1, dead=1)
    pid = int(await trio.Path(file).read_text("ascii"))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert dead.failure.type == "TimeoutError"


async def test_a_process_is_killed_at_the_end_of_the_grace_and_its_message_released(
    app: Repid, router: Router, server: UnreliableServer, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    router.actor(run_in_process=True)(aids_processes.hang)
    await send(app, "hang", file=str(file))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            handle: Handle = await nursery.start(partial(app.run_worker, graceful_shutdown_time=0))
            while not await trio.Path(file).exists():
                await trio.sleep(0.01)
            handle.stop()
    assert await server.counts("default") == Counts(ready=1)


async def is_gone(pid: int) -> bool:
    """Whether a process that we are not the parent of ends now; one that has ended may wait for its parent."""
    with trio.move_on_after(5):
        while True:
            try:
                state = (await trio.Path(f"/proc/{pid}/stat").read_text()).rpartition(")")[2].split()[0]
            except FileNotFoundError:
                return True
            if state == "Z":
                return True
            await trio.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the child goes on, which holds up nothing")
@pytest.mark.parametrize("actor", ["fork_and_hang", "fork_and_return"])
async def test_a_child_that_a_process_has_forked_neither_defeats_the_timeout_nor_holds_up_the_end(
    app: Repid, router: Router, server: UnreliableServer, tmp_path: Path, actor: str
) -> None:
    file = tmp_path / "child"
    router.actor(run_in_process=True)(aids_processes.check_other_process)  # starts the process
    router.actor(run_in_process=True, timeout=4)(getattr(aids_processes, actor))
    await send(app, "check_other_process", parent=os.getpid())
    await send(app, actor, file=str(file))
    with trio.fail_after(50):  # the child would go on for longer
        report = await app.run_worker(burst=True, processes_limit=1)
    assert report.processed == 2
    assert await is_gone(int(await trio.Path(file).read_text("ascii")))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_child_of_a_thread_in_a_process_outlives_the_thread_and_has_no_pipes_of_the_pool(
    app: Repid, router: Router, tmp_path: Path
) -> None:
    file = tmp_path / "child"
    router.actor(run_in_process=True)(aids_processes.fork_in_a_thread)
    await send(app, "fork_in_a_thread", file=str(file))
    with trio.fail_after(50):
        assert (await app.run_worker(burst=True)).succeeded == 1
    assert await trio.Path(file).read_text("ascii") == ""


async def test_what_a_process_raises_comes_back(app: Repid, router: Router, server: UnreliableServer) -> None:
    router.actor(run_in_process=True)(aids_processes.fail)
    await send(app, "fail")
    with trio.fail_after(30):
        assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert (dead.failure.type, dead.failure.text) == ("ValueError", "from a process")


async def test_an_error_of_repid_that_a_process_raises_comes_back_as_it_was(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    router.actor(run_in_process=True)(aids_processes.raise_own_error)
    await send(app, "raise_own_error", id_="7")
    with trio.fail_after(30):
        await app.run_worker(burst=True)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert dead.failure.type.endswith("DuplicateId")
    assert dead.failure.text == str(DuplicateId("7", "mail"))


async def test_a_process_that_dies_is_a_failure_of_its_run(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    router.actor(run_in_process=True)(aids_processes.die)
    router.actor(run_in_process=True)(aids_processes.check_other_process)
    await send(app, "die")
    await send(app, "check_other_process", parent=0)
    with trio.fail_after(30):
        assert await app.run_worker(burst=True) == Report(processed=2, succeeded=1, failed=1, dead=1)


@pytest.mark.parametrize(
    ("actor", "kind", "text", "also"),
    [
        ("raise_what_cannot_be_sent", "LockedError", "the file is locked", "KeyError: 'first'"),
        ("raise_for_what_cannot_be_sent", "ValueError", "no", "LockedError: the file is locked"),
        ("raise_a_group_of_what_cannot_be_sent", "BaseExceptionGroup", "two (2 sub-exceptions)", "SystemExit: 2"),
    ],
)
async def test_what_a_process_raises_and_cannot_send_is_recorded_as_it_was(
    app: Repid, router: Router, server: UnreliableServer, actor: str, kind: str, text: str, also: str
) -> None:
    asked: list[str] = []

    def note(error: BaseException) -> Literal["nack"]:
        asked.append(str(error))
        return "nack"

    router.actor(run_in_process=True, on_error=note)(getattr(aids_processes, actor))
    await send(app, actor)
    with trio.fail_after(30):
        assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert (dead.failure.type, dead.failure.text) == (kind, text)
    assert also in dead.failure.traceback
    assert f"in {actor}" in dead.failure.traceback
    assert "repid" not in dead.failure.traceback.replace(str(Path(aids_processes.__file__).parent), "")
    assert asked[0].startswith(f"{kind}: {text} (raised in a process that cannot send it: cannot pickle")


@pytest.mark.parametrize(
    ("actor", "kind", "text"),
    [
        ("die", "ProcessDied", "the process that ran die() ended with exit code 3 before the run did"),
        ("be_killed", "ProcessDied", "the process that ran be_killed() was killed by SIGKILL, as the system does"),
        (
            "return_what_cannot_be_sent",
            "ConfigurationError",
            "what return_what_cannot_be_sent() returned cannot be sent",
        ),
        (
            "take_a_lock",
            "ConfigurationError",
            "what take_a_lock() is given cannot be sent to its process: cannot pickle",
        ),
        (
            "return_a_generator",
            "ConfigurationError",
            "return_a_generator() returned a generator, of which nothing has been run",
        ),
    ],
)
async def test_what_goes_wrong_around_a_process_is_told_in_one_line(
    app: Repid,
    router: Router,
    server: UnreliableServer,
    caplog: pytest.LogCaptureFixture,
    actor: str,
    kind: str,
    text: str,
) -> None:
    router.actor(run_in_process=True)(getattr(aids_processes, actor))
    await send(app, actor)
    with trio.fail_after(30):
        await app.run_worker(burst=True)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert dead.failure.type == kind
    assert dead.failure.text.startswith(text)
    assert dead.failure.traceback == f"repid.{kind}: {dead.failure.text}\n"
    assert "Traceback" not in caplog.text


async def test_a_function_that_is_not_found_by_its_name_in_a_process_is_told_as_such(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    router.actor(run_in_process=True, name="job")(aids_processes.in_place_of_another)
    await send(app, "job")
    await app.run_worker(burst=True)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert dead.failure.text.startswith(
        "replaced() cannot be sent to its process, which finds a function by its name in its module: Can't pickle"
    )


@pytest.mark.parametrize("log_runs", [True, False])
async def test_a_process_knows_the_log_context_of_its_run_if_runs_are_logged(
    app: Repid, router: Router, caplog: pytest.LogCaptureFixture, log_runs: bool
) -> None:
    caplog.set_level("INFO", "repid")
    router.actor(run_in_process=True, store_result=True)(aids_processes.return_the_log_context)
    handle = await app.enqueue(aids_processes.return_the_log_context)
    with trio.fail_after(30):
        await app.run_worker(burst=True, log_runs=log_runs)
    expected = {"message_id": handle.id, "actor": "return_the_log_context", "queue": "default", "attempt": 1}
    assert (await handle.wait()).value == (expected if log_runs else {})
