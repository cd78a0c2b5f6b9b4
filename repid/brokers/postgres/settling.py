"""Verdicts: each disposition with its outbox and its result, in one transaction.

Plain acks, with or without results, are one statement for the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from ...delivery import Ack, NewResult, Settlement
from ...delivery.results import result_state
from ...delivery.shelf import after_verdict
from ...errors import QueueFull
from ...ports import REFUSED, SETTLED, Verdict
from ..shared.packing import pack
from .binding import Step, statement
from .bounding import Admission, find_alive, holding, measure
from .claiming import OURS, split
from .directory import Directory
from .pool import Pool, transaction
from .publishing import KEEP_DIRECTORY, Sending, publish_in
from .results import storing_from
from .rows import micros, to_key
from .shelving import Taken, shelve, taking, to_taken
from .wire import Wire

_GONE = f"""
    WITH gone AS (
        DELETE FROM {{s}}.lease WHERE {OURS} RETURNING seq, token
    ), removed AS (
        DELETE FROM {{s}}.message WHERE seq = ANY(ARRAY(SELECT seq FROM gone))
    )"""
_OURS = statement(f"SELECT token FROM {{s}}.lease WHERE {OURS}", "int8[]", "int8[]")
_ACK = statement(f"{_GONE} SELECT token FROM gone", "int8[]", "int8[]")
_RESULTS_OF_GONE = """
    unnest($3, $4, $5, $6, $7, $8) AS r (token, id, state, payload, failure, ttl)
    WHERE (r.token IN (SELECT token FROM gone)) IS TRUE
"""
_ACK_STORING = statement(
    f"""
    {_GONE}, stored AS ({storing_from(_RESULTS_OF_GONE)})
    SELECT token FROM gone
    """,
    "int8[]",
    "int8[]",
    "int8[]",
    "bytea[]",
    "text[]",
    "bytea[]",
    "bytea[]",
    "int8[]",
)


async def settle(
    pool: Pool, directory: Directory, settlements: Sequence[Settlement], after: Step, dropped: dict[str, list[Taken]]
) -> list[Verdict]:
    """Carry out each. `after` is carried out behind that. What full queues drop for outboxes is added to `dropped`."""
    tokens = [settlement.delivery.token for settlement in settlements]
    if _are_plain(settlements) and len(set(tokens)) == len(tokens):
        rows, _ = await pool.run([_acking(settlements)], [after])
        gone = {token for (token,) in rows}
        return [SETTLED if token[1] in gone else REFUSED for token in tokens]
    return await _settle(pool, directory, settlements, after, dropped)


def ends(settlement: Settlement) -> bool:
    """Whether the message is not made ready again."""
    return result_state(settlement.disposition) is not None


def _are_plain(settlements: Sequence[Settlement]) -> bool:
    """Whether all are acknowledged and send nothing, and no two have the same result."""
    if not all(type(one.disposition) is Ack and not one.outbox for one in settlements):
        return False
    ids = [one.result.id for one in settlements if one.result is not None]
    return len(set(ids)) == len(ids)


def _acking(settlements: Sequence[Settlement]) -> Step:
    seqs, tokens = split([settlement.delivery.token for settlement in settlements])
    found = [(one.delivery.token[1], one.result) for one in settlements if one.result is not None]
    if not found:
        return Step(_ACK, (seqs, tokens))
    rows = [
        (token, to_key(r.id), r.state, r.payload, None if r.failure is None else pack(r.failure), micros(r.ttl))
        for token, r in found
    ]
    return Step(_ACK_STORING, (seqs, tokens, *zip(*rows, strict=True)))


async def _settle(
    pool: Pool, directory: Directory, settlements: Sequence[Settlement], after: Step, dropped: dict[str, list[Taken]]
) -> list[Verdict]:
    sendings = [Sending(settlement.outbox) if settlement.outbox else None for settlement in settlements]
    async with transaction(pool, after) as wire:
        full = await _full(wire, directory, settlements, sendings) if directory.bounds else {}
        verdicts = {index: Verdict("full", full=error) for index, error in full.items()}
        for part in _parts([index for index in range(len(settlements)) if index not in full], settlements):
            carried_out = [(settlements[index], sendings[index]) for index in part]
            verdicts.update(zip(part, await _carry_out(wire, directory, carried_out, dropped), strict=True))
    return [verdicts[index] for index in range(len(settlements))]


def _parts(indices: Sequence[int], settlements: Sequence[Settlement]) -> list[list[int]]:
    """These settlements in pieces, in their order: none has an outbox with the id of a message that a later one of its
    piece settles. Such an id is taken until then.
    """
    parts: list[list[int]] = [[]]
    sent: set[str] = set()
    for index in indices:
        if settlements[index].delivery.envelope.id in sent:
            parts.append([])
            sent = set()
        parts[-1].append(index)
        sent.update(envelope.id for envelope in settlements[index].outbox)
    return parts


async def _carry_out(
    wire: Wire,
    directory: Directory,
    settlements: Sequence[tuple[Settlement, Sending | None]],
    dropped: dict[str, list[Taken]],
) -> list[Verdict]:
    """Take all of them out first, then store what they send."""
    [rows] = await wire.run([taking([settlement.delivery.token for settlement, _ in settlements])])
    taken = {(one.seq, one.token): one for one in to_taken(rows)}
    verdicts: list[Verdict] = []
    moves = []
    new_results: list[NewResult] = []
    accepted: list[Sending | None] = []
    for settlement, sending in settlements:
        mine = taken.pop(settlement.delivery.token, None)
        verdicts.append(REFUSED if mine is None else SETTLED)
        accepted.append(None if mine is None else sending)
        if mine is None:
            continue
        survived = settlement.survived
        moves.append((mine, after_verdict(mine.stored, settlement.disposition, mine.now, micros, survived=survived)))
        if settlement.result is not None:
            new_results.append(settlement.result)
    await shelve(wire, moves, new_results)
    for index, sending in enumerate(accepted):
        if sending is not None:
            await publish_in(wire, directory, sending)
            for queue, several in sending.dropped.items():
                dropped.setdefault(queue, []).extend(several)
            left_out = sum(outcome is not None for outcome in sending.outcomes)
            if left_out:
                verdicts[index] = Verdict("settled", left_out)
    return verdicts


async def _full(
    wire: Wire, directory: Directory, settlements: Sequence[Settlement], sendings: Sequence[Sending | None]
) -> dict[int, QueueFull]:
    """Those whose outbox has no room, by their place, as far as their leases are valid. Others keep what room
    there is.
    """
    directory = copy(directory)  # other tasks read theirs anew meanwhile
    bounded = sorted({queue for one in sendings if one is not None for queue in one.bounded(directory)})
    if not bounded:
        return {}
    await wire.run([KEEP_DIRECTORY, holding(directory, bounded)])
    admission = Admission(directory, await measure(wire.run, directory, bounded))
    alive = await find_alive(wire.run, [key for one in sendings if one is not None for key in one.keys_for(bounded)])
    seqs, tokens = split([settlement.delivery.token for settlement in settlements])
    [rows] = await wire.run([Step(_OURS, (seqs, tokens))])
    ours = {token for (token,) in rows}
    full: dict[int, QueueFull] = {}
    for index, (settlement, sending) in enumerate(zip(settlements, sendings, strict=True)):
        if sending is not None and settlement.delivery.token[1] in ours:
            refused = admission.refuse_whole(sending.sizes(bounded, alive))
            if refused is not None:
                full[index] = refused
    return full
