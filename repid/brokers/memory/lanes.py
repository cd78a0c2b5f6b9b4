"""Ready messages of one (queue, topic) in the order of their ranks, claims over several lanes, and records by time.

What comes in fresh has the highest rank of its priority so far, because the broker's clock never runs backwards: a
deque for each priority keeps those in order for eight bytes each. What comes back out of order goes to a heap. So the
first of a lane is the first of at most four orders, and a claim over several lanes merges their heads. Where there are
many lanes, a claim does not look at all of them: `Heads` knows which of them begin with the first messages.

A record that has left (expired, cancelled, flushed) stays in a deque or heap until its turn comes, or until those that
have left are most: taking one out of the middle would cost a search.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush, merge, nsmallest
from itertools import chain, count
from math import inf
from typing import TypeAlias

from ...envelope import PrioritiesT
from .record import Record, is_gone

Entry: TypeAlias = tuple[float, int, Record]
"""Rank, order (so that records are never compared), record."""

_FEWEST_TO_COMPACT = 1024
"""Entries of messages that have gone, from which on they are swept out when they are most."""


class Cap:
    """How many more may be taken of the lanes that share it."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


Head: TypeAlias = tuple[float, int, "deque[Record] | list[Entry]", "Lane"]
"""The first message of one order of a lane: its rank and order, where it is, and the lane."""


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

    def _trim(self) -> None:
        for records in self.fresh.values():
            while records and is_gone(records[0]):
                records.popleft()
                self.stale -= 1
        while self.returned and is_gone(self.returned[0][2]):
            heappop(self.returned)
            self.stale -= 1

    def records(self) -> Iterator[Record]:
        """Every message of the lane, in no particular order."""
        entries = chain(chain.from_iterable(self.fresh.values()), (entry[2] for entry in self.returned))
        return (record for record in entries if not is_gone(record)) if self.stale else entries

    def add_heads(self, heads: list[Head]) -> None:
        """Add the first entry of each order there is in the lane, which is the first live one."""
        if self.stale:
            self._trim()
        for records in self.fresh.values():
            if records:
                first = records[0]
                heads.append((first.batch.rank, first.order, records, self))
        if self.returned:
            heads.append((self.returned[0][0], self.returned[0][1], self.returned, self))


class Heads:
    """Finds the first messages of many lanes without a look at each.

    Every head of a live lane is in `_entries`, a heap, unless the lane is in `changed`. Code that puts something into a
    lane, or takes something out, enters the lane there; then the next search takes its heads in. An entry that is no
    head any more, or is there twice, is dropped when its turn comes, or when such entries are most.
    """

    __slots__ = ("_entries", "_lanes", "_serials", "changed")

    def __init__(self, lanes: Mapping[str | None, Lane]) -> None:
        self._lanes = lanes
        self._entries: list[tuple[float, int, int, Lane]] = []
        self._serials = count()  # of the entries, so that lanes are never compared
        self.changed: dict[Lane, None] = dict.fromkeys(lanes.values())

    def first(self, limit: int, is_wanted: Callable[[str | None], bool]) -> list[Head]:
        """The first heads, at most `limit`, of lanes whose topic is wanted."""
        self._take_in()
        heads: list[Head] = []
        left_out: list[tuple[float, int, int, Lane]] = []
        found: set[int] = set()
        while self._entries and len(heads) < limit:
            entry = heappop(self._entries)
            _, order, _, lane = entry
            head = self._present(entry)
            if head is None or order in found:
                continue
            found.add(order)
            if is_wanted(lane.topic):
                heads.append(head)
                self.changed[lane] = None
            else:
                left_out.append(entry)
        for entry in left_out:
            heappush(self._entries, entry)
        return heads

    def _present(self, entry: tuple[float, int, int, Lane]) -> Head | None:
        _, order, _, lane = entry
        if self._lanes.get(lane.topic) is not lane:
            return None
        heads: list[Head] = []
        lane.add_heads(heads)
        return next((head for head in heads if head[1] == order), None)

    def _take_in(self) -> None:
        if len(self._entries) > _ENTRIES_PER_LANE * len(self._lanes):
            self._entries.clear()
            self.changed = dict.fromkeys(self._lanes.values())
        heads: list[Head] = []
        for lane in self.changed:
            lane.add_heads(heads)
        self.changed.clear()
        for rank, order, _, lane in heads:
            heappush(self._entries, (rank, order, next(self._serials), lane))


_ENTRIES_PER_LANE = 8
"""More entries than this many for each lane are mostly old ones."""


