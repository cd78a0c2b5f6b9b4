"""The server in memory, as users open it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from ...ports import Instrument
from ..checks import check_dead_ttl, check_lease_timeout
from ..door import Server
from .driver import MemoryDriver


class InMemoryServer(Server):
    """A server inside the process. Messages live in this object, outlast connections and trio runs, and end with it.

    `lease_timeout`: seconds after which a lease that was neither settled nor extended may be rescued. Payloads,
    headers and parameters are handed over as they are, not copied. `dead_ttl`: dead letters are removed after this many
    seconds; by default they stay. `instruments`: see `Server`.
    """

    def __init__(
        self,
        *,
        lease_timeout: float | timedelta = 60.0,
        dead_ttl: float | timedelta | None = None,
        instruments: Iterable[Instrument] = (),
    ) -> None:
        driver = MemoryDriver(check_lease_timeout(lease_timeout), check_dead_ttl(dead_ttl))
        super().__init__(driver, instruments=instruments)


InMemoryMessageBroker = InMemoryServer
