"""Waiting for a broker that is not there yet, before anything was begun."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from ..errors import BrokerUnavailable
from ..logs import Log
from .backoff import backoff

T = TypeVar("T")

log = Log("repid.worker")

LONGEST = 1.25
"""Seconds: nobody tells that the broker is back, and a start goes on within two seconds of that."""


class Patience:
    """Makes the calls that a start needs, each again until the broker answers. The first refusal is logged, no other."""

    def __init__(self) -> None:
        self._has_warned = False

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call returns, once it does. Raises what it raises but `BrokerUnavailable`."""
        for delay in backoff(LONGEST):
            try:
                return await call()
            except BrokerUnavailable as error:
                if not self._has_warned:
                    self._has_warned = True
                    log.warning("cannot start yet, and tries until the broker answers: %s", error)
                await trio.sleep(delay)
        raise AssertionError  # backoff has no end
