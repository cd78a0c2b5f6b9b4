"""Carrying out what the rules for stored messages say (`repid.delivery.shelf`), one message at a time.

A row becomes what the rules read, and what they decide becomes statements. Nothing is decided here. Batches of plain
messages, plain acks, starts and expiries are moved by statements of their own, in the same way.
"""

from __future__ import annotations

from typing import NamedTuple

from ...delivery import is_suspect
from ...delivery.shelf import Shelved, Stored, offset_of
from ..shared.packing import Trail, pack
from .clock import micros
from .rows import to_options
from .store import Store

_FIND = """
SELECT lease.lane, message.lane, cancelling FROM lease JOIN message ON message.seq = lease.seq
WHERE lease.seq = ? AND n = ?
"""
_READ = """
SELECT rank, CAST(attempt AS INTEGER), CAST(lost AS INTEGER), CAST(expires_at AS INTEGER), CAST(unrouted_at AS INTEGER),
    CAST(extra AS BLOB), trail
FROM message WHERE seq = ?
"""
_CHANGE = """
UPDATE message SET lane = ?, rank = ?, attempt = ?, lost = ?, expires_at = ?, unrouted_at = ?, trail = ?,
    failure = CASE WHEN ? THEN ? ELSE failure END
WHERE seq = ?
"""
_END_LEASE = """
UPDATE message SET leases = leases + 1, progress = (SELECT progress FROM lease WHERE lease.seq = message.seq)
WHERE seq = ?
"""


class Leased(NamedTuple):
    """A leased message, and all that decides where it goes. `trail`: what is known of who lost it, packed."""

    seq: int
    lane: int
    stored: Stored[int]
    trail: bytes | None


def take_lease(store: Store, seq: int, n: int) -> Leased | None:
    """End a lease: its token is never valid again. Returns None where the message has no such lease.

    The message is in no place then: `shelve` puts it into one.
    """
    lease = store.execute(_FIND, (seq, n)).fetchone()
    if lease is None:
        return None
    lane, its_own, cancelling = lease
    found = read(store, seq, is_cancelled=bool(cancelling))
    if found is None:
        return None
    store.execute(_END_LEASE, (seq,))
    store.execute("DELETE FROM lease WHERE seq = ?", (seq,))
    return Leased(seq, lane if lane in store.directory.lanes else its_own, *found)


def read(store: Store, seq: int, *, is_cancelled: bool) -> tuple[Stored[int], bytes | None] | None:
    """A message as the rules see it, and its trail. Returns None where there is no such message."""
    row = store.execute(_READ, (seq,)).fetchone()
    if row is None:
        return None
    rank, attempt, lost, expires_at, unrouted_at, extra, trail = row
    stored = Stored(
        rank=rank,
        offset=offset_of(to_options(extra), micros),
        attempt=attempt,
        lost=lost,
        expires_at=expires_at,
        unrouted_at=unrouted_at,
        is_cancelled=is_cancelled,
    )
    return stored, trail


def shelve(store: Store, leased: Leased, shelved: Shelved[int]) -> None:
    """Put a message whose lease was taken where the rules say."""
    seq, stored, end = leased.seq, shelved.stored, shelved.end
    lane = leased.lane if end is not None else store.directory.twin(leased.lane, suspects=is_suspect(stored.lost))
    if stored != leased.stored:
        failure = None if shelved.failure is None else pack(shelved.failure)
        row = (lane, stored.rank, stored.attempt, stored.lost, stored.expires_at, stored.unrouted_at)
        store.execute(_CHANGE, (*row, _trail(store, leased, stored), shelved.is_last, failure, seq))
    if end is not None:
        store.end(seq, end)
        return
    if shelved.due is None:
        store.make_ready(seq, lane, stored.rank)
    else:
        store.execute("UPDATE message SET due = ? WHERE seq = ?", (shelved.due, seq))
        store.schedule(seq, lane, shelved.due)
    if stored.expires_at is not None:
        store.next_event = min(store.next_event, stored.expires_at)


def _trail(store: Store, leased: Leased, stored: Stored[int]) -> bytes | None:
    """What is known of a suspect; nothing of any other message."""
    if not is_suspect(stored.lost):
        return None
    return pack(Trail(store.now)) if leased.trail is None else leased.trail
