"""The timeouts of all runs of one worker, in one place.

A deadline that is set on a cancel scope for each run costs two entries in trio's heap of deadlines, more than a run
itself, and nearly every one is taken back unused. So runs only note their deadlines, and one task looks them through
whenever the earliest it knows of has come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, TypeAlias

import trio

from ..delivery import CancelRequested, Delivery, LeaseExpired, TimedOut
from ..logs import Log

log = Log("repid.worker")

PATIENCE = 5.0
"""Seconds after its timeout in which an actor should have ended; then it is named in a warning."""


Cause: TypeAlias = type[LeaseExpired] | type[TimedOut] | type[CancelRequested]
"""Why a run was cut off."""


class Holder(Protocol):
    """An executor, as others see it."""

    @property
    def name(self) -> str:
        """What it runs, in words for a log."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether it runs something."""
        ...

    @property
    def present(self) -> tuple[Delivery, float] | None:
        """What it runs, and when the timeout of that ends, on trio's clock. May be asked from any thread."""
        ...

    @property
    def deadline(self) -> float:
        """When the timeout of its present run ends, on trio's clock."""
        ...

    def cut_off(self, delivery: Delivery, cause: Cause) -> None:
        """Cancel the run of the delivery, if it is still the present one; the cause decides its fate."""
        ...

    def hand_back(self) -> list[Delivery]:
        """Give up what it has taken and not started."""
        ...


class Timer:
    """Cuts off runs at their deadlines, and names those that do not end. `running` is the crew's."""

    def __init__(self, running: Mapping[Delivery, Holder]) -> None:
        self._running = running
        self._overdue: dict[Delivery, float] = {}
        self._next = math.inf
        self._scope = trio.CancelScope()

    def watch(self, deadline: float) -> None:
        """A run must have ended by then."""
        if deadline < self._next:
            self._next = self._scope.deadline = deadline

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._next) as self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            for delivery, executor in list(self._running.items()):
                if executor.deadline <= now:
                    executor.cut_off(delivery, TimedOut)
                    self._overdue[delivery] = now + PATIENCE
            self._warn_of_the_stubborn(now)
            deadlines = [executor.deadline for executor in self._running.values()]
            self._next = min([*deadlines, *self._overdue.values()], default=math.inf)

    def _warn_of_the_stubborn(self, now: float) -> None:
        for delivery, patience_ends in list(self._overdue.items()):
            executor = self._running.get(delivery)
            if executor is None:
                del self._overdue[delivery]
            elif patience_ends <= now:
                del self._overdue[delivery]
                log.warning("%s was told to stop at its timeout and has not; it is waited for", executor.name)
