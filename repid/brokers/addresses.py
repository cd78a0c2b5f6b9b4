"""From an address to a server with the options that it has by default."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigurationError
from .door import Server


def server_at(address: str) -> Server:
    """The server at `postgresql://…`, `redis://…`, or in the SQLite file at a path. Raises `ConfigurationError`."""
    scheme, colon, _ = address.partition("://")
    opened: Any
    if scheme in {"postgresql", "postgres"}:
        from .postgres import PostgresServer as opened  # noqa: N813, PLC0415  an extra
    elif scheme.partition("+")[0] in {"redis", "rediss", "valkey", "valkeys", "unix"}:
        from .redis import RedisServer as opened  # noqa: N813, PLC0415  an extra
    elif colon:
        raise ConfigurationError(f"{address!r} is no address of a server: take postgresql://, redis:// or a path")
    else:
        from .sqlite import SQLiteServer as opened  # noqa: N813, PLC0415  loaded at first use
    server: Server = opened(address)
    return server
