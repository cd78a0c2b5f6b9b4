"""Notices a fleet that is busy for ever: tasks run and run, and no virtual time passes, so no timeout would end that."""

from __future__ import annotations

from collections.abc import Callable

import trio

from .account import Violation

MOST_TURNS = 5_000
"""Turns of trio's scheduler at one moment of virtual time; a whole history takes fewer."""


class Watchdog(trio.abc.Instrument):
    """Calls `stop` once tasks have run for so many turns without letting time pass."""

    def __init__(self, stop: Callable[[Violation], None]) -> None:
        self._stop = stop
        self._turns = 0
        self._now = -1.0

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002  given by trio
        """One turn has ended."""
        now = trio.current_time()
        self._turns = self._turns + 1 if now == self._now else 0
        self._now = now
        if self._turns == MOST_TURNS:
            self._stop(Violation("tasks run all the time, and wait for nothing"))
