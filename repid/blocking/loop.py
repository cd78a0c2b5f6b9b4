"""The trio run that carries out what a thread calls: one in a thread of its own, or one that is there already.

A call goes over as a `_Call` and comes back as a future; nothing else crosses.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar

import trio

from ..errors import NotConnected, UsageError
from ..process import at_exit, inherits
from ..runtime.failures import is_cancellation

T = TypeVar("T")

CLOSING_TIME = 5.0
"""Seconds that calls in progress, and an embedded worker, have when a client closes."""

_LEAVING_TIME = 20.0
"""Seconds that closing waits for the thread at most: above, and what a broker may take to close."""


class _Call:
    """One call on its way to a trio run and back. `owner`: the client that made it."""

    def __init__(
        self,
        function: Callable[[], Awaitable[Any]],
        owner: object = None,
        *,
        is_waiting: bool = False,
        is_worker: bool = False,
    ) -> None:
        self.function = function
        self.owner = owner
        self.is_waiting = is_waiting
        self.is_worker = is_worker
        self.context: Context = copy_context()
        self.scope = trio.CancelScope()
        self.caller = threading.current_thread()
        self.future: Future[Any] = Future()

    async def carry_out(self) -> None:
        """Make the call, in the run's thread. Once the future is done, it belongs to the thread that waits."""
        try:
            with self.scope:
                value = await self.function()
        except BaseException as error:
            self.future.set_exception(_closed() if is_cancellation(error) else error)
            if not isinstance(error, Exception):
                raise
        else:
            if self.scope.cancelled_caught:
                self.future.set_exception(_closed())
            else:
                self.future.set_result(value)

    def wait(self, run: trio.lowlevel.TrioToken) -> Any:
        """Wait in the caller's thread for what it returns or raises. Interrupted (Ctrl-C): the call is cancelled."""
        try:
            error = self.future.exception()
        except BaseException:
            with suppress(trio.RunFinishedError):
                run.run_sync_soon(self.scope.cancel)
            raise
        if error is None:
            return self.future.result()
        try:
            raise error
        finally:
            del error, self.future  # its traceback holds this frame, which would hold it


def _closed() -> NotConnected:
    return NotConnected("the client was closed before this call was over")


def call_in(run: trio.lowlevel.TrioToken, function: Callable[[], Awaitable[T]]) -> T:
    """Carry a call out in a trio run of another thread, as one of its system tasks.

    Raises `trio.RunFinishedError` if the run has ended before the call began.
    """
    call = _Call(function)

    def begin() -> None:
        try:
            trio.lowlevel.spawn_system_task(call.carry_out, name="repid: a blocking call", context=call.context)
        except RuntimeError:  # the run is ending
            call.future.set_exception(trio.RunFinishedError("the trio run has ended"))

    run.run_sync_soon(begin)
    found: T = call.wait(run)
    return found


