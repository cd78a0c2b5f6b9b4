"""Results, until they expire."""

from __future__ import annotations

import math
from heapq import heappop, heappush

import msgspec

from ...delivery import NewResult, StoredResult

SWEEP_SPAN = 10.0
"""Results that expire within the same so many seconds are swept out together, at the end of that time."""

SWEPT_AT_ONCE = 256
"""How many are swept out at once at most: nobody shall wait because a million of them expire."""


class StoredAt(msgspec.Struct, frozen=True, gc=False):
    """A result and its times, which are the broker's."""

    result: NewResult
    finished_at: float
    expires_at: float


class Results:
    """The results by id. `kept` may hold some that have expired; `sweep_at` is when to call `sweep`.

    What expires within the same span is in one dictionary of `_spans`, whose numbers are in a heap: that costs 20
    bytes or so for each result, and nothing is left of one that is replaced or removed.
    """

    __slots__ = ("_numbers", "_spans", "kept", "sweep_at")

    def __init__(self) -> None:
        self.kept: dict[str, StoredAt] = {}
        self.sweep_at = math.inf
        self._spans: dict[int, dict[str, None]] = {}
        self._numbers: list[int] = []

    def store(self, result: NewResult, now: float) -> None:
        """Store a result in place of one with the same id."""
        self.remove(result.id)
        kept = StoredAt(result, now, now + result.ttl)
        if kept.expires_at > now:
            self.kept[result.id] = kept
            if kept.expires_at < math.inf:
                self._note(kept)

    def remove(self, id_: str) -> None:
        """Forget a result, if there is one."""
        kept = self.kept.pop(id_, None)
        if kept is not None and kept.expires_at < math.inf:
            span = self._spans[_span(kept)]
            del span[id_]
            if not span:
                span.clear()  # which frees the memory it had for many

    def find(self, id_: str, now: float) -> StoredAt | None:
        """The result under this id, unless it has expired."""
        kept = self.kept.get(id_)
        return kept if kept is not None and kept.expires_at > now else None

    def sweep(self, now: float) -> None:
        """Forget some of those that have expired."""
        left = SWEPT_AT_ONCE
        while left > 0 and self.sweep_at <= now:
            span = self._spans[self._numbers[0]]
            while span and left > 0:
                del self.kept[span.popitem()[0]]
                left -= 1
            if not span:
                del self._spans[heappop(self._numbers)]
                self._set_time()

    def _note(self, kept: StoredAt) -> None:
        """Put it where `sweep` finds it."""
        number = _span(kept)
        span = self._spans.get(number)
        if span is None:
            span = self._spans[number] = {}
            heappush(self._numbers, number)
            self._set_time()
        span[kept.result.id] = None

    def _set_time(self) -> None:
        self.sweep_at = (self._numbers[0] + 1) * SWEEP_SPAN if self._numbers else math.inf


def _span(kept: StoredAt) -> int:
    return math.floor(kept.expires_at / SWEEP_SPAN)


def show(kept: StoredAt, epoch: float) -> StoredResult:
    """The result as the port gives it; `epoch` is what to add for seconds since 1970."""
    result = kept.result
    return StoredResult(
        id=result.id,
        state=result.state,
        payload=result.payload,
        failure=result.failure,
        finished_at=epoch + kept.finished_at,
        expires_at=epoch + kept.expires_at,
    )
