"""The bridge itself: what crosses, what is waited for, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from repid.errors import BrokerError, BrokerUnavailable, JobFailed, QueueFull, ResultError
from repid.hosts import crossing, hosted, hosted_context, on_host
from repid.hosts.crossing import IDLE_CARRIERS

from .hosting import nothing_is_left

NAME: ContextVar[str] = ContextVar("NAME", default="nobody")


@hosted
async def double(number: int) -> int:
    """Waits for trio."""
    await trio.sleep(0.001)
    return 2 * number


@hosted
async def fail() -> None:
    await trio.lowlevel.checkpoint()
    raise KeyError("gone")


@asynccontextmanager
async def plain_room(log: list[str]) -> AsyncIterator[trio.lowlevel.Task]:
    task = trio.lowlevel.current_task()
    log.append("in")
    try:
        await trio.lowlevel.checkpoint()
        yield task
    except KeyError as error:
        log.append(f"saw {error}")
        raise
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.001)
        assert trio.lowlevel.current_task() is task
        log.append("out")


room = hosted_context(plain_room)


def test_a_result_comes_back_and_nothing_is_left(run: Any) -> None:
    async def main() -> None:
        assert await double(21) == 42
        assert nothing_is_left()
        assert await double(number=4) == 8

    run(main())


async def test_under_trio_the_call_is_made_as_it_is() -> None:
    task = trio.lowlevel.current_task()

    async def which() -> trio.lowlevel.Task:
        return trio.lowlevel.current_task()

    assert await hosted(which)() is task
    assert await crossing(which)() is task
    assert await on_host(which)() is task
    log: list[str] = []
    async with room(log) as inside:
        assert inside is task


def test_a_coroutine_made_outside_of_any_loop_runs_wherever_it_is_awaited() -> None:
    assert asyncio.run(double(3)) == 6
    assert trio.run(double, 4) == 8


def test_a_trio_run_inside_of_an_asyncio_task_as_in_a_notebook_is_trios() -> None:
    async def main() -> int:
        assert await double(1) == 2
        return trio.run(double, 3)

    assert asyncio.run(main()) == 6


def test_whoever_asks_for_the_library_hears_asyncio_in_a_task_and_trio_in_the_guest(run: Any) -> None:
    sniffio = pytest.importorskip("sniffio")

    async def main() -> None:
        said: list[str] = []

        @on_host
        async def at_asyncio() -> None:
            said.append(sniffio.current_async_library())
            await asyncio.sleep(0)
            said.append(sniffio.current_async_library())

        @hosted
        async def in_trio() -> None:
            said.append(sniffio.current_async_library())
            await at_asyncio()
            said.append(sniffio.current_async_library())

        await in_trio()
        assert said == ["trio", "asyncio", "asyncio", "trio"]

    run(main())


def test_a_context_manager_made_outside_of_trio_can_be_entered_in_it() -> None:
    log: list[str] = []
    context = room(log)

    async def main() -> None:
        async with context as task:
            assert task is trio.lowlevel.current_task()

    trio.run(main)
    assert log == ["in", "out"]


def test_an_exception_comes_back_as_it_is(run: Any) -> None:
    async def main() -> None:
        with pytest.raises(KeyError, match="gone") as caught:
            await fail()
        assert "fail" in {entry.name for entry in caught.traceback}
        assert nothing_is_left()

    run(main())


@pytest.mark.parametrize("order", [SystemExit, KeyboardInterrupt])
def test_an_order_to_end_the_process_reaches_asyncio(run: Any, order: type[BaseException]) -> None:
    @hosted
    async def leave() -> None:
        await trio.lowlevel.checkpoint()
        raise order

    with pytest.raises(order):
        run(leave())


def test_the_callers_context_variables_are_seen(run: Any) -> None:
    async def main() -> None:
        async def name() -> str:
            await trio.lowlevel.checkpoint()
            return NAME.get()

        async def ask(as_: str) -> str:
            NAME.set(as_)
            return await crossing(name)()

        async with room([]):
            assert await asyncio.gather(*(ask(str(i)) for i in range(10))) == [str(i) for i in range(10)]
            assert await crossing(name)() == "nobody"

    run(main())


def test_a_cancelled_call_is_waited_for_and_raises_the_original_cancellation(run: Any) -> None:
    log: list[str] = []

    async def main() -> None:
        begun, cleaning = asyncio.Event(), asyncio.Event()
        cleaned = trio.Event()

        @hosted
        async def sleep() -> None:
            begun.set()
            try:
                await trio.sleep_forever()
            finally:
                cleaning.set()
                with trio.CancelScope(shield=True):
                    await cleaned.wait()
                log.append("ended")

        task = asyncio.create_task(sleep())
        await begun.wait()
        task.cancel("enough")
        await cleaning.wait()
        task.cancel("at once!")  # changes nothing
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
        cleaned.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ("enough",)
        assert log == ["ended"]
        assert nothing_is_left()

    run(main())


def failing_when_cancelled(error: Exception, begun: asyncio.Event) -> Callable[[], Coroutine[Any, Any, None]]:
    """A call that waits for its cancellation and fails then. `begun`: set when it waits."""

    @hosted
    async def fail_when_cancelled() -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            raise error

    return fail_when_cancelled


def test_an_error_wins_over_a_cancellation(run: Any) -> None:
    async def main() -> None:
        begun = asyncio.Event()
        fail_when_cancelled = failing_when_cancelled(KeyError("lost"), begun)
        task = asyncio.create_task(fail_when_cancelled())
        await begun.wait()
        task.cancel()
        with pytest.raises(KeyError, match="lost"):
            await task

    run(main())


@pytest.mark.parametrize(
    "error", [BrokerUnavailable("away"), JobFailed("1", "failed"), QueueFull("q", "full")], ids=repr
)
def test_a_cancellation_wins_over_an_error_that_a_program_tries_again_after(run: Any, error: Exception) -> None:
    async def main() -> None:
        begun = asyncio.Event()
        fail_when_cancelled = failing_when_cancelled(error, begun)

        @hosted_context
        @asynccontextmanager
        async def fail_to_open() -> AsyncIterator[None]:
            await fail_when_cancelled()
            yield

        async def enter() -> None:
            async with fail_to_open():
                pass

        async def try_for_ever(call: Callable[[], Awaitable[None]]) -> None:
            while True:
                with suppress(BrokerError, ResultError):
                    await call()

        for call in (fail_when_cancelled, enter):
            begun.clear()
            task = asyncio.create_task(try_for_ever(call))
            await begun.wait()
            task.cancel("enough")
            with pytest.raises(asyncio.CancelledError, match="enough") as caught:
                await asyncio.wait_for(task, 5)
            assert caught.value.__cause__ is error
            begun.clear()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(try_for_ever(call), 0.01)

    run(main())


def test_a_timeout_of_asyncio_cancels_a_call(run: Any) -> None:
    async def main() -> None:
        async with room([]):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await crossing(trio.sleep_forever)()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(crossing(trio.sleep_forever)(), 0.01)

    run(main())


def test_a_call_cancelled_before_it_starts_never_runs(run: Any) -> None:
    async def main() -> None:
        task = asyncio.create_task(double(1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        task = asyncio.create_task(double(1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert nothing_is_left()

    run(main())


def test_a_sibling_that_fails_cancels_a_call_in_a_task_group(run: Any) -> None:
    async def main() -> None:
        async def fail_soon() -> None:
            await asyncio.sleep(0.01)
            raise ValueError("sibling")

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(hosted(trio.sleep_forever)())
                group.create_task(fail_soon())
        assert [repr(error) for error in caught.value.exceptions] == ["ValueError('sibling')"]
        assert nothing_is_left()

    run(main())


def test_a_context_manager_is_entered_and_left_in_one_trio_task_while_the_body_runs_here(run: Any) -> None:
    log: list[str] = []

    async def main() -> None:
        task = asyncio.current_task()
        async with room(log) as inside, room(log) as other:
            assert isinstance(inside, trio.lowlevel.Task)
            assert inside is not other
            assert asyncio.current_task() is task
            log.append(str(await double(2)))
        assert nothing_is_left()

    run(main())
    assert log == ["in", "in", "4", "out", "out"]


def test_a_context_manager_sees_the_error_of_its_body(run: Any) -> None:
    log: list[str] = []

    async def main() -> None:
        error = KeyError("body")
        with pytest.raises(KeyError) as caught:
            async with room(log):
                raise error
        assert caught.value is error
        with pytest.raises(asyncio.CancelledError):
            async with room(log):
                raise asyncio.CancelledError

    run(main())
    assert log == ["in", "saw 'body'", "out", "in", "out"]


def test_a_context_manager_may_swallow_or_replace_the_error_of_its_body(run: Any) -> None:
    @hosted_context
    @asynccontextmanager
    async def forgiving() -> AsyncIterator[None]:
        try:
            yield
        except KeyError:
            pass
        except ValueError as error:
            raise TypeError("replaced") from error

    async def main() -> None:
        async with forgiving():
            raise KeyError
        with pytest.raises(TypeError, match="replaced"):
            async with forgiving():
                raise ValueError

    run(main())


def test_a_context_manager_that_cannot_be_entered_leaves_nothing(run: Any) -> None:
    @hosted_context
    @asynccontextmanager
    async def closed() -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        raise OSError("no server")
        yield

    async def main() -> None:
        with pytest.raises(OSError, match="no server"):
            async with closed():
                raise AssertionError
        assert nothing_is_left()

    run(main())


@pytest.mark.parametrize("ticks", range(12))
def test_entering_may_be_cancelled_at_any_moment(run: Any, ticks: int) -> None:
    log: list[str] = []

    async def main() -> None:
        async def use() -> None:
            async with room(log):
                await asyncio.sleep(3600)

        task = asyncio.create_task(use())
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert nothing_is_left()

    run(main())
    assert log in (["in", "out"], [])


def test_one_guest_serves_all_tasks_of_a_loop_and_ends_with_the_last_of_them(run: Any) -> None:
    async def main() -> None:
        async def token() -> object:
            await trio.lowlevel.checkpoint()
            return trio.lowlevel.current_trio_token()

        async with room([]):
            assert len({id(each) for each in await asyncio.gather(*(crossing(token)() for _ in range(5)))}) == 1
        assert nothing_is_left()
        tokens = await asyncio.gather(*(crossing(token)() for _ in range(5)))
        assert len({id(each) for each in tokens}) == 1
        assert nothing_is_left()

    run(main())


def test_a_hundred_calls_that_come_and_go_without_a_connection_all_succeed(run: Any) -> None:
    async def main() -> None:
        async def come_and_go(number: int) -> None:
            for _ in range(3):
                await asyncio.sleep(number % 7 / 1000)
                assert await double(number) == 2 * number

        await asyncio.gather(*(come_and_go(i) for i in range(100)))
        assert nothing_is_left()

    run(main())


def test_at_the_end_of_the_loop_tasks_in_the_middle_of_calls_may_clean_up(run: Any) -> None:
    log: list[str] = []

    async def main() -> None:
        begun = asyncio.Event()

        async def wait() -> None:
            begun.set()
            await trio.sleep_forever()

        async def use() -> None:
            async with room(log):
                try:
                    await crossing(wait)()
                finally:
                    log.append(str(await double(3)))

        use_task = asyncio.create_task(use())
        await begun.wait()
        assert not use_task.done()

    run(main())
    assert log == ["in", "6", "out"]


def test_a_second_cancellation_of_the_guest_does_not_cut_off_those_who_clean_up(run: Any) -> None:
    log: list[str] = []

    async def main() -> None:
        begun, cleaning, cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def use() -> None:
            async with room(log):
                begun.set()
                try:
                    await asyncio.sleep(3600)
                finally:
                    cleaning.set()
                    await cleaned.wait()
                    log.append(str(await double(3)))

        task = asyncio.create_task(use())
        await begun.wait()
        [owner] = [each for each in asyncio.all_tasks() if each.get_name() == "repid: trio as a guest"]
        task.cancel()
        owner.cancel()
        await cleaning.wait()
        for _ in range(3):
            await asyncio.sleep(0)
            owner.cancel()
        cleaned.set()
        await asyncio.wait([task, owner])
        assert nothing_is_left()

    run(main())
    assert log == ["in", "6", "out"]


def test_more_than_a_hundred_carriers_end_when_their_calls_do(run: Any) -> None:
    async def main() -> None:
        all_begun, carriers = asyncio.Event(), set[trio.lowlevel.Task]()

        async def wait_for_the_others() -> None:
            carriers.add(trio.lowlevel.current_task())
            if len(carriers) == IDLE_CARRIERS + 20:
                all_begun.set()
            while not all_begun.is_set():
                await trio.lowlevel.checkpoint()

        async def living() -> int:
            await trio.lowlevel.checkpoint()
            nursery = trio.lowlevel.current_task().parent_nursery
            assert nursery is not None
            return len(nursery.child_tasks)

        async with room([]):
            await asyncio.gather(*(crossing(wait_for_the_others)() for _ in range(IDLE_CARRIERS + 20)))
            assert await crossing(living)() <= IDLE_CARRIERS + 1  # one holds the room

    run(main())


def test_a_carrier_that_waits_keeps_nothing_of_its_last_caller(run: Any) -> None:
    class Session: ...

    held: ContextVar[Session] = ContextVar("held")
    left: list[weakref.ref[Session]] = []

    async def caller() -> None:
        session = Session()
        left.append(weakref.ref(session))
        held.set(session)
        await double(1)

    async def main() -> None:
        async with room([]):
            await asyncio.create_task(caller())
            for _ in range(3):  # the loop lets go of what it has just called
                await asyncio.sleep(0)
            gc.collect()
            assert left[0]() is None

    run(main())


def test_a_generator_that_is_left_open_ends_with_the_loop(run: Any) -> None:
    log: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        async with room(log):
            yield 1
            yield 2

    async def main() -> None:
        generator = numbers()
        assert await anext(generator) == 1
        kept.append(generator)

    kept: list[object] = []
    run(main())
    assert log == ["in", "out"]


def test_cancelling_every_other_task_from_within_a_block_does_not_hang(run: Any) -> None:
    log: list[str] = []

    async def main() -> None:
        async with room(log):
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=5)
        log.append("done")

    run(main())
    assert log == ["in", "out", "done"]


def test_loops_in_several_threads_have_guests_of_their_own() -> None:
    import threading

    results: list[int] = []

    def work() -> None:
        async def main() -> None:
            async with room([]):
                results.extend([await double(i) for i in range(20)])

        asyncio.run(main())

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(results) == sorted(list(range(0, 40, 2)) * 3)


def test_a_loop_that_is_run_by_hand_and_closed_is_left_clean() -> None:
    loop = asyncio.new_event_loop()
    log: list[str] = []

    async def main() -> None:
        async with room(log):
            await double(1)

    loop.run_until_complete(main())
    loop.run_until_complete(main())
    loop.close()
    gc.collect()
    assert log == ["in", "out"] * 2


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks_cross_and_are_cancelled_like_others() -> None:
    log: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009  new in 3.12
        assert await asyncio.create_task(double(1)) == 2
        async with room(log), asyncio.TaskGroup() as group:
            tasks = [group.create_task(double(i)) for i in range(10)]
        assert [task.result() for task in tasks] == list(range(0, 20, 2))

        async def use() -> None:
            async with room(log):
                await on_host(asyncio.sleep)(3600)

        for ticks in range(8):
            task = asyncio.create_task(use())
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert nothing_is_left()

    asyncio.run(main())
    assert log.count("in") == log.count("out")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_task_groups_of_anyio_work_beside_an_open_app_where_tasks_are_eager() -> None:
    async def leave_a_group() -> str:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 3600)
            group.cancel_scope.cancel()
        return "left"

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009  new in 3.12
        assert await leave_a_group() == "left"
        async with room([]):
            assert await leave_a_group() == "left"

    asyncio.run(main())


def test_a_second_loop_of_a_thread_is_told_that_the_first_one_has_repid_open() -> None:
    """As of two tests on loops of their own, while a fixture of the module holds an app open on a third one."""
    log: list[str] = []

    async def again() -> None:
        async with room(log):
            raise AssertionError

    first = asyncio.Runner()
    connection = room(log)
    first.run(connection.__aenter__())
    with pytest.raises(RuntimeError, match="another event loop of this thread has repid open"):
        asyncio.run(again())
    first.run(connection.__aexit__(None, None, None))
    first.close()
    assert log == ["in", "out"]


CLOSED_WHILE_OPEN = """
import asyncio
from repid import *
app = Repid(Connection(InMemoryServer()))
loop = asyncio.new_event_loop()
connection = app.servers.default.connection()
loop.run_until_complete(connection.__aenter__())
loop.close()

