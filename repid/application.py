"""The app as jobs, queues and workers see it, and which one is meant where none is given.

That is the app whose block encloses the running code, as its context says. The context is lost where a block is
entered in one task and the code runs in another: a fixture, the lifespan of a web server, a thread. So each app also
notes in which trio run it is open, and the only one that is open in a run is found there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Protocol

from .actors import ActorMiddleware
from .errors import ConfigurationError, NoCurrentApp
from .hosts import current_run, is_running
from .ports import Broker, ResultStore
from .process import inherits
from .producer import Publish


class Application(Protocol):
    """What a facade needs of an app."""

    @property
    def middlewares(self) -> Sequence[ActorMiddleware]:
        """Those around every run of every actor."""
        ...

    @property
    def result_store(self) -> ResultStore | None:
        """Where results are kept; None: on the server the message came from."""
        ...

    def queues(self) -> list[str]:
        """The names of the queues that its own actors read; empty if it has none."""
        ...

    def server(self, server_name: str | None = None) -> Broker:
        """The server of that name; None: the default one. Raises `ConfigurationError` if there is none."""
        ...

    def publisher(self, broker: Broker, *, declare: bool) -> Publish:
        """Publishes to a broker through the app's producer middlewares.

        `declare`: queues that do not exist are declared; otherwise their messages are refused.
        """
        ...

    def around(self, publish: Publish) -> Publish:
        """The app's producer middlewares around a publisher."""
        ...


current: ContextVar[Application] = ContextVar("repid_app")
"""The app whose `magic()` block encloses the running code."""


class OpenApps:
    """Which apps are open, and in which trio runs. Changed by appending and removing only, which threads may do."""

    def __init__(self) -> None:
        self._open: list[tuple[Application, Any]] = []
        inherits(self)

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

    def after_fork_in_child(self) -> None:
        """The runs are the parent's."""
        self._open = []


open_apps = OpenApps()


def find_app(app: Application | None, what: str) -> Application:
    """The app given, else the current one, else the only one that is open here.

    Raises `NoCurrentApp` naming who needs it, and `ConfigurationError` for what is no app.
    """
    found = app if app is not None else current.get(None)
    if found is None:
        found = _only_app(what)
    if not hasattr(found, "publisher"):
        raise ConfigurationError(f"the app of {what} must be a Repid, but is {found!r}")
    return found


def _only_app(what: str) -> Application:
    apps = open_apps.found_here()
    if not apps:
        raise NoCurrentApp(f"{what} has no app: use it inside `async with app.magic():`, or give it app=")
    if len(apps) > 1:
        raise NoCurrentApp(f"{what} has no app, and several are open: {', '.join(map(repr, apps))}; give it app=")
    return apps[0]
