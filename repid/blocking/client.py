"""The client: what belongs to the thread that calls.

Theory. A call is an async function that is carried out in a trio run while the thread waits. `_call` chooses the run:

* where the app is open already, the run that has it open (`_host`). In a thread of that run, as sync actors have, the
  call can be ended when the actor is asked to stop;
* elsewhere the run of a thread of the client's own, which opens the app (`loop`).

Before that it refuses to wait where the wait could be for ever (`may_block`).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, TypeAlias, TypeVar, Unpack, cast, overload

import trio

from ..app_calls import AppCaller, handle_on
from ..application import Application, check_app, current, open_apps
from ..calls import BatchActor, options_stand_before
from ..envelope import Envelope
from ..errors import ConfigurationError, UsageError, misused
from ..gathering import first_of, gather, one_by_one
from ..handle import JobHandle
from ..job import Job, check_jobs
from ..may_block import OneCall, check_may_block, is_worker_thread_of
from ..names import brief, check_duration
from ..producer import SendOptions
from ..results import Result, Status
from ..runtime import Handle, Report
from ..sync_calls import read_here
from ..sync_handle import SyncJobHandle
from ..waiting_threads import held_here
from ..worker import WorkerOptions
from .calls import ClientCaller, for_another_thread
from .loop import Loop, call_in, shared_loops

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A")

AnyHandle: TypeAlias = JobHandle[R] | SyncJobHandle[R]
Askable: TypeAlias = Job[R] | AnyHandle[R]
"""What a client can ask about."""


class Client(ClientCaller):
    """The app's verbs for code that blocks: Django, Flask, scripts. Any number of threads may share one client.

    Where the app is open already, calls go there: in a sync actor through its worker, in a thread of a web server
    through the server's loop, trio's or asyncio's. Elsewhere the client opens the app at its first call, in a
    thread of its own, and closes it at the end of its `with` block, at `close()`, or at the exit of the process, when
    the threads have ended that have calls in progress (not daemons); after that the next call opens it anew. Several
    clients of one app share what is open until the last of them closes. So a client may be made when a module is
    imported and live as long as the process, or for each request.

    A forked child opens the app for itself, and the parent goes on, whichever of its threads has forked.

    While a client has it open, the app's servers belong to it, as they belong to one trio run at a time; processes
    share a server, runs in one process do not. In memory nobody else sees the messages: run their worker with
    `worker()`.

    Calls raise what the app's raise, and `UsageError` where they might wait for ever: in a thread that runs an event
    loop; in a signal handler or a finalizer (`__del__`) that interrupts another call, or runs in one of repid's own
    threads; and once the process is ending, in `atexit` handlers and the finalizers of globals. A loop that blocks
    until a thread has ended must not have that thread call: both would wait for ever.
    """

    def __init__(self, app: Application) -> None:
        if check_app("a client", app) is None:
            raise ConfigurationError("a client needs its app: app.sync(), or Client(app)")
        self._app = app
        self._shared = shared_loops.of(app)

    def __repr__(self) -> str:
        return f"<repid client, {'open' if self.is_open else 'closed'}>"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    if not TYPE_CHECKING:  # type checkers report it themselves
        __aenter__ = __aexit__ = misused(
            "app.sync() is for code that blocks: async code opens the app itself, `async with app.magic(): ...`, and "
            "calls `await app.enqueue(...)`"
        )
        __reduce__ = misused(
            "a client belongs to its process, so it cannot be pickled: make another one there with `app.sync()`"
        )

    @property
    def is_open(self) -> bool:
        """Whether the app is open, by a client or because its worker or its server has it open."""
        return self._shared.loop is not None or self._host() is not None

    def open(self) -> None:
        """Open the connections now rather than at the first call. Open already: nothing happens."""
        if self._host() is None:
            check_may_block()
            with OneCall():
                self._opened()

    def close(self) -> None:
        """Close what it has opened, unless another client of the app uses it.

        Calls that other threads have in progress get five seconds, waiting ones none.
        """
        if self._shared.loop is not None:
            check_may_block()
            with OneCall():
                self._shared.leave(self)

    def send_message(
        self, *, channel: str, payload: bytes, content_type: str | None = None, **options: Unpack[SendOptions]
    ) -> Envelope:
        """Send bytes to a channel, as `Repid.send_message`."""
        options = for_another_thread(options)
        return self.run(
            partial(self._app.send_message, channel=channel, payload=payload, content_type=content_type, **options)
        )

    def send_message_json(self, *, channel: str, payload: Any = None, **options: Unpack[SendOptions]) -> Envelope:
        """Send anything that can be encoded as JSON, as `Repid.send_message_json`."""
        options = for_another_thread(options)
        return self.run(partial(self._app.send_message_json, channel=channel, payload=payload, **options))

    def send_messages(
        self,
        *,
        channel: str,
        payloads: Iterable[bytes],
        content_type: str | None = None,
        **options: Unpack[SendOptions],
    ) -> list[Envelope]:
        """Send many messages in one step, as `Repid.send_messages`."""
        batch = read_here("payloads", payloads)
        options = for_another_thread(options)
        return self.run(
            partial(self._app.send_messages, channel=channel, payloads=batch, content_type=content_type, **options)
        )

    def send_messages_json(
        self, *, channel: str, payloads: Iterable[Any], **options: Unpack[SendOptions]
    ) -> list[Envelope]:
        """Send many messages in one step, as `Repid.send_messages_json`."""
        batch = read_here("payloads", payloads)
        options = for_another_thread(options)
        return self.run(partial(self._app.send_messages_json, channel=channel, payloads=batch, **options))

    @overload
    def enqueue(self, actor: BatchActor[A, ..., Any, R], item: A, /) -> SyncJobHandle[R]: ...

    @overload
    def enqueue(self, actor: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> SyncJobHandle[R]: ...

    @overload
    def enqueue(self, actor: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncJobHandle[R]: ...

    @overload
    def enqueue(self, job: Job[R], /) -> SyncJobHandle[R]: ...

    @options_stand_before
    def enqueue(  # pyright: ignore[reportIncompatibleMethodOverride]  an overload more, which pyright cannot match with P
        self, actor: Any, /, *args: Any, **kwargs: Any
    ) -> SyncJobHandle[Any]:
        """Publish a call of the actor with these arguments, as `Repid.enqueue`; or a job, which needs no
        `app=` then.
        """
        if isinstance(actor, Job):
            if args or kwargs:
                raise ConfigurationError(f"{actor!r} has arguments of its own, args=..., and takes no others here")
            return self._for_here(self.run(actor.enqueue))
        return super().enqueue(actor, *args, **kwargs)

    @overload
    def enqueue_many(self, actor: BatchActor[A, ..., Any, R], items: Iterable[A], /) -> list[SyncJobHandle[R]]: ...

    @overload
    def enqueue_many(
        self, actor: Callable[Concatenate[A, ...], Awaitable[R]], items: Iterable[A], /
    ) -> list[SyncJobHandle[R]]: ...

    @overload
    def enqueue_many(
        self, actor: Callable[Concatenate[A, ...], R], items: Iterable[A], /
    ) -> list[SyncJobHandle[R]]: ...

    @overload
    def enqueue_many(self, jobs: Iterable[Job[R]], /) -> list[SyncJobHandle[R]]: ...

    @options_stand_before
    def enqueue_many(self, actor: Any, items: Iterable[Any] | None = None, /) -> list[SyncJobHandle[Any]]:
        """Publish one call of the actor for each item, or these jobs, as `Repid.enqueue_many`."""
        if items is not None:
            return super().enqueue_many(actor, items)
        check_jobs(actor)
        jobs = read_here("the jobs of enqueue_many", actor)
        return self._all_for_here(self.run(partial(self._caller.enqueue_many, jobs)))

    @overload
    def handle(self, actor: BatchActor[Any, ..., Any, R], id_: str, /) -> SyncJobHandle[R]: ...

    @overload
    def handle(self, actor: Callable[..., Awaitable[R]], id_: str, /) -> SyncJobHandle[R]: ...

    @overload
    def handle(self, actor: Callable[..., R], id_: str, /) -> SyncJobHandle[R]: ...

    def handle(self, actor: Callable[..., Any], id_: str, /) -> SyncJobHandle[Any]:
        """The handle on a call of this actor that was enqueued before, by its id, as `Repid.handle`."""
        return self._for_here(handle_on(self._app, actor, id_))

    def wait(self, job: Askable[R], timeout: float | timedelta | None = None) -> Result[R]:
        """Wait until a job has ended, in any way; its result.

        Raises `TimeoutError` if it has not ended after `timeout` (seconds or timedelta; None: no bound), which changes
        nothing, and `ResultError` as `JobHandle.wait` does.
        """
        asked = _asked("wait", job)
        if timeout is not None:
            check_duration("timeout", timeout)
        return self._call(partial(asked.wait, timeout), is_waiting=True)

    @overload
    def gather(
        self,
        handles: Iterable[AnyHandle[R]],
        /,
        *,
        on_error: Literal["raise"] = "raise",
        timeout: float | timedelta | None = None,
    ) -> list[R]: ...

    @overload
    def gather(
        self,
        handles: Iterable[AnyHandle[R]],
        /,
        *,
        on_error: Literal["return"],
        timeout: float | timedelta | None = None,
    ) -> list[Result[R]]: ...

    @overload
    def gather(
        self,
        *handles: AnyHandle[R],
        on_error: Literal["raise"] = "raise",
        timeout: float | timedelta | None = None,
    ) -> list[R]: ...

    @overload
    def gather(
        self, *handles: AnyHandle[R], on_error: Literal["return"], timeout: float | timedelta | None = None
    ) -> list[Result[R]]: ...

    def gather(self, *handles: Any, on_error: Any = "raise", timeout: float | timedelta | None = None) -> list[Any]:
        """Wait until all have ended, and return their values, as `Repid.gather`."""
        waited_for = _waited_for("gather", handles)
        wait: Callable[[], Awaitable[list[Any]]] = partial(gather, waited_for, on_error=on_error, timeout=timeout)
        return self._call(wait, is_waiting=True)

    @overload
    def first_of(
        self,
        handles: Iterable[AnyHandle[R]],
        /,
        *,
        cancel_others: bool = False,
        timeout: float | timedelta | None = None,
    ) -> Result[R]: ...

    @overload
    def first_of(
        self, *handles: AnyHandle[R], cancel_others: bool = False, timeout: float | timedelta | None = None
    ) -> Result[R]: ...

    def first_of(
        self, *handles: Any, cancel_others: bool = False, timeout: float | timedelta | None = None
    ) -> Result[Any]:
        """Wait until the first of them has ended; its result, as `Repid.first_of`."""
        waited_for = _waited_for("first_of", handles)
        wait: Callable[[], Awaitable[Result[Any]]] = partial(
            first_of, waited_for, cancel_others=cancel_others, timeout=timeout
        )
        return self._call(wait, is_waiting=True)

    def result(self, job: Askable[R], timeout: float | timedelta | None = None) -> Result[R]:
        """Another word for `wait`."""
        return self.wait(job, timeout)

    def status(self, job: Askable[Any]) -> Status:
        """How a job stands now, as `Job.status`."""
        return self._call(_asked("status", job).status, is_waiting=False)

    def cancel(self, job: Askable[Any]) -> bool:
        """Cancel a job, as `Job.cancel`."""
        return self._call(_asked("cancel", job).cancel, is_waiting=False)

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Carry out any async call where the servers are open: `client.run(Queue("mail").counts)`."""
        if not callable(function):
            if inspect.iscoroutine(function):
                function.close()
            raise ConfigurationError(
                "client.run takes an async function, which it calls where the servers are open, but was given "
                f"{brief(function)}: leave out the call, or put it into a lambda"
            )
        method = function.func if isinstance(function, partial) else function
        if isinstance(getattr(method, "__self__", None), SyncJobHandle):
            raise ConfigurationError(
                "a handle of this client blocks by itself, and client.run takes async functions: call "
                f"{method.__name__}() of the handle"
            )
        return self._call(partial(_begun, function), is_waiting=False)

    @contextmanager
    def worker(self, server_name: str | None = None, **options: Unpack[WorkerOptions]) -> Iterator[Handle]:
        """Run the app's actors in the client's thread, for a block; leaving it stops the worker gracefully.

        For programs that block and are a worker too, and for tests. Options as in `WorkerOptions`; without signals
        unless asked. Raises `UsageError` where another loop has the app open: run the worker there.
        """
        check_may_block()
        if self._host() is not None:
            raise UsageError(
                "the app is open in the loop of another thread already: run its worker there, with app.run_worker()"
            )
        started: Future[Handle] = Future()
        with OneCall():
            loop = self._opened()
            process = os.getpid()
            ended = loop.run_worker(partial(self._work, started, server_name, options))
            ended.add_done_callback(partial(_pass_error_on, started))
            handle = started.result()
        try:
            yield handle
        finally:
            if process == os.getpid():  # a forked child leaves the block, too, but the worker is its parent's
                with OneCall():
                    handle.stop()
                    ended.result()

    async def _work(self, started: Future[Handle], server_name: str | None, options: WorkerOptions) -> Report:
        status = _Started(started)
        return cast("Report", await self._app.run_worker(server_name=server_name, task_status=status, **options))

    @property
    def _caller(self) -> AppCaller:
        return cast("AppCaller", self._app)

    def _call(self, function: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:
        call = partial(_with_app, self._app, function)
        with OneCall():
            while (host := self._host()) is not None:
                if is_worker_thread_of(host):
                    held = held_here()
                    return trio.from_thread.run(call) if held is None else held.make(call, is_waiting=is_waiting)
                check_may_block()
                with suppress(trio.RunFinishedError):  # it has ended just now
                    return call_in(host, call)
            check_may_block()
            return self._opened().run(call, self, is_waiting=is_waiting)

    def _host(self) -> trio.lowlevel.TrioToken | None:
        """The trio run that has the app open and is no client's."""
        if self._shared.loop is not None or not self._app.server().is_connected:
            return None
        host: trio.lowlevel.TrioToken | None = open_apps.run_of(self._app)
        return host

    def _opened(self) -> Loop:
        return self._shared.enter(self, self._app.magic)


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


def _pass_error_on(started: Future[Handle], ended: Future[Report]) -> None:
    if not started.done():
        started.set_exception(ended.exception() or InterruptedError("the worker ended before it had started"))


def _asked(verb: str, job: Askable[R]) -> Job[R] | JobHandle[R]:
    """What the loop asks about a job."""
    asked = _of_loop(job)
    if not isinstance(asked, Job | JobHandle):
        raise ConfigurationError(
            f"client.{verb} takes a job, or the handle that enqueueing gives, but was given {brief(job)}"
        )
    return asked


def _waited_for(verb: str, handles: Iterable[Any]) -> list[Any]:
    """The handles of a call, which were given one by one or as one iterable."""
    given = one_by_one([_of_loop(each) for each in handles])
    return [_of_loop(each) for each in read_here(f"the handles of {verb}", given)]


def _of_loop(given: Any) -> Any:
    """The handle that the loop knows, in the place of one for code that blocks."""
    return given._handle if isinstance(given, SyncJobHandle) else given  # noqa: SLF001  the other half of it


def _begun(function: Callable[[], Awaitable[T]]) -> Awaitable[T]:
    begun = function()
    if not inspect.isawaitable(begun):
        raise ConfigurationError(f"client.run takes an async function, but {function!r:.80} returned {brief(begun)}")
    return begun
