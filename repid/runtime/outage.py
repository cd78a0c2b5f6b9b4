"""What is done while a broker is not there: how long to wait for it, how often, and what is logged."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import trio

from ..errors import BrokerError, BrokerUnavailable
from ..logs import Log

T = TypeVar("T")

log = Log("repid.worker")

SHORTEST = 0.1
LONGEST = 5.0
"""Seconds between two attempts."""

LONGEST_AT_START = 1.25
"""Seconds: nobody tells that the broker is back, and a start goes on within two seconds of that."""

BURST_TIME = 30.0
"""Seconds for which a burst waits for a broker: scripts and cron start it, and want to know how it ended."""


def backoff(longest: float = LONGEST) -> Iterator[float]:
    """Delays in seconds, doubling from the shortest to the longest, without end."""
    delay = SHORTEST
    while True:
        yield delay
        delay = min(2 * delay, longest)


def log_unavailable(error: BrokerError, text: str, *arguments: Any) -> None:
    """Log what could not be done, unless the server's link has logged the outage: then it is worth a debug line."""
    (log.debug if error.is_logged else log.warning)(f"{text}: %s", *arguments, error)


async def look_every(seconds: float, look: Callable[[], Awaitable[None]], text: str) -> None:
    """Look again and again until cancelled, each time after `seconds`. If it cannot be done, `text` is logged."""
    while True:
        await trio.sleep(seconds)
        try:
            await look()
        except BrokerError as error:
            log_unavailable(error, text)


class Outage:
    """A time without the broker. A worker waits for its end, a burst for `BURST_TIME`."""

    def __init__(self, *, burst: bool) -> None:
        self._burst = burst
        self._began = math.inf

    def check(self, error: BrokerUnavailable) -> None:
        """A call has failed once more. Raises `BrokerUnavailable` if it is to be made no more."""
        now = trio.current_time()
        self._began = min(self._began, now)
        if self._burst and now - self._began >= BURST_TIME:
            raise BrokerUnavailable(
                f"the server did not answer for {BURST_TIME:g} s, and a burst waits no longer: {error}"
            ) from error


class Patience:
    """Makes the calls that a start needs, each again until the broker answers, in a burst for `BURST_TIME`. The first
    refusal is logged, no other.
    """

    def __init__(self, *, burst: bool) -> None:
        self._burst = burst
        self._has_warned = False

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call returns, once it does. Raises what it raises; `BrokerUnavailable` in a burst only."""
        outage = Outage(burst=self._burst)
        for delay in backoff(LONGEST_AT_START):
            try:
                return await call()
            except BrokerUnavailable as error:
                outage.check(error)
                if not self._has_warned:
                    self._has_warned = True
                    log.warning("cannot start yet, and tries until the server answers: %s", error)
                await trio.sleep(delay)
        raise AssertionError  # backoff has no end
