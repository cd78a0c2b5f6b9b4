"""The schedules, and their ticks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from heapq import heapify, heappop, heappush
from math import inf

from msgspec.structs import replace

from ...envelope import Envelope
from ...ports import CLOCK_SLACK, DueSchedules, StoredSchedule, TickOutcome
from .store import Store

_FEWEST_TO_COMPACT = 1024


class _Order:
    """Schedules by a moment that each of them has, or has not; the first one first.

    Each change of a schedule adds an entry. One that is not true any more is dropped when its turn comes, or with all
    others of its kind when these are most.
    """

    __slots__ = ("_entries", "_moment_of", "_stored")

    def __init__(
        self, stored: Mapping[str, StoredSchedule], moment_of: Callable[[StoredSchedule], float | None]
    ) -> None:
        self._stored = stored
        self._moment_of = moment_of
        self._entries: list[tuple[float, str]] = []

    def add(self, schedule: StoredSchedule) -> None:
        """Take in a schedule that was stored or changed."""
        moment = self._moment_of(schedule)
        if moment is not None:
            heappush(self._entries, (moment, schedule.schedule.name))
        if len(self._entries) > 2 * len(self._stored) + _FEWEST_TO_COMPACT:
            moments = ((self._moment_of(each), name) for name, each in self._stored.items())
            self._entries = [(moment, name) for moment, name in moments if moment is not None]
            heapify(self._entries)

    def up_to(self, moment: float, limit: int) -> tuple[list[StoredSchedule], float]:
        """The first `limit` whose moment is not later, and the first moment of the others (infinity: there is none)."""
        found: list[tuple[float, str]] = []
        while len(found) < limit and self._first() <= moment:
            found.append(heappop(self._entries))
            while self._entries[:1] == found[-1:]:  # a change that left the moment as it was has added it again
                heappop(self._entries)
        following = self._first()
        for entry in found:
            heappush(self._entries, entry)
        return [self._stored[name] for _, name in found], following

    def _first(self) -> float:
        while self._entries:
            moment, name = self._entries[0]
            schedule = self._stored.get(name)
            if schedule is not None and self._moment_of(schedule) == moment:
                return moment
            heappop(self._entries)
        return inf


def _tick_of(stored: StoredSchedule) -> float | None:
    return None if stored.paused else stored.next_at


def _lead_of(stored: StoredSchedule) -> float | None:
    """Of an interval: the later it was to have ticked last, the smaller this is."""
    every = stored.schedule.every
    return None if stored.paused or every is None else every - stored.next_at


class Schedules:
    """The schedules by name. Ticks publish into the store, in the same step. Times are as they were put."""

    __slots__ = ("_leads", "_store", "_stored", "_ticks")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stored: dict[str, StoredSchedule] = {}
        self._ticks = _Order(self._stored, _tick_of)
        self._leads = _Order(self._stored, _lead_of)

    def replace(self, old: StoredSchedule | None, new: StoredSchedule) -> bool:
        """Store `new` if `old` is what is there; whether it was."""
        if self._stored.get(new.schedule.name) != old:
            return False
        self._put(new)
        return True

    def _put(self, stored: StoredSchedule) -> None:
        self._stored[stored.schedule.name] = stored
        self._ticks.add(stored)
        self._leads.add(stored)

    def find(self, names: Collection[str] | None) -> list[StoredSchedule]:
        """All of them, or those of these names; sorted by name."""
        found = self._stored if names is None else self._stored.keys() & set(names)
        return [self._stored[name] for name in sorted(found)]

    def due(self, limit: int, now: float) -> DueSchedules:
        """What is due, those whose interval is too far away last, and when the next one is."""
        due, next_at = self._ticks.up_to(now, limit)
        ahead, _ = self._leads.up_to(-(now + CLOCK_SLACK), limit - len(due))
        return DueSchedules(due + ahead, next_at, now)

    def remove(self, name: str) -> bool:
        """Forget it. False: there is none of that name."""
        return self._stored.pop(name, None) is not None

    def tick(
        self, name: str, expected_next: float, next_at: float, envelope: Envelope | None, now: float
    ) -> TickOutcome:
        """Move the schedule on and publish, if it is still where it was expected to be."""
        self._store.advance(now)
        found = self._stored.get(name)
        if found is None or found.paused or found.next_at != expected_next:
            return "lost"
        former = None if found.last_id is None else self._store.find(found.last_id)
        overlaps = found.schedule.overlap == "skip" and former is not None
        if envelope is None or overlaps or self._store.send([envelope], now):
            self._put(replace(found, next_at=next_at, skipped=found.skipped + 1))
            return "skipped"
        self._put(replace(found, next_at=next_at, fired=found.fired + 1, last_id=envelope.id))
        return "fired"
