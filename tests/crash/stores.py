"""Where a run has its messages: a file, or a place of its own on a server of an engine that runs already."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from repid import Server

from .engines import Name, open_server
from .failover import NAME, Group, group_of_two, port_of
from .network import Network, network_to

if TYPE_CHECKING:
    from engines.postgres import Postgres
    from engines.redis import Redis
    from engines.starting import Server as Process


@dataclass(frozen=True)
class Store:
    """`name`: the schema or prefix that is this run's own. `inspect`: what is wrong with it when all work is done.

    `network`: what lies between the children and their server; None for a file. `options`: more of the server's.
    """

    engine: Name
    address: str
    name: str
    inspect: Callable[[], list[str]]
    network: Network | Group | None = None
    options: dict[str, int] = field(default_factory=dict)

    @property
    def childrens_address(self) -> str:
        """Where the children find the server."""
        return self.address if self.network is None else self.network.way_to(self.address)

    def server(self, lease: float) -> Server:
        """A server as users make it, reached without the proxy."""
        return open_server(self.engine, self.address, self.name, lease, self.options)


def in_file(folder: Path) -> Store:
    """A SQLite file in this folder."""
    path = folder / "repid.db"

    def inspect() -> list[str]:
        with closing(sqlite3.connect(path)) as connection:
            [intact] = connection.execute("PRAGMA integrity_check").fetchone()
        return [] if intact == "ok" else [f"the file is damaged: {intact}"]

    return Store("sqlite", str(path), "", inspect)


@contextmanager
def in_postgres(postgres: Postgres) -> Iterator[Store]:
    """A schema, that is dropped after the block."""
    with postgres.schema() as schema:

        def inspect() -> list[str]:
            [(astray,)] = postgres.execute(
                "SELECT count(*) FROM (SELECT seq FROM {s}.ready UNION ALL SELECT seq FROM {s}.scheduled"
                " UNION ALL SELECT seq FROM {s}.lease) AS state FULL JOIN {s}.message USING (seq)"
                " WHERE state IS NULL OR message IS NULL".replace("{s}", schema)
            )
            return [f"{astray} rows have a message without a state, or a state without a message"] if astray else []

        def mended() -> None:
            """What a crash takes back of a sequence must not be given out again: the journal goes by the order of tokens."""
            sequence = f"{schema}.token"
            if postgres.execute("SELECT to_regclass(%s)", sequence) != [(None,)]:
                postgres.execute(f"SELECT setval('{sequence}', nextval('{sequence}') + 1000000)")

        with _network(postgres.url, 5432, postgres.process, signal.SIGINT, mended) as network:
            yield Store("postgres", postgres.url, schema, inspect, network)


@contextmanager
def in_redis(redis: Redis) -> Iterator[Store]:
    """A prefix, whose keys are removed after the block."""
    with redis.prefix() as prefix:

        def inspect() -> list[str]:
            return _left_in(redis, prefix)

        with _network(redis.url, 6379, redis.process, signal.SIGTERM, lambda: None) as network:
            yield Store("redis", redis.url, prefix, inspect, network)


@contextmanager
def in_redis_group(wait_replicas: int) -> Iterator[Store]:
    """A primary, a replica and a sentinel of our own."""
    with group_of_two(wait_replicas) as group:
        url = f"redis+sentinel://127.0.0.1:{port_of(group.sentinel)}/{NAME}/0"
        options = {"wait_replicas": wait_replicas}
        yield Store("redis", url, "repid-crash", lambda: _left_in(group.primary, "repid-crash"), group, options)


def _left_in(redis: Redis, prefix: str) -> list[str]:
    """What is wrong with a prefix where all work is done."""
    kinds = ("messages", "ready", "suspects", "scheduled", "leases", "expiries", "extras")
    left = [kind for kind in kinds if redis.execute("EXISTS", f"{{{prefix}}}:{kind}")]
    return [f"left behind: {', '.join(left)}"] if left else []


def _network(
    url: str, port: int, process: Process | None, graceful: int, mended: Callable[[], None]
) -> AbstractContextManager[Network]:
    parts = urlsplit(url)
    return network_to(parts.hostname or "127.0.0.1", parts.port or port, process, graceful, mended)
