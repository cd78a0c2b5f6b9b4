"""The server in Redis or Valkey, as users open it."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from datetime import timedelta

from ...errors import ConfigurationError
from ...ports import Instrument
from ..checks import check_dead_ttl, check_lease_timeout
from ..door import Server
from .address import context_for, parse_address
from .driver import RedisDriver


class RedisServer(Server):
    """A broker in Redis (6.2 or newer) or Valkey, for any number of processes on any number of machines.

    `url`: `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`, `rediss://` for TLS, `unix:///PATH[?db=DATABASE]`,
    `redis+sentinel://HOST:PORT,HOST:PORT/NAME[/DATABASE]`, `redis+cluster://HOST:PORT,HOST:PORT`. `prefix`: what all
    keys begin with, in braces; servers with different ones do not see each other's messages. `lease_timeout`: a lease
    that was neither settled nor extended for this many seconds may be rescued. `dead_ttl`: workers remove dead letters
    after this many seconds; by default they stay. `wait_replicas`: a call that writes returns when this many replicas
    have it, too. `ssl_context`: how a rediss:// server is checked, if not by the system's certificates.

    What `publish` accepted is as durable as the server is set up to be (`appendonly`, `appendfsync`): see
    docs/redis.md. The server must speak RESP3, and its maxmemory-policy must not evict keys of all kinds. Times are
    those of the server's clock.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379",
        *,
        prefix: str = "repid",
        lease_timeout: float | timedelta = 60.0,
        dead_ttl: float | timedelta | None = None,
        wait_replicas: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        instruments: Iterable[Instrument] = (),
    ) -> None:
        address = parse_address(url)
        if not isinstance(prefix, str) or not prefix or "{" in prefix or "}" in prefix or not prefix.isprintable():
            raise ConfigurationError(f"prefix must be text without braces, such as 'repid', but is {prefix!r}")
        if isinstance(wait_replicas, bool) or not isinstance(wait_replicas, int) or wait_replicas < 0:
            raise ConfigurationError(f"wait_replicas must be a number of replicas, such as 1, but is {wait_replicas!r}")
        context = context_for(address, ssl_context)
        driver = RedisDriver(
            address,
            context,
            prefix,
            lease_timeout=check_lease_timeout(lease_timeout),
            dead_ttl=check_dead_ttl(dead_ttl),
            wait_replicas=wait_replicas,
        )
        super().__init__(driver, instruments=instruments, place=f"{address}, prefix {prefix!r}")
