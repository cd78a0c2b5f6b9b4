"""A function that runs as an asyncio task, while a trio task waits for it: so async actors run under asyncio.

Theory. The first step of a run is made at once, in the middle of a step of the trio task (`TasksOf.begin`). Most runs
that wait for nothing end in it. To `asyncio.current_task()` they are an `UnmadeTask`, which becomes a real task as soon
as somebody looks at it. A run that goes on gets its task then, and the trio task waits for that (`wait_for`). If the
trio task is cancelled, the asyncio task is cancelled, and waited for all the same.

* While code of asyncio is called in a step of a trio task, that trio task is hidden (`GLOBAL_RUN_CONTEXT`). Otherwise
  the code could open cancel scopes and nurseries of trio, and would leave them in another task.
* Between a task and the coroutine of an actor stand coroutines that change one thing of its steps each (`Around`):
  `Begun` gives the first step that was made already, `Timed` tells of long steps, `Contained` keeps `sys.exit()` from
  ending the loop, `Outside` is for a loop that trio runs.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.tasks import _enter_task, _leave_task  # documented in "Extending asyncio"
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import Context, copy_context
from functools import partial
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT  # private, and the only way to hide a task

from ..ctrl_c import let_ctrl_c_through
from ..process import end_child
from ..tracebacks import family, is_a
from .crossing import Bridge, on_long_step

T = TypeVar("T")

_NOTHING: Any = object()

_library: Any = getattr(sys.modules.get("sniffio"), "thread_local", SimpleNamespace(name=None))
"""Where trio, through sniffio if it has loaded that, says to httpx and others that it runs."""


NOTICEABLE = 0.05
"""Seconds. Of a step that takes less nobody is told."""


class Around(Coroutine[Any, Any, Any]):
    """A coroutine around another one, which changes how its steps are made: `send` and `throw`."""

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # cr_frame and the like, for code that prints a task

    def close(self) -> None:
        """Abandoned with its loop."""
        self._coroutine.close()

    def __await__(self) -> Any:
        return self


class Timed(Around):
    """A coroutine whose long steps are told of: while one goes on, nothing else of its loop runs."""

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


def _tell_if_long(began: float) -> None:
    seconds = perf_counter() - began
    if seconds >= NOTICEABLE and (tell := on_long_step.get(None)) is not None:
        tell(seconds)


class Contained(Around):
    """A coroutine of a task that an actor has started. `sys.exit()` in a task would end the loop, and all that is on
    it.

    It is an error of that task instead, for the actor that awaits it. So is a `KeyboardInterrupt`, unless it is Ctrl-C.
    """

    def send(self, value: Any) -> Any:
        """The task's next step."""
        try:
            return self._coroutine.send(value)
        except (SystemExit, KeyboardInterrupt) as order:
            let_ctrl_c_through(order)
            raise _as_error(order) from order

    def throw(self, *error: Any) -> Any:
        """The task was cancelled, or what it awaited failed."""
        try:
            return self._coroutine.throw(*error)
        except (SystemExit, KeyboardInterrupt) as order:
            let_ctrl_c_through(order)
            raise _as_error(order) from order
        finally:
            del error  # its traceback holds this frame


def _as_error(order: SystemExit | KeyboardInterrupt) -> RuntimeError:
    what = f"sys.exit({order.code!r}) was called" if isinstance(order, SystemExit) else "KeyboardInterrupt was raised"
    return RuntimeError(f"{what} in a task that an actor had started: it ends that task only")


def containing(factory: Any) -> Any:
    """A task factory that contains the tasks which actors start. `factory` makes them and all others; None:
    asyncio's.
    """
    if _is_eager(factory):
        return _containing_eagerly(factory.__closure__[0].cell_contents)
    is_in_run, task = on_long_step.get, asyncio.Task  # looked up once: every task of the host's loop is made here

    def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        if is_in_run(None) is not None and not isinstance(coroutine, Contained):
            coroutine = Contained(coroutine)
        return task(coroutine, loop=loop, **options) if factory is None else factory(loop, coroutine, **options)

    return make_task


def _is_eager(factory: Any) -> bool:
    """Whether `asyncio.create_eager_task_factory` made it."""
    code = getattr(getattr(asyncio, "eager_task_factory", None), "__code__", None)  # new in Python 3.12
    return code is not None and getattr(factory, "__code__", None) is code


