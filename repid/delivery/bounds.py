"""The rules for a bounded queue: what counts, what has room, what is dropped. Pure; drivers carry them out.

* What counts is what waits: ready and scheduled messages, and the bytes of their payloads. A leased message does not
  count: a worker holds a bounded number of them, and a message under way must not keep its own successor out.
* Only what is new asks for room: a publish, and an outbox, which goes in whole or not at all. What comes back (a retry,
  a release, a lost lease), what an operator revives and what a schedule sends is never refused, so that a queue may
  hold more than its bounds; then it has no room until it is below them.
* Messages of one call go in by their order: when one has no room, none behind it has, so that they keep their order.
* A message that would not fit into the empty queue is refused at once, whatever `when_full` says.
* "drop_oldest" lets new messages in and drops what is over the bounds then: ready messages first, by rank, as they
  would be handed out; then scheduled ones, those due first. What is dropped ends as `dropped` (`shelf`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import msgspec

from ..errors import QueueFull

WhenFull: TypeAlias = Literal["wait", "raise", "drop_oldest"]
"""What becomes of a message for a full queue. wait: its sender waits until there is room. raise: `QueueFull` is raised.
drop_oldest: the oldest messages that wait are dropped."""

WHEN_FULL: tuple[WhenFull, ...] = get_args(WhenFull)


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much may wait in a queue: `max_size` messages with `max_bytes` of payload together. None: any number."""

    max_size: int | None = None
    max_bytes: int | None = None
    when_full: WhenFull = "wait"

    @property
    def are_none(self) -> bool:
        """Whether they limit nothing."""
        return self.max_size is None and self.max_bytes is None

    def __str__(self) -> str:
        named = (("max_size", self.max_size), ("max_bytes", self.max_bytes))
        return ", ".join(f"{name}={limit}" for name, limit in named if limit is not None) or "no bounds"


UNBOUNDED = Bounds()
"""To be stored in place of others, it removes them."""


def has_room(bounds: Bounds, size: int, volume: int, more: int, more_volume: int) -> bool:
    """Whether `more` messages of `more_volume` bytes fit in where `size` messages of `volume` bytes wait."""
    return (bounds.max_size is None or size + more <= bounds.max_size) and (
        bounds.max_bytes is None or volume + more_volume <= bounds.max_bytes
    )


def ever_fits(bounds: Bounds, more: int, more_volume: int) -> bool:
    """Whether they fit into the empty queue. What drops others asks for the bytes of a message only."""
    if bounds.when_full == "drop_oldest":
        more = 0
    return has_room(bounds, 0, 0, more, more_volume)


def is_over(bounds: Bounds, size: int, volume: int) -> bool:
    """Whether more waits than should."""
    return not has_room(bounds, size, volume, 0, 0)


def refusal(queue: str, bounds: Bounds, more: int, more_volume: int, readers: int | None = None) -> QueueFull:
    """Why messages that have no room are refused. `readers`: how many consumers of the queue are open, if that is
    known.
    """
    can_fit, text = _explained(queue, bounds, more, more_volume)
    return QueueFull(queue, text, when_full=bounds.when_full, can_fit=can_fit, readers=readers)


@lru_cache(maxsize=64)
def _explained(queue: str, bounds: Bounds, more: int, more_volume: int) -> tuple[bool, str]:
    """Whether they would fit into the empty queue, and why they are refused.

    Cached: thousands of messages of one size may be refused at once, and hardly any of the texts is read.
    """
    what = "a message" if more == 1 else f"{more} messages in one step"
    if ever_fits(bounds, more, more_volume):
        advice = "wait until workers have taken others" if bounds.when_full == "wait" else "send again later"
        return True, (
            f"queue {queue!r} is full ({bounds}, when_full={bounds.when_full!r}), and {what} of {more_volume} bytes "
            f"had no room: {advice}, or declare the queue with other bounds"
        )
    return False, (
        f"queue {queue!r} ({bounds}) can never hold {what} of {more_volume} bytes: send less at once, or declare "
        "the queue with other bounds"
    )
