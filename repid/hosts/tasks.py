"""A function that runs as an asyncio task, while a trio task waits for it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import Context, ContextVar, copy_context
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NoReturn

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT  # private, and the only way to hide a task

from ..tracebacks import family, is_a
from .crossing import Bridge

_NOTHING: Any = object()

_library: Any = getattr(sys.modules.get("sniffio"), "thread_local", SimpleNamespace(name=None))
"""Where trio, through sniffio if it has loaded that, says to httpx and others that it runs."""


NOTICEABLE = 0.05
"""Seconds. Of a step that takes less nobody is told."""

on_long_step: ContextVar[Callable[[float], None]] = ContextVar("on_long_step")
"""Called in the context of a task with the seconds of each step of it that kept its loop for long."""


class Timed(Coroutine[Any, Any, Any]):
    """A coroutine whose long steps are told of: while one goes on, nothing else of its loop runs."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # cr_frame and the like, for whoever prints a task

    def send(self, value: Any) -> Any:
        """The task's next step."""
        began = perf_counter()
        try:
            return self._coroutine.send(value)
        finally:
            _tell_if_long(began)

    def throw(self, *error: Any) -> Any:
        """The task was cancelled, or what it awaited failed."""
        began = perf_counter()
        try:
            return self._coroutine.throw(*error)
        finally:
            del error  # its traceback holds this frame
            _tell_if_long(began)

    def close(self) -> None:
        """Abandoned with its loop."""
        self._coroutine.close()

    def __await__(self) -> Any:
        return self


def _tell_if_long(began: float) -> None:
    seconds = perf_counter() - began
    if seconds >= NOTICEABLE and (tell := on_long_step.get(None)) is not None:
        tell(seconds)


class Contained(Coroutine[Any, Any, Any]):
    """A coroutine of a task that an actor has started. `sys.exit()` in a task would end the loop, and all that is on it.

    It is an error of that task instead, for the actor that awaits it. A `KeyboardInterrupt` goes through: it may be Ctrl-C.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)

    def send(self, value: Any) -> Any:
        """The task's next step."""
        try:
            return self._coroutine.send(value)
        except SystemExit as order:
            raise _as_error(order) from order

    def throw(self, *error: Any) -> Any:
        """The task was cancelled, or what it awaited failed."""
        try:
            return self._coroutine.throw(*error)
        except SystemExit as order:
            raise _as_error(order) from order
        finally:
            del error  # its traceback holds this frame

    def close(self) -> None:
        """Abandoned with its loop."""
        self._coroutine.close()

    def __await__(self) -> Any:
        return self


def _as_error(order: SystemExit) -> RuntimeError:
    return RuntimeError(
        f"sys.exit({order.code!r}) was called in a task that an actor had started: it ends that task only"
    )


def containing(factory: Any) -> Any:
    """A task factory that contains the tasks which actors start. `factory` makes them and all others; None: asyncio's."""

    def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        if on_long_step.get(None) is not None and not isinstance(coroutine, Contained):
            coroutine = Contained(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options) if factory is None else factory(loop, coroutine, **options)

    return make_task


class Eager(Coroutine[Any, Any, Any]):
    """A coroutine whose first step was made before its task came to it (as with `eager_start` of Python 3.12).

    Most actors that wait for nothing end in that step. An order to end the process is kept for the worker, to
    which it is a failure like others; in a task it would stop the loop at once.

    The first step is made in the middle of a step of a trio task, whose cancel scopes and nurseries the coroutine must
    not get hold of: it would leave them in later steps, which are no part of that task. So the task is hidden from it,
    and a call of trio fails in the first step as it does in the others: "must be called from async context".
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._first: Any = _NOTHING
        self.ended = False
        self.value: Any = None
        self.error: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # cr_frame and the like, for whoever prints a task

    def begin(self, task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Make the first step, as the task would."""
        asyncio._enter_task(loop, task)  # noqa: SLF001  documented in "Extending asyncio"
        said, _library.name = _library.name, None
        hidden = GLOBAL_RUN_CONTEXT.task
        del GLOBAL_RUN_CONTEXT.task
        try:
            self._first = context.run(self._coroutine.send, None)
        except StopIteration as stop:
            self.value, self.ended = stop.value, True
        except BaseException as error:  # noqa: BLE001  it belongs to who waits
            self.error, self.ended = error, True
        finally:
            GLOBAL_RUN_CONTEXT.task = hidden
            _library.name = said
            asyncio._leave_task(loop, task)  # noqa: SLF001

    def send(self, value: Any) -> Any:
        """The task's next step."""
        if self.ended:
            raise StopIteration
        if self._first is not _NOTHING:
            first, self._first = self._first, _NOTHING
            return first
        try:
            return self._coroutine.send(value)
        except (KeyboardInterrupt, SystemExit) as order:
            self._keep(order)

    def throw(self, *error: Any) -> Any:
        """The task was cancelled, or what it awaited failed."""
        if self.ended:
            raise StopIteration
        if self._first is not _NOTHING:
            first, self._first = self._first, _NOTHING
            if asyncio.isfuture(first):
                first.cancel()
        try:
            return self._coroutine.throw(*error)
        except (KeyboardInterrupt, SystemExit) as order:
            self._keep(order)
        finally:
            del error  # its traceback holds this frame

    def close(self) -> None:
        """Abandoned with its loop."""
        self._coroutine.close()

    def __await__(self) -> Any:
        return self

    def _keep(self, order: BaseException) -> NoReturn:
        self.error = order
        raise StopIteration from None


