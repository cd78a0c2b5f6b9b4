"""Repid for blocking callers: a client that owns a trio run in a thread of its own.

What belongs to the thread that calls is in `Client`, what belongs to the run in `_Loop`. A call goes over as a
`_Call` and comes back as a future; nothing else crosses.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from contextvars import Context, copy_context
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, Unpack

import trio

from .application import Application, current
from .envelope import Envelope
from .errors import NotConnected, ResultError, UsageError
from .job import Job, JobHandle
from .names import check_duration
from .producer import SendOptions
from .results import Result
from .runtime import Handle, Report
from .worker import WorkerOptions

T = TypeVar("T")

CLOSING_TIME = 5.0
"""Seconds that calls in progress, and an embedded worker, have when a client closes."""

_OWN_THREADS = ("repid client", "repid sqlite")
"""How the names of threads begin in which no code of callers runs, finalizers apart."""

_LEAVING_TIME = 20.0
"""Seconds that closing waits for the thread at most: above, and what a broker may take to close."""


class BlockingApplication(Application, Protocol):
    """What the client needs of an app."""

    def magic(self) -> AbstractAsyncContextManager[Any]:
        """Open every server for a block."""
        ...

    @property
    def send_message(self) -> Callable[..., Awaitable[Envelope]]:
        """Send bytes."""
        ...

    @property
    def send_message_json(self) -> Callable[..., Awaitable[Envelope]]:
        """Send JSON."""
        ...

    @property
    def send_messages(self) -> Callable[..., Awaitable[list[Envelope]]]:
        """Send bytes, many times."""
        ...

    @property
    def send_messages_json(self) -> Callable[..., Awaitable[list[Envelope]]]:
        """Send JSON, many times."""
        ...

    @property
    def run_worker(self) -> Callable[..., Awaitable[Report]]:
        """Run the app's actors."""
        ...


