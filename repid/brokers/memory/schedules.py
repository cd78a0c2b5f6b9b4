"""The schedules, and their ticks."""

from __future__ import annotations

import math
from collections.abc import Collection

from msgspec.structs import replace

from ...envelope import Envelope
from ...ports import CLOCK_SLACK, DueSchedules, StoredSchedule, TickOutcome
from .store import Store


class Schedules:
    """The schedules by name. Ticks publish into the store, in the same step. Times are as they were put."""

    __slots__ = ("_store", "_stored")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stored: dict[str, StoredSchedule] = {}

    def replace(self, old: StoredSchedule | None, new: StoredSchedule) -> bool:
        """Store `new` if `old` is what is there; whether it was."""
        if self._stored.get(new.schedule.name) != old:
            return False
        self._stored[new.schedule.name] = new
        return True

    def find(self, names: Collection[str] | None) -> list[StoredSchedule]:
        """All of them, or those of these names; sorted by name."""
        found = self._stored if names is None else self._stored.keys() & set(names)
        return [self._stored[name] for name in sorted(found)]

    def due(self, limit: int, now: float) -> DueSchedules:
        """What is due, those whose interval is too far away last, and when the next one is."""
        due: list[StoredSchedule] = []
        ahead: list[StoredSchedule] = []
        next_at = math.inf
        for stored in self._stored.values():
            every = stored.schedule.every
            if stored.paused:
                continue
            if stored.next_at <= now:
                due.append(stored)
            elif every is not None and stored.next_at - every > now + CLOCK_SLACK:
                ahead.append(stored)
            else:
                next_at = min(next_at, stored.next_at)
        due.sort(key=lambda stored: stored.next_at)
        return DueSchedules((due + ahead)[:limit], next_at, now)

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
        overlaps = found.schedule.overlap == "skip" and found.last_id is not None and self._is_live(found.last_id)
        if envelope is None or overlaps or self._store.send([envelope], now):
            self._stored[name] = replace(found, next_at=next_at, skipped=found.skipped + 1)
            return "skipped"
        self._stored[name] = replace(found, next_at=next_at, fired=found.fired + 1, last_id=envelope.id)
        return "fired"

    def _is_live(self, id_: str) -> bool:
        return self._store.find(id_) is not None
