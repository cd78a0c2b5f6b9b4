"""What differs between the engines for the children: how a server is opened, and what the journal needs of a lease."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import unpack_from
from typing import Any, Final, Literal, TypeAlias

import repid

Name: TypeAlias = Literal["sqlite", "postgres", "redis"]

CLAIMED_AT_ONCE = 4096
"""No claim of a worker here leases so many."""


@dataclass(frozen=True)
class Engine:
    """One engine. `server`: the name of its class in `repid`, which is opened with `options(address, name)`.

    `order`: from the token of a lease to a number that no other lease of the run has and that grows with each lease of a
    message. `counts_rows`: whether a "half" step can be taken when half of the rows are changed; otherwise it is taken at
    a moment by chance while the call is under way. `grain`: seconds by which the engine's clock and that of the journals
    may drift apart within a lease.
    """

    server: str
    options: Callable[[str, str], dict[str, Any]]
    order: Callable[[Any], int]
    counts_rows: bool
    grain: float


def _order_of_redis(token: bytes) -> int:
    """A token has since when the message is leased, and its number in the claim: see `repid.brokers.redis.layout`."""
    number, since = unpack_from(">HQ", token, 16)
    assert number < CLAIMED_AT_ONCE
    return int(since * CLAIMED_AT_ONCE + number)


def _order_of_postgres(token: tuple[int, int]) -> int:
    """The lower half of a token is from a sequence, the upper one is chance: see `repid.brokers.postgres.claiming`."""
    return token[1] & 0xFFFF_FFFF


ENGINES: Final[dict[Name, Engine]] = {
    "sqlite": Engine("SQLiteServer", lambda path, _: {"path": path}, int, counts_rows=True, grain=0.0001),
    "postgres": Engine(
        "PostgresServer",
        lambda url, schema: {"conninfo": url, "schema": schema},
        _order_of_postgres,
        counts_rows=False,
        grain=0.002,
    ),
    "redis": Engine(
        "RedisServer",
        lambda url, prefix: {"url": url, "prefix": prefix},
        _order_of_redis,
        counts_rows=False,
        grain=0.002,
    ),
}


def server_class(engine: Name) -> type[repid.Server]:
    """The class of the engine's server; only now it is imported."""
    found: type[repid.Server] = getattr(repid, ENGINES[engine].server)
    return found


def open_server(engine: Name, address: str, name: str, lease: float, more: Mapping[str, int]) -> repid.Server:
    """A server as users make it."""
    opened: Any = server_class(engine)
    server: repid.Server = opened(**ENGINES[engine].options(address, name), lease_timeout=lease, **more)
    return server
