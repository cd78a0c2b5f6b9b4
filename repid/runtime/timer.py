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
from .holding import Holding

log = Log("repid.worker")

PATIENCE = 5.0
"""Seconds after its timeout in which an actor should have ended; then it is named in a warning."""


Cause: TypeAlias = type[LeaseExpired] | type[TimedOut] | type[CancelRequested]
"""Why a run was cut off."""


class RunningTask(Protocol):
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
    def present(self) -> list[tuple[Delivery, float]]:
        """What it runs, and when the timeout of that ends, on trio's clock. May be asked from any thread."""
        ...

    def cut_off(self, holding: Holding, cause: Cause) -> None:
        """Cancel this run, if it is still the present one; the cause decides its fate."""
        ...

    def hand_back(self) -> list[Holding]:
        """Give up what it has taken and not started."""
        ...


class Timer:
    """Cuts off runs at their deadlines, and names those that do not end. `suspended` is the crew's."""

    def __init__(self, suspended: Mapping[Holding, RunningTask]) -> None:
        self._suspended = suspended
        self._overdue: dict[Holding, float] = {}
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
            for holding, executor in list(self._suspended.items()):
                if holding.run_ends <= now:
                    executor.cut_off(holding, TimedOut)
                    self._overdue[holding] = now + PATIENCE
            for holding, patience_ends in list(self._overdue.items()):
                stubborn = self._suspended.get(holding)
                if stubborn is not None and patience_ends > now:
                    continue
                del self._overdue[holding]
                if stubborn is not None:
                    log.warning("%s was told to stop at its timeout and has not; it is waited for", stubborn.name)
            deadlines = [holding.run_ends for holding in self._suspended]
            self._next = min([*deadlines, *self._overdue.values()], default=math.inf)
