"""What may have changed since news was last taken: notes that come meanwhile become one `News`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...delivery import Settlement
from ...ports import News


def ids_in(settlements: Iterable[Settlement]) -> Iterator[str]:
    """The ids of the messages and results that these settlements change."""
    for settlement in settlements:
        yield settlement.delivery.envelope.id
        if settlement.result is not None:
            yield settlement.result.id
        for envelope in settlement.outbox:
            yield envelope.id


class Notes:
    """Merged notes. False: there are none."""

    __slots__ = ("_events", "_ids", "_ready", "_schedules")

    def __init__(self) -> None:
        self._ready = self._events = self._schedules = False
        self._ids: set[str] | None = set()  # None: any

    def __bool__(self) -> bool:
        return self._ready or self._events or self._schedules or self._ids is None or bool(self._ids)

    def add(
        self,
        *,
        ready: bool = False,
        events: bool = False,
        ids: Iterable[str] | None = (),
        schedules: bool = False,
    ) -> None:
        """Something may have changed; see `News`."""
        self._ready |= ready
        self._events |= events
        self._schedules |= schedules
        if ids is None:
            self._ids = None
        elif self._ids is not None:
            self._ids.update(ids)

    def take(self) -> News:
        """All notes; there are none afterwards. They say nothing of room: a task that waits for it is told of claims,
        and asks.
        """
        news = News(self._ready, self._events, self._ids, room=False, schedules=self._schedules)
        self._ready = self._events = self._schedules = False
        self._ids = set()
        return news
