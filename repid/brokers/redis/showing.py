"""What is shown of stored messages, also of those that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...delivery import Failure
from ...envelope import Envelope
from ...ports import BrowsedMessage
from .layout import MICRO, UNREADABLE, Record, to_failure, to_lease, to_letter, to_record


def unreadable(error: Exception) -> Failure:
    """What to tell of a message that could not be read."""
    text = str(error).encode("utf-8", "backslashreplace").decode()
    return Failure("UnreadableRecord", f"what is stored of this message cannot be read: {text}")


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