def _containing_eagerly(constructor: Any) -> Any:
    """As `containing`, for an eager factory, which calls this constructor. It stays a factory of the kind that anyio
    knows by its code: anyio's task groups start their own tasks without it, and fail where they cannot tell that it is
    eager.
    """
    make_task = containing(lambda loop, coroutine, **options: constructor(coroutine, loop=loop, **options))

    def construct(coroutine: Any, *, loop: asyncio.AbstractEventLoop, **options: Any) -> Any:
        return make_task(loop, coroutine, **options)

    create: Any = getattr(asyncio, "create_eager_task_factory")  # noqa: B009  new in Python 3.12
    return create(construct)


class Begun(Around):
    """A coroutine whose first step was made before its task came to it (as with `eager_start` of Python 3.12).

    `ended`: it ended in that step. An order to end the process is kept as its `error` for the worker, to which it is a
    failure like others; in a task it would stop the loop at once. Its long steps are told of, as with `Timed`.
    """

    __slots__ = ("_bridge", "_first", "ended", "error")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], bridge: Bridge, *, ended: bool) -> None:
        super().__init__(coroutine)
        self._bridge = bridge
        self._first: Any = _NOTHING
        self.ended = ended
        self.error: BaseException | None = None

    def waits_for(self, first: Any) -> None:
        """Its first step has ended with this, which is what it waits for."""
        self._first = first

    def send(self, value: Any) -> Any:
        """The task's next step."""
        if self.ended:
            raise StopIteration
        if self._first is not _NOTHING:
            first, self._first = self._first, _NOTHING
            return first
        began = perf_counter()
        try:
            return self._coroutine.send(value)
        except (KeyboardInterrupt, SystemExit) as order:
            self._keep(order)
        finally:
            self._check_process()
            _tell_if_long(began)

    def throw(self, *error: Any) -> Any:
        """The task was cancelled, or what it awaited failed."""
        if self.ended:
            raise StopIteration
        if self._first is not _NOTHING:
            first, self._first = self._first, _NOTHING
            if asyncio.isfuture(first):
                first.cancel()
        began = perf_counter()
        try:
            return self._coroutine.throw(*error)
        except (KeyboardInterrupt, SystemExit) as order:
            self._keep(order)
        finally:
            self._check_process()
            del error  # its traceback holds this frame
            _tell_if_long(began)

    def _check_process(self) -> None:
        if self._bridge.is_of_parent:
            error = sys.exception()
            end_child(self.error if error is None or isinstance(error, StopIteration) else error)

    def _keep(self, order: BaseException) -> NoReturn:
        self.error = order
        raise StopIteration from None


class Outside(Around):
    """A coroutine for a task of an asyncio loop that is itself a trio task, which every step hides; see `TasksOf.call`.

    What asyncio asks for is hidden with it, and said by other means: which loop runs.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(coroutine)
        self._loop = loop

    def send(self, value: Any) -> Any:
        """The task's next step."""
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        """The task was cancelled, or what it awaited failed."""
        return self._step(self._coroutine.throw, *error)

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        hidden = GLOBAL_RUN_CONTEXT.__dict__.pop("task", _NOTHING)  # it is hidden already in a first step
        said = asyncio._get_running_loop()  # noqa: SLF001  in asyncio.__all__, for those who make loops
        asyncio._set_running_loop(self._loop)  # noqa: SLF001
        try:
            return step(*arguments)
        finally:
            asyncio._set_running_loop(said)  # noqa: SLF001
            if hidden is not _NOTHING:
                GLOBAL_RUN_CONTEXT.task = hidden


class RunTask(asyncio.Task[Any]):
    """The task of one run, which goes on with `begun`. `ended`: the run has ended in its first step."""

    __slots__ = ("begun", "ended", "origin")

    begun: Begun
    ended: bool
    origin: tuple[Coroutine[Any, Any, Any], Bridge, Context]

    def make(self) -> RunTask:
        """It is made already."""
        return self


