"""The broker's time."""

from __future__ import annotations

import time

import trio


class Clock:
    """Trio's clock plus an offset, so that what is stored grows older from one trio run to the next.

    The clocks of two runs have nothing to do with each other: between runs the process's monotonic clock counts,
    within a run trio's alone (so a `MockClock` works). It never runs backwards.

    `epoch` is what to add to its times for seconds since 1970, as the wall clock said at first: it is not stepped.
    """

    __slots__ = ("_now", "_offset", "_seen", "epoch")

    def __init__(self) -> None:
        self.epoch = 0.0
        self._now: float | None = None
        self._offset = 0.0
        self._seen = 0.0

    def attach(self) -> None:
        """Go on in another trio run. The first run's times are trio's own."""
        if self._now is None:
            self.epoch = time.time() - trio.current_time()
        else:
            self._offset = self._now + (time.monotonic() - self._seen) - trio.current_time()

    def look(self) -> float:
        """The time now."""
        now = trio.current_time() + self._offset
        if self._now is None or now > self._now:
            self._now = now
        self._seen = time.monotonic()
        return self._now

    def reach(self, moment: float) -> None:
        """Trio's timeout for this moment has fired: it is not earlier, whatever the rounding of the offset says."""
        self._now = moment if self._now is None else max(self._now, moment)

    def in_trio(self, moment: float) -> float:
        """The same moment on trio's clock."""
        return moment - self._offset
