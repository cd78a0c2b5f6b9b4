"""The client: what belongs to the thread that calls, and to the process, its exit and its forks."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, Unpack

import trio

from ..application import Application, current
from ..envelope import Envelope
from ..errors import ResultError
from ..job import Job, JobHandle
from ..names import check_duration, check_iterable
from ..producer import SendOptions
from ..results import Result
from ..runtime import Handle, Report
from ..worker import WorkerOptions
from .loop import ClosedToFork, Loop
from .may_block import check_may_block, mine, one_call

T = TypeVar("T")


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
        self._loop: Loop | None = None
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
        with one_call():
            self._opened()

    def close(self) -> None:
        """Close the connections. Calls that other threads have in progress get five seconds, waiting ones none."""
        if self._loop is not None:
            check_may_block()
            with one_call():
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
        check_iterable("payloads", payloads)
        batch = list(payloads)  # here, in the caller's thread: it may be a generator that blocks
        return self.call(
            partial(self._app.send_messages, channel=channel, payloads=batch, content_type=content_type, **options)
        )

    def send_messages_json(
        self, *, channel: str, payloads: Iterable[Any], **options: Unpack[SendOptions]
    ) -> list[Envelope]:
        """Send many messages in one step, as `Repid.send_messages_json`."""
        check_iterable("payloads", payloads)
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
            with suppress(ClosedToFork):
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
        with one_call():
            loop = self._opened()
            ended = loop.submit(partial(self._work, started, server_name, options), is_waiting=True, is_worker=True)
            ended.add_done_callback(partial(_pass_error_on, started))
            handle = started.result()
        try:
            yield handle
        finally:
            with one_call():
                with suppress(trio.RunFinishedError):
                    loop.run_soon(handle.stop)
                ended.result()

    async def _work(self, started: Future[Handle], server_name: str | None, options: WorkerOptions) -> Report:
        status = _Started(started)
        return await self._app.run_worker(server_name=server_name, task_status=status, **options)

    def _call(self, function: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:
        with one_call():
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

    def _opened(self) -> Loop:
        loop = self._loop
        if loop is not None and loop.is_open:
            return loop
        with self._lock:
            if self._loop is None or not self._loop.is_open:
                _watch_for_exit()
                loop = Loop(self._app.magic)
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
        if loop is not None and not loop.has_worker and not loop.is_own_thread() and not mine.is_calling:
            self._close(to_fork=True)

    def after_fork_in_child(self) -> None:
        """Forget what only the parent has."""
        if self._loop is not None:
            _left_behind.append(self._loop)
        self._loop = None
        self._lock = threading.Lock()


class _Started:
    """Where an embedded worker says that it has started."""

    def __init__(self, started: Future[Handle]) -> None:
        self._started = started

    def started(self, value: Handle | None = None) -> None:
        """It has."""
        if value is not None and not self._started.done():
            self._started.set_result(value)


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
_left_behind: list[Loop] = []
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