def heads_of(lanes: Iterable[Lane]) -> list[Head]:
    """The heads of all these lanes."""
    heads: list[Head] = []
    for lane in lanes:
        lane.add_heads(heads)
    return heads


def draw(
    heads: list[Head], limit: int, caps: Mapping[Lane, Sequence[Cap]], size: float = inf, first: float = inf
) -> tuple[list[Record], list[Lane]]:
    """Take out messages by rank, and say which lanes that emptied. `heads` is used up.

    Up to `limit`, none that one of the caps of its lane forbids, and at most `size` bytes of payload, or one message of
    at most `first`.
    """
    if len(heads) != 1 or heads[0][3].stale:
        return _draw_merged(heads, limit, caps, size, first)
    _, _, source, lane = heads[0]
    shared = caps.get(lane, ())
    for cap in shared:
        limit = max(0, min(limit, cap.left))
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
    for cap in shared:
        cap.left -= fitting
    return taken[:fitting], [] if source or lane else [lane]


def _how_many_fit(records: Sequence[Record], size: float, first: float) -> int:
    """How many of the first messages have together at most this many bytes of payload."""
    if sum([len(record.payload) for record in records]) <= min(size, first):
        return len(records)
    total = 0
    for number, record in enumerate(records):
        total += len(record.payload)
        if total > (size if number else first):
            return number
    return len(records)


def _draw_merged(
    heads: list[Head], limit: int, caps: Mapping[Lane, Sequence[Cap]], left: float, first: float
) -> tuple[list[Record], list[Lane]]:
    heapify(heads)
    taken: list[Record] = []
    emptied: list[Lane] = []
    while heads and len(taken) < limit:
        _, _, source, lane = heappop(heads)
        shared, had = caps.get(lane, ()), len(taken)
        most = min([limit, *(had + cap.left for cap in shared)])
        rank, order = heads[0][:2] if heads else (inf, 0)
        while source and len(taken) < most:
            record = source[0] if isinstance(source, deque) else source[0][2]
            own = record.batch.rank
            if own > rank or (own == rank and record.order > order):  # another head is before this one
                heappush(heads, (own, record.order, source, lane))
                break
            if lane.stale and is_gone(record):
                lane.stale -= 1
            else:
                size = len(record.payload)
                left -= size
                if left < 0 if taken else size > first:
                    return taken, emptied
                taken.append(record)
            if isinstance(source, deque):
                source.popleft()
            else:
                heappop(source)
        for cap in shared:
            cap.left -= len(taken) - had
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


class Timetable:
    """Records with a moment each, the next first. Those that have gone are skipped, and swept out when they are most.

    `stale` counts them: code that removes a record that is in here calls `lose`.
    """

    __slots__ = ("_entries", "_stale")

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._stale = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, moment: float, record: Record) -> None:
        """Hand the record over again at this moment."""
        heappush(self._entries, (moment, record.order, record))

    def lose(self) -> None:
        """One of the records has gone."""
        self._stale += 1
        if self._stale >= _FEWEST_TO_COMPACT and 2 * self._stale > len(self._entries):
            self._keep([entry for entry in self._entries if not is_gone(entry[2])])
            self._stale = 0

    def take_due(self, now: float) -> Iterator[Record]:
        """Take out the records whose moment has come, one by one."""
        while self._entries and self._entries[0][0] <= now:
            record = heappop(self._entries)[2]
            if is_gone(record):
                self._stale -= 1
            else:
                yield record

    def take_queue(self, queue: str) -> list[Record]:
        """Take out all records of one queue."""
        taken = [entry[2] for entry in self._entries if entry[2].queue == queue and not is_gone(entry[2])]
        self._keep([entry for entry in self._entries if entry[2].queue != queue and not is_gone(entry[2])])
        self._stale = 0
        return taken

    def first_of(self, queue: str, limit: int) -> list[Record]:
        """The next records of one queue; nothing is taken out."""
        mine = (entry for entry in self._entries if entry[2].queue == queue and not is_gone(entry[2]))
        return [entry[2] for entry in nsmallest(limit, mine)]

    def next_moment(self) -> float:
        """When the next record is to be handed over; inf if there is none."""
        while self._entries and is_gone(self._entries[0][2]):
            heappop(self._entries)
            self._stale -= 1
        return self._entries[0][0] if self._entries else float("inf")

    def _keep(self, entries: list[Entry]) -> None:
        heapify(entries)
        self._entries = entries
