"""Threads that wait for jobs. Where all threads of a worker do, a job that needs one itself is not started there.

A sync actor holds its thread while it waits for a job in it (`app.sync().wait(...)`), so parents that wait for children
may use up all that `threads_limit` allows. Nothing can be done about that here: another worker may take the child, and
a thread more would only put the same moment off. But the log tells of it, once for each actor that is waited for.

A thread that waits in a call of repid's (for a job, or for room in a full queue) is not lost to its worker, though: the
waiting is done in the worker's trio run, so it is cancelled there when the actor is asked to stop, and the thread is
told. trio does not do so itself, as the threads of sync actors are abandoned if all else fails (`abandon_on_cancel`).

All that is noted here is changed in the thread of the worker's trio run only.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import trio

from .envelope import Envelope
from .logs import Log

log = Log("repid.worker")

Function = Callable[..., Any]
T = TypeVar("T")


def _nobody(_: object) -> None:
    return None


class WaitingThreads:
    """How many of the threads of one worker wait for a job.

    `find_parent`: the name of the actor with this function. `find_child`: the name of the actor that takes a message in
    a thread of this worker, None if none does.
    """

    def __init__(self, slots: float) -> None:
        self._slots = slots
        self._count = 0
        self._told: set[str] = set()
        self.find_parent: Callable[[Function], str | None] = _nobody
        self.find_child: Callable[[Envelope], str | None] = _nobody

    @contextmanager
    def one_more(self, function: Function, envelope: Envelope) -> Iterator[None]:
        """The thread in which this function runs waits for the job of this message, for a block."""
        self._count += 1
        try:
            child = self.find_child(envelope) if self._count >= self._slots else None
            if child is not None and child not in self._told:
                self._told.add(child)
                log.warning(
                    "actor %r waits for job %r of actor %r, which needs a thread as well, but all threads of this "
                    "worker (threads_limit=%d) wait for jobs: if no other worker takes it, they wait until their "
                    "timeouts; raise threads_limit, run the children in another worker, or declare one of the actors "
                    "with async def",
                    self.find_parent(function) or repr(function),
                    envelope.id,
                    child,
                    self._slots,
                )
            yield
        finally:
            self._count -= 1


class HeldThread:
    """A thread in which a sync actor runs: one of `waiting`. The calls that it makes end when the actor is asked to
    stop.
    """

    def __init__(self, waiting: WaitingThreads, function: Function) -> None:
        self.waiting = waiting
        self.function = function
        self.token = trio.lowlevel.current_trio_token()
        self._calls: set[trio.CancelScope] = set()
        self._is_asked_to_stop = False

    @contextmanager
    def here(self) -> Iterator[None]:
        """Entered in the thread: it is this one, until the block is left."""
        held_thread.set(self)
        _mine.held = self
        try:
            yield
        finally:
            _mine.held = None

    def ask_to_stop(self) -> None:
        """End the calls that are in progress, and from now on those that wait for jobs."""
        self._is_asked_to_stop = True
        for scope in self._calls:
            scope.cancel()

    def make(self, call: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:
        """Make an async call in the worker's trio run, and wait for it in the thread. `is_waiting`: for a job.

        Raises `trio.Cancelled` if the actor is asked to stop meanwhile, or was before a call that waits for a job;
        others are made then, too: a clean-up may send something.
        """
        found = trio.from_thread.run(self._carry_out, call, is_waiting, trio_token=self.token)
        if found is _ENDED:
            trio.from_thread.check_cancelled()  # raises, since the actor was asked to stop
        return cast("T", found)

    async def _carry_out(self, call: Callable[[], Awaitable[object]], is_waiting: bool) -> object:
        with trio.CancelScope() as scope:
            if not self._is_asked_to_stop:
                self._calls.add(scope)
            elif is_waiting:
                scope.cancel()
            try:
                return await call()
            finally:
                self._calls.discard(scope)
        return _ENDED


_ENDED = object()

held_thread: ContextVar[HeldThread | None] = ContextVar("held_thread", default=None)
"""In the thread of a sync actor, and in what is called from there: which it is."""


class _Mine(threading.local):
    """What each thread knows of itself: its context does not tell, as other threads may run in a copy of it, and so may
    later actors of the same thread.
    """

    held: HeldThread | None = None


_mine = _Mine()


def held_here() -> HeldThread | None:
    """The thread that asks, if a sync actor runs in it."""
    return _mine.held


@contextmanager
def waiting_for(envelope: Envelope) -> Iterator[None]:
    """For a block the caller waits for the job of this message, perhaps in the thread of a sync actor."""
    held = held_thread.get()
    if held is None:
        yield
        return
    with held.waiting.one_more(held.function, envelope):
        yield
