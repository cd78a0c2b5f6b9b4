"""Bounds as they are given, and waiting for room in a full queue: who waits, and in what order they look for it."""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import NamedTuple, Protocol, cast

from ..delivery import WHEN_FULL, Bounds, WhenFull
from ..errors import ConfigurationError, QueueFull
from ..names import check_count, check_one_of


def make_bounds(what: str, max_size: int | None, max_bytes: int | None, when_full: str | None) -> Bounds:
    """The bounds that were given, checked. Raises `ConfigurationError`."""
    if when_full is not None and max_size is None and max_bytes is None:
        raise ConfigurationError(f"{what} has when_full={when_full!r}, but no bound: give max_size or max_bytes, too")
    for name, limit in (("max_size", max_size), ("max_bytes", max_bytes)):
        if limit is not None and check_count(f"{name} of {what}", limit, least=1) == math.inf:
            raise ConfigurationError(f"{name} of {what} must be finite: leave it out for a queue without that bound")
    if when_full is None:
        return Bounds(max_size=max_size, max_bytes=max_bytes)
    check_one_of(f"when_full of {what}", when_full, WHEN_FULL)
    return Bounds(max_size=max_size, max_bytes=max_bytes, when_full=cast("WhenFull", when_full))


class SendingWorker(Protocol):
    """A worker, for those who must find out whether anything can make room."""

    def reads(self, queue: str) -> bool:
        """Whether its consumer takes messages of the queue."""
        ...

    def can_only_wait(self, queues: frozenset[str], runs: int) -> bool:
        """Whether it does nothing but wait, if `runs` of its runs wait for room in these queues."""
        ...

    def waits(self, change: int) -> None:
        """`change` more of its sends wait for room; below 0: fewer."""
        ...


class SendingRun(NamedTuple):
    """The run that a send belongs to. `run`: what tells it from others of its worker; None: it has ended, and its
    outbox waits.
    """

    worker: SendingWorker
    run: object | None


sending_run: ContextVar[SendingRun] = ContextVar("repid_sending_run")
"""The run of a worker within which code runs."""


class Turn(Protocol):
    """The turn of one call to look for room in one queue: it publishes, and where there is no room, waits."""

    async def wait(self, refusal: QueueFull) -> None:
        """Wait until there may be room. Raises `QueueFull` if nothing can make room any more.

        Cancelling loses nothing.
        """
        ...

    def moved(self) -> None:
        """There was room for something."""
        ...
