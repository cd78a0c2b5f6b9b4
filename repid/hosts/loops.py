"""The loops on which asyncio functions run, as the backends of actors: the host's, or one for them alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, NoReturn

import trio

from ..logs import Log
from .crossing import Bridge, Crossing, bridges
from .hosted import crossing
from .tasks import Outside, TasksOf, Timed, containing, trace_back, wait_for

log = Log("repid.hosts")


class HostTasks(TasksOf):
    """Functions run as tasks of the host loop, whose guest trio is."""

    def back_in_trio(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """`call`, to be awaited by a function that runs here; it itself runs in trio."""
        return crossing(call, late=True)


class LoopTasks:
    """Functions run as tasks of an asyncio loop that is there for them alone."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    async def call(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Run it as a task. Cancelling cancels the task, and waits until it is really done."""
        task = self._bridge.loop.create_task(Timed(_run(function, arguments, keywords)), context=copy_context())
        try:
            return unwrap(task, await wait_for(task))
        finally:
            del task  # the traceback holds this frame, which would hold the error and what its frames have


async def _run(function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """An order to end the process is for the worker; raised in a task it would end the loop at once."""
    try:
        return await function(*arguments, **keywords)
    except (KeyboardInterrupt, SystemExit) as order:
        return _Order(order)


class _Order:
    def __init__(self, order: BaseException) -> None:
        self.order = order


def unwrap(task: asyncio.Task[Any], cancel: Callable[[], NoReturn] | None) -> Any:
    """What the function returned; raises what it raised. `cancel`: raises the cancellation that had hit it."""
    error = None if task.cancelled() else task.exception()
    result = task.result() if error is None else None
    if type(result) is _Order:
        error = result.order
    if error is None:
        return result
    if cancel is not None:
        trace_back(error, cancel)
    try:
        raise error
    finally:
        del error, result, task  # as above


@asynccontextmanager
async def open_trio_asyncio(trio_asyncio: Any) -> AsyncIterator[LoopTasks]:
    """A loop of trio-asyncio. It outlives a cancellation around the block, so that its tasks can be cancelled first."""
    leaving = trio.Event()

    async def keep_loop(task_status: trio.TaskStatus[asyncio.AbstractEventLoop]) -> None:
        with trio.CancelScope(shield=True):
            async with trio_asyncio.open_loop() as loop:
                loop.set_exception_handler(_log_exception)  # otherwise it ends the loop and the run
                loop.set_task_factory(containing(_make_task))
                task_status.started(loop)
                await leaving.wait()
                await trio_asyncio.aio_as_trio(_end_tasks)()

    async with _open_nursery() as nursery:
        with trio.CancelScope(shield=True):  # a start that is cancelled waits for the loop's end, which waits for us
            bridge = Bridge(await nursery.start(keep_loop))
        try:
            async with _open_nursery() as bridge.nursery:
                bridges[bridge.loop] = bridge
                try:
                    yield LoopTasks(bridge)
                finally:
                    bridge.retire()
        finally:
            del bridges[bridge.loop]
            leaving.set()


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    return asyncio.Task(Outside(coroutine, loop), loop=loop, **options)


@asynccontextmanager
async def _open_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks do not fail: what its body raises comes out as it is, not in a group."""
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                raised = error
                raise
    except BaseExceptionGroup:
        if raised is None:
            raise
        raise raised from None
    finally:
        del raised


async def _end_tasks() -> None:
    """Cancel what actors have started and left behind, as `asyncio.run` does at its end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _log_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    log.error("in the asyncio loop of an actor: %s", context.get("message"), exc_info=error)


class ThreadBridge(Bridge):
    """Calls cross to and from a loop that runs in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, token: trio.lowlevel.TrioToken) -> None:
        super().__init__(loop)
        self._token = token

    def carry(self, crossing: Crossing[Any]) -> None:
        """Have a trio task carry out the call, soon, in a copy of the present context."""
        crossing.bridge = self
        self._token.run_sync_soon(self.load, crossing, copy_context())

    def to_trio(self, function: Callable[[], object]) -> None:
        """Call a sync function in trio, soon."""
        self._token.run_sync_soon(function)

    def to_loop(self, function: Callable[[], object]) -> None:
        """Call a sync function on the loop, soon."""
        self.loop.call_soon_threadsafe(function)


class ThreadTasks:
    """Functions run as tasks of an asyncio loop in another thread."""

    def __init__(self, bridge: ThreadBridge) -> None:
        self._bridge = bridge

    async def call(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Run it as a task. Cancelling cancels the task, and waits until it is really done."""
        bridge, context = self._bridge, copy_context()
        waiting = trio.lowlevel.current_task()
        cancel: Callable[[], NoReturn] | None = None
        tasks: list[asyncio.Task[Any]] = []

        def start() -> None:
            task = asyncio.Task(Timed(_run(function, arguments, keywords)), loop=bridge.loop, context=context)
            task.add_done_callback(lambda _: bridge.to_trio(partial(trio.lowlevel.reschedule, waiting)))
            tasks.append(task)

        def cancel_task() -> None:
            tasks[0].cancel()  # it has started by then

        def abort(raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
            nonlocal cancel
            cancel = raise_cancel
            bridge.to_loop(cancel_task)
            return trio.lowlevel.Abort.FAILED

        bridge.to_loop(start)
        await trio.lowlevel.wait_task_rescheduled(abort)
        if tasks[0].cancelled() and cancel is not None:
            cancel()
        return unwrap(tasks.pop(), cancel)


@asynccontextmanager
async def open_private() -> AsyncIterator[ThreadTasks]:
    """A private loop of asyncio's own, in a thread. What runs on it must not touch trio, or the other thread's data."""
    bridge = ThreadBridge(asyncio.new_event_loop(), trio.lowlevel.current_trio_token())
    bridge.loop.set_exception_handler(_log_exception)
    bridge.loop.set_task_factory(containing(None))
    thread = threading.Thread(target=_run_loop, args=[bridge.loop], name="repid: asyncio", daemon=True)
    thread.start()
    try:
        async with _open_nursery() as bridge.nursery:
            bridges[bridge.loop] = bridge
            try:
                yield ThreadTasks(bridge)
            finally:
                bridge.retire()
    finally:
        del bridges[bridge.loop]
        bridge.loop.call_soon_threadsafe(bridge.loop.stop)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(thread.join)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(RuntimeError), asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_forever(loop))


async def _forever(loop: asyncio.AbstractEventLoop) -> None:
    await loop.create_future()
