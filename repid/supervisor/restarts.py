"""When a crashed process is started again, and when no more. Pure: time comes in as an argument."""

from __future__ import annotations

from collections import deque

LIMIT = 5
"""Crashes of one worker within the window after which it is started again; at the next one the supervisor gives up."""

WINDOW = 60.0
"""Seconds after which a crash is forgotten."""

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0


class Restarts:
    """The crashes of one worker: of the process and of those that took its place."""

    def __init__(self) -> None:
        self._crashes: deque[float] = deque()

    def after_crash(self, now: float) -> float | None:
        """Note a crash; seconds to wait before the next start, twice as many for each recent one. None: give up."""
        while self._crashes and self._crashes[0] <= now - WINDOW:
            self._crashes.popleft()
        self._crashes.append(now)
        if len(self._crashes) > LIMIT:
            return None
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (len(self._crashes) - 1))
