"""Looking at what is in the database, and removing it by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...delivery.shelf import CANCELLED, Shelved
from ...ports import BrowsedMessage, Cancelled, Category, Counts, Sight, Snapshot
from ..shared.keys import to_place
from ..shared.packing import to_bounds, to_failure, to_progress
from . import results
from .binding import Step, statement
from .directory import TOUCH, Directory
from .pool import Pool, transaction
from .rows import MICRO, body_of, show_envelope, to_key
from .shelving import shelve, taking_waiting, to_taken
from .wire import Rows

BITE = 1000
"""Messages that one transaction removes."""

_COUNTS = statement(
    """
    SELECT q.name, q.paused,
        (SELECT count(*) FROM {s}.ready WHERE lane = ANY(ARRAY(SELECT id FROM {s}.lane WHERE queue = q.id))),
        (SELECT count(*) FROM {s}.scheduled WHERE lane = ANY(ARRAY(SELECT id FROM {s}.lane WHERE queue = q.id))),
        (SELECT count(*) FROM {s}.lease WHERE lane = ANY(ARRAY(SELECT id FROM {s}.lane WHERE queue = q.id))),
        (SELECT count(*) FROM {s}.dead WHERE queue = q.id), q.bounds, q.dropped
    FROM {s}.queue AS q WHERE q.name = ANY($1)
    """,
    "text[]",
)
_LIVE = "{s}.clock(), m.enqueued_at, p.lane, p.seq, p.attempt, p.lost, p.failure, m.id, m.payload, m.kind, m.rare"
_LIVE_PLACES: dict[Category, tuple[str, str, str]] = {
    "ready": ("ready", "p.rank", "NULL::bigint, NULL::bigint, NULL"),
    "scheduled": ("scheduled", "p.due", "p.due, NULL::bigint, NULL"),
    "leased": ("lease", "p.until", "p.until, p.leased_at, p.worker"),
}
"""By category: the table, what its messages are in order of, and when each is due, when it was leased and by whom."""

_LIVE_VIEWS = {
    category: statement(
        f"""
        SELECT {place}, {lease}, {_LIVE} FROM (
            SELECT * FROM {{s}}.{table} AS p WHERE p.lane = ANY($1)
                AND ({place}, p.seq) > ($2, $3) ORDER BY {place}, p.seq LIMIT $4
        ) AS p, {body_of("p")} ORDER BY {place}, p.seq
        """,
        "int8[]",
        "int8",
        "int8",
        "int8",
    )
    for category, (table, place, lease) in _LIVE_PLACES.items()
}
_DEAD_COLUMNS = (
    "{s}.clock(), d.enqueued_at, d.died_at, d.key, d.reason, d.lane, d.attempt, d.lost, d.failure, d.id, d.payload, "
    "d.kind, d.rare"
)
_DEAD = statement(
    f"""
    SELECT {_DEAD_COLUMNS} FROM {{s}}.dead AS d WHERE (d.queue, d.key) > ($1, $2) AND d.queue <= $1
    ORDER BY d.queue, d.key LIMIT $3
    """,
    "int8",
    "int8",
    "int8",
)
_IN_THE_INDEX = {"ready": " AND p.lane = m.lane AND p.rank = m.rank"}
_FIND_LIVE = [
    statement(
        f"""
        SELECT {place}, {lease}, {_LIVE} FROM (SELECT * FROM {{s}}.message WHERE id = ANY($1) OFFSET 0) AS m, LATERAL (
            SELECT * FROM {{s}}.{table} AS p WHERE p.seq = m.seq{_IN_THE_INDEX.get(table, "")} OFFSET 0
        ) AS p
        """,
        "bytea[]",
    )
    for table, place, lease in _LIVE_PLACES.values()
]
_FIND_DEAD = statement(
    f"SELECT {_DEAD_COLUMNS} FROM (SELECT * FROM {{s}}.dead WHERE id = ANY($1) OFFSET 0) AS d ORDER BY d.key",
    "bytea[]",
)
_PLACES = statement(
    """
    SELECT m.id, coalesce(l.attempt, s.attempt, r.attempt, 1) AS attempt,
        coalesce(l.progress, s.progress, r.progress) AS progress,
        CASE WHEN l.seq IS NOT NULL THEN 'leased' WHEN s.seq IS NOT NULL THEN 'scheduled' ELSE 'ready' END AS state,
        coalesce(l.cancelling, 0) AS cancelling
    FROM (SELECT * FROM {s}.message WHERE id = ANY($1) OFFSET 0) AS m
    LEFT JOIN LATERAL (SELECT * FROM {s}.lease WHERE seq = m.seq OFFSET 0) AS l ON true
    LEFT JOIN LATERAL (SELECT * FROM {s}.scheduled WHERE seq = m.seq OFFSET 0) AS s ON true
    LEFT JOIN LATERAL (SELECT * FROM {s}.ready
        WHERE lane = m.lane AND rank = m.rank AND seq = m.seq OFFSET 0) AS r ON true
    UNION ALL
    SELECT * FROM (
        SELECT DISTINCT ON (id) id, attempt, progress, 'dead', 0::bigint
        FROM (SELECT * FROM {s}.dead WHERE id = ANY($1) OFFSET 0) AS d ORDER BY id, key DESC
    ) AS last
    """,
    "bytea[]",
)
"""One statement, so that a message which dies, or is revived, meanwhile is seen in one of its places."""

_FIND_SEQS = statement("SELECT id, seq FROM {s}.message WHERE id = ANY($1)", "bytea[]")
_REQUEST = statement(
    "UPDATE {s}.lease SET cancelling = greatest(cancelling, 1) WHERE seq = ANY($1) RETURNING seq", "int8[]"
)
_SOME_WAITING = statement(
    """
    SELECT seq FROM (
        SELECT seq FROM {s}.ready WHERE lane = ANY($1) AND seq < $2 UNION ALL
        SELECT seq FROM {s}.scheduled WHERE lane = ANY($1) AND seq < $2
    ) AS found LIMIT 1000
    """,
    "int8[]",
    "int8",
)
_NEXT = statement("SELECT nextval('{s}.batch')")
_REMOVE_BODIES = statement("DELETE FROM {s}.message WHERE seq = ANY($1)", "int8[]")
_DEAD_KEYS = statement(
    "SELECT key FROM (SELECT key FROM {s}.dead WHERE queue = $1 OFFSET 0) AS d ORDER BY key",
    "int8",
)
_DELETE_DEAD = statement("DELETE FROM {s}.dead WHERE queue + 0 = $1 AND key = ANY($2) RETURNING key", "int8", "int8[]")
_DELETE_FIRST_DEAD = statement(
    """
    DELETE FROM {s}.dead WHERE key = ANY(ARRAY(
        SELECT key FROM {s}.dead WHERE (queue, key) <= ($1, $2) AND queue >= $1 ORDER BY queue, key LIMIT 1000
    )) RETURNING key
    """,
    "int8",
    "int8",
)
_DELETE_OLD_DEAD = statement(
    """
    DELETE FROM {s}.dead WHERE key = ANY(ARRAY(
        SELECT key FROM {s}.dead WHERE died_at <= (SELECT {s}.clock() - $1)
            ORDER BY died_at LIMIT 1000 FOR UPDATE SKIP LOCKED
    )) RETURNING key
    """,
    "int8",
)
_LAST_DEAD = statement(
    """
    SELECT coalesce((SELECT key FROM {s}.dead WHERE queue <= $1 AND queue >= $1
        ORDER BY queue DESC, key DESC LIMIT 1), 0)
    """,
    "int8",
)
_DELETE_QUEUE = [
    statement(
        f"""
        DELETE FROM {{s}}.message WHERE seq = ANY(ARRAY(
            SELECT seq FROM {{s}}.{table} WHERE lane = ANY(ARRAY(SELECT id FROM {{s}}.lane WHERE queue = $1))
        ))
        """,
        "int8",
    )
    for table in ("ready", "scheduled", "lease")
] + [
    statement(f"DELETE FROM {{s}}.{table} WHERE lane = ANY(ARRAY(SELECT id FROM {{s}}.lane WHERE queue = $1))", "int8")
    for table in ("ready", "scheduled", "lease")
]
_DELETE_REST = [
    statement("DELETE FROM {s}.dead WHERE queue = $1", "int8"),
    statement("DELETE FROM {s}.lane WHERE queue = $1", "int8"),
    statement("DELETE FROM {s}.queue WHERE id = $1", "int8"),
]
_SHORT_WAIT = Step(statement("SET LOCAL lock_timeout = '1s'"))
"""All that publish wait behind us as long as we wait for a transaction that is open."""

_LOCK_LANES = statement("LOCK TABLE {s}.lane IN ACCESS EXCLUSIVE MODE")

_LOOKS = 10
"""How often a message is looked for that moves meanwhile."""

_BEFORE_ALL = (-(2**63), -(2**63))


def counting(queues: Sequence[str]) -> Step:
    """What counts the messages of these queues."""
    return Step(_COUNTS, (list(queues),))


def to_counts(rows: Rows) -> dict[str, Counts]:
    """The counts by queue."""
    return {
        name: Counts(ready, scheduled, leased, dead, paused, to_bounds(packed), dropped)
        for name, paused, ready, scheduled, leased, dead, packed, dropped in rows
    }


# Browsing


def browsing(directory: Directory, queue: str, category: Category, limit: int, after: str | None) -> Step | None:
    """What shows the first messages of the queue in that place, behind the one with the key `after`; None: nothing."""
    number = directory.number(queue)
    start = _BEFORE_ALL if after is None else to_place(after)
    if start is None:
        return None
    limit = int(min(max(limit, 0), 2**31))
    if category == "dead":
        return Step(_DEAD, (number, start[1], limit))
    return Step(_LIVE_VIEWS[category], (directory.lanes_of(queue), *start, limit))


def to_browsed(directory: Directory, category: Category, rows: Rows) -> list[BrowsedMessage]:
    """What `browsing` found."""
    if category == "dead":
        return [_show_dead(directory, *row) for row in rows]
    return [_show_live(directory, category, *row) for row in rows]


def finding(ids: Sequence[str]) -> list[Step]:
    """What finds the messages with these ids: in `ready`, `scheduled` and `lease`, and the dead."""
    keys = [to_key(id_) for id_ in ids]
    return [*(Step(sql, (keys,)) for sql in _FIND_LIVE), Step(_FIND_DEAD, (keys,))]


def to_found(directory: Directory, ids: Sequence[str], answers: Sequence[Rows]) -> list[list[BrowsedMessage]]:
    """For each id the messages that have it, live ones first."""
    places: tuple[Category, ...] = (*_LIVE_PLACES, "dead")
    by_id: dict[str, list[BrowsedMessage]] = {}
    for category, rows in zip(places, answers, strict=True):
        for browsed in to_browsed(directory, category, rows):
            by_id.setdefault(browsed.envelope.id, []).append(browsed)
    return [list(by_id.get(id_, ())) for id_ in ids]


def _to_time(moment: int | None) -> float | None:
    return None if moment is None else moment / MICRO


def _show_live(directory: Directory, category: Category, *row: Any) -> BrowsedMessage:
    place, due, leased_at, worker, now, enqueued_at, lane, seq, attempt, lost, failure, *body = row
    found = directory.lanes[lane]
    envelope, wrong = show_envelope(found.queue, found.topic, *body)
    return BrowsedMessage(
        envelope=envelope,
        category=category,
        key=f"{seq}@{place}",
        attempt=attempt,
        lost=lost,
        seen_at=now / MICRO,
        enqueued_at=enqueued_at / MICRO,
        due_at=_to_time(due),
        leased_at=_to_time(leased_at),
        leased_by=worker,
        failure=to_failure(failure) or wrong,
    )


def _show_dead(directory: Directory, *row: Any) -> BrowsedMessage:
    now, enqueued_at, died_at, key, reason, lane, attempt, lost, failure, *body = row
    found = directory.lanes[lane]
    envelope, wrong = show_envelope(found.queue, found.topic, *body)
    return BrowsedMessage(
        envelope=envelope,
        category="dead",
        key=str(key),
        attempt=attempt,
        lost=lost,
        reason=reason,
        seen_at=now / MICRO,
        enqueued_at=enqueued_at / MICRO,
        died_at=died_at / MICRO,
        failure=to_failure(failure) or wrong,
    )


# Watching


def looking_at(ids: Sequence[tuple[str, str]]) -> list[Step]:
    """What tells how messages stand, with the results under their result ids."""
    keys = [to_key(id_) for id_, _ in ids]
    return [Step(_PLACES, (keys,)), results.fetching(result for _, result in ids)]


def to_sights(ids: Sequence[tuple[str, str]], answers: Sequence[Rows]) -> list[Sight]:
    """How each message stands; of several dead ones the last."""
    places, stored = answers
    present = {row[0]: row[1:] for row in reversed(places)}  # the live one is told first
    found = results.by_id(stored)
    return [Sight(_snapshot(present.get(to_key(id_)), found.get(result))) for id_, result in ids]


def _snapshot(place: tuple[Any, ...] | None, result: Any) -> Snapshot:
    if place is None:
        return Snapshot(state="gone", result=result)
    attempt, progress, state, cancelling = place
    return Snapshot(
        state=state, attempt=attempt, progress=to_progress(progress), cancelling=bool(cancelling), result=result
    )


# Removing


async def cancel(pool: Pool, ids: Sequence[str]) -> list[Cancelled]:
    """Remove the live message with each id, or ask for its run to be cancelled."""
    keys = {to_key(id_) for id_ in ids}
    outcomes: dict[bytes, Cancelled] = {}
    async with transaction(pool) as wire:
        for _ in range(_LOOKS):  # a message may move between two statements: then it is looked for again
            [found] = await wire.run([Step(_FIND_SEQS, (sorted(keys),))])
            by_seq = {seq: key for key, seq in found}
            keys = set(by_seq.values())
            if not by_seq:
                break
            seqs = sorted(by_seq)
            requested, ready, scheduled = await wire.run([Step(_REQUEST, (seqs,)), *taking_waiting(seqs)])
            outcomes.update((by_seq[seq], "requested") for (seq,) in requested)
            taken = to_taken([*ready, *scheduled])
            outcomes.update((by_seq[one.seq], "cancelled") for one in taken)
            await shelve(wire, [(one, Shelved(one.stored, end=CANCELLED)) for one in taken])
            keys -= outcomes.keys()
    return _once_each(ids, outcomes)


def _once_each(ids: Sequence[str], outcomes: dict[bytes, Cancelled]) -> list[Cancelled]:
    """What was done for each; of one that was asked for twice and removed, the second time there was none."""
    answers: list[Cancelled] = []
    for id_ in ids:
        key = to_key(id_)
        outcome = outcomes.get(key, "unknown")
        answers.append(outcome)
        if outcome == "cancelled":
            del outcomes[key]
    return answers


async def flush(pool: Pool, directory: Directory, queue: str, batch: int) -> int:
    """Remove what is ready or scheduled, in bites; how many. What was published meanwhile stays."""
    lanes = directory.lanes_of(queue)
    [(number,)] = await pool.ask(_NEXT)
    before = number * batch
    removed = 0
    while seqs := sorted(seq for (seq,) in await pool.ask(_SOME_WAITING, lanes, before)):
        async with transaction(pool) as wire:
            gone = [row[2] for rows in await wire.run(taking_waiting(seqs)) for row in rows]
            await wire.run([Step(_REMOVE_BODIES, (sorted(gone),))])
            removed += len(gone)
    return removed


async def dead_keys(pool: Pool, directory: Directory, queue: str) -> list[int]:
    """The keys of the queue's dead messages, the first that died first."""
    return [key for (key,) in await pool.ask(_DEAD_KEYS, directory.number(queue))]


