"""The servers of an app, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec

from .errors import ConfigurationError, did_you_mean
from .names import check_name
from .ports import Broker, name_of


class Connection(msgspec.Struct, frozen=True):
    """The server of an app that has just one: `Repid(Connection(InMemoryMessageBroker()))`."""

    message_broker: Broker


class Servers:
    """The servers of an app, by name. The first one registered is the default until another is made so.

    `app.server(name)` finds one of them. What finds one here (`get_server`, `default`, `servers[name]`) is the same by
    the names that upstream gave it.
    """

    def __init__(self) -> None:
        self._servers: dict[str, Broker] = {}
        self._default: str | None = None

    def __repr__(self) -> str:
        return (
            f"<Servers: {', '.join(f'{name}={name_of(server)}' for name, server in self._servers.items()) or 'none'}>"
        )

    def register_server(self, name: str, server: Broker, *, is_default: bool = False) -> None:
        """Add a server. Raises `ConfigurationError` if the name is taken or not a name, or the server is no broker."""
        if check_name("server", name) in self._servers:
            raise ConfigurationError(f"a server named {name!r} is registered already: choose another name")
        if isinstance(server, type) or not callable(getattr(server, "connection", None)):
            raise ConfigurationError(f"server {name!r} must be a server such as InMemoryServer(), but is {server!r}")
        self._servers[name] = server
        if is_default or self._default is None:
            self._default = name

    def set_default_server(self, name: str) -> None:
        """Make a registered server the default."""
        self._check_registered(name)
        self._default = name

    def get_server(self, name: str | None = None) -> Broker:
        """The server of that name; None: the default one. Raises `ConfigurationError` if there is none."""
        if name is not None:
            self._check_registered(name)
            return self._servers[name]
        if self._default is None:
            raise ConfigurationError(
                "the app has no server: give it one, such as Repid(Connection(SQLiteServer('jobs.db'))), or "
                "app.servers.register_server('default', server)"
            )
        return self._servers[self._default]

    @contextmanager
    def replaced(self, servers: Mapping[str, Broker]) -> Iterator[None]:
        """For tests: in the block these are the servers, by name. The default stays if it is among them, else it is the
        first.
        """
        former = self._servers, self._default
        self._servers = dict(servers)
        if self._default not in self._servers:
            self._default = next(iter(self._servers), None)
        try:
            yield
        finally:
            self._servers, self._default = former

    def _check_registered(self, name: str) -> None:
        if not isinstance(name, str) or name not in self._servers:
            hint = did_you_mean(str(name), self._servers) or f"; there are: {', '.join(self._servers) or 'none'}"
            raise ConfigurationError(f"the app has no server named {name!r}{hint}")

    @property
    def default(self) -> Broker:
        """The default server. Raises `ConfigurationError` if there is none."""
        return self.get_server()

    def __getitem__(self, name: str) -> Broker:
        return self.get_server(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._servers)

    def __len__(self) -> int:
        return len(self._servers)
