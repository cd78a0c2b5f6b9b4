"""The app as jobs, queues and workers see it, and which one is meant where none is given.

That is the app whose block encloses the running code, as its context says. The context is lost where a block is
entered in one task and the code runs in another: a fixture, the lifespan of a web server, a thread. So each app also
notes in which trio run it is open, and the only one that is open in a run is found there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

from .actors import ActorMiddleware
from .calls import Callee
from .delivery import DeadLetterHook
from .envelope import Envelope
from .errors import ConfigurationError, NoCurrentApp, NotSupported, did_you_mean
from .hosts import current_run, on_host
from .inject import Overrides, Step
from .logs import Log
from .names import brief
from .ports import Broker, ResultStore, ScheduleStore, name_of
from .process import inherits
from .producer import (
    ProducerMiddleware,
    Publish,
    Publisher,
    around,
    publish_declaring,
    publish_within,
    publish_without_results,
)
from .run_token import is_running

log = Log("repid")


class Application(Protocol):
    """An app, as the rest of repid sees it: `Repid` is the one implementation."""

    @property
    def middlewares(self) -> Sequence[ActorMiddleware]:
        """Those around every run of every actor."""
        ...

    @property
    def producer_middlewares(self) -> Sequence[ProducerMiddleware]:
        """Those around every send, the first outermost."""
        ...

    @property
    def result_store(self) -> ResultStore | None:
        """Where results are kept; None: on the server the message came from."""
        ...

    @property
    def schedule_store(self) -> ScheduleStore | None:
        """Where the schedules of the default server are kept; None: on that server."""
        ...

    @property
    def overrides(self) -> Overrides:
        """What workers that start now call in the place of some dependencies."""
        ...

    @property
    def dead_letter_hooks(self) -> Sequence[DeadLetterHook]:
        """What is told of the messages that become dead letters in its workers."""
        ...

    @property
    def lifespans(self) -> Sequence[Sequence[Step]]:
        """What a worker opens before it consumes, each with the dependencies that it wants before it."""
        ...

    def queues(self) -> list[str]:
        """The names of the queues that its own actors read; empty if it has none."""
        ...

    def server(self, server_name: str | None = None) -> Broker:
        """The server of that name; None: the default one. Raises `ConfigurationError` if there is none."""
        ...

    def magic(self) -> AbstractAsyncContextManager[Any]:
        """Open every server for a block."""
        ...

    def callee(self, function: Callable[..., Any]) -> Callee:
        """The actor of the app that the function was declared as. Raises `ConfigurationError` if it is none."""
        ...

    def warn_of_unknown_arguments(self, name: str, channel: str, given: frozenset[str]) -> None:
        """Log once which arguments of a job its actor does not take, if the app has that actor."""
        ...

    @property
    def run_worker(self) -> Callable[..., Awaitable[Any]]:
        """Runs its actors; gives a `Report`."""
        ...

    @property
    def send_message(self) -> Callable[..., Awaitable[Envelope]]:
        """Sends bytes."""
        ...

    @property
    def send_message_json(self) -> Callable[..., Awaitable[Envelope]]:
        """Sends what can be encoded as JSON."""
        ...

    @property
    def send_messages(self) -> Callable[..., Awaitable[list[Envelope]]]:
        """Sends bytes, many times."""
        ...

    @property
    def send_messages_json(self) -> Callable[..., Awaitable[list[Envelope]]]:
        """Sends what can be encoded as JSON, many times."""
        ...


def check_app(what: str, app: Application | None) -> Application | None:
    """The value itself; raises `ConfigurationError` unless it is an app, or None."""
    if app is not None and (isinstance(app, type) or not hasattr(app, "producer_middlewares")):
        raise ConfigurationError(f"the app of {what} must be a Repid, but is {brief(app)}")
    return app


def publisher(app: Application, broker: Broker, *, declare: bool, connection: Any = None) -> Publisher:
    """What publishes to a server through the app's producer middlewares.

    `declare`: queues that do not exist are declared; otherwise their messages are refused. `connection`: in whose
    transaction; None: in none of the caller's.
    """
    publish: Publish = broker.publish
    keeps_results = app.result_store is not None or broker.capabilities.has("results")
    if connection is not None:
        publish = partial(publish_within, broker, connection, declare=declare)
    elif declare:
        publish = publish_declaring(broker, _Readers(app).warn_of_new)
    if not keeps_results:
        publish = partial(publish_without_results, publish, name_of(broker))
    if connection is None and keeps_results and not app.producer_middlewares:
        return Publisher(publish, broker.publish_at_once)
    return Publisher(through_middlewares(app, publish))


class _Readers:
    """Which queues the actors of an app read. Actors are only ever added to an app, so they are looked at again only
    for a queue that none of them was known to read.
    """

    __slots__ = ("_app", "_read")

    def __init__(self, app: Application) -> None:
        self._app = app
        self._read: frozenset[str] = frozenset()

    def warn_of_new(self, queues: AbstractSet[str]) -> None:
        """Say that nobody is known to read these queues, which did not exist until now."""
        if queues <= self._read:
            return
        self._read = frozenset(self._app.queues())
        for queue in sorted(queues - self._read):
            log.warning(
                "the channel %r did not exist when a message was sent to it, and no actor of this app reads it%s: its "
                "messages wait until a worker does",
                queue,
                did_you_mean(queue, self._read),
            )


def through_middlewares(app: Application, publish: Publish) -> Publish:
    """The app's producer middlewares around a publisher."""
    middlewares = app.producer_middlewares
    return on_host(around(publish, middlewares)) if middlewares else publish


