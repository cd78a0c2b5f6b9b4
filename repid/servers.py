"""The servers of an app, by name."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .errors import ConfigurationError, did_you_mean
from .names import check_name
from .ports import Broker


class Connection(msgspec.Struct, frozen=True):
    """The broker of an app that has just one: `Repid(Connection(InMemoryMessageBroker()))`."""

    message_broker: Broker


class Servers:
    """Named brokers. The first one registered is the default until another is made so."""

    def __init__(self) -> None:
        self._servers: dict[str, Broker] = {}
        self._default: str | None = None

    def register_server(self, name: str, server: Broker, *, is_default: bool = False) -> None:
        """Add a server. Raises `ConfigurationError` if the name is taken or not a name, or the server is no broker."""
        if check_name("server", name) in self._servers:
            raise ConfigurationError(f"a server named {name!r} is registered already: choose another name")
        if isinstance(server, type) or not callable(getattr(server, "connection", None)):
            raise ConfigurationError(f"server {name!r} must be a broker such as InMemoryServer(), but is {server!r}")
        self._servers[name] = server
        if is_default or self._default is None:
            self._default = name

    def set_default_server(self, name: str) -> None:
        """Make a registered server the default."""
        self._check_registered(name)
        self._default = name

    def get_server(self, name: str | None = None) -> Broker:
        """The server of that name; None: the default one. Raises `ConfigurationError` if there is none."""
        if name is None:
            name = self._default
        if name is None:
            raise ConfigurationError("the app has no server: app.servers.register_server('default', InMemoryServer())")
        self._check_registered(name)
        return self._servers[name]

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
