"""The broker's time: a wall clock for planned times, and for leases a clock that cannot be set."""

from __future__ import annotations

import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_HAS_BOOTTIME = hasattr(time, "CLOCK_BOOTTIME")

MICRO = 1_000_000
"""The file keeps times as whole microseconds."""


class Clock:
    """What time it is. Tests put another in its place and step it.

    Delays, ttl, schedules and results go by `wall`: it may be stepped, which hastens or delays them. Leases go by
    `boot`, which runs evenly, through suspension too, and is comparable between processes while `boot_id` is the
    same. Where a system has no CLOCK_BOOTTIME (macOS, Windows) the monotonic clock stands in: it may stop while the
    machine sleeps, so leases last that much longer. Where it has no boot id there is one for all boots, so a
    restart may leave leases to their full time.
    """

    def __init__(self) -> None:
        self.boot_id = _read_boot_id()

    def wall(self) -> int:
        """Microseconds since 1970."""
        return time.time_ns() // 1000

    def boot(self) -> int:
        """Microseconds since the machine was started, or since some other moment before this process."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME) if _HAS_BOOTTIME else time.monotonic_ns()
        return now // 1000


def micros(seconds: float) -> int:
    """The duration in whole microseconds; what is longer than thirty thousand years is cut there."""
    return round(max(min(seconds, 1e12), -1e12) * MICRO)


def _read_boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="utf-8").strip()
    except OSError:
        return "unknown"
