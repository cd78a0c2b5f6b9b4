"""Verdicts: each disposition with its outbox and its result, in the one transaction that is open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...delivery import (
    Ack,
    Cancel,
    DeadLetter,
    Disposition,
    NewResult,
    Release,
    Retry,
    Settlement,
    unless_cancelled,
)
from ...envelope import PrioritiesT
from ...ports import REFUSED, SETTLED, Verdict
from . import results
from .claiming import are_valid, end_lease
from .clock import micros
from .publishing import publish_declaring
from .rows import Body, pack, to_list, to_options
from .store import LEASES_TOLD_APART, Store, split

_SEQS = f"(SELECT value / {LEASES_TOLD_APART} FROM json_each(?))"  # noqa: S608
_END_ALL = f"DELETE FROM lease WHERE seq IN {_SEQS}"  # noqa: S608
_REMOVE_ALL = f"DELETE FROM message WHERE seq IN {_SEQS}"  # noqa: S608

_FIND = """
SELECT lease.lane, lease.cancelling, message.rank, message.expires_at, message.unrouted_at, message.extra
FROM lease JOIN message ON message.seq = lease.seq WHERE lease.seq = ? AND lease.n = ?
"""


class _Leased(NamedTuple):
    """What has to be known of a leased message to decide where it goes."""

    seq: int
    lane: int
    cancelling: int
    rank: int
    expires_at: int | None
    unrouted_at: int | None
    extra: bytes | None


def settle(store: Store, settlements: Sequence[Settlement], outboxes: Sequence[Sequence[Body]]) -> list[Verdict]:
    """Carry out each; `outboxes` holds the rows of each one's outbox."""
    tokens = [settlement.delivery.token for settlement in settlements]
    if not _are_plain(settlements) or len(set(tokens)) != len(tokens):
        return [_settle(store, one, bodies) for one, bodies in zip(settlements, outboxes, strict=True)]
    packed = to_list(tokens)
    if not are_valid(store, tokens, packed):
        return [_settle(store, one, ()) for one in settlements]
    store.execute(_END_ALL, (packed,))
    store.execute(_REMOVE_ALL, (packed,))
    found = [settlement.result for settlement in settlements if settlement.result is not None]
    if found:
        results.store(store.connection, store.now, found)
    return [SETTLED] * len(settlements)


def _are_plain(settlements: Sequence[Settlement]) -> bool:
    """Whether all are acknowledged and send nothing: these go in a few statements for all of them."""
    return all(type(one.disposition) is Ack and not one.outbox for one in settlements)


def _settle(store: Store, settlement: Settlement, bodies: Sequence[Body]) -> Verdict:
    seq, n = split(settlement.delivery.token)
    row = store.execute(_FIND, (seq, n)).fetchone()
    if row is None:
        return REFUSED
    leased = _Leased(seq, *row)
    end_lease(store, seq)
    if settlement.survived:
        leased = _forgive(store, leased)
    _carry_out(store, leased, settlement.disposition, settlement.result)
    dropped = 0
    if settlement.outbox:
        outcomes = publish_declaring(store, settlement.outbox, bodies)
        dropped = sum(outcome is not None for outcome in outcomes)
    return Verdict("settled", dropped) if dropped else SETTLED


def _forgive(store: Store, leased: _Leased) -> _Leased:
    """Its leases that were lost count no more, and it is no suspect."""
    lane = store.directory.twin(leased.lane, suspects=False)
    store.execute("UPDATE message SET lost = 0, lane = ?, trail = NULL WHERE seq = ?", (lane, leased.seq))
    return leased._replace(lane=lane)


def _carry_out(store: Store, leased: _Leased, disposition: Disposition, result: NewResult | None) -> None:
    carried_out = unless_cancelled(disposition, cancelled=bool(leased.cancelling))
    if carried_out is not disposition:
        result = None
    match carried_out:
        case Ack():
            store.remove(leased.seq)
        case Cancel():
            if result is None:
                results.conclude(store.connection, store.now, [leased.seq], "cancelled")
            store.remove(leased.seq)
        case DeadLetter(reason, failure):
            store.bury(leased.seq, reason, failure)
        case Retry():
            _retry(store, leased, carried_out)
        case Release():
            _release(store, leased, carried_out)
    if result is not None:
        results.store(store.connection, store.now, [result])


def _retry(store: Store, leased: _Leased, retry: Retry) -> None:
    failure = None if retry.failure is None else pack(retry.failure)
    delay = micros(retry.delay) if retry.delay > 0 else 0
    priority = to_options(leased.extra).priority
    rank = store.now + delay + micros(PrioritiesT.MEDIUM if priority is None else priority)
    store.execute(
        "UPDATE message SET attempt = attempt + 1, failure = ?, rank = ?, expires_at = NULL WHERE seq = ?",
        (failure, rank, leased.seq),
    )
    _put_back(store, leased._replace(expires_at=None), rank, delay)


def _release(store: Store, leased: _Leased, release: Release) -> None:
    if release.unrouted and leased.unrouted_at is None:
        store.execute("UPDATE message SET unrouted_at = ? WHERE seq = ?", (store.now, leased.seq))
    if release.started and leased.expires_at is not None:
        store.execute("UPDATE message SET expires_at = NULL WHERE seq = ?", (leased.seq,))
        leased = leased._replace(expires_at=None)
    _put_back(store, leased, leased.rank, micros(release.delay) if release.delay > 0 else 0)


def _put_back(store: Store, leased: _Leased, rank: int, delay: int) -> None:
    if leased.expires_at is not None and leased.expires_at <= store.now:
        store.give_up(leased.seq, "expired")
        return
    if leased.expires_at is not None:
        store.next_event = min(store.next_event, leased.expires_at)
    if delay:
        due = store.now + delay
        store.execute("UPDATE message SET due = ? WHERE seq = ?", (due, leased.seq))
        store.schedule(leased.seq, leased.lane, due)
    else:
        store.make_ready(leased.seq, leased.lane, rank)
