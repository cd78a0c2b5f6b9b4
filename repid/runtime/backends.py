"""Where functions that would block the event loop run: threads and processes.

A thread cannot be killed. When it is to stop it is asked (`trio.from_thread.check_cancelled`) and waited for, and
only a worker that is ending leaves it behind. A process is killed.
"""

from __future__ import annotations

import math
import os
import sys
import types
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import msgspec
import trio

from ..actors import Actor
from ..errors import MissingExtra
from ..inject import refuse_unfinished
from ..ports import Backend, Home
from .offspring import prepare_for_children

MOMENT = 0.5
"""Seconds in which a thread may still end that is asked to stop by a worker whose grace is over."""

UNFINISHED = frozenset({types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType})
"""What an actor cannot mean to return: nothing of it has been done yet."""

CLOSING_TIME = 5.0
"""Seconds that the idle processes of a pool have to end when the worker does; then they are killed."""

abandoned: ContextVar[bool] = ContextVar("abandoned", default=False)
"""True in the context of a run whose thread was left behind."""


class Elsewhere(msgspec.Struct, frozen=True):
    """Where async functions run that are no part of an executor's task, by the word of their actor's `backend`.

    `home`: where middlewares run, and those actors that say "host"; None: in the executor's task. `on_long_step`: what is
    set there in the context of a run is called with the seconds for which one step of that run has kept its loop.
    """

    tasks: Mapping[str, Backend] = {}
    home: Home | None = None
    on_long_step: ContextVar[Callable[[float], None]] | None = None


HERE = Elsewhere()
"""Every async function is a part of its executor's task."""


class InlineBackend:
    """Runs a function where it is: for platforms that have neither threads nor processes."""

    slots = None

    async def call(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Run it now; the event loop waits."""
        await trio.lowlevel.checkpoint()
        return function(*arguments, **keywords)


class ThreadBackend:
    """Runs functions in trio's worker threads. Whoever calls it keeps to the `slots`."""

    def __init__(self, slots: float) -> None:
        self.slots = slots
        self._unlimited = trio.CapacityLimiter(float("inf"))
        self._waits: set[trio.CancelScope] = set()
        self._abandoning_at = math.inf

    async def call(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Run it in a thread. Cancelling asks it to stop and waits until it has; what it then returns or raises counts.

        Raises `trio.Cancelled` if it has not ended a moment after `abandon`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # from here on a thread is started, cancelled or not
        ended = trio.Event()
        token = trio.lowlevel.current_trio_token()

        outcome = _Outcome()

        def body() -> None:
            try:
                outcome.value = function(*arguments, **keywords)
            except BaseException as error:  # noqa: BLE001  nobody but us may handle it: it may be one that bites
                outcome.error = error
            finally:
                with suppress(trio.RunFinishedError):  # left behind, and trio is gone
                    token.run_sync_soon(ended.set)

        try:
            await trio.to_thread.run_sync(body, abandon_on_cancel=True, limiter=self._unlimited)
        except trio.Cancelled:
            if not await self._has_ended(ended):
                abandoned.set(True)
                raise
        return outcome.unwrap()

    async def _has_ended(self, ended: trio.Event) -> bool:
        """Wait until a thread that was asked to stop has ended, or need not be waited for any longer."""
        with trio.CancelScope(shield=True, deadline=self._abandoning_at) as wait:
            self._waits.add(wait)
            try:
                await ended.wait()
            finally:
                self._waits.discard(wait)
        return ended.is_set()

    def abandon(self) -> None:
        """Wait a moment for the threads that are asked to stop now, and then for none any more."""
        self._abandoning_at = trio.current_time() + MOMENT
        for wait in self._waits:
            wait.deadline = self._abandoning_at


class ProcessBackend:
    """Runs functions in a pool of processes. Cancelling kills the process. Whoever calls it keeps to the `slots`."""

    def __init__(self, run_sync: Callable[..., Any], slots: float) -> None:
        self.slots = slots
        self._unlimited = trio.CapacityLimiter(float("inf"))
        self._run_sync = run_sync

    async def call(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Run it in a process of its own choice; arguments and result are pickled."""
        call = partial(_called, function, *arguments, **keywords)
        return await self._run_sync(call, kill_on_cancel=True, limiter=self._unlimited)


def _called(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """For a process: what cannot be sent back is to be named by what it is."""
    value = function(*arguments, **keywords)
    if type(value) in UNFINISHED:
        raise refuse_unfinished(f"{function!r}", value)
    return value


class _Outcome:
    """What a function in a thread has come to."""

    __slots__ = ("error", "value")

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None

    def unwrap(self) -> Any:
        """What it returned; raises what it raised."""
        if self.error is None:
            return self.value
        error, self.error = self.error, None  # or its traceback would hold itself
        try:
            raise error
        finally:
            del error


class Backends:
    """The backends of one worker. A pool of processes exists only where an actor needs one."""

    def __init__(
        self, threads: ThreadBackend | None, processes: ProcessBackend | None, elsewhere: Elsewhere = HERE
    ) -> None:
        self._threads = threads
        self._processes = processes
        self._tasks = elsewhere.tasks
        self.home = elsewhere.home
        self.on_long_step = elsewhere.on_long_step

    def of(self, actor: Actor) -> Backend | None:
        """The backend an actor runs on; None: it is async and runs as part of the executor's task."""
        if actor.is_async:
            return self._tasks.get(actor.backend)
        return (self._processes if actor.run_in_process else None) or self._threads or InlineBackend()

    def abandon(self) -> None:
        """Leave threads that do not end to themselves."""
        if self._threads is not None:
            self._threads.abandon()


@asynccontextmanager
async def open_backends(
    actors: Sequence[Actor],
    elsewhere: Elsewhere = HERE,
    platform: str = sys.platform,
    *,
    threads: float | None = None,
    processes: float | None = None,
) -> AsyncIterator[Backends]:
    """The backends these actors need; processes end with the block. Emscripten has neither threads nor processes.

    At most so many `threads` (None: as many as trio's own limiter allows) and `processes` (None: one for each core).
    """
    if platform == "emscripten":
        yield Backends(None, None, elsewhere)
        return
    async with AsyncExitStack() as stack:
        in_processes = None
        if any(actor.run_in_process for actor in actors):
            pool = await stack.enter_async_context(_open_pool())
            in_processes = ProcessBackend(pool.run_sync, processes or os.cpu_count() or 1)
        in_threads = ThreadBackend(threads or trio.to_thread.current_default_thread_limiter().total_tokens)
        yield Backends(in_threads, in_processes, elsewhere)


def _open_pool() -> AbstractAsyncContextManager[Any]:
    try:
        import trio_parallel  # noqa: PLC0415  an extra
    except ImportError:
        raise MissingExtra("run_in_process", "process") from None
    return trio_parallel.open_worker_context(init=prepare_for_children)  # type: ignore[no-any-return]
