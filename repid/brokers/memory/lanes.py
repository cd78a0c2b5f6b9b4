"""The ready messages of one (queue, topic), in order, and the claiming of the next ones over several lanes.

What comes in fresh has the highest rank of its priority so far, because the broker's clock never runs backwards: a
deque per priority keeps those in order for eight bytes each. What comes back out of order goes to a heap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace, merge
from itertools import chain
from math import inf
from typing import TypeAlias

from ...envelope import PrioritiesT
from .record import Record, is_gone

Entry: TypeAlias = tuple[float, int, Record]
"""Rank, order (so that records are never compared), record."""

_FEWEST_TO_COMPACT = 1024


class Cap:
    """How many more may be taken of the lanes that share it."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


_Head: TypeAlias = tuple[float, int, "deque[Record] | list[Entry]", "Lane"]


class Lane:
    """The ready messages of one topic of one queue.

    `stale` counts the entries whose message has gone (expired, cancelled) since: they are skipped when their turn
    comes, and swept out when they are most.
    """

    __slots__ = ("fresh", "queue", "returned", "stale", "topic")

    def __init__(self, queue: str, topic: str | None) -> None:
        self.queue = queue
        self.topic = topic
        self.fresh: dict[PrioritiesT, deque[Record]] = {}
        self.returned: list[Entry] = []
        self.stale = 0

    def __len__(self) -> int:
        return sum(map(len, self.fresh.values())) + len(self.returned) - self.stale

    def class_of(self, priority: PrioritiesT) -> deque[Record]:
        """Where fresh messages of this priority are appended."""
        records = self.fresh.get(priority)
        if records is None:
            records = self.fresh[priority] = deque()
        return records

    def put_back(self, record: Record) -> None:
        """Take in a message whose rank may be anywhere among the others."""
        heappush(self.returned, (record.rank, record.order, record))

    def lose(self) -> None:
        """One of the messages has gone."""
        self.stale += 1
        if self.stale >= _FEWEST_TO_COMPACT and self.stale > len(self):
            for priority, records in self.fresh.items():
                self.fresh[priority] = deque(record for record in records if not is_gone(record))
            self.returned = [entry for entry in self.returned if not is_gone(entry[2])]
            heapify(self.returned)
            self.stale = 0

    def records(self) -> Iterator[Record]:
        """Every message of the lane, in no particular order."""
        entries = chain(chain.from_iterable(self.fresh.values()), (entry[2] for entry in self.returned))
        return (record for record in entries if not is_gone(record)) if self.stale else entries

    def heads(self) -> Iterator[_Head]:
        """The first entry of each order there is in the lane."""
        for records in self.fresh.values():
            if records:
                yield records[0].rank, records[0].order, records, self
        if self.returned:
            yield self.returned[0][0], self.returned[0][1], self.returned, self


def draw(
    lanes: Iterable[Lane], limit: int, caps: Mapping[Lane, Sequence[Cap]], size: float = inf, first: float = inf
) -> tuple[list[Record], list[Lane]]:
    """Take out messages by rank, and say which lanes that emptied.

    Up to `limit`, none that one of the caps of its lane forbids, and at most `size` bytes of payload, or one message of at most `first`.
    """
    heads = [head for lane in lanes for head in lane.heads()]
    if len(heads) != 1 or caps or heads[0][3].stale:
        return _draw_merged(heads, limit, caps, size, first)
    _, _, source, lane = heads[0]
    if isinstance(source, deque):
        take = source.popleft
        taken = [take() for _ in range(min(limit, len(source)))]
        fitting = _how_many_fit(taken, size, first)
        source.extendleft(reversed(taken[fitting:]))
    else:
        taken = [heappop(source)[2] for _ in range(min(limit, len(source)))]
        fitting = _how_many_fit(taken, size, first)
        for record in taken[fitting:]:
            heappush(source, (record.rank, record.order, record))
    return taken[:fitting], [] if source else [lane]


def _how_many_fit(records: Sequence[Record], size: float, first: float) -> int:
    """How many of them, from the first one on, have at most so many bytes of payload."""
    total = 0
    for number, record in enumerate(records):
        total += len(record.envelope.payload)
        if total > (size if number else first):
            return number
    return len(records)


def _draw_merged(
    heads: list[_Head], limit: int, caps: Mapping[Lane, Sequence[Cap]], left: float, first: float
) -> tuple[list[Record], list[Lane]]:
    heapify(heads)
    taken: list[Record] = []
    emptied: list[Lane] = []
    while heads and len(taken) < limit:
        _, _, source, lane = heads[0]
        if caps and any(cap.left <= 0 for cap in caps.get(lane, ())):
            heappop(heads)
            continue
        record = source[0] if isinstance(source, deque) else source[0][2]
        gone = bool(lane.stale) and is_gone(record)
        if not gone:
            size = len(record.envelope.payload)
            left -= size
            if left < 0 if taken else size > first:
                break
            taken.append(record)
            for cap in caps.get(lane, ()):
                cap.left -= 1
        else:
            lane.stale -= 1
        if isinstance(source, deque):
            source.popleft()
        else:
            heappop(source)
        if source:
            following = source[0] if isinstance(source, deque) else source[0][2]
            heapreplace(heads, (following.rank, following.order, source, lane))
        else:
            heappop(heads)
        if (lane.stale or not source) and not lane:
            emptied.append(lane)
    return taken, emptied


def in_order(lanes: Iterable[Lane]) -> Iterator[Record]:
    """The messages of these lanes in the order in which they would be claimed; nothing is taken out."""
    runs: list[Iterable[Entry]] = []
    for lane in lanes:
        runs += [((r.rank, r.order, r) for r in records) for records in lane.fresh.values()]
        runs.append(sorted(lane.returned))
    return (entry[2] for entry in merge(*runs) if not is_gone(entry[2]))