def stores(app: Application) -> list[Broker]:
    """The servers that keep results and schedules for others, to be opened with the app."""
    given: tuple[Any, ...] = (app.result_store, app.schedule_store)
    return [store for store in given if hasattr(store, "connection")]


def schedules_of(app: Application, broker: Broker) -> ScheduleStore | None:
    """Where the schedules of a server are kept. Returns None if nobody can keep them."""
    if app.schedule_store is not None and broker is app.server():
        return app.schedule_store
    return broker if broker.capabilities.has("schedules") else None


def needed_schedules_of(app: Application, broker: Broker, why: str = "") -> ScheduleStore:
    """Where the schedules of a server are kept. Raises `NotSupported`, whose text begins with `why`, if nobody can."""
    store = schedules_of(app, broker)
    if store is None:
        raise NotSupported(
            f"{why}{name_of(broker)} keeps no schedules: give the app a schedule_store=, give the server another one "
            "that does, as state=, or use one that does, such as SQLiteServer"
        )
    return store


current: ContextVar[Application] = ContextVar("repid_app")
"""The app whose `magic()` block encloses the running code."""


class OpenApps:
    """Which apps are open, and in which trio runs. Changed by appending and removing only, which threads may do."""

    def __init__(self) -> None:
        self._open: list[tuple[Application, Any]] = []
        inherits(self, OpenApps.start_anew)

    @contextmanager
    def entered(self, app: Application) -> Iterator[None]:
        """For the block, which the present trio run executes, the app is open and the current one."""
        entry = (app, current_run())
        self._open.append(entry)
        token = current.set(app)
        try:
            yield
        finally:
            self._open.remove(entry)
            with suppress(ValueError):  # left in another context: the one it was set in has ended, or is not ours
                current.reset(token)

    def run_of(self, app: Application) -> Any:
        """The trio run that has the app open. Returns None if there is none."""
        return next((run for one, run in list(self._open) if one is app and is_running(run)), None)

    def found_here(self) -> list[Application]:
        """The apps that are open in the present trio run; in a thread without one, all that are open."""
        here = current_run()
        found = [app for app, run in list(self._open) if here in (None, run) and is_running(run)]
        return list({id(app): app for app in found}.values())

    def start_anew(self) -> None:
        """The runs are the parent's."""
        self._open = []


open_apps = OpenApps()


def find_app(app: Application | None, what: str) -> Application:
    """The app given, else the current one, else the only one that is open here.

    Raises `NoCurrentApp` naming who needs it.
    """
    found = app if app is not None else current.get(None)
    return _only_app(what) if found is None else found


def _only_app(what: str) -> Application:
    apps = open_apps.found_here()
    if not apps:
        raise NoCurrentApp(f"{what} has no app: use it inside `async with app.magic():`, or give it app=")
    if len(apps) > 1:
        raise NoCurrentApp(f"{what} has no app, and several are open: {', '.join(map(repr, apps))}; give it app=")
    return apps[0]
