"""Records by the time at which something is to be done about them."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, nsmallest

from .lanes import Entry
from .record import Record, is_gone

_FEWEST_TO_COMPACT = 1024


class Timetable:
    """Records with a moment each, the next first. Those that have gone are skipped, and swept out when they are most.

    `stale` counts them: whoever lets a record go that is in here calls `lose`.
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
        taken = [entry[2] for entry in self._entries if entry[2].envelope.queue == queue and not is_gone(entry[2])]
        self._keep([entry for entry in self._entries if entry[2].envelope.queue != queue and not is_gone(entry[2])])
        self._stale = 0
        return taken

    def first_of(self, queue: str, limit: int) -> list[Record]:
        """The next records of one queue; nothing is taken out."""
        mine = (entry for entry in self._entries if entry[2].envelope.queue == queue and not is_gone(entry[2]))
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
