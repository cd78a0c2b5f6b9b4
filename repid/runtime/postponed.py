"""Verdicts with a delay, for a server that cannot delay: they are handed over when their delay has passed.

Until then the lease stays with the worker, whose keeper extends it, so nobody else can be given the message. A worker
that ends hands over what is left: those messages are ready at once. So does one that dies, when the leases end.
Settling at once without the delay was rejected: a retry policy would be ignored, and a message that no actor here
takes would go round without a pause.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import trio
from msgspec.structs import replace

from ..delivery import Release, Retry, Settlement
from .holding import Holding

MOST = 10_000
"""How many verdicts are held back at most; beyond that, those that are due first are handed over early."""


class Postponed:
    """Holds verdicts back; `put` takes them when they are due."""

    def __init__(self, put: Callable[[Settlement, Holding | None], None]) -> None:
        self._put = put
        self._heap: list[tuple[float, int, Settlement, Holding | None]] = []
        self._numbers = count()
        self._is_closed = False
        self._added = trio.Event()

    def hold_back(self, settlement: Settlement, holding: Holding | None) -> bool:
        """Hold a verdict back if it has a delay. Returns whether it did."""
        disposition = settlement.disposition
        if self._is_closed or not isinstance(disposition, Retry | Release) or disposition.delay <= 0:
            return False
        due = trio.current_time() + disposition.delay
        at_once = replace(settlement, disposition=replace(disposition, delay=0.0))
        heappush(self._heap, (due, next(self._numbers), at_once, holding))
        if len(self._heap) > MOST:
            self._hand_over()
        self._added.set()
        return True

    async def run(self) -> None:
        """Hand over what is due, until cancelled."""
        while True:
            self._added = trio.Event()
            with trio.move_on_at(self._heap[0][0] if self._heap else float("inf")):
                await self._added.wait()
            while self._heap and self._heap[0][0] <= trio.current_time():
                self._hand_over()

    def close(self) -> None:
        """Hand over all that is left; what comes from now on is not held back."""
        self._is_closed = True
        while self._heap:
            self._hand_over()

    def _hand_over(self) -> None:
        _, _, settlement, holding = heappop(self._heap)
        self._put(settlement, holding)
