"""Verdicts: each disposition with its outbox and its result, in the one transaction that is open."""

from __future__ import annotations

from collections.abc import Sequence

from ...delivery import Ack, NewResult, Settlement
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

_VALID_IN_RUN = "SELECT count(*) FROM lease WHERE seq BETWEEN ? AND ? AND n = ?"
_END_RUN = "DELETE FROM lease WHERE seq BETWEEN ? AND ?"
_REMOVE_RUN = "DELETE FROM message WHERE seq BETWEEN ? AND ?"
"""These three are for messages with consecutive numbers: each row is found beside the one before (measured: a quarter
less for all of a settlement). What one worker claims and runs is such a run most of the time."""


def settle(store: Store, settlements: Sequence[Settlement], outboxes: Sequence[Sequence[Body]]) -> list[Verdict]:
    """Carry out each; `outboxes` holds the rows of each one's outbox."""
    tokens: list[int] = []
    results: list[NewResult] = []
    for one in settlements:
        if type(one.disposition) is not Ack or one.outbox:
            break
        tokens.append(one.delivery.token)
        if one.result is not None:
            results.append(one.result)
    else:  # all are acknowledged and send nothing: these go in a few statements for all of them
        if _end_all(store, tokens):
            if results:
                store.store_results(results)
            return [SETTLED] * len(settlements)
    return [_settle(store, one, bodies) for one, bodies in zip(settlements, outboxes, strict=True)]


def _end_all(store: Store, tokens: list[int]) -> bool:
    """End the leases with these tokens and remove their messages. False: some are not valid or the same, and nothing
    was done.
    """
    run = _find_run(tokens)
    if run is None:
        packed = to_list(tokens)
        if len(set(tokens)) != len(tokens) or not are_valid(store, tokens, packed):
            return False
        store.execute(_END_ALL, (packed,))
        store.execute(_REMOVE_ALL, (packed,))
        return True
    first, last, n = run
    (count,) = store.execute(_VALID_IN_RUN, (first, last, n)).fetchone()
    if count != len(tokens):
        return False
    store.execute(_END_RUN, (first, last))
    store.execute(_REMOVE_RUN, (first, last))
    return True


def _find_run(tokens: list[int]) -> tuple[int, int, int] | None:
    """The first seq, the last one and the n of these tokens if they are one for each seq between and have the
    same n.
    """
    ordered = sorted(tokens)
    if not ordered or ordered[0] < 0 or ordered[-1] >= 2**63:
        return None
    first, n = split(ordered[0])
    end = ordered[0] + len(ordered) * LEASES_TOLD_APART
    if ordered != [*range(ordered[0], end, LEASES_TOLD_APART)]:
        return None
    return first, first + len(ordered) - 1, n


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
