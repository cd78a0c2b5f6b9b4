"""One stored message and where it is, and the consumers that lease it.

A `Record` is small, since a million of them may wait: what most messages never need is in its `extras`, made when the
first of it is needed. What the rules for stored messages read is made of a record by `as_stored`, and written back by
`note`, which alone changes what the rules decide. Records and leases refer to each other's objects, never to copies.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from ...delivery import Failure, Progress, Reason, is_suspect
from ...delivery.shelf import Stored, offset_of
from ...envelope import Envelope
from ...ports import Topics


class Subscription:
    """What one open consumer takes, and which of its runs are to be cancelled. Compared by identity.

    `requests`: the tokens of its leases whose runs are to be cancelled.
    """

    __slots__ = ("__weakref__", "queues", "requests")

    def __init__(self, queues: Mapping[str, Topics]) -> None:
        self.queues = {name: None if topics is None else frozenset(topics) for name, topics in queues.items()}
        self.requests: dict[int, None] = {}


class Nowhere(enum.Enum):
    """The place of a record that has left, though an index may still hold it."""

    GONE = "gone"


GONE: Final = Nowhere.GONE


class Lease(msgspec.Struct, frozen=True, gc=False):
    """What the records that were leased together share. Each of them has one of the tokens."""

    subscription: Subscription
    since: float
    until: float
    tokens: range


Place: TypeAlias = Lease | float | Literal[Nowhere.GONE] | None
"""Where a message is: leased; scheduled, due at this time; gone; or (None) ready."""


class Extras(msgspec.Struct, gc=False):
    """What most messages never need.

    Times are the broker's. `progress` and `cancelling` are those of the present or last run. `suspected_at` and
    `leased_at`: since when the message is a suspect, and when it was last leased as one. `has_started`: a run of it has
    begun, so `expires_at` means nothing any more, but the record stays in the index of what expires until then.
    """

    attempt: int = 1
    lost: int = 0
    suspected_at: float = 0.0
    leased_at: float = 0.0
    expires_at: float | None = None
    has_started: bool = False
    first_unrouted_at: float | None = None
    failure: Failure | None = None
    progress: Progress | None = None
    cancelling: bool = False


class Record(msgspec.Struct, gc=False):
    """One live message. `order` breaks ties between equal ranks; no two records have the same."""

    envelope: Envelope
    enqueued_at: float
    rank: float
    order: int
    place: Place = None
    extras: Extras | None = None


def as_stored(record: Record) -> Stored[float]:
    """The record as the rules see it."""
    offset, extras = offset_of(record.envelope.options, float), record.extras
    if extras is None:
        return Stored(rank=record.rank, offset=offset)
    return Stored(
        rank=record.rank,
        offset=offset,
        attempt=extras.attempt,
        lost=extras.lost,
        expires_at=expiry_of(extras),
        unrouted_at=extras.first_unrouted_at,
        is_cancelled=extras.cancelling,
    )


def note(record: Record, stored: Stored[float]) -> None:
    """Change the record to what the rules say."""
    record.rank = stored.rank
    if record.extras is None:
        never_left = stored.attempt == 1 and not stored.lost and stored.unrouted_at is None
        if never_left and stored.expires_at is None and not stored.is_cancelled:
            return
        record.extras = Extras(expires_at=stored.expires_at)
    extras = record.extras
    extras.attempt, extras.lost, extras.first_unrouted_at = stored.attempt, stored.lost, stored.unrouted_at
    extras.cancelling = stored.is_cancelled
    extras.has_started = extras.has_started or stored.expires_at is None


def expiry_of(extras: Extras) -> float | None:
    """When its ttl is over; None if it has none, or was started."""
    return None if extras.has_started else extras.expires_at


class Dead(msgspec.Struct, frozen=True, gc=False):
    """One dead message. It is no record: if it is revived it becomes a new one."""

    envelope: Envelope
    enqueued_at: float
    died_at: float
    attempt: int
    lost: int
    reason: Reason
    failure: Failure | None
    progress: Progress | None


def is_suspected(record: Record) -> bool:
    """Whether the message must be leased alone."""
    return record.extras is not None and is_suspect(record.extras.lost)


def is_gone(record: Record) -> bool:
    """Whether the message is no longer where the index says."""
    return record.place is GONE
