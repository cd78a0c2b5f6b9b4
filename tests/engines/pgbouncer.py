"""PgBouncer, started before a PostgreSQL server of the tests; from the package `pgbouncer` of the system."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from .postgres import Postgres
from .starting import Server, folder_for, free_port, other_user


@contextmanager
def pooled(postgres: Postgres, *, ignores_options: bool = False) -> Iterator[str]:
    """The address of the same server behind a pooler in transaction mode, which has two connections.

    `ignores_options`: it lets clients give settings of their sessions, and does nothing with them.
    """
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("THERE IS NO PGBOUNCER: install the package pgbouncer of your system")
    parts = urlsplit(postgres.url)
    user = other_user()
    with folder_for(user) as folder:
        port = free_port()
        url = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}"))
        (folder / "users").write_text(f'"{parts.username}" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={parts.hostname} port={parts.port or 5432}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            "auth_type = trust\nauth_file = users\npool_mode = transaction\ndefault_pool_size = 2\n"
            + "ignore_startup_parameters = options,extra_float_digits\n"
            * ignores_options
        )

        def answers() -> bool:
            try:
                psycopg.connect(url, connect_timeout=2).close()
            except psycopg.Error:
                return False
            return True

        process = Server([program, "-q", "pgbouncer.ini"], folder, user, answers)
        try:
            process.start()
            yield url
        finally:
            process.stop(signal.SIGINT)
