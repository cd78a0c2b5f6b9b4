"""The server in memory, as users open it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from ...ports import Instrument
from ..checks import check_lease_timeout
from ..door import Server
from .driver import MemoryDriver


class InMemoryServer(Server):
    """A server inside the process. Messages live in this object, outlast connections and trio runs, and end with it.

    `lease_timeout`: a lease that was neither settled nor extended for so many seconds may be rescued. Payloads,
    headers and parameters are handed over as they are, not copied. `instruments`: see `Server`.
    """

    def __init__(self, *, lease_timeout: float | timedelta = 60.0, instruments: Iterable[Instrument] = ()) -> None:
        super().__init__(MemoryDriver(check_lease_timeout(lease_timeout)), instruments=instruments)


InMemoryMessageBroker = InMemoryServer
