"""The first message of each lane, for consumers of very many lanes.

Theory. The first `n` messages over all lanes are in the `n` lanes whose first messages come first. To find these lanes
every lane has to be looked at, which a claim must not do each time. So the heads are remembered from one claim to the
next one, in memory. They are right as long as nothing but our own claims has changed what is ready, so they are
forgotten when

* another connection has committed (`PRAGMA data_version`; it may have published or claimed),
* something of ours became ready, or left its place in another way than by a claim,
* a transaction was rolled back.

A claim reads the heads of the lanes that it took from anew. Draining `n` lanes by one process takes time in proportion
to `n` then; where several processes commit, each claim looks at all lanes in which something is ready.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable, Iterable

from .directory import USED

_HEADS = f"""
{USED}
SELECT lane, (SELECT min(rank) FROM ready WHERE ready.lane = used.lane) AS first, (
    SELECT min(seq) FROM ready
    WHERE ready.lane = used.lane AND rank = (SELECT min(rank) FROM ready WHERE ready.lane = used.lane)
) FROM used WHERE lane IS NOT NULL
"""  # noqa: S608  of our own
_HEAD = "SELECT rank, seq FROM ready WHERE lane = ? ORDER BY rank, seq LIMIT 1"


class Heads:
    """What is remembered of one connection to the file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._heads: dict[int, tuple[int, int]] | None = None  # rank and seq, by lane
        self._order: list[tuple[int, int, int]] = []  # a heap of rank, seq and lane, with entries that are out of date
        self._data_version = 0

    def forget(self) -> None:
        """What is ready has changed."""
        self._heads = None

    def first_lanes(self, is_wanted: Callable[[int], bool], limit: int) -> list[int]:
        """Those of the wanted lanes that have the first `limit` heads."""
        heads = self._known()
        looked_at: list[tuple[int, int, int]] = []
        found: list[int] = []
        while self._order and len(found) < limit:
            rank, seq, lane = entry = heapq.heappop(self._order)
            if heads.get(lane) != (rank, seq):
                continue
            looked_at.append(entry)
            if is_wanted(lane):
                found.append(lane)
        for entry in looked_at:
            heapq.heappush(self._order, entry)
        return found

    def took_from(self, lanes: Iterable[int]) -> None:
        """A claim has taken the first messages of these lanes."""
        heads = self._heads
        if heads is None:
            return
        for lane in lanes:
            head = self._execute(_HEAD, (lane,)).fetchone()
            if head is None:
                heads.pop(lane, None)
            elif not isinstance(head[0], int | float):  # nothing can be compared with it: the next claim finds it
                self.forget()
                return
            elif heads.get(lane) != head:
                heads[lane] = head
                heapq.heappush(self._order, (*head, lane))

    def _known(self) -> dict[int, tuple[int, int]]:
        (version,) = self._execute("PRAGMA data_version").fetchone()
        if self._heads is None or version != self._data_version:
            self._data_version = version
            self._heads = {lane: (rank, seq) for lane, rank, seq in self._execute(_HEADS)}
            self._order = [(rank, seq, lane) for lane, (rank, seq) in self._heads.items()]
            heapq.heapify(self._order)
        return self._heads
