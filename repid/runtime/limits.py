"""How many runs may go on at once: of one actor (its `concurrency`), or of all that share threads or processes.

What a worker claims follows its limits: as many messages as may still run, and a small look-ahead where runs are short
in comparison with a round trip to the broker. What was claimed and cannot run yet is *parked*: it does not count as
running, a stop gives it back, and a cancellation reaches it. What has waited long for a thread or process is given back
anyway: its queue may have been paused, other workers may be free, and messages with a higher priority may have come.

A batch counts as one run. What an actor's batches are made of is bounded by the `Gathering`: as many messages as its
runs may have, and one batch more, which fills meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

TRIPS_AHEAD = 8
"""Round trips to the broker for which the look-ahead lasts."""

MOST_AHEAD = 3
"""What a worker claims ahead is at most this many times what it runs at once. Where runs are short, each call to the
broker is then about many messages, and takes little time for each. All of them end within `TRIPS_AHEAD` round trips, if
runs stay as short as they were.
"""

WEIGHT = 1 / 8
"""How much the last run counts in the mean."""


class Limit:
    """At most `most` runs at once. `busy` counts runs, `claimed` those and what is held or parked for them.

    `parked`: the holdings that wait, longest waiting first, with the moment since when, or infinity for what may wait
    as long as it takes. `ahead`: whether to claim ahead at all.
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
        """A run has ended that took so long, which matters where more is claimed ahead."""
        self.busy -= 1
        if self.ahead:
            self.mean = seconds if self.mean is None else self.mean + (seconds - self.mean) * WEIGHT

    def room(self, trip: float) -> int:
        """How many may be claimed now, if a round trip to the broker takes `trip` seconds: as many as may run, and
        ahead of them what ends during a few round trips, as long as nothing waits for longer than expected.
        """
        if not self.ahead or self.mean is None:
            ahead = 0
        elif self.mean <= TRIPS_AHEAD * trip:
            ahead = self.most
        else:
            ahead = int(self.most * TRIPS_AHEAD * trip / self.mean)
        return max(0, self.most + ahead - self.claimed)


def first_full(limits: Iterable[Limit]) -> Limit | None:
    """The first of these that is reached; None: none is."""
    for limit in limits:
        if limit.is_full:
            return limit
    return None


class Gathering(Limit):
    """What a batch actor will be given next. Its messages are parked here, longest waiting first, with the moment since
    when each of them waits; `claimed` counts them and those that run.

    The first one waits at most `wait` seconds for a batch of `size`. `is_called`: an executor was told to start a
    batch, and has not begun. `is_flushed`: no more are waited for.
    """

    __slots__ = ("is_called", "is_flushed", "size", "wait")

    def __init__(self, size: int, wait: float, runs: int) -> None:
        super().__init__(size * (runs + 1), ahead=False)
        self.size = size
        self.wait = wait
        self.is_called = False
        self.is_flushed = False

    @property
    def due(self) -> float:
        """When a batch is to be started, unless one is called already."""
        if not self.parked or self.is_called:
            return math.inf
        if self.is_flushed or len(self.parked) >= self.size:
            return -math.inf
        return next(iter(self.parked.values())) + self.wait