async def delete_dead(pool: Pool, directory: Directory, queue: str, keys: Sequence[int] | None) -> int:
    """Remove dead messages, in bites; how many."""
    number = directory.number(queue)
    removed = 0
    if keys is None:
        [(last,)] = await pool.ask(_LAST_DEAD, number)
        while count := len(await pool.ask(_DELETE_FIRST_DEAD, number, last)):
            removed += count
        return removed
    for start in range(0, len(keys), BITE):
        removed += len(await pool.ask(_DELETE_DEAD, number, list(keys[start : start + BITE])))
    return removed


async def delete_old_dead(pool: Pool, ttl: int) -> int:
    """Remove dead letters of all queues that died more than `ttl` microseconds ago, in bites; how many."""
    removed = 0
    while count := len(await pool.ask(_DELETE_OLD_DEAD, ttl)):
        removed += count
    return removed


async def delete(pool: Pool, directory: Directory, queue: str) -> None:
    """Remove the queue with what is left in it; late verdicts on its leases are refused. Nobody may publish
    meanwhile.
    """
    found = directory.queues.get(queue)
    if found is not None:
        number = (found[0],)
        async with transaction(pool) as wire:
            await wire.run([_SHORT_WAIT, TOUCH, Step(_LOCK_LANES)])
            await wire.run([Step(sql, number) for sql in (*_DELETE_QUEUE, *_DELETE_REST)])
