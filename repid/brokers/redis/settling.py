"""Verdicts as the scripts take them, and their answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...delivery import Ack, Cancel, DeadLetter, Delivery, Release, Retry, Settlement
from ...ports import REFUSED, SETTLED, Verdict
from .layout import micros, pack_failure, pack_result, to_entries

VALID, INVALID = ord("1"), ord("0")
"""Letters of an answer: the lease was there, or not."""


def batches_of(settlements: Sequence[Settlement], most: int) -> Iterable[tuple[bool, list[Settlement]]]:
    """The settlements in their order, in batches of at most `most`; those of a batch are all plain acks, or none is."""
    batch: list[Settlement] = []
    tokens: set[Any] = set()
    is_plain = True
    for one in settlements:
        plain = type(one.disposition) is Ack and not one.outbox and one.delivery.token not in tokens
        if batch and (plain is not is_plain or len(batch) == most):
            yield is_plain, batch
            batch = []
        tokens.add(one.delivery.token)
        is_plain = plain
        batch.append(one)
    if batch:
        yield is_plain, batch


def pack_acks(batch: Sequence[Settlement]) -> tuple[Any, ...]:
    """Plain acks as their script takes them: their results, if there are any, and the leases."""
    results = [one.result for one in batch]
    packed: list[Any] = []
    if results.count(None) < len(results):
        packed = [False if result is None else pack_result(result) for result in results]
    return packed, *[lease_of(one.delivery) for one in batch]


def pack_settlement(one: Settlement) -> tuple[Any, ...]:
    """Any other settlement as its script takes it."""
    kind, delay, reason, failure, marks = _parts(one)
    result = False if one.result is None else pack_result(one.result)
    return lease_of(one.delivery), kind, delay, reason, failure, marks, result, to_entries(one.outbox)


def _parts(one: Settlement) -> tuple[str, int, str, bytes, tuple[bool, bool, bool]]:
    marks = (False, False, one.survived)
    match one.disposition:
        case Retry(delay, failure):
            return "retry", max(micros(delay), 0), "", pack_failure(failure), marks
        case Release(delay, unrouted, started):
            return "release", max(micros(delay), 0), "", b"", (unrouted, started, one.survived)
        case DeadLetter(reason, failure):
            return "dead", 0, reason, pack_failure(failure), marks
        case Cancel():
            return "cancel", 0, "", b"", marks
        case _:
            return "ack", 0, "", b"", marks


def to_verdict(dropped: int) -> Verdict:
    """What the script answered: how many messages were dropped for its outbox; less than 0: nothing was done."""
    if dropped < 0:
        return REFUSED
    return Verdict("settled", dropped) if dropped else SETTLED


def lease_of(delivery: Delivery) -> bytes:
    """The token, which is the member of `leases`. One that is none of ours finds nothing."""
    token = delivery.token
    return token if type(token) is bytes else b""