async def again():
    async with app.magic():
        raise AssertionError

try:
    asyncio.run(again())
except RuntimeError as error:
    assert "end loops with asyncio.run" in str(error), error
"""


@pytest.mark.parametrize("server", ["InMemoryServer()", "SQLiteServer('jobs.db')"])
def test_a_loop_that_is_closed_with_a_connection_open_is_told_of_at_the_next_call_and_not_at_exit(
    server: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", CLOSED_WHILE_OPEN.replace("InMemoryServer()", server)],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


FREED_WHILE_OPEN = """
import asyncio, gc, logging, time
from repid import Connection, Repid, Router, SQLiteServer
app, router = Repid(Connection(SQLiteServer("jobs.db"))), Router()
@router.actor
async def act(): ...
app.include_router(router)

async def main():
    opened.append(app.magic())
    await opened[0].__aenter__()
    await app.enqueue(act)
    opened.append(asyncio.create_task(app.run_worker(handle_signals=[])))
    await asyncio.sleep(0.1)

opened = []
logging.basicConfig(level=logging.ERROR)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
del loop, opened
logging.getLogger("asyncio").disabled = True  # which tells of tasks that were destroyed
gc.collect()
time.sleep(1)
"""


def test_a_program_ends_whose_loop_was_closed_and_freed_while_it_had_a_file_open(tmp_path: Path) -> None:
    program = [sys.executable, "-c", FREED_WHILE_OPEN]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=30, check=False)
    assert done.returncode == 0
    assert "given up" not in done.stderr


FORKED_ON_THE_LOOP = """
import asyncio, gc, multiprocessing, sys
from repid import Connection, Queue, Repid, SQLiteServer
app = Repid(Connection(SQLiteServer("jobs.db")))