class UnmadeTask(RunTask):
    """The task of a run that has waited for nothing yet, and at which nobody has looked.

    To make a task, and have the loop step it, takes longer than most such runs, and they need no more of it than an
    object that `asyncio.current_task()` gives. Whatever is asked of that object makes it the task it stands for, so the
    only difference is that `asyncio.all_tasks()` does not have it before. `origin`: coroutine, bridge and context.
    """

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        return getattr(UnmadeTask.make(self), name)

    def __await__(self) -> Any:
        return UnmadeTask.make(self).__await__()

    __iter__ = __await__

    def make(self) -> RunTask:
        """Make it a task, which has the same layout. The loop steps it in its next turn."""
        self.__class__ = RunTask  # type: ignore[assignment]
        coroutine, bridge, context = self.origin
        self.begun = Begun(coroutine, bridge, ended=self.ended)
        asyncio.Task.__init__(self, self.begun, loop=bridge.loop, context=context)
        return self


_new_unmade_task = partial(UnmadeTask.__new__, UnmadeTask)  # called in this way it takes a third less time


class TasksOf:
    """Functions run as tasks of a loop, which is the host of trio, or a trio task itself."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        # both are of this thread, whose objects stay the same; to look for them takes longer than to change them
        self._of_trio = GLOBAL_RUN_CONTEXT.__dict__
        self._of_library: dict[str, Any] = _library.__dict__
        self._of_library.setdefault("name", None)

    async def call(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Run it as a task; called in trio, on the thread of the loop. Cancelling cancels the task, and waits until it
        is really done.
        """
        rest, value = self.begin(function(*arguments, **keywords), copy_context())
        return value if rest is None else await rest

    def begin(
        self, coroutine: Coroutine[Any, Any, Any], context: Context
    ) -> tuple[Coroutine[Any, Any, Any] | None, Any]:
        """Make the first step of a coroutine, and a task of it if there is more to come; called in trio, on the thread
        of the loop. Returns what to await for the rest, in another context, and None; or None and what the coroutine
        returns, if it ends there. Raises what it raises.

        Most actors that wait for nothing end in their first step, which is made here, in the middle of a step of a trio
        task. The coroutine must not get hold of that one's cancel scopes and nurseries: it would leave them in later
        steps, which are no part of it. So the trio task is hidden, and a call of trio fails in the first step as it
        does in the others: "must be called from async context". How long it takes is for the trio task to tell.
        """
        bridge = self._bridge
        loop = bridge.loop
        if bridge.is_run_by_trio:
            coroutine = Outside(coroutine, loop)
        task = _new_unmade_task()
        task.origin = coroutine, bridge, context
        task.ended = False
        first = _NOTHING
        _enter_task(loop, task)
        of_trio, of_library = self._of_trio, self._of_library
        said, of_library["name"] = of_library["name"], None
        hidden = of_trio.pop("task")
        try:
            first = context.run(coroutine.send, None)
        except StopIteration as stop:
            return None, stop.value
        finally:
            if bridge.is_of_parent:
                end_child(sys.exception())
            of_trio["task"] = hidden
            of_library["name"] = said
            _leave_task(loop, task)
            if first is _NOTHING:
                task.ended = True
                if type(task) is RunTask:  # somebody has looked at it
                    task.begun.ended = True
        return _finish(task.make(), first), None


def in_this_task(function: Callable[..., T]) -> Callable[..., T]:
    """The function, for a trio task of this thread to call: it is called as if by the asyncio task that is running now,
    which waits meanwhile.
    """
    loop, task, of_trio = asyncio.get_running_loop(), asyncio.current_task(), GLOBAL_RUN_CONTEXT.__dict__

    def call(*arguments: Any) -> T:
        if task is None:
            return function(*arguments)
        _enter_task(loop, task)
        hidden = of_trio.pop("task")
        try:
            return function(*arguments)
        finally:
            of_trio["task"] = hidden
            _leave_task(loop, task)

    return call


async def _finish(task: RunTask, first: Any) -> Any:
    """Wait for the rest of a run whose first step has ended with what it waits for."""
    begun = task.begun
    begun.waits_for(first)
    try:
        cancel = await wait_for(task)
        if begun.error is None:
            return task.result()
        if cancel is not None:
            trace_back(begun.error, cancel)
        raise begun.error
    finally:
        begun.error = None
        del task, begun  # a traceback holds this frame, which would hold the error and all that its frames have


async def wait_for(task: asyncio.Task[Any]) -> Callable[[], NoReturn] | None:
    """Wait in trio for a task of a loop of the same thread. Cancelled: cancels it and waits all the same.

    Raises `trio.Cancelled` if the task ended cancelled because of that; if it ended otherwise, what raises it is
    returned.
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
        await trio.lowlevel.checkpoint()  # what cancelled the task may have cancelled us as well
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
