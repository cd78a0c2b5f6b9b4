"""What has changed since the front door last asked for news."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ...ports import News


class Changes:
    """Gathers news for the front door: changes of watched ids, and lease events.

    `watched` is empty while nobody watches anything; then the store does not call `tell` at all. `ring` is what to call
    when there is something new; it is set while the door waits.
    """

    __slots__ = ("has_events", "ids", "ring", "watched")

    def __init__(self) -> None:
        self.watched: Collection[str] = ()
        self.ids: set[str] = set()
        self.has_events = False
        self.ring: Callable[[], None] | None = None

    def tell(self, id_: str) -> None:
        """The message or result with this id has changed."""
        if id_ in self.watched:
            self.ids.add(id_)
            self._wake()

    def tell_of_events(self) -> None:
        """There is a lease event for some consumer."""
        self.has_events = True
        self._wake()

    def take(self) -> News | None:
        """The news since the last call; None if there is none."""
        if not self.ids and not self.has_events:
            return None
        news = News(ready=False, events=self.has_events, ids=self.ids)
        self.ids, self.has_events = set(), False
        return news

    def _wake(self) -> None:
        if self.ring is not None:
            self.ring()
            self.ring = None
