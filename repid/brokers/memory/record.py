"""One stored message and where it is."""

from __future__ import annotations

import enum
from typing import Final, Literal, TypeAlias

import msgspec

from ...delivery import Failure, Progress, Reason, is_suspect
from ...delivery.shelf import Stored, offset_of
from ...envelope import Envelope
from .taker import Taker


class Nowhere(enum.Enum):
    """The place of what is not live any more, whatever index may still hold it."""

    GONE = "gone"


GONE: Final = Nowhere.GONE


class Lease(msgspec.Struct, frozen=True, gc=False):
    """What the records that were leased together share. Each has one of these tokens."""

    taker: Taker
    until: float
    tokens: range


Place: TypeAlias = Lease | float | Literal[Nowhere.GONE] | None
"""Where a message is: leased; scheduled, due at this time; gone; or (None) ready."""


class Rare(msgspec.Struct, gc=False):
    """What most messages never need: kept beside the record, so that a million of them stay small.

    Times are the broker's. `progress` and `cancelling` are those of its present or last run. `suspected_at` and
    `leased_at`: since when it is a suspect, and when it was leased last as one.
    `has_started`: a run of it has begun, so `expires_at` means nothing any more.
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
    rank: float
    order: int
    place: Place = None
    rare: Rare | None = None


def as_stored(record: Record) -> Stored[float]:
    """The record as the rules see it."""
    offset, rare = offset_of(record.envelope.options, float), record.rare
    if rare is None:
        return Stored(rank=record.rank, offset=offset)
    return Stored(
        rank=record.rank,
        offset=offset,
        attempt=rare.attempt,
        lost=rare.lost,
        expires_at=expiry_of(rare),
        unrouted_at=rare.first_unrouted_at,
        is_cancelled=rare.cancelling,
    )


def note(record: Record, stored: Stored[float]) -> None:
    """Make the record what the rules say it is from now on."""
    record.rank = stored.rank
    if record.rare is None:
        if stored == Stored(rank=stored.rank, offset=stored.offset):
            return
        record.rare = Rare(expires_at=stored.expires_at)
    rare = record.rare
    rare.attempt, rare.lost, rare.first_unrouted_at = stored.attempt, stored.lost, stored.unrouted_at
    rare.cancelling = stored.is_cancelled
    rare.has_started = rare.has_started or stored.expires_at is None


def expiry_of(rare: Rare) -> float | None:
    """When its ttl is over; None if it has none, or was started."""
    return None if rare.has_started else rare.expires_at


class Dead(msgspec.Struct, frozen=True, gc=False):
    """One dead message. It is no record: if it is revived it becomes a new one."""

    envelope: Envelope
    attempt: int
    lost: int
    reason: Reason
    failure: Failure | None
    progress: Progress | None


def is_suspected(record: Record) -> bool:
    """Whether the message must be leased alone."""
    return record.rare is not None and is_suspect(record.rare.lost)


def is_gone(record: Record) -> bool:
    """Whether the message is no longer where the index says."""
    return record.place is GONE