async def send():
    async with app.magic():
        await app.send_message_json(channel="q")

def child():
    for _ in range(2):
        asyncio.run(send())
    gc.collect()

async def main():
    async with app.magic():
        await Queue("q").declare()
        await app.send_message_json(channel="q")
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        await asyncio.to_thread(process.join, 20)
        assert process.exitcode == 0, process.exitcode
        await app.send_message_json(channel="q")
        print((await Queue("q").counts()).ready)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there")
def test_a_child_that_is_forked_on_a_loop_runs_loops_of_its_own(tmp_path: Path) -> None:
    program = [sys.executable, "-X", "dev", "-W", "error", "-W", "ignore::DeprecationWarning", "-c", FORKED_ON_THE_LOOP]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=30, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "4\n")


FREED_WHILE_A_WORKER_RAN = """
import asyncio, gc, logging, threading, time
from repid import Connection, InMemoryServer, Repid, Router
app, router = Repid(Connection(InMemoryServer())), Router()
@router.actor
async def act(): ...
app.include_router(router)
handles = []

class Status:
    def started(self, handle):
        handles.append(handle)

async def start(opened):
    opened.append(app.magic())
    await opened[0].__aenter__()
    opened.append(asyncio.create_task(app.run_worker(handle_signals=[], task_status=Status())))
    await asyncio.sleep(0.1)

def live():
    opened = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start(opened))
    loop.close()

logging.getLogger("asyncio").disabled = True  # which tells of tasks that were destroyed
thread = threading.Thread(target=live)
thread.start()
thread.join()
handles[0].stop()  # which wakes a thread of trio's that holds all of it
time.sleep(1)
gc.collect()
handles[0].stop()
handles[0].cut_short()
handles[0].drain()
"""


