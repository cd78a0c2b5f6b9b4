"""How many runs may go on at once: of one actor (its `concurrency`), or of all that share threads or processes.

What a worker claims follows its limits: as many messages as may still run, and a small look-ahead where runs are short
in comparison with a round trip to the broker. What was claimed and cannot run yet is *parked*: it does not count as
running, a stop gives it back, and a cancellation reaches it. What has waited long for a thread or process is given back
anyway: its queue may have been paused, other workers may be free, and messages with a higher priority may have come.
"""

from __future__ import annotations

from typing import Any

TRIPS_AHEAD = 8
"""The look-ahead lasts for so many round trips to the broker."""

WEIGHT = 1 / 8
"""How much the last run counts in the mean."""


class Limit:
    """At most `most` runs at once. `busy` counts runs, `claimed` those and what is held or parked for them.

    `parked`: the holdings that wait, longest waiting first, with the moment since when, or infinity for what may wait as long as it
    takes. `ahead`: whether to claim ahead at all.
    """

    __slots__ = ("ahead", "busy", "claimed", "mean", "most", "parked")

    def __init__(self, most: int, *, ahead: bool) -> None:
        self.most = most
        self.ahead = ahead
        self.busy = 0
        self.claimed = 0
        self.parked: dict[Any, float] = {}
        self.mean: float | None = None
        """Seconds that a run takes; None: not known, or known to be of no use."""

    @property
    def is_full(self) -> bool:
        """Whether no more runs may begin now."""
        return self.busy >= self.most

    def ended(self, seconds: float) -> None:
        """A run has ended that took so long."""
        self.busy -= 1
        self.mean = seconds if self.mean is None else self.mean + (seconds - self.mean) * WEIGHT

    def room(self, trip: float) -> int:
        """How many may be claimed now, if a round trip to the broker takes `trip` seconds."""
        return max(0, self.most + self._look_ahead(trip) - self.claimed)

    def _look_ahead(self, trip: float) -> int:
        """What ends during a few round trips, as long as nothing waits for longer than expected."""
        if not self.ahead or self.mean is None:
            return 0
        if self.mean <= TRIPS_AHEAD * trip:
            return self.most
        return int(self.most * TRIPS_AHEAD * trip / self.mean)