class Outside(Coroutine[Any, Any, Any]):
    """A coroutine for a task of an asyncio loop that is itself a trio task, which every step hides; see `Eager`.

    What asyncio asks for is hidden with it, and said by other means: which loop runs.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        self._coroutine = coroutine
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)

    def send(self, value: Any) -> Any:
        """The task's next step."""
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        """The task was cancelled, or what it awaited failed."""
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        """Abandoned with its loop."""
        self._coroutine.close()

    def __await__(self) -> Any:
        return self

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        hidden = GLOBAL_RUN_CONTEXT.__dict__.pop("task", _NOTHING)  # it is hidden already in an `Eager` first step
        said = asyncio._get_running_loop()  # noqa: SLF001  in asyncio.__all__, for those who make loops
        asyncio._set_running_loop(self._loop)  # noqa: SLF001
        try:
            return step(*arguments)
        finally:
            asyncio._set_running_loop(said)  # noqa: SLF001
            if hidden is not _NOTHING:
                GLOBAL_RUN_CONTEXT.task = hidden


async def run_on(
    bridge: Bridge, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> Any:
    """Run a coroutine function as a task of the bridge's loop; called in trio, on the thread of the loop.

    Cancelling cancels the task, and waits until it is really done.
    """
    loop = bridge.loop
    call = Timed(function(*arguments, **keywords))
    coroutine = Eager(Outside(call, loop) if bridge.is_run_by_trio else call)
    context = copy_context()
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context)
    coroutine.begin(task, loop, context)
    try:
        if not coroutine.ended:
            cancel = await wait_for(task)
            if cancel is not None and coroutine.error is not None:
                trace_back(coroutine.error, cancel)
            if coroutine.error is None:
                return task.result()
        if coroutine.error is not None:
            raise coroutine.error
        return coroutine.value
    finally:
        coroutine.error = None
        del task, coroutine  # a traceback holds this frame, which would hold the error and all that its frames have


async def wait_for(task: asyncio.Task[Any]) -> Callable[[], NoReturn] | None:
    """Wait in trio for a task of a loop of the same thread. Cancelled: cancels it and waits all the same.

    Raises `trio.Cancelled` if the task ended cancelled because of that; if it ended otherwise, what raises it is returned.
    """
    waiting = trio.lowlevel.current_task()
    cancel: Callable[[], NoReturn] | None = None

    def abort(raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        nonlocal cancel
        cancel = raise_cancel
        task.cancel()
        return trio.lowlevel.Abort.FAILED

    task.add_done_callback(lambda _: trio.lowlevel.reschedule(waiting))
    await trio.lowlevel.wait_task_rescheduled(abort)
    if task.cancelled():
        if cancel is not None:
            cancel()
        await trio.lowlevel.checkpoint()  # whoever cancelled the task may have cancelled us as well
    elif cancel is not None and (error := task.exception()) is not None:
        trace_back(error, cancel)
    return cancel


def trace_back(error: BaseException, cancel: Callable[[], NoReturn]) -> None:
    """Where an error was raised because of asyncio's cancellation, let it show that this came from trio's."""
    for each in family(error, openly=False):
        if is_a(each, asyncio.CancelledError) and each.__context__ is None:
            try:
                cancel()
            except trio.Cancelled as cancelled:
                each.__context__ = cancelled
            return
