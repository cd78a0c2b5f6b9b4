"""Taking messages out of their places one by one, and putting them where the rules say (`repid.delivery.shelf`).

What is not a plain ack goes this way, in a transaction of two round trips: rows are taken out (deleted, which locks
them), the rules decide, and everything is written in a few statements for the whole batch. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ...delivery import Failure, NewResult, is_suspect, poison_failure
from ...delivery.shelf import EXPIRED, End, Shelved, Stored, after_lost_lease, offset_of, result_of_end
from ...envelope import Options
from ..shared.packing import Trail, pack, to_trail
from . import results
from .binding import Statement, Step, statement
from .claiming import OURS, STATE, split
from .directory import GATE, Directory, adding, place_of
from .rows import MICRO, body_of, micros, to_id, to_options
from .wire import Rows, Wire

_GONE = ", ".join(f"g.{name}" for name in STATE.split(", "))
_BACK = f"""
    SELECT {_GONE}, m.id, m.rare, m.result_id, g.cancelling, g.token, {{s}}.clock() FROM gone AS g, {body_of("g")}
    ORDER BY g.seq
"""

_TAKE = statement(
    f"""
    WITH gone AS (DELETE FROM {{s}}.lease WHERE {GATE} AND {OURS} RETURNING lease.*) {_BACK}
    """,
    "int8[]",
    "int8[]",
)
RESCUED_AT_ONCE = 300
_TAKE_ENDED = Step(
    statement(
        f"""
        WITH gone AS (
            DELETE FROM {{s}}.lease WHERE seq = ANY(ARRAY(
                SELECT seq FROM {{s}}.lease WHERE {GATE} AND until <= (SELECT {{s}}.clock())
                ORDER BY seq LIMIT {RESCUED_AT_ONCE}
                FOR UPDATE SKIP LOCKED
            )) RETURNING lease.*
        ) {_BACK}
        """
    )
)
LOOK_FOR_ENDED = Step(
    statement(
        """
        SELECT EXISTS (SELECT FROM {s}.lease WHERE until <= (SELECT {s}.clock())),
            EXISTS (SELECT FROM {s}.result WHERE expires_at <= (SELECT {s}.clock()))
            OR EXISTS (SELECT FROM {s}.sleeper WHERE until < {s}.clock())
            OR EXISTS (SELECT FROM {s}.consumer WHERE until < {s}.clock())
        """
    )
)
"""Whether any lease has ended, and whether anything else is over: a worker that has nothing to do asks no more."""
EXPIRED_AT_ONCE = 1000
_TAKE_EXPIRED = [
    Step(
        statement(
            f"""
            WITH gone AS (
                DELETE FROM {{s}}.{table} WHERE ctid = ANY(ARRAY(
                    SELECT ctid FROM {{s}}.{table} WHERE {GATE} AND expires_at <= (SELECT {{s}}.clock())
                    ORDER BY expires_at, seq
                    LIMIT {EXPIRED_AT_ONCE} FOR UPDATE SKIP LOCKED
                )) RETURNING {STATE}, 0::bigint AS cancelling, 0::bigint AS token
            ) {_BACK}
            """
        )
    )
    for table in ("ready", "scheduled")
]
_TAKE_WAITING = [
    statement(
        f"""
        WITH gone AS (
            DELETE FROM {{s}}.ready WHERE ctid = ANY(ARRAY(
                SELECT r.ctid FROM (SELECT * FROM {{s}}.message WHERE seq = ANY($1) OFFSET 0) AS m, LATERAL (
                    SELECT ctid FROM {{s}}.ready AS r
                        WHERE r.lane = m.lane AND r.rank = m.rank AND r.seq = m.seq OFFSET 0
                ) AS r
            )) RETURNING {STATE}, 0::bigint AS cancelling, 0::bigint AS token
        ) {_BACK}
        """,
        "int8[]",
    ),
    statement(
        f"""
        WITH gone AS (
            DELETE FROM {{s}}.scheduled WHERE seq = ANY($1)
            RETURNING {STATE}, 0::bigint AS cancelling, 0::bigint AS token
        ) {_BACK}
        """,
        "int8[]",
    ),
]

_COLUMNS = ("int8[]", "int8[]", "int8[]", "int8[]", "int8[]", "int8[]", "int8[]", "bytea[]", "bytea[]", "bytea[]")
_MAKE_READY = statement(
    f"INSERT INTO {{s}}.ready ({STATE}) SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    *_COLUMNS,
)
_SCHEDULE = statement(
    f"INSERT INTO {{s}}.scheduled ({STATE}, due) SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    *_COLUMNS,
    "int8[]",
)
_MOVE = statement(
    """
    UPDATE {s}.message SET lane = ($1)[array_position($3, seq)], rank = ($2)[array_position($3, seq)]
    WHERE seq = ANY($3)
    """,
    "int8[]",
    "int8[]",
    "int8[]",
)
_BURY = statement(
    f"""
    INSERT INTO {{s}}.dead (queue, lane, id, payload, kind, rare, result_id, attempt, lost, reason, failure, progress,
        enqueued_at, died_at)
    SELECT lane.queue, t.lane, m.id, m.payload, m.kind, m.rare, m.result_id, t.attempt, t.lost, t.reason,
        t.failure, t.progress, m.enqueued_at, {{s}}.clock()
    FROM unnest($1, $2, $3, $4, $5, $6, $7) WITH ORDINALITY
        AS t (seq, lane, attempt, lost, reason, failure, progress, place)
    JOIN {{s}}.lane ON lane.id = t.lane, {body_of("t")} ORDER BY t.place
    """,
    "int8[]",
    "int8[]",
    "int8[]",
    "int8[]",
    "text[]",
    "bytea[]",
    "bytea[]",
)
_REMOVE = statement("DELETE FROM {s}.message WHERE seq = ANY($1)", "int8[]")


class Taken(NamedTuple):
    """A message that was taken out of its place, and all that decides where it goes."""

    seq: int
    lane: int
    stored: Stored[int]
    failure: bytes | None
    progress: bytes | None
    trail: bytes | None
    id: str
    result_id: str
    options: Options
    token: int
    now: int


def taking(tokens: Sequence[Any]) -> Step:
    """What ends these leases; their tokens are never valid again."""
    return Step(_TAKE, split(tokens))


def taking_ended() -> Step:
    """What ends the first leases that are over."""
    return _TAKE_ENDED


def taking_expired() -> list[Step]:
    """What takes out the first messages that wait and have expired."""
    return _TAKE_EXPIRED


def taking_waiting(seqs: Sequence[int]) -> list[Step]:
    """What takes out those of these messages that are ready or scheduled."""
    return [Step(sql, (list(seqs),)) for sql in _TAKE_WAITING]


def to_taken(rows: Rows) -> list[Taken]:
    """The messages that were taken."""
    return [_to_taken(*row) for row in rows]


def _to_taken(*row: Any) -> Taken:
    lane, rank, seq, attempt, lost, expires_at, unrouted_at, *rest = row
    failure, progress, trail, key, rare, result_key, cancelling, token, now = rest
    options = to_options(rare)
    stored = Stored(
        rank=rank,
        offset=offset_of(options, micros),
        attempt=attempt,
        lost=lost,
        expires_at=expires_at,
        unrouted_at=unrouted_at,
        is_cancelled=bool(cancelling),
    )
    id_ = to_id(key)
    result_id = id_ if result_key is None else to_id(result_key)
    return Taken(seq, lane, stored, failure, progress, trail, id_, result_id, options, token, now)


def after_loss(taken: Taken) -> Shelved[int]:
    """Where a message goes whose lease has ended."""

    def poisoned(lost: int) -> Failure:
        trail = to_trail(taken.trail) or Trail(taken.now)
        times = ((taken.now - (moment or taken.now)) / MICRO for moment in (trail.leased_at, trail.since))
        return poison_failure(lost, trail.worker, *times)

    return after_lost_lease(taken.stored, taken.now, poisoned)


def after_expiry(taken: Taken) -> Shelved[int]:
    """Where a message goes that has expired where it waited."""
    return Shelved(taken.stored, end=EXPIRED)


def after_reading(taken: Taken, failure: Failure) -> Shelved[int]:
    """Where a message goes that cannot be read."""
    return Shelved(taken.stored, end=End("payload", failure, "failure"))


async def shelve(
    wire: Wire, moves: Sequence[tuple[Taken, Shelved[int]]], new_results: Iterable[NewResult] = ()
) -> None:
    """Put messages that were taken where the rules say, with the results of those that have ended."""
    lanes = await _lanes(wire, moves)
    ends: list[NewResult] = []
    dead: list[tuple[Any, ...]] = []
    ended: list[int] = []
    back: list[tuple[Taken, Shelved[int], int]] = []
    for (taken, shelved), lane in zip(moves, lanes, strict=True):
        end = shelved.end
        if end is None:
            back.append((taken, shelved, lane))
            continue
        ended.append(taken.seq)
        result = result_of_end(taken.result_id, taken.options, end)
        if result is not None:
            ends.append(result)
        if end.reason is not None:
            failure = None if end.failure is None else pack(end.failure)
            counts = shelved.stored.attempt, shelved.stored.lost
            dead.append((taken.seq, lane, *counts, end.reason, failure, taken.progress))
    steps = [*results.storing([*ends, *new_results]), *_putting_back(back), *_all_at_once(_BURY, dead)]
    if ended:
        steps.append(Step(_REMOVE, (sorted(ended),)))
    if steps:
        await wire.run(steps)


def _putting_back(moves: Sequence[tuple[Taken, Shelved[int], int]]) -> list[Step]:
    """What makes messages ready or scheduled, each in its lane."""
    ready: list[tuple[Any, ...]] = []
    scheduled: list[tuple[Any, ...]] = []
    moved: list[tuple[int, int, int]] = []
    for taken, shelved, lane in moves:
        stored, failure = shelved.stored, taken.failure
        if shelved.is_last:
            failure = None if shelved.failure is None else pack(shelved.failure)
        place = (lane, stored.rank, taken.seq)
        counts = (stored.attempt, stored.lost, stored.expires_at, stored.unrouted_at)
        row = (*place, *counts, failure, taken.progress, _trail(taken, stored))
        if place != (taken.lane, taken.stored.rank, taken.seq):
            moved.append(place)
        if shelved.due is None:
            ready.append(row)
        else:
            scheduled.append((*row, shelved.due))
    return [*_all_at_once(_MAKE_READY, ready), *_all_at_once(_SCHEDULE, scheduled), *_all_at_once(_MOVE, moved)]


def _all_at_once(sql: Statement, rows: Sequence[tuple[Any, ...]]) -> list[Step]:
    """The statement with the columns of these rows; nothing where there are none."""
    return [Step(sql, tuple(zip(*rows, strict=True)))] if rows else []


def _trail(taken: Taken, stored: Stored[int]) -> bytes | None:
    """What is known of a suspect; nothing of any other message."""
    if not is_suspect(stored.lost):
        return None
    return pack(Trail(taken.now)) if taken.trail is None else taken.trail


async def _lanes(wire: Wire, moves: Sequence[tuple[Taken, Shelved[int]]]) -> list[int]:
    """The lane of each: suspects have others. What is lacking is made."""
    if all(
        shelved.end is not None or is_suspect(shelved.stored.lost) == is_suspect(taken.stored.lost)
        for taken, shelved in moves
    ):
        return [taken.lane for taken, _ in moves]
    local = Directory()  # what is made here is undone with the transaction
    await local.refresh_inside(wire)
    places = []
    for taken, shelved in moves:
        lane = local.lanes[taken.lane]
        suspects = lane.suspects if shelved.end is not None else is_suspect(shelved.stored.lost)
        places.append(place_of(lane, suspects=suspects))
    if lacking := {place for place in places if place not in local.places}:
        await wire.run(adding(lacking))
        await local.refresh_inside(wire)
    return [local.places[place] for place in places]
