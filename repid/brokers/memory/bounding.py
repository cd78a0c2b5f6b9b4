"""What waits in a bounded queue. The rules are `repid.delivery.bounds`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...delivery import Bounds, ever_fits, has_room, is_over
from .record import Record


class Bounded:
    """The bounds of a queue, and what counts: how many messages wait, and the bytes of their payloads.

    It is the store that keeps both true, with each message that comes to wait or waits no more.
    """

    __slots__ = ("bounds", "drops_oldest", "size", "volume")

    def __init__(self, bounds: Bounds, waiting: Iterable[Record]) -> None:
        self.bounds = bounds
        self.drops_oldest = bounds.when_full == "drop_oldest"
        self.size = self.volume = 0
        self.note_all([record.payload for record in waiting])

    def note(self, payload: bytes, step: int = 1) -> None:
        """A message with this payload waits from now on (step 1) or waits no more (step -1)."""
        self.size += step
        self.volume += step * len(payload)

    def note_all(self, payloads: Sequence[bytes], step: int = 1) -> None:
        """As `note`, for messages with these payloads."""
        self.size += step * len(payloads)
        self.volume += step * sum(map(len, payloads))

    def take(self, payload: bytes, *, forced: bool) -> bool:
        """Let a message with this payload in, if there is room for it or it is forced in. Not for what drops others."""
        more = len(payload)
        if not forced and not has_room(self.bounds, self.size, self.volume, 1, more):
            return False
        self.size += 1
        self.volume += more
        return True

    @property
    def is_over(self) -> bool:
        """Whether more waits than should."""
        return is_over(self.bounds, self.size, self.volume)

    def admits(self, more: int, volume: int) -> bool:
        """Whether `more` new messages of `volume` bytes together may come in."""
        if self.drops_oldest:
            return ever_fits(self.bounds, more, volume)
        return has_room(self.bounds, self.size, self.volume, more, volume)
