"""What is shown of stored messages, also of those that cannot be read, and the keys by which they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...delivery import Failure
from ...envelope import Envelope
from ...ports import BrowsedMessage, Category, Sight, Snapshot
from ..shared.keys import to_number
from .layout import (
    MICRO,
    UNREADABLE,
    Record,
    pack_failure,
    to_failure,
    to_lease,
    to_letter,
    to_progress,
    to_record,
    to_result,
)

_PLACES: Mapping[bytes, Any] = {place.encode(): place for place in ("ready", "scheduled", "leased", "dead", "gone")}


def unreadable(error: Exception) -> Failure:
    """What to tell of a message that could not be read."""
    return Failure("UnreadableRecord", f"what is stored of this message cannot be read: {error}")


def show(found: Sequence[Any], queue: str, now: int) -> BrowsedMessage:
    """A message as scripts tell it: see `part_show.lua`. `now`: when the server looked."""
    if found[0] == b"dead":
        return _show_dead(found[1], found[2], queue, now)
    category, place, key, due, record, failure, lease = found
    since, worker = to_lease(lease) if lease else (None, None)
    stored, wrong = _read(key, record, queue)
    return BrowsedMessage(
        envelope=stored.envelope,
        category=category.decode(),
        key=place.hex(),
        attempt=stored.attempt,
        lost=stored.lost,
        seen_at=now / MICRO,
        enqueued_at=stored.enqueued_at / MICRO if wrong is None else None,
        due_at=due / MICRO if due >= 0 else None,
        leased_at=None if since is None else since / MICRO,
        leased_by=worker,
        failure=to_failure(failure) or wrong,
    )


def _show_dead(key: bytes, stored: bytes, queue: str, now: int) -> BrowsedMessage:
    letter = to_letter(stored)
    record, wrong = _read(letter.id, letter.record, queue)
    return BrowsedMessage(
        envelope=record.envelope,
        category="dead",
        key=str(int.from_bytes(key, "big")),
        attempt=record.attempt,
        lost=record.lost,
        seen_at=now / MICRO,
        enqueued_at=record.enqueued_at / MICRO if wrong is None else None,
        died_at=int.from_bytes(key, "big") / MICRO,
        reason=letter.reason,  # type: ignore[arg-type]  # one of them
        failure=to_failure(letter.failure) or wrong,
    )


def _read(key: bytes, record: bytes, queue: str) -> tuple[Record, Failure | None]:
    try:
        return to_record(key, record), None
    except UNREADABLE as error:
        id_ = key[1:].decode("utf-8", "backslashreplace") if key[:1] == b"t" else key[1:].hex()
        return Record(Envelope(id_, queue, record), b"", 1, 0, 0, None, None), unreadable(error)


def to_sight(
    result_id: str, state: bytes, attempt: int, progress: bytes, cancelling: int, result: bytes, holds: int
) -> Sight:
    """How a message stands, as its script tells it."""
    snapshot = Snapshot(
        state=_PLACES[state],
        attempt=attempt,
        progress=to_progress(progress),
        cancelling=bool(cancelling),
        result=to_result(result_id, result),
    )
    return Sight(snapshot, holds / MICRO)


def to_place(key: str, category: Category) -> bytes | None:
    """Where the message with this key stood; None for a text that is no key."""
    if category == "dead":
        return to_dead_key(key)
    try:
        place = bytes.fromhex(key)
    except ValueError:
        return None
    return place if len(place) >= 14 else None


def end_of(message: BrowsedMessage) -> tuple[int, int, int, int, bytes, bytes]:
    """What is told of a dead letter besides its envelope. A moment that is not known is when it was seen."""
    moments = (message.seen_at if moment is None else moment for moment in (message.enqueued_at, message.died_at))
    enqueued, died = (round(moment * MICRO) for moment in moments)
    return (
        message.attempt,
        message.lost,
        enqueued,
        died,
        (message.reason or "failed").encode(),
        pack_failure(message.failure),
    )


def to_dead_key(key: str) -> bytes:
    """The key of a dead message as the server has it; that of none for a text that is no key of ours."""
    return max(to_number(key), 0).to_bytes(8, "big")
