"""A trio run in a thread of its own, with the app's servers open in it: what belongs to the run.

A call of another thread goes over as a `_Call` and comes back as a future; nothing else crosses.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar

import trio

from ..errors import NotConnected

T = TypeVar("T")

CLOSING_TIME = 5.0
"""Seconds that calls in progress, and an embedded worker, have when a client closes."""

_LEAVING_TIME = 20.0
"""Seconds that closing waits for the thread at most: above, and what a broker may take to close."""


class ClosedToFork(NotConnected):
    """The client was closed because the process forks; it opens again."""


class _Call:
    """One call on its way to the loop's thread and back."""

    def __init__(self, function: Callable[[], Awaitable[Any]], *, is_waiting: bool, is_worker: bool) -> None:
        self.function = function
        self.is_waiting = is_waiting
        self.is_worker = is_worker
        self.context: Context = copy_context()
        self.scope = trio.CancelScope()
        self.future: Future[Any] = Future()


class Loop:
    """A trio run in a thread. `open_servers` goes around all calls."""

    def __init__(self, open_servers: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._open_servers = open_servers
        self._calls: set[_Call] = set()
        self._ready: Future[trio.lowlevel.TrioToken] = Future()
        self._closing = False
        self._closed_to_fork = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="repid client", daemon=True)

    @property
    def is_open(self) -> bool:
        """Whether calls are taken."""
        return self._thread.is_alive() and not self._closing

    @property
    def has_worker(self) -> bool:
        """Whether a worker runs in it."""
        return any(call.is_worker for call in list(self._calls))

    def is_own_thread(self) -> bool:
        """Whether this is the loop's thread."""
        return threading.current_thread() is self._thread

    def start(self) -> None:
        """Start it and wait until the servers are open. Raises what opening raises."""
        self._thread.start()
        try:
            self._token = self._ready.result()
        except BaseException:
            self._ready.add_done_callback(self._give_up)  # interrupted (Ctrl-C): what opens after all closes again
            raise

    def _give_up(self, ready: Future[trio.lowlevel.TrioToken]) -> None:
        if ready.exception() is None:
            ready.result().run_sync_soon(partial(self._close, to_fork=False))

    def run(self, function: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:
        """Carry a call out. Interrupted while waiting (Ctrl-C): the call is cancelled."""
        call = _Call(function, is_waiting=is_waiting, is_worker=False)
        future = self._submit(call)
        try:
            error = future.exception()
        except BaseException:
            with suppress(trio.RunFinishedError):
                self.run_soon(call.scope.cancel)
            raise
        if error is None:
            found: T = future.result()
            return found
        try:
            raise error
        finally:
            del error, future, call  # its traceback holds this frame, which would hold it

    def submit(self, function: Callable[[], Awaitable[T]], *, is_waiting: bool, is_worker: bool = False) -> Future[T]:
        """Have a call carried out, without waiting for it."""
        return self._submit(_Call(function, is_waiting=is_waiting, is_worker=is_worker))

    def run_soon(self, function: Callable[[], object]) -> None:
        """Call a function in the loop's thread. Raises `trio.RunFinishedError` if there is no loop any more."""
        self._token.run_sync_soon(function)

    def close(self, *, to_fork: bool) -> None:
        """End the run and wait for that."""
        with suppress(trio.RunFinishedError):
            self.run_soon(partial(self._close, to_fork=to_fork))
        self._thread.join(_LEAVING_TIME)

    def _submit(self, call: _Call) -> Future[Any]:
        try:
            self.run_soon(partial(self._begin, call))
        except trio.RunFinishedError:
            raise self._refusal() from self._error
        return call.future

    # In the loop's thread

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits, or at the next call
            self._error = error
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _main(self) -> None:
        async with self._open_servers():
            self._closed = trio.Event()
            async with trio.open_nursery() as self._nursery:
                self._ready.set_result(trio.lowlevel.current_trio_token())
                try:
                    await self._closed.wait()
                finally:
                    self._closing = True
                self._nursery.cancel_scope.deadline = trio.current_time() + CLOSING_TIME

    def _close(self, *, to_fork: bool) -> None:
        self._closing = True
        self._closed_to_fork = to_fork
        self._closed.set()
        for call in self._calls:
            if call.is_waiting and not call.is_worker:
                call.scope.cancel()

    def _begin(self, call: _Call) -> None:
        if self._closing:
            call.future.set_exception(self._refusal())
            return
        self._calls.add(call)
        call.context.run(self._nursery.start_soon, self._carry_out, call)

    async def _carry_out(self, call: _Call) -> None:
        try:
            with call.scope:
                call.future.set_result(await call.function())
        except trio.Cancelled:
            call.future.set_exception(self._refusal())
            raise
        except BaseException as error:
            call.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._calls.discard(call)
            if not call.future.done():
                call.future.set_exception(self._refusal())

    def _refusal(self) -> NotConnected:
        if self._closed_to_fork:
            return ClosedToFork("the client closed because the process forks, before this call was over")
        return NotConnected("the client was closed before this call was over")
