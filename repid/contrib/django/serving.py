"""Where the messages of a backend wait, by the `OPTIONS` of its settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from django.db import connections

from ...brokers import Server, SQLiteServer
from ...errors import ConfigurationError
from ...names import check_known

ACTOR_OPTIONS = ("timeout", "retries", "retry_policy", "result_ttl")
"""What `OPTIONS` may hold for the actors that run tasks."""

OPTIONS = ("server", "database", *ACTOR_OPTIONS)
"""What `OPTIONS` may hold."""

_POSTGRES = ("postgresql://", "postgres://")
_REDIS = ("redis://", "rediss://", "unix://")


def make_server(options: Mapping[str, Any]) -> Server:
    """The server that the options name. Raises `ConfigurationError`, with what is wrong."""
    check_known("OPTIONS of a backend in TASKS", options, OPTIONS)
    server, database = options.get("server"), options.get("database")
    if server is None and database is None:
        raise ConfigurationError(
            "OPTIONS of a backend in TASKS must say where tasks wait: 'server' with the path of an SQLite file or an "
            "address, or 'database' with the alias of a PostgreSQL database in DATABASES"
        )
    address = _address_of(database) if database is not None else ""
    if server is None:
        server = address or "postgresql://"
    if isinstance(server, Server):
        return server
    if not isinstance(server, str | os.PathLike):
        raise ConfigurationError(f"'server' in OPTIONS must be a path, an address or a Server, but is {server!r}")
    where = os.fspath(server)
    if where.startswith(_POSTGRES) or where == address:
        from ...brokers.postgres import PostgresServer  # noqa: PLC0415  an extra

        return PostgresServer(where)
    if where.startswith(_REDIS):
        from ...brokers.redis import RedisServer  # noqa: PLC0415  an extra

        return RedisServer(where)
    return SQLiteServer(where)


def _address_of(database: str) -> str:
    """The address of a database of Django's, as libpq takes it. Raises `ConfigurationError` if it is not PostgreSQL."""
    if database not in connections:
        raise ConfigurationError(f"'database' in OPTIONS is {database!r}, but DATABASES has no such alias")
    connection = connections[database]
    if connection.vendor != "postgresql":
        raise ConfigurationError(
            f"'database' in OPTIONS is for enqueueing in the transactions of PostgreSQL, but {database!r} is "
            f"{connection.vendor}: give 'server' alone"
        )
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415  an extra, which Django's own backend has found
    from psycopg.pq import Conninfo  # noqa: PLC0415

    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    given = connection.get_connection_params()
    return make_conninfo("", **{name: value for name, value in given.items() if name in known and value is not None})


def connection_within(database: str | None) -> Any:
    """Django's connection to this database, if a transaction is open on it in this thread; else None."""
    if database is None or connections[database].get_autocommit():
        return None
    return connections[database]
