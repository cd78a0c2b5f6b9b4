"""How long to wait for a broker that is not there."""

from __future__ import annotations

from collections.abc import Iterator

SHORTEST = 0.1
LONGEST = 5.0


def backoff() -> Iterator[float]:
    """Delays in seconds, doubling from the shortest to the longest, without end."""
    delay = SHORTEST
    while True:
        yield delay
        delay = min(2 * delay, LONGEST)
