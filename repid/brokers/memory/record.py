"""One stored message and where it is."""

from __future__ import annotations

import enum

import msgspec

from ...delivery import Failure, Reason
from ...envelope import Envelope


class Place(enum.Enum):
    """Where a message is. `GONE`: not live any more, whatever index may still hold it."""

    READY = "ready"
    SCHEDULED = "scheduled"
    LEASED = "leased"
    GONE = "gone"


class Rare(msgspec.Struct, gc=False):
    """What most messages never need: kept beside the record, so that a million of them stay small.

    Only a message with a ttl can vanish while an index still holds it, and every such message has a `Rare`: that
    is why `place` is kept here. Times are the broker's.
    """

    place: Place
    attempt: int = 1
    lost: int = 0
    expires_at: float | None = None
    first_unrouted_at: float | None = None
    failure: Failure | None = None


class Record(msgspec.Struct, gc=False):
    """One live message. `order` breaks ties between equal ranks; no two records have the same.

    `until` is the end of its lease while it is leased, and when it is due while it is scheduled.
    """

    envelope: Envelope
    rank: float
    order: int
    until: float = 0.0
    rare: Rare | None = None


class Dead(msgspec.Struct, frozen=True, gc=False):
    """One dead message. It is no record: if it is revived it becomes a new one."""

    envelope: Envelope
    attempt: int
    lost: int
    reason: Reason
    failure: Failure | None


def is_gone(record: Record) -> bool:
    """Whether the message is no longer where the index says."""
    return record.rare is not None and record.rare.place is Place.GONE