class Loop:
    """A trio run in a thread. `open_servers` goes around all calls."""

    def __init__(self, open_servers: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._open_servers = open_servers
        self._calls: set[_Call] = set()  # other threads add to it
        self._ready: Future[trio.lowlevel.TrioToken] = Future()
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="repid client", daemon=True)

    @property
    def is_open(self) -> bool:
        """Whether calls are taken."""
        return self._thread.is_alive() and not self._closing

    def start(self) -> None:
        """Start it and wait until the servers are open. Raises what opening raises."""
        try:
            at_exit.add(self._close_at_exit)
            self._thread.start()
        except (RuntimeError, MemoryError) as error:
            at_exit.discard(self._close_at_exit)
            raise UsageError(
                f"the client cannot open, because Python lets no thread start ({error}): the program is ending, or the "
                "system has no room for one; make the first call earlier, in the main thread say"
            ) from error
        try:
            self.token = self._ready.result()
        except BaseException:
            self._ready.add_done_callback(self._give_up)  # interrupted (Ctrl-C): what opens after all closes again
            raise

    def _give_up(self, ready: Future[trio.lowlevel.TrioToken]) -> None:
        if ready.exception() is None:
            ready.result().run_sync_soon(self._close)

    def run(self, function: Callable[[], Awaitable[T]], owner: object, *, is_waiting: bool) -> T:
        """Carry a call out."""
        call = _Call(function, owner, is_waiting=is_waiting)
        self._submit(call)
        found: T = call.wait(self.token)
        return found

    def run_worker(self, function: Callable[[], Awaitable[T]]) -> Future[T]:
        """Have a worker run beside the calls, without waiting for it."""
        call = _Call(function, is_worker=True)
        self._submit(call)
        return call.future

    def run_soon(self, function: Callable[[], object]) -> None:
        """Call a function in the loop's thread. Raises `trio.RunFinishedError` if there is no loop any more."""
        self.token.run_sync_soon(function)

    def call_off(self, owner: object) -> None:
        """End the calls of one client that wait for something; others go on."""
        with suppress(trio.RunFinishedError):
            self.run_soon(partial(self._call_off, owner))

    def close(self) -> None:
        """End the run and wait for that."""
        with suppress(trio.RunFinishedError):
            self.run_soon(self._close)
        self._thread.join(_LEAVING_TIME)

    def _close_at_exit(self) -> None:
        """End the run when those threads have ended that have calls in progress, and that Python waits for, too."""
        while callers := {
            call.caller for call in list(self._calls) if call.caller.is_alive() and not call.caller.daemon
        }:
            for caller in callers:
                caller.join()
        self.close()

    def _submit(self, call: _Call) -> None:
        self._calls.add(call)
        try:
            self.run_soon(partial(self._begin, call))
        except trio.RunFinishedError:
            self._calls.discard(call)
            raise _closed() from self._error

    # In the loop's thread

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: BLE001  it is raised where somebody waits, or at the next call
            self._error = error
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            at_exit.discard(self._close_at_exit)

    async def _main(self) -> None:
        open_servers = self._open_servers
        del self._open_servers  # which is of the app: a loop that has ended must not keep it alive
        async with open_servers():
            self._closed = trio.Event()
            async with trio.open_nursery() as self._nursery:
                self._ready.set_result(trio.lowlevel.current_trio_token())
                try:
                    await self._closed.wait()
                finally:
                    self._closing = True
                self._nursery.cancel_scope.deadline = trio.current_time() + CLOSING_TIME

    def _close(self) -> None:
        self._closing = True
        self._closed.set()
        for call in list(self._calls):
            if call.is_waiting:
                call.scope.cancel()

    def _call_off(self, owner: object) -> None:
        for call in list(self._calls):
            if call.is_waiting and call.owner is owner:
                call.scope.cancel()

    def _begin(self, call: _Call) -> None:
        if self._closing:
            self._calls.discard(call)
            call.future.set_exception(_closed())
            return
        call.context.run(self._nursery.start_soon, self._carry_out, call)

    async def _carry_out(self, call: _Call) -> None:
        try:
            await call.carry_out()
        finally:
            self._calls.discard(call)


class SharedLoop:
    """The one loop of all clients of an app: the first that needs it opens it, the last one that closes ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: Loop | None = None
        self._clients: weakref.WeakSet[Any] = weakref.WeakSet()
        inherits(self, SharedLoop.start_anew)

    @property
    def loop(self) -> Loop | None:
        """The loop, if it is open."""
        loop = self._loop
        return loop if loop is not None and loop.is_open else None

    def enter(self, client: object, open_servers: Callable[[], AbstractAsyncContextManager[Any]]) -> Loop:
        """The loop, opened if it is not. It stays until the client leaves. Raises what opening raises."""
        with self._lock:
            loop = self.loop
            if loop is None:
                loop = Loop(open_servers)
                loop.start()
                self._loop = loop
                self._clients.clear()
            self._clients.add(client)
            return loop

    def leave(self, client: object) -> None:
        """Close the loop if no other client uses it; else only the client's waiting calls end."""
        with self._lock:
            loop = self._loop
            if loop is None or client not in self._clients:
                return
            self._clients.discard(client)
            if self._clients:
                loop.call_off(client)
            else:
                self._loop = None
                loop.close()

    def start_anew(self) -> None:
        """The loop is the parent's."""
        if self._loop is not None:
            _left_behind.append(self._loop)
        self._lock, self._loop, self._clients = threading.Lock(), None, weakref.WeakSet()


class SharedLoops:
    """The shared loop of each app."""

    def __init__(self) -> None:
        self._of: weakref.WeakKeyDictionary[Any, SharedLoop] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        inherits(self, SharedLoops.start_anew)

    def of(self, app: object) -> SharedLoop:
        """That of one app."""
        with self._lock:
            shared = self._of.get(app)
            if shared is None:
                shared = self._of[app] = SharedLoop()
            return shared

    def start_anew(self) -> None:
        """Another thread may have held the lock."""
        self._lock = threading.Lock()


shared_loops = SharedLoops()

_left_behind: list[Loop] = []
"""What a forked child inherited: to touch it, even to free it, could harm the parent's connections."""
