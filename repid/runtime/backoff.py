"""How long to wait for a broker that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import BrokerError
from ..logs import Log

SHORTEST = 0.1
LONGEST = 5.0


def backoff() -> Iterator[float]:
    """Delays in seconds, doubling from the shortest to the longest, without end."""
    delay = SHORTEST
    while True:
        yield delay
        delay = min(2 * delay, LONGEST)


def log_unavailable(log: Log, error: BrokerError, text: str, *arguments: Any) -> None:
    """Log what could not be done, unless the server's link has logged the outage: then it is worth a debug line."""
    (log.debug if error.is_logged else log.warning)(f"{text}: %s", *arguments, error)
