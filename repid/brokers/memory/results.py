"""Results, until they expire."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from heapq import heappop, heappush
from itertools import groupby

import msgspec

from ...delivery import NewResult, StoredResult
from ...ports import Taker

SWEEP_SPAN = 10.0
"""Seconds. Results that expire within the same span of this length are removed together, at its end."""

SWEPT_AT_ONCE = 256
"""How many are removed at once at most: no call must wait because a million results expire."""


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

    __slots__ = ("_numbers", "_spans", "epoch", "kept", "sweep_at", "takers")

    def __init__(self) -> None:
        self.kept: dict[str, StoredAt] = {}
        self.takers: Mapping[str, Taker] = {}
        """By ids: who is given the result, so that it is not stored."""
        self.epoch = 0.0
        """What to add to times for seconds since 1970."""
        self.sweep_at = math.inf
        self._spans: dict[int, dict[str, None]] = {}
        self._numbers: list[int] = []

    def store(self, results: Iterable[NewResult], now: float) -> None:
        """Store results, each in place of one with the same id."""
        kept, takers, epoch, ttl, expires_at = self.kept, self.takers, self.epoch, 0.0, now
        span: dict[str, None] | None = None
        taken: dict[str, StoredResult] = {}
        for result in results:
            id_ = result.id
            if id_ in kept:
                self.remove(id_)
            if result.ttl != ttl:  # they mostly share it, and what follows from it
                ttl, expires_at = result.ttl, now + result.ttl
                span = self._span_of(expires_at) if now < expires_at < math.inf else None
            if expires_at <= now:
                continue
            if takers and id_ in takers:
                taken[id_] = _to_stored(result, epoch + now, epoch + now)
                continue
            kept[id_] = StoredAt(result, now, expires_at)
            if span is not None:
                span[id_] = None
        if taken:
            for take, ids in groupby(taken, takers.__getitem__):
                take([taken[id_] for id_ in ids])

    def remove(self, id_: str) -> None:
        """Forget a result, if there is one."""
        kept = self.kept.pop(id_, None)
        if kept is not None and kept.expires_at < math.inf:
            span = self._span_of(kept.expires_at)
            del span[id_]
            if not span:
                span.clear()  # which frees the memory it had for many

    def find(self, id_: str, now: float) -> StoredAt | None:
        """The result under this id, unless it has expired."""
        kept = self.kept.get(id_)
        return kept if kept is not None and kept.expires_at > now else None

    def sweep(self, now: float) -> None:
        """Remove some of the results that have expired."""
        left = SWEPT_AT_ONCE
        while left > 0 and self.sweep_at <= now:
            span = self._spans[self._numbers[0]]
            while span and left > 0:
                del self.kept[span.popitem()[0]]
                left -= 1
            if not span:
                del self._spans[heappop(self._numbers)]
                self._set_time()

    def _span_of(self, expires_at: float) -> dict[str, None]:
        """Where `sweep` finds what expires then."""
        number = int(expires_at // SWEEP_SPAN)
        span = self._spans.get(number)
        if span is None:
            span = self._spans[number] = {}
            heappush(self._numbers, number)
            self._set_time()
        return span

    def _set_time(self) -> None:
        self.sweep_at = (self._numbers[0] + 1) * SWEEP_SPAN if self._numbers else math.inf


def show(kept: StoredAt, epoch: float) -> StoredResult:
    """The result as the port gives it; `epoch` is what to add for seconds since 1970."""
    return _to_stored(kept.result, epoch + kept.finished_at, epoch + kept.expires_at)


def _to_stored(result: NewResult, finished_at: float, expires_at: float) -> StoredResult:
    return StoredResult(
        id=result.id,
        state=result.state,
        payload=result.payload,
        failure=result.failure,
        finished_at=finished_at,
        expires_at=expires_at,
    )