class Client:
    """The app's verbs for code that blocks: Django, Flask, scripts. Any number of threads may share one client.

    It opens at its first call and closes at the end of its `with` block, at `close()`, or at the exit of the
    process; after that the next call opens it anew. So it may be made when a module is imported and live as long as
    the process. A forked child opens one of its own; for that, the parent's closes before the fork.

    While it is open, the app's servers belong to it, as they belong to one trio run at a time; processes share a
    server, runs in one process do not. In memory nobody else sees the messages: run their worker with `worker()`.
    In a thread that a worker of the same app runs (a sync actor), calls go through that worker's run.

    Calls raise what the app's raise, and `UsageError` where they might wait for ever: in a thread that runs an event
    loop; in a signal handler or a finalizer (`__del__`) that interrupts another call, or runs in one of repid's own
    threads; and once the process is ending, in `atexit` handlers and the finalizers of globals.
    """

    def __init__(self, app: BlockingApplication) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        _clients.add(self)

    def __repr__(self) -> str:
        return f"<repid client, {'open' if self.is_open else 'closed'}>"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether its connections are open."""
        loop = self._loop
        return loop is not None and loop.is_open

    def open(self) -> None:
        """Open the connections now rather than at the first call. Open already: nothing happens."""
        check_may_block()
        with _one_call():
            self._opened()

    def close(self) -> None:
        """Close the connections. Calls that other threads have in progress get five seconds, waiting ones none."""
        if self._loop is not None:
            check_may_block()
            with _one_call():
                self._close()

    def send_message(
        self, *, channel: str, payload: bytes, content_type: str | None = None, **options: Unpack[SendOptions]
    ) -> Envelope:
        """Send bytes to a channel, as `Repid.send_message`."""
        return self.call(
            partial(self._app.send_message, channel=channel, payload=payload, content_type=content_type, **options)
        )

    def send_message_json(self, *, channel: str, payload: Any = None, **options: Unpack[SendOptions]) -> Envelope:
        """Send anything that can be encoded as JSON, as `Repid.send_message_json`."""
        return self.call(partial(self._app.send_message_json, channel=channel, payload=payload, **options))

    def send_messages(
        self,
        *,
        channel: str,
        payloads: Iterable[bytes],
        content_type: str | None = None,
        **options: Unpack[SendOptions],
    ) -> list[Envelope]:
        """Send many messages in one step, as `Repid.send_messages`."""
        batch = list(payloads)  # here, in the caller's thread: it may be a generator that blocks
        return self.call(
            partial(self._app.send_messages, channel=channel, payloads=batch, content_type=content_type, **options)
        )

    def send_messages_json(
        self, *, channel: str, payloads: Iterable[Any], **options: Unpack[SendOptions]
    ) -> list[Envelope]:
        """Send many messages in one step, as `Repid.send_messages_json`."""
        batch = list(payloads)
        return self.call(partial(self._app.send_messages_json, channel=channel, payloads=batch, **options))

    def enqueue(self, job: Job) -> JobHandle:
        """Publish a job, as `Job.enqueue`; needs no `app=` in the job."""
        return self.call(job.enqueue)

    def result(self, job: Job | JobHandle, timeout: float | None = None) -> Result[Any]:
        """Wait until a job has ended in whatever way; its result.

        Raises `TimeoutError` after so many seconds (None: never), which changes nothing, and `ResultError` if it has
        ended and no result was stored (`store_result` was not asked for).
        """
        deadline = None if timeout is None else time.monotonic() + check_duration("timeout", timeout)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            with suppress(_ClosedToFork):
                found = self._call(partial(_wait, job, left), is_waiting=True)
                if found is None:
                    raise TimeoutError(f"{job!r} has not ended within {timeout:g} seconds")
                return found

    def cancel(self, job: Job | JobHandle) -> bool:
        """Cancel a job, as `Job.cancel`."""
        return self.call(job.cancel)

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Carry out any async call where the servers are open: `client.call(Queue("mail").counts)`."""
        return self._call(function, is_waiting=False)

    @contextmanager
    def worker(self, server_name: str | None = None, **options: Unpack[WorkerOptions]) -> Iterator[Handle]:
        """Run the app's actors beside the calls, for a block; leaving it stops the worker gracefully.

        For servers in memory, and for tests. Options as in `WorkerOptions`; without signals unless asked.
        """
        check_may_block()
        started: Future[Handle] = Future()
        with _one_call():
            loop = self._opened()
            ended = loop.submit(partial(self._work, started, server_name, options), is_waiting=True, is_worker=True)
            ended.add_done_callback(partial(_pass_error_on, started))
            handle = started.result()
        try:
            yield handle
        finally:
            with _one_call():
                with suppress(trio.RunFinishedError):
                    loop.run_soon(handle.stop)
                ended.result()

    async def _work(self, started: Future[Handle], server_name: str | None, options: WorkerOptions) -> Report:
        status = _Started(started)
        return await self._app.run_worker(server_name=server_name, task_status=status, **options)

    def _call(self, function: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:
        with _one_call():
            if not self.is_open and self._is_hosted():
                return trio.from_thread.run(_with_app, self._app, function)
            check_may_block()
            return self._opened().run(partial(_with_app, self._app, function), is_waiting=is_waiting)

    def _is_hosted(self) -> bool:
        """Whether this is a thread of a trio run that has the app's server open."""
        try:
            trio.from_thread.check_cancelled()
        except RuntimeError:
            return False
        return self._app.server().is_connected

    def _opened(self) -> _Loop:
        loop = self._loop
        if loop is not None and loop.is_open:
            return loop
        with self._lock:
            if self._loop is None or not self._loop.is_open:
                _watch_for_exit()
                loop = _Loop(self._app)
                loop.start()
                self._loop = loop
            return self._loop

    def _close(self, *, to_fork: bool = False) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is not None:
                loop.close(to_fork=to_fork)

    def before_fork(self) -> None:
        """Close, so that the child inherits no open file."""
        loop = self._loop
        if loop is not None and not loop.has_worker and not loop.is_own_thread() and not _mine.is_calling:
            self._close(to_fork=True)

    def after_fork_in_child(self) -> None:
        """Forget what only the parent has."""
        if self._loop is not None:
            _left_behind.append(self._loop)
        self._loop = None
        self._lock = threading.Lock()


class _ClosedToFork(NotConnected):
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


class _Loop:
    """A trio run in a thread, with the app's servers open in it."""

    def __init__(self, app: BlockingApplication) -> None:
        self._app = app
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
        async with self._app.magic():
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
            return _ClosedToFork("the client closed because the process forks, before this call was over")
        return NotConnected("the client was closed before this call was over")


class _Started:
    """Where an embedded worker says that it has started."""

    def __init__(self, started: Future[Handle]) -> None:
        self._started = started

    def started(self, value: Handle | None = None) -> None:
        """It has."""
        if value is not None and not self._started.done():
            self._started.set_result(value)


def check_may_block() -> None:
    """Raises `UsageError` where blocking would be for ever, or stop others: see `Client`."""
    thread = threading.current_thread()
    if thread is threading.main_thread() and not thread.is_alive():
        raise UsageError("the process is ending, and nothing can be started any more: call before the program's end")
    if thread.name.startswith(_OWN_THREADS):
        raise UsageError(
            f"this call blocks, and {thread.name!r} is a thread of repid's own: it was made by a finalizer (__del__), "
            "which may run in any thread"
        )
    library = _running_library()
    if library is not None:
        raise UsageError(
            f"this call blocks, and would stop the {library} loop that runs in this thread: await the app's own "
            "methods here, or make the call in a thread"
        )


def _running_library() -> str | None:
    if trio.lowlevel.in_trio_run():
        return "trio"
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return None
    return "asyncio"


class _Mine(threading.local):
    """What each thread knows of itself."""

    is_calling = False


_mine = _Mine()


@contextmanager
def _one_call() -> Iterator[None]:
    """A call of this thread. One that interrupts it could wait for a lock that it holds, so that is refused."""
    if _mine.is_calling:
        raise UsageError(
            "this call interrupted another one of the same thread, and both might wait for ever: call neither in signal "
            "handlers nor in finalizers (__del__)"
        )
    _mine.is_calling = True
    try:
        yield
    finally:
        _mine.is_calling = False


async def _with_app(app: Application, function: Callable[[], Awaitable[T]]) -> T:
    current.set(app)  # for this call only: it has a context of its own
    return await function()


async def _wait(job: Job | JobHandle, seconds: float | None) -> Result[Any] | None:
    with trio.move_on_after(float("inf") if seconds is None else seconds):
        return await _wait_for_result(job)
    return None


async def _wait_for_result(job: Job | JobHandle) -> Result[Any]:
    if isinstance(job, JobHandle):
        return await job.wait()
    async for status in job.watch():
        if status.is_over:
            break
    result = await job.result
    if result is None:
        raise ResultError(f"{job!r} has ended, but no result was stored: give it or its actor store_result=True")
    return result


def _pass_error_on(started: Future[Handle], ended: Future[Report]) -> None:
    if not started.done():
        started.set_exception(ended.exception() or InterruptedError("the worker ended before it had started"))


# The process: its exit and its forks

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_left_behind: list[_Loop] = []
"""What a forked child inherited: to touch it, even to free it, could harm the parent's connections."""
_watching = threading.Lock()
_watched: tuple[int, threading.Thread] | None = None


def _watch_for_exit() -> None:
    """Have a thread close all clients at exit, or, in a thread that lives longer than the main one, at its end.

    Not `atexit`: that runs after the interpreter has waited for all threads, those of brokers among them.
    """
    global _watched  # noqa: PLW0603 - it is a fact about the process
    main = threading.main_thread()
    thread = main if main.is_alive() else threading.current_thread()
    with _watching:
        if _watched != (os.getpid(), thread):
            _watched = os.getpid(), thread
            threading.Thread(target=_close_after, args=[thread], name="repid at exit").start()


def _close_after(thread: threading.Thread) -> None:
    thread.join()
    for client in list(_clients):
        client.close()


def _before_fork() -> None:
    for client in list(_clients):
        client.before_fork()


def _after_fork_in_child() -> None:
    global _watching  # noqa: PLW0603 - another thread may have held it
    _watching = threading.Lock()
    for client in list(_clients):
        client.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
