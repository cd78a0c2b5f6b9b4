"""What is done where a broker is not there: how long to wait for it, and what is logged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import trio

from ..errors import BrokerError
from ..logs import Log

SHORTEST = 0.1
LONGEST = 5.0


def backoff(longest: float = LONGEST) -> Iterator[float]:
    """Delays in seconds, doubling from the shortest to the longest, without end."""
    delay = SHORTEST
    while True:
        yield delay
        delay = min(2 * delay, longest)


def log_unavailable(log: Log, error: BrokerError, text: str, *arguments: Any) -> None:
    """Log what could not be done, unless the server's link has logged the outage: then it is worth a debug line."""
    (log.debug if error.is_logged else log.warning)(f"{text}: %s", *arguments, error)


async def look_every(seconds: float, look: Callable[[], Awaitable[None]], log: Log, text: str) -> None:
    """Look again and again until cancelled, each time after `seconds`. If it cannot be done, `text` is logged."""
    while True:
        await trio.sleep(seconds)
        try:
            await look()
        except BrokerError as error:
            log_unavailable(log, error, text)
