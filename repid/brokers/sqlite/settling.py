"""Verdicts: each disposition with its outbox and its result, in the one transaction that is open."""

from __future__ import annotations

from collections.abc import Sequence

from ...delivery import Ack, Settlement
from ...delivery.shelf import after_verdict
from ...ports import REFUSED, SETTLED, Verdict
from .bounding import refuse_outbox
from .claiming import are_valid
from .clock import micros
from .publishing import publish_declaring
from .rows import Body, to_list
from .shelving import shelve, take_lease
from .store import LEASES_TOLD_APART, Store, split

_SEQS = f"(SELECT value / {LEASES_TOLD_APART} FROM json_each(?))"  # noqa: S608
_END_ALL = f"DELETE FROM lease WHERE seq IN {_SEQS}"  # noqa: S608
_REMOVE_ALL = f"DELETE FROM message WHERE seq IN {_SEQS}"  # noqa: S608


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
        store.store_results(found)
    return [SETTLED] * len(settlements)


def _are_plain(settlements: Sequence[Settlement]) -> bool:
    """Whether all are acknowledged and send nothing: these go in a few statements for all of them."""
    return all(type(one.disposition) is Ack and not one.outbox for one in settlements)


def _settle(store: Store, settlement: Settlement, bodies: Sequence[Body]) -> Verdict:
    token = settlement.delivery.token
    if settlement.outbox and store.directory.has_bounds:
        full = refuse_outbox(store, settlement.outbox)
        if full is not None and are_valid(store, [token], to_list([token])):
            return Verdict("full", full=full)
    leased = take_lease(store, *split(token))
    if leased is None:
        store.waiting.clear()  # its outbox is counted, and does not come in
        return REFUSED
    survived = settlement.survived
    shelve(store, leased, after_verdict(leased.stored, settlement.disposition, store.now, micros, survived=survived))
    if settlement.result is not None:
        store.store_results([settlement.result])
    dropped = 0
    if settlement.outbox:
        outcomes = publish_declaring(store, settlement.outbox, bodies)
        dropped = sum(outcome is not None for outcome in outcomes)
        if dropped:
            store.waiting.clear()  # all of them were counted
    store.now += 1  # what the next one puts back or sends has a later rank: where ranks are equal the seq would decide
    return Verdict("settled", dropped) if dropped else SETTLED
