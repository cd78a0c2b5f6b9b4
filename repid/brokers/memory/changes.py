"""What has changed since the front door last asked for news."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ...ports import News


class Changes:
    """Gathers news for the front door: changes of watched ids, and lease events.

    `watched` is empty while nothing is watched; then the store does not call `tell` at all. An id has 0 there if only
    its end matters: `tell_of_steps` leaves that out. `ring` is what to call when there is something new; it is set
    while the door waits.
    """

    __slots__ = ("has_events", "has_room", "ids", "ring", "watched")

    def __init__(self) -> None:
        self.watched: Mapping[str, int] = {}
        self.ids: set[str] = set()
        self.has_events = False
        self.has_room = False
        self.ring: Callable[[], None] | None = None

    def tell(self, ids: Iterable[str]) -> None:
        """The messages with these ids have come to their ends, or results were stored or removed."""
        told = self.watched.keys() & ids
        if told:
            self.ids |= told
            self._wake()

    def tell_of_steps(self, ids: Iterable[str]) -> None:
        """The messages with these ids have changed, and live on."""
        watchers = self.watched.get
        told = [id_ for id_ in ids if watchers(id_)]
        if told:
            self.ids.update(told)
            self._wake()

    def tell_of_events(self) -> None:
        """There is a lease event for some consumer."""
        self.has_events = True
        self._wake()

    def tell_of_room(self) -> None:
        """A queue that was full has room."""
        self.has_room = True
        self._wake()

    def take(self) -> News | None:
        """The news since the last call; None if there is none."""
        if not (self.ids or self.has_events or self.has_room):
            return None
        news = News(ready=False, events=self.has_events, ids=self.ids, room=self.has_room, schedules=False)
        self.ids, self.has_events, self.has_room = set(), False, False
        return news

    def _wake(self) -> None:
        if self.ring is not None:
            self.ring()
            self.ring = None