def test_a_worker_whose_loop_was_closed_and_freed_can_be_told_to_stop_by_another_thread() -> None:
    program = [sys.executable, "-c", FREED_WHILE_A_WORKER_RAN]
    done = subprocess.run(program, capture_output=True, encoding="utf-8", timeout=30, check=False)
    assert 'Traceback (most recent call last):\n  File "<string>"' not in done.stderr
    assert done.returncode == 0


def test_outside_of_any_loop_the_error_says_so() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        double(1).send(None)


def test_a_function_of_the_host_called_in_the_guest_runs_as_a_task_of_the_loop(run: Any) -> None:
    async def main() -> None:
        @on_host
        async def at_asyncio() -> str:
            await asyncio.sleep(0.001)
            task = asyncio.current_task()
            assert task is not None
            return NAME.get()

        @hosted
        async def in_trio() -> str:
            await trio.lowlevel.checkpoint()
            return await at_asyncio()

        NAME.set("Ada")
        assert await in_trio() == "Ada"
        assert await at_asyncio() == "Ada"

    run(main())


def test_the_hosts_know_only_trio_asyncio_processes_errors_and_how_to_log() -> None:
    import ast

    import repid.hosts

    allowed = {"trio"} | set(sys.stdlib_module_names)
    for path in Path(repid.hosts.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                assert node.module.split(".")[0] in allowed, path
            if isinstance(node, ast.ImportFrom) and node.level > 1:
                assert node.module in {"ctrl_c", "errors", "logs", "process", "tracebacks"}, path


def test_a_task_that_is_abandoned_with_its_loop_cleans_up() -> None:
    from repid.hosts.tasks import Timed

    ended: list[str] = []

    async def body() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cleaned up")

    loop = asyncio.new_event_loop()
    timed = Timed(body())
    task = loop.create_task(timed)
    loop.call_soon(loop.stop)
    loop.run_forever()
    timed.close()
    assert ended == ["cleaned up"]
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is what is tried here
    loop.close()
