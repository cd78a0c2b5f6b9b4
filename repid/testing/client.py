"""An app under test: its real actors on the memory server, one message at a time or until nothing is left."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from contextvars import ContextVar
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import trio
from trio.testing import MockClock

from ..actors import Actor, overridden
from ..app import Repid
from ..app_calls import AppCaller
from ..application import Application
from ..brokers import Server
from ..brokers.consumer import Consumer
from ..calls import Exchange
from ..envelope import Envelope
from ..errors import BrokerRefused, ConfigurationError, PayloadError, UsageError, did_you_mean, misused
from ..hosts import host_backend, hosted, hosted_context
from ..inject import GivenValues, Overrides
from ..names import check_count, check_duration
from ..ports import Broker, Followed, Snapshot, Topics
from ..producer import Producer, Publisher
from ..runtime import Control
from ..runtime.lifespan import open_lifespan
from ..runtime.scheduler import Scheduling, store_schedules, tick_due
from ..worker import WorkerOptions, run_actors
from .recording import Recorder, RecordingDriver, Run

MOST_SHOWN = 10
"""Messages that the text of a failed assertion lists."""


class TestClient(Producer, AppCaller):
    """The app for a test: `async with TestClient(app) as client:`, under trio or asyncio.

    In the block every server of the app is a fresh one in memory, and so is its store of results. The app is open and
    the current one: `app.enqueue`, `app.send_message_json`, `Job`, `Queue` and the rest work as in production, with the
    same codec and the same table of fates. The client has the app's verbs that send and call, too. Nothing runs by
    itself: `process_next` runs one message, `drain` all that are ready, `advance` lets time pass. Only who waits for a
    job (`app.call`, `app.map`, `app.gather`, `handle.wait`), or for room in a full queue, has the messages run that are
    ready meanwhile. Each runs the worker of production until it is done, and tells every run. What a worker opens for
    all its runs (`app.lifespan`, dependencies of the scope "worker") is open from the beginning of the block to its
    end.

    `overrides`: dependencies and what is called in their places, as in `Repid.override`. `server_name`: the server
    whose messages are run; default: the app's default one.

    Under trio with a `MockClock` (`autojump_clock` of pytest-trio) actors sleep in virtual time. Elsewhere they take
    the time that they take, and only `advance` does not wait: it puts forward the clock of the servers.
    """

    __test__ = False  # for pytest: a class of this name is no test

    def __init__(self, app: Repid, *, overrides: Overrides | None = None, server_name: str | None = None) -> None:
        if not isinstance(app, Repid):
            raise ConfigurationError(f"a TestClient needs a Repid, but was given {app!r}")
        self.app = app
        self._overrides = overrides or {}
        self._server_name = server_name
        self._recorder = Recorder()
        self._given: GivenValues = ()
        self._stack: AsyncExitStack | None = None
        self._drivers: dict[str, RecordingDriver] = {}
        self._is_draining = False

    def __repr__(self) -> str:
        return f"<TestClient of {self.app!r}, {len(self._recorder.runs)} runs>"

    async def __aenter__(self) -> Self:
        if self._stack is not None:
            raise UsageError("this TestClient is open already: make another one")
        app = self.app
        names = list(app.servers) or ["default"]
        self._recorder = Recorder()
        self._drivers = {name: RecordingDriver(self._recorder) for name in names}
        async with AsyncExitStack() as stack:
            servers = {name: _AttendedServer(driver, self) for name, driver in self._drivers.items()}
            stack.enter_context(app.servers.replaced(servers))
            stack.enter_context(_kept_with_messages(app))
            stack.enter_context(app.override(self._overrides))
            await stack.enter_async_context(app.magic())
            await self._store_schedules()
            self._given = await stack.enter_async_context(self._open_lifespan())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.__aexit__(kind, error, traceback)

    if not TYPE_CHECKING:  # type checkers report it themselves
        __enter__ = __exit__ = misused("a test is async here: `async with TestClient(app) as client: ...`")

    @property
    def is_open(self) -> bool:
        """Whether its block is entered and not left."""
        return self._stack is not None

    @property
    def server(self) -> Server:
        """The server in memory whose messages are run: its counts, dead letters and schedules can be looked at."""
        self._check_open()
        server = self.app.server(self._server_name)
        assert isinstance(server, Server)  # as `__aenter__` has put it there
        return server

    @property
    def runs(self) -> Sequence[Run]:
        """Every run since the client was opened, in the order in which they began."""
        self._check_was_open()
        return tuple(self._recorder.runs)

    @property
    def sent(self) -> Sequence[Envelope]:
        """Every message that was sent since the client was opened: by the test, by actors, by schedules."""
        self._check_was_open()
        return tuple(self._recorder.sent)

    def override(self, dependencies: Overrides) -> AbstractContextManager[None]:
        """As `Repid.override`, for runs in the block."""
        return self.app.override(dependencies)

    async def process_next(self, *, raise_errors: bool = False) -> Run | None:
        """Run the next message that is ready; what became of it. Returns None if none is ready.

        What an actor raises is the fate of its message, as in production; `raise_errors`: raise it here, too (see
        `Run.raise_error`). Cancelled: the run is cancelled, and the message goes back.
        """
        runs = await self._work(messages_limit=1, tasks_limit=1)
        self._raise_errors(runs, wanted=raise_errors)
        return runs[0] if runs else None  # one more has run where its actor waits for another one

    async def drain(self, *, raise_errors: bool = False, most: int = 10_000) -> list[Run]:
        """Run what is ready, and what that sends in turn, until nothing is ready; every run. What is delayed stays.

        `raise_errors`: as in `process_next`; several errors come as an `ExceptionGroup`. Raises `AssertionError` if
        there is still something after `most` runs.
        """
        runs = await self._work(messages_limit=check_count("most", most, least=1), tasks_limit=1000)
        self._raise_errors(runs, wanted=raise_errors)
        if len(runs) >= most and await self._has_ready():
            raise AssertionError(
                f"after {most} runs there are still messages ready: {self._show(runs[-1].envelope)}, …"
            )
        return runs

    async def advance(
        self,
        delta: float | timedelta = 0.0,
        *,
        raise_errors: bool = False,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> list[Run]:
        """Let time pass: run what falls due meanwhile, ticks of schedules and delayed messages, each at its time.

        `delta` is in seconds, or a timedelta; it and the others add up. Does not wait for it, whatever the clock.
        Returns every run, also of what is ready now.
        """
        try:
            span = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigurationError(
                f"days, hours, minutes and seconds must be numbers that make a time to advance: {error}"
            ) from None
        runs = await self._advance(check_duration("delta", delta) + check_duration("the time to advance", span))
        self._raise_errors(runs, wanted=raise_errors)
        return runs

    def enqueued(self, actor: str | Callable[..., Any], /, *given: Any, **arguments: Any) -> list[Envelope]:
        """The messages that were sent to an actor with these arguments, among others; in order.

        `actor` is the function, or a name. Arguments are given as to `app.enqueue`, and compared as the actor gets
        them, so with their types. Raises `ConfigurationError` for what is no actor of the app, and for an argument that
        is no parameter of the actor: no message could have it, and `assert_not_enqueued` would hold whatever was sent;
        and `PayloadError` for more of them without a name than the actor takes.
        """
        found = self._actors_of(actor)
        arguments = self._by_name(found[0], given, arguments)
        _check_parameters(found, arguments)
        return [
            envelope
            for envelope in self.sent
            for one in found
            if (envelope.topic, envelope.queue) == (one.name, one.channel) and _has(one, envelope, arguments)
        ]

    def assert_enqueued(self, actor: str | Callable[..., Any], /, *given: Any, **arguments: Any) -> Envelope:
        """The first message that was sent to an actor with these arguments, among others.

        Raises `AssertionError`, which says what was sent, if there is none.
        """
        found = self.enqueued(actor, *given, **arguments)
        if found:
            return found[0]
        actors = self._actors_of(actor)
        arguments = self._by_name(actors[0], given, arguments)
        names = " or ".join(repr(one.name) for one in actors)
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise AssertionError(f"nothing was sent to {names} with ({shown}); sent was: {self._show(*self.sent)}")

    def assert_not_enqueued(self, actor: str | Callable[..., Any], /, *given: Any, **arguments: Any) -> None:
        """Raises `AssertionError` if a message was sent to an actor with these arguments, among others."""
        found = self.enqueued(actor, *given, **arguments)
        if found:
            raise AssertionError(f"{len(found)} message(s) should not have been sent: {self._show(*found)}")

    # How

    def _by_name(self, actor: Actor, given: Sequence[Any], arguments: dict[str, Any]) -> dict[str, Any]:
        return self.app.callee(actor.function).bind(given, arguments) if given else arguments

    @hosted
    async def _work(self, *, messages_limit: float, tasks_limit: int) -> list[Run]:
        server, before = self.server, len(self._recorder.runs)
        await tick_due(Scheduling(server, server.tick))
        options: WorkerOptions = {"burst": True, "messages_limit": messages_limit, "tasks_limit": tasks_limit}
        former, self._is_draining = self._is_draining, tasks_limit > 1
        try:
            await self._run_worker(server, options, Control())
        finally:
            self._is_draining = former
        return self._recorder.runs[before:]

    async def _run_worker(self, server: Server, options: WorkerOptions, control: Control) -> None:
        actors = [self._recorder.watched(actor) for actor in self.app.actors()]
        options = {"handle_signals": (), **options}
        with ExitStack() as ending:
            if any(actor.run_in_process for actor in actors):
                ending.callback(_ending.reset, _ending.set(ending))
            await run_actors(self.app, server, actors, options, control, trio.TASK_STATUS_IGNORED, self._given)

    async def _attend(self, server: Server, control: Control) -> None:
        """Run what is ready until stopped, for those who wait for it, and then wait for what runs."""
        await self._run_worker(server, {"graceful_shutdown_time": math.inf}, control)

    @hosted
    async def _advance(self, seconds: float) -> list[Run]:
        before = len(self._recorder.runs)
        server = self.server
        driver = next(each for name, each in self._drivers.items() if self.app.server(name) is server)
        end = await server.now() + seconds
        while True:
            await self.drain()
            due = await server.due_schedules(1)
            left = end - due.now
            step = min(driver.next_due_in(), max(0.0, due.next_at - due.now))
            if step > left:
                break
            self._forward(step)
        self._forward(max(0.0, left))
        await self.drain()
        return self._recorder.runs[before:]

    def _forward(self, seconds: float) -> None:
        clock = trio.lowlevel.current_clock()
        if isinstance(clock, MockClock):
            clock.jump(seconds)  # the servers follow
            return
        for driver in self._drivers.values():
            driver.forward(seconds)

    @hosted_context
    def _open_lifespan(self) -> AbstractAsyncContextManager[GivenValues]:
        """The client is one worker to the app, although it starts one for each call."""
        actors = [overridden(actor, self.app.overrides) for actor in self.app.actors()]
        return open_lifespan(self.app.lifespans, actors, host_backend())

    @hosted
    async def _store_schedules(self) -> None:
        schedules = [actor.schedule for actor in self.app.actors() if actor.schedule is not None]
        await store_schedules(self.app.server(self._server_name), schedules)

    async def _has_ready(self) -> bool:
        counts = await self.server.counts_of(self.app.queues())
        return any(each.ready for each in counts)

    @property
    def _exchange(self) -> Exchange:
        self._check_open()
        return self.app

    @property
    def _app(self) -> Application:
        return self.app

    def _way(self, server_name: str | None) -> tuple[Broker, Publisher]:
        self._check_open()
        return self.app._way(server_name)  # noqa: SLF001  another face of it

    def _publisher(self, server_name: str | None, *, named: bool) -> Publisher:
        self._check_open()
        return self.app._publisher(server_name, named=named)  # noqa: SLF001  another face of it

    def _publisher_within(self, connection: Any, server_name: str | None) -> Publisher:
        self._check_open()
        return self.app._publisher_within(connection, server_name)  # noqa: SLF001

    def _check_open(self) -> None:
        if not self.is_open:
            raise UsageError(
                "this TestClient is not open: use it in `async with TestClient(app) as client:`; that of the fixture "
                "repid_client is open within the test, and not in other fixtures"
            )

    def _check_was_open(self) -> None:
        """It may be closed again. Before it is opened, what was sent went elsewhere: that nothing was, would hold."""
        if not self._drivers:
            self._check_open()

    def _actors_of(self, actor: str | Callable[..., Any]) -> list[Actor]:
        actors = self.app.actors()
        found = [one for one in actors if actor in (one.name, one.function)]
        if not found:
            names = [one.name for one in actors]
            hint = did_you_mean(actor, names) if isinstance(actor, str) else ""
            raise ConfigurationError(f"{actor!r} is no actor of {self.app!r}{hint or f'; there are: {names}'}")
        return found

    def _raise_errors(self, runs: Sequence[Run], *, wanted: bool) -> None:
        errors: list[Exception] = []
        for run in runs if wanted else ():
            try:
                run.raise_error()
            except Exception as error:  # noqa: BLE001  they are collected
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup(f"{len(errors)} runs failed", errors)

    def _show(self, *envelopes: Envelope) -> str:
        shown = [f"{each.topic}({_payload(each)}) on {each.queue!r}" for each in envelopes[:MOST_SHOWN]]
        more = [f"{len(envelopes) - MOST_SHOWN} more"] if len(envelopes) > MOST_SHOWN else []
        return ", ".join(shown + more) or "nothing"


_ending: ContextVar[ExitStack | None] = ContextVar("repid_ending", default=None)
"""What a worker that has processes holds from the end of its reading to its own."""


class _AttendedServer(Server):
    """A server of a test: while somebody waits for a job or for room there, a worker runs. Nothing else would end that.

    All who wait at the same time share one, which stops when the last of them has what it waited for: one may be a run
    of this worker itself. If its waiting is cancelled in whose nursery it runs, so is the worker, and the next one who
    waits starts another.
    """

    def __init__(self, driver: RecordingDriver, client: TestClient) -> None:
        super().__init__(driver)
        self._client = client
        self._waiting: list[trio.Nursery] = []
        """One of each who waits."""
        self._runs_in: trio.Nursery
        """Where the latest worker runs."""
        self._control: Control

    async def watch(
        self, id_: str, result_id: str, seen: Snapshot | None = None, *, queue: str | None = None
    ) -> Snapshot:
        """As every server, but that it is not told of a run what comes between its beginning and its end."""
        if seen is None:
            return await super().watch(id_, result_id, queue=queue)
        async with self._attended():
            seen = await super().watch(id_, result_id, seen, queue=queue)
            while seen.state == "leased":
                seen = await super().watch(id_, result_id, seen, queue=queue)
            return seen

    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncIterator[Consumer]:
        """As every server. Behind it a worker closes its processes, in a thread, while a virtual clock stands still."""
        async with super().consume(queues) as consumer:
            yield consumer
        ending = _ending.get()
        if ending is not None:
            ending.enter_context(self._client._recorder.clock_held(in_process=True))  # noqa: SLF001  the other half

    @contextmanager
    def follow(self, queues: Callable[[], Iterable[str]] | None = None) -> Iterator[Any]:
        """As every server."""
        with super().follow(queues) as following:
            yield _Attended(following, self._attended)

    @hosted
    async def _publish_behind_others(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        async with self._attended():
            return await super()._publish_behind_others(envelopes)

    @hosted
    async def _wait_for_room(
        self, envelopes: Sequence[Envelope], outcomes: Sequence[BrokerRefused | None]
    ) -> list[BrokerRefused | None]:
        async with self._attended():
            return await super()._wait_for_room(envelopes, outcomes)

    @asynccontextmanager
    async def _attended(self) -> AsyncGenerator[None, None]:
        """Run what is ready, for a block. Leaving it waits for what runs."""
        if self._client._is_draining:  # noqa: SLF001  the other half of it
            yield
            return
        try:
            async with trio.open_nursery() as nursery:
                self._waiting.append(nursery)
                if len(self._waiting) == 1:
                    self._start_worker()
                try:
                    yield
                finally:
                    self._waiting.remove(nursery)
                    if not self._waiting:
                        self._control.stop()
        finally:
            if self._waiting and self._runs_in is nursery:
                self._start_worker()

    def _start_worker(self) -> None:
        self._runs_in, self._control = self._waiting[0], Control()
        self._runs_in.start_soon(self._client._attend, self, self._control)  # noqa: SLF001  the other half of it


class _Attended:
    """What one task follows on such a server."""

    def __init__(self, following: Followed, attended: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self._attended = attended
        self._following = following
        self.add = following.add
        self.wake = following.wake
        self.look = following.look

    async def ended(self) -> list[tuple[tuple[str, str], Snapshot]]:
        """Wait until some have ended, and have them run."""
        async with self._attended():
            return await self._following.ended()


@contextmanager
def _kept_with_messages(app: Repid) -> Iterator[None]:
    """Have results and schedules kept by the servers of the test, whatever stores the app has."""
    former = app.result_store, app.schedule_store
    app.result_store = app.schedule_store = None
    try:
        yield
    finally:
        app.result_store, app.schedule_store = former


def _check_parameters(actors: Sequence[Actor], arguments: Mapping[str, Any]) -> None:
    parameters = [each for one in actors for each in inspect.signature(one.function).parameters.values()]
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return
    names = [each.name for each in parameters]
    for name in arguments:
        if name not in names:
            hint = did_you_mean(name, names) or f"; there are: {names}"
            raise ConfigurationError(f"actor {actors[0].name!r} has no parameter {name!r}{hint}")


def _has(actor: Actor, envelope: Envelope, arguments: Mapping[str, Any]) -> bool:
    """Whether a message has these arguments, as the actor would get them."""
    try:
        bound = actor.plan.bind(envelope, None)
    except PayloadError:
        return False
    defaults = {name: each.default for name, each in inspect.signature(actor.function).parameters.items()}
    return all({**defaults, **bound}.get(name, inspect.Parameter.empty) == value for name, value in arguments.items())


def _payload(envelope: Envelope) -> str:
    try:
        return json.dumps(json.loads(envelope.payload or b"{}"))
    except ValueError:
        return repr(envelope.payload)
