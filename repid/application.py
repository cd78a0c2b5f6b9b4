"""The app as jobs, queues and workers see it, and which one is current."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Protocol

from .actors import ActorMiddleware
from .errors import ConfigurationError, NoCurrentApp
from .ports import Broker, ResultStore
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


def find_app(app: Application | None, what: str) -> Application:
    """The app given, else the current one. Raises `NoCurrentApp` naming who needs it, and `ConfigurationError` for what
    is no app.
    """
    found = app if app is not None else current.get(None)
    if found is None:
        raise NoCurrentApp(f"{what} has no app: use it inside `async with app.magic():`, or give it app=")
    if not hasattr(found, "publisher"):
        raise ConfigurationError(f"the app of {what} must be a Repid, but is {found!r}")
    return found
