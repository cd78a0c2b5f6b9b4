"""Where functions that would block the event loop run: threads and processes.

A thread cannot be killed. When it is to stop it is asked (`trio.from_thread.check_cancelled`) and waited for, and
only a worker that is ending leaves it behind. A process is killed.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from ..actors import Actor
from ..errors import MissingExtra
from ..inject import is_unfinished, refuse_unfinished
from ..logs import context as log_context
from ..ports import Backend, HostBackend
from ..process import end_child
from ..run_token import call_soon_in
from ..waiting_threads import HeldThread, WaitingThreads
from .parcels import Parcel, call_parcel, death_of, name_in_errors, sendable, value_parcel

if TYPE_CHECKING:
    from .process_verbs import ProcessVerbs

MOMENT = 0.5
"""Seconds in which a thread may still end that is asked to stop by a worker whose grace is over."""

CLOSING_TIME = 5.0
"""Seconds that the idle processes of a pool have to end when the worker does; then they are killed."""

abandoned: ContextVar[bool] = ContextVar("abandoned", default=False)
"""True in the context of a run whose thread was left behind."""


class LoopBackends(msgspec.Struct, frozen=True):
    """Where async functions run that are no part of an executor's task, by the word of their actor's `backend`.

    `host`: where middlewares run, and those actors that say "host"; None: in the executor's task. `on_long_step`: what
    is set there in the context of a run is called with the seconds for which one step of that run has kept its loop.
    """

    tasks: Mapping[str, Backend] = {}
    host: HostBackend | None = None
    on_long_step: ContextVar[Callable[[float], None]] | None = None


IN_TASK = LoopBackends()
"""Every async function is a part of its executor's task."""


class ThreadBackend:
    """Runs functions in trio's worker threads. Its callers keep to the `slots`."""

    def __init__(self, slots: float) -> None:
        self.slots = slots
        self.waiting = WaitingThreads(slots)
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
        held, outcome, process = HeldThread(self.waiting, function), Outcome(), os.getpid()

        def body() -> None:
            try:
                with held.here():
                    outcome.note(function, arguments, keywords)
                if os.getpid() != process:
                    end_child(outcome.error)
            finally:
                call_soon_in(token, ended.set)  # unless it was left behind, and trio is gone

        try:
            await trio.to_thread.run_sync(body, abandon_on_cancel=True, limiter=self._unlimited)
        except trio.Cancelled:
            held.ask_to_stop()
            with trio.CancelScope(shield=True, deadline=self._abandoning_at) as wait:
                self._waits.add(wait)
                try:
                    await ended.wait()
                finally:
                    self._waits.discard(wait)
            if not ended.is_set():
                abandoned.set(True)
                raise
        return outcome.unwrap()

    def abandon(self) -> None:
        """Wait a moment for the threads that are asked to stop now, and then for none any more."""
        self._abandoning_at = trio.current_time() + MOMENT
        for wait in self._waits:
            wait.deadline = self._abandoning_at


class ProcessBackend:
    """Runs functions in a pool of processes. Cancelling kills the process. Its callers keep to the `slots`."""

    def __init__(self, run_sync: Callable[..., Any], slots: float, verbs: ProcessVerbs | None = None) -> None:
        self.slots = slots
        self._verbs = verbs
        self._unlimited = trio.CapacityLimiter(float("inf"))
        self._run_sync = run_sync

    async def call(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Run it in a process of its own choice; arguments and result are pickled. What a message in them is told,
        comes here.
        """
        if self._verbs is None:
            return await self._run(function, arguments, keywords)
        with self._verbs.lent((tuple(arguments), dict(keywords))) as (lent_arguments, lent_keywords):
            return await self._run(function, lent_arguments, lent_keywords)

    async def _run(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        from trio_parallel import BrokenWorkerError  # noqa: PLC0415  an extra

        call = partial(_called, call_parcel(function, arguments, keywords), log_context.get())
        try:
            return await self._run_sync(call, kill_on_cancel=True, limiter=self._unlimited)
        except BrokenWorkerError as error:
            raise death_of(function, error.args[1].exitcode) from None


def _called(call: Any, fields: Mapping[str, object]) -> Parcel:
    """Carry out a call in a process. `call` was sent as a `call_parcel`, and arrives as what that held. `fields`: the
    log context of the run.
    """
    function, arguments, keywords = call
    outcome, process = Outcome(), os.getpid()
    token = log_context.set(fields)
    outcome.note(function, arguments, keywords)
    log_context.reset(token)
    if os.getpid() != process:
        end_child(outcome.error)
    if outcome.error is not None:
        outcome.error = sendable(outcome.error)
    elif is_unfinished(outcome.value):
        raise refuse_unfinished(name_in_errors(function), outcome.value)
    return value_parcel(function, outcome.unwrap())


class Outcome:
    """What a function in a thread has come to. An error is kept from everybody but us: reading it may run code that
    raises.
    """

    __slots__ = ("error", "value")

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None

    def note(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """Call the function in this thread. Raises nothing."""
        try:
            self.value = function(*arguments, **keywords)
        except BaseException as error:  # noqa: BLE001  whatever it is, `unwrap` raises it
            self.error = error

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
        self, threads: ThreadBackend, processes: ProcessBackend | None, loop_backends: LoopBackends = IN_TASK
    ) -> None:
        self._threads = threads
        self._processes = processes
        self._tasks = loop_backends.tasks
        self.host = loop_backends.host
        self.on_long_step = loop_backends.on_long_step

    def of(self, actor: Actor) -> Backend | None:
        """The backend an actor runs on; None: it is async and runs as part of the executor's task."""
        if actor.is_async:
            return self._tasks.get(actor.backend)
        if not actor.run_in_process:
            return self._threads
        assert self._processes is not None  # `open_backends` has seen this actor
        return self._processes

    @property
    def waiting_threads(self) -> WaitingThreads:
        """Which of the threads wait for jobs."""
        return self._threads.waiting

    def abandon(self) -> None:
        """Leave threads that do not end to themselves."""
        self._threads.abandon()


@asynccontextmanager
async def open_backends(
    actors: Sequence[Actor],
    loop_backends: LoopBackends,
    *,
    threads: float | None,
    processes: float | None,
) -> AsyncIterator[Backends]:
    """The backends these actors need; processes end with the block.

    `threads`, `processes`: how many there may be at once; None: as trio's own limiter allows, and one for each core.
    """
    async with AsyncExitStack() as stack:
        in_processes = None
        if any(actor.run_in_process for actor in actors):
            try:
                from .pool import open_pool  # noqa: PLC0415  an extra
            except ImportError:
                raise MissingExtra("run_in_process", "process") from None
            pool = await stack.enter_async_context(open_pool())
            verbs = None
            if any(actor.run_in_process and actor.plan.signature.messages for actor in actors):
                from .process_verbs import listen_to_processes  # noqa: PLC0415  few workers have such actors

                verbs = await stack.enter_async_context(listen_to_processes())
            in_processes = ProcessBackend(pool.run_sync, processes or os.cpu_count() or 1, verbs)
        in_threads = ThreadBackend(threads or trio.to_thread.current_default_thread_limiter().total_tokens)
        yield Backends(in_threads, in_processes, loop_backends)
