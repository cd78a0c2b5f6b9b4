"""One stored message and where it is, and the consumers that lease it.

A `Record` is small, since a million of them may wait. It has no envelope: that is made anew when it is asked for, of
the id, the payload, and the `Batch`, which messages share that were published together. What most messages never need
is in the `extras`, made when the first of it is needed. What the rules for stored messages read is made of a record by
`as_stored`, and written back by `note`, which alone changes what the rules decide.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec.structs import astuple, replace

from ...delivery import Failure, Progress, Reason, is_suspect
from ...delivery.shelf import Stored, offset_of
from ...envelope import TOPIC, Envelope, Options
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


class Batch(msgspec.Struct, frozen=True, gc=False):
    """What records share whose messages were published together: their envelopes without ids and payloads, and times.

    `first`: the order of the record with number 0.
    """

    queue: str
    content_type: str | None
    headers: dict[str, str]
    reply_to: str | None
    options: Options
    parameters: dict[str, Any] | None
    enqueued_at: float
    rank: float
    first: int


LARGEST_NUMBER = 256
"""Of a record in its batch. CPython has one object for each integer up to this; a larger one takes 32 bytes
of its own.
"""


class Record(msgspec.Struct, gc=False):
    """One live message."""

    id: str
    payload: bytes
    batch: Batch
    number: int
    place: Place = None
    extras: Extras | None = None

    @property
    def rank(self) -> float:
        """Ready messages are handed out in the order of their ranks."""
        return self.batch.rank

    @property
    def order(self) -> int:
        """Breaks ties between equal ranks; no two records have the same."""
        return self.batch.first + self.number

    @property
    def enqueued_at(self) -> float:
        """When it was published, or revived."""
        return self.batch.enqueued_at

    @property
    def queue(self) -> str:
        """The queue of the message."""
        return self.batch.queue

    @property
    def topic(self) -> str | None:
        """The topic of the message."""
        return self.batch.headers.get(TOPIC)

    @property
    def options(self) -> Options:
        """The options of the message."""
        return self.batch.options

    @property
    def envelope(self) -> Envelope:
        """The message, equal to what was published."""
        queue, content_type, headers, reply_to, options, parameters, *_ = astuple(self.batch)
        return Envelope(self.id, queue, self.payload, content_type, headers, reply_to, options, parameters)


def record_of(envelope: Envelope, now: float, rank: float, order: int) -> Record:
    """The record of a message that comes alone."""
    batch = Batch(
        envelope.queue,
        envelope.content_type,
        envelope.headers,
        envelope.reply_to,
        envelope.options,
        envelope.parameters,
        now,
        rank,
        order,
    )
    return Record(envelope.id, envelope.payload, batch, 0)


def as_stored(record: Record) -> Stored[float]:
    """The record as the rules see it."""
    offset, extras = offset_of(record.options, float), record.extras
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
    if stored.rank != record.rank:
        record.batch = replace(record.batch, rank=stored.rank)
    if record.extras is None:
        never_left = stored.attempt == 1 and not stored.lost and stored.unrouted_at is None
        if never_left and stored.expires_at is None and not stored.is_cancelled:
            return
        record.extras = Extras(expires_at=stored.expires_at)
    extras = record.extras
    extras.attempt, extras.lost, extras.first_unrouted_at = stored.attempt, stored.lost, stored.unrouted_at
    extras.cancelling = stored.is_cancelled
    extras.has_started = extras.has_started or stored.expires_at is None


def give_order(record: Record, order: int) -> None:
    """Give the record another order."""
    record.batch, record.number = replace(record.batch, first=order), 0


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
