"""Messages out: leasing what is ready, by rank over all lanes of a consumer; and the leases themselves.

Theory. A claim is one statement. It finds how many of each lane are among the first messages of all of them (without
locks), locks that many of each lane with SKIP LOCKED, leaves out those whose payloads are too big, deletes their places
and writes their leases. Two claims at once thus take different messages, and neither waits for the other. A claim that
finds all it wants locked is answered with nothing although there may soon be something: so it is asked again shortly
(`BUSY`).

Before each claim what has fallen due is made ready, in the same round trip. What has expired is passed over, and buried
by the process that sees it.

A claim may be answered before it is on the disk: if the server crashes, the message is ready again. What the sequence
of tokens has given out may be forgotten then, too, so a token also has 31 bits of chance: it is never another lease's.

Rows that were deleted stay in the index until they are vacuumed, and while an old snapshot is open that is never: then
each claim would step over all that was claimed before. So it begins where the last one ended (`Marks`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from secrets import randbits
from typing import Any, NamedTuple

from ...delivery import Delivery, Failure, is_suspect
from ...ports import AtMost
from ..process import name_process
from ..shared.packing import Trail, pack, to_trail
from .binding import Statement, Step, statement
from .directory import GATE, Directory, Lane
from .rows import MICRO, UNREADABLE, body_of, micros, to_envelope, unreadable
from .wire import Rows

FIRST_RANK = -(2**63)

BUSY = 0.02
"""Seconds after which a claim is made again that found only what others had locked."""

BLOCKED = 0.2
"""As `BUSY`, where all that is ready may be too big for the caller."""

STATE = "lane, rank, seq, attempt, lost, expires_at, unrouted_at, failure, progress, trail"
"""The columns that `ready`, `scheduled` and `lease` share: what travels with a message from place to place."""

_PROMOTE = statement(
    f"""
    WITH due AS (
        SELECT seq FROM {{s}}.scheduled WHERE {GATE} AND due <= (SELECT {{s}}.clock()) AND due >= $1
        ORDER BY due, seq LIMIT 1000 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM {{s}}.scheduled WHERE seq = ANY(ARRAY(SELECT seq FROM due)) RETURNING {STATE}
    )
    INSERT INTO {{s}}.ready ({STATE}) SELECT {STATE} FROM gone RETURNING 1
    """,
    "int8",
)
_LOOKED_AT = """
    {s}.clock(), (SELECT directory FROM {s}.meta), (SELECT min(due) FROM {s}.scheduled WHERE due >= $1),
        least((SELECT min(expires_at) FROM {s}.ready WHERE expires_at IS NOT NULL AND expires_at >= $2),
              (SELECT min(expires_at) FROM {s}.scheduled WHERE expires_at IS NOT NULL AND expires_at >= $2))
"""
_IN_NO_HURRY = "WHERE set_config('synchronous_commit', 'off', true) IS NOT NULL"
_IS_ANY = (
    "EXISTS (SELECT FROM unnest({lanes}) AS l (lane), "
    "LATERAL (SELECT FROM {s}.ready WHERE ready.lane = l.lane LIMIT 1) AS r)"
)
_LOOK = statement(f"SELECT {_LOOKED_AT} {_IN_NO_HURRY}", "int8", "int8")
_LOOK_FOR_ANY = statement(
    f"SELECT {_LOOKED_AT}, {_IS_ANY.replace('{lanes}', '$3')} {_IN_NO_HURRY}", "int8", "int8", "int8[]"
)
START = -(2**63)
PROMOTE = Step(_PROMOTE, (START,))
"""Make ready what is due."""

LOOK = Step(_LOOK, (START, START))
"""The time, the version of the directory, and when something falls due or expires next. Its transaction waits for no
disk.
"""

_ANY = statement(f"SELECT {_IS_ANY.replace('{lanes}', '$1')}", "int8[]")
_COUNT = statement("SELECT count(*) FROM {s}.ready WHERE lane = ANY($1)", "int8[]")


@lru_cache(maxsize=8)
def _claim(*, several: bool, grouped: bool) -> Statement:
    """The statement for one lane, for several, or for several of which some share a limit."""
    first = (
        "SELECT rank, seq FROM {s}.ready AS r WHERE r.lane = i.lane AND r.rank >= i.low ORDER BY rank, seq LIMIT i.cap"
    )
    heads = f"SELECT i.*, h.rank, h.seq FROM input AS i, LATERAL ({first}) AS h"
    if grouped:
        for limit, kind in (("cap", "topic"), ("most", "grp")):
            heads = f"""
                SELECT * FROM (
                    SELECT *, row_number() OVER (PARTITION BY {kind} ORDER BY rank, seq)
                        AS {kind}_place FROM ({heads}) AS h_{kind}
                ) AS p_{kind} WHERE {kind}_place <= {limit}
            """
    chosen = (
        f"SELECT lane, low, count(*) AS cap FROM ({heads} ORDER BY rank, seq LIMIT $6) AS first_heads "
        "GROUP BY lane, low"
        if several
        else "SELECT lane, low, cap FROM input"
    )
    return statement(
        f"""
        WITH input AS MATERIALIZED (
            SELECT * FROM unnest($2, $3, $4, $5, $10, $14) AS i (lane, cap, low, grp, most, topic)
            WHERE (SELECT directory FROM {{s}}.meta WHERE {GATE}) = $1
        ), chosen AS MATERIALIZED ({chosen}), picked AS MATERIALIZED (
            SELECT r.* FROM chosen AS c, LATERAL (
                SELECT ctid AS place, {STATE} FROM {{s}}.ready AS r WHERE r.lane = c.lane AND r.rank >= c.low
                AND (expires_at IS NULL OR expires_at > (SELECT {{s}}.clock()))
                ORDER BY rank, seq LIMIT c.cap FOR UPDATE SKIP LOCKED
            ) AS r
        ), found AS (
            SELECT p.*, m.id, m.payload, m.kind, m.rare, octet_length(m.payload) AS size,
                sum(octet_length(m.payload)) OVER in_order AS total, row_number() OVER in_order AS number
            FROM picked AS p, {body_of("p")} WINDOW in_order AS (ORDER BY p.rank, p.seq)
        ), fitting AS MATERIALIZED (
            SELECT *, $13 | (nextval('{{s}}.token') & 4294967295) AS token FROM found
            WHERE number <= $6 AND (total <= $7 OR number = 1) AND (number > 1 OR size <= $8)
        ), gone AS (
            DELETE FROM {{s}}.ready WHERE ctid = ANY(ARRAY(SELECT place FROM fitting))
        ), leased AS (
            INSERT INTO {{s}}.lease ({STATE}, token, until, consumer, leased_at, worker)
            SELECT {STATE}, token, now + $9, $11, now, $12
            FROM fitting, (SELECT {{s}}.clock() AS now OFFSET 0) AS time
        )
        SELECT lane, rank, seq, token, attempt, lost, expires_at, unrouted_at, trail, id, payload, kind, rare
        FROM fitting ORDER BY rank, seq
        """,
        "int8",
        "int8[]",
        "int8[]",
        "int8[]",
        "int8[]",
        "int8",
        "float8",
        "float8",
        "int8",
        "int8[]",
        "int8",
        "text",
        "int8",
        "int8[]",
    )


OURS = "seq = ANY($1) AND token = ANY($2)"
"""The leases with these tokens, in the order of the seqs. No token is ever that of two leases, so the pairs are not
compared.
"""

_EXTEND = statement(
    f"UPDATE {{s}}.lease SET until = {{s}}.clock() + $3 WHERE {OURS} RETURNING token",
    "int8[]",
    "int8[]",
    "int8",
)
_EXTEND_APART = statement(
    f"""
    WITH mine AS MATERIALIZED (SELECT seq FROM {{s}}.lease WHERE {OURS} FOR UPDATE SKIP LOCKED)
    UPDATE {{s}}.lease SET until = greatest(until, {{s}}.clock() + ($3)[array_position($2, token)])
    WHERE seq = ANY(ARRAY(SELECT seq FROM mine))
    """,
    "int8[]",
    "int8[]",
    "int8[]",
)
"""Each of these leases ends at `$3` microseconds from now, or when it did if that is later. What the
blocked loop has locked stays.
"""

_REPORT = statement(
    f"""
    UPDATE {{s}}.lease SET progress = coalesce(($3)[array_position($2, token)], progress), expires_at = NULL
    WHERE {OURS}
    """,
    "int8[]",
    "int8[]",
    "bytea[]",
)
_TRAIL = statement("UPDATE {s}.lease SET trail = $3 WHERE seq = $1 AND token = $2", "int8", "int8", "bytea")
_CANCELLATIONS = statement(
    """
    SELECT seq, token FROM (SELECT * FROM {s}.lease WHERE cancelling = 1 AND consumer = $1 OFFSET 0) AS l ORDER BY seq
    """,
    "int8",
)


class _Starts:
    """When a claim looks from the start: once a second, or less often where that takes long (`SHARE`)."""

    EVERY = 1.0
    """Seconds between two looks from the start."""

    SHARE = 0.05
    """Looks from the start take at most this part of the time."""

    def __init__(self) -> None:
        self._began = self._next_at = 0.0

    def begin(self) -> bool:
        """A claim is made now. Returns whether it looks from the start."""
        self._began = time.monotonic()
        return self._began >= self._next_at

    def end(self) -> None:
        """The claim, which looked from the start, has its answer."""
        ended = time.monotonic()
        self._next_at = ended + max(self.EVERY, (ended - self._began) / self.SHARE)

    def forget(self) -> None:
        """The next claim looks from the start."""
        self._next_at = 0.0


class Marks:
    """From which rank a claim looks in each lane.

    Theory. In a lane the rank of what is published is the present time or later, and its priority. So what lies below
    both the last rank that was claimed and the present time can only be what came back, or what was committed late.
    That waits for a look from the start, which is made now and then (`_Starts`), and when there is nothing else. What
    this process puts back itself has the next claim look from the start.
    """

    WINDOW = micros(0.2)
    """Commits that are late by less are found at once."""

    def __init__(self) -> None:
        self._low: dict[int, int] = {}
        self._priorities: dict[int, int] = {}
        self._starts = _Starts()

    def low(self, chosen: Wanted) -> list[int]:
        """The ranks for a claim that is made now."""
        if self._starts.begin():
            self._low.clear()
        self._priorities.update((lane.id, lane.priority) for lane in chosen.lanes)
        return [self._low.get(lane.id, FIRST_RANK) for lane in chosen.lanes]

    def note(self, rows: Rows, limit: int, now: int) -> bool:
        """What a claim gave; whether it has to be made again from the start, because it gave nothing."""
        if len(rows) < limit:
            had_marks = bool(self._low)
            self.forget()
            return had_marks and not rows
        if not self._low:
            self._starts.end()
        for lane, rank, *_ in rows:
            self._low[lane] = min(rank, now + micros(self._priorities[lane])) - self.WINDOW
        return False

    def forget(self) -> None:
        """The next claim looks from the start."""
        self._low.clear()
        self._starts.forget()


class Fronts:
    """From which time claims look for what is due, and for what expires.

    Theory. They walk over whatever was made ready, or ended, before, as they would in a lane (`Marks`). What is
    scheduled is due later than the moment at which that is written, so what is due, or expires, before both the first
    one that a look found and the time of that look can only be what was committed late, or came back. That waits for a
    look from the start, which is made now and then (`_Starts`), and by each claim that finds nothing else.
    """

    def __init__(self) -> None:
        self.promote, self.look = PROMOTE, LOOK
        self._is_full = True
        self._starts = _Starts()

    def begin(self) -> bool:
        """Prepare `promote` and `look` for a claim that is made now. Returns whether they look from the start."""
        self._is_full = self._starts.begin()
        if self._is_full:
            self.promote, self.look = PROMOTE, LOOK
        return self._is_full

    def note(self, now: int, due: int | None, expiry: int | None) -> None:
        """What the look gave."""
        if self._is_full:
            self._starts.end()
        first_due, first_expiry = (min(now if found is None else found, now) - Marks.WINDOW for found in (due, expiry))
        self.promote, self.look = Step(_PROMOTE, (first_due,)), Step(_LOOK, (first_due, first_expiry))

    def forget(self) -> None:
        """The next claim looks from the start."""
        self._starts.forget()


class Wanted(NamedTuple):
    """The lanes that a claim may take from, each with its topic's number and limit, and its group's number
    and limit.
    """

    lanes: list[Lane]
    topics: list[int]
    caps: list[int]
    groups: list[int]
    most: list[int]

    @property
    def has_shared_limits(self) -> bool:
        """Whether some limit is for several lanes together."""
        return any(group >= 0 for group in self.groups) or len(set(self.topics)) < len(self.topics)

    @property
    def ids(self) -> list[int]:
        """The numbers of the lanes."""
        return [lane.id for lane in self.lanes]


def wanted(lanes: Sequence[Lane], limit: int, at_most: AtMost) -> Wanted:
    """What of these lanes may be taken."""
    found = Wanted([], [], [], [], [])
    topics: dict[tuple[str, str | None], int] = {}
    for lane, cap, group, most in _capped(lanes, limit, at_most):
        found.lanes.append(lane)
        found.topics.append(topics.setdefault((lane.queue, lane.topic), len(topics)))
        found.caps.append(cap)
        found.groups.append(group)
        found.most.append(most)
    return found


def _capped(lanes: Sequence[Lane], limit: int, at_most: AtMost) -> Iterator[tuple[Lane, int, int, int]]:
    for lane in lanes:
        cap = at_most.of(lane.queue, lane.topic) if at_most.topics else None
        group = at_most.group(lane.queue, lane.topic) if at_most.groups else None
        most = limit if group is None else min(limit, at_most.groups[group][1])
        cap = min(limit if cap is None else cap, most)
        if cap > 0:
            yield lane, cap, -1 if group is None else group, most


def claiming(
    version: int, chosen: Wanted, limit: int, at_most: AtMost, lease_time: int, consumer: int, low: Sequence[int]
) -> Step:
    """What leases the next messages. `low`: for each lane the rank from which to look."""
    several = len(chosen.lanes) > 1
    return Step(
        _claim(several=several, grouped=several and chosen.has_shared_limits),
        (
            version,
            chosen.ids,
            chosen.caps,
            low,
            chosen.groups,
            limit,
            min(at_most.size, 1e300),
            min(at_most.first, 1e300),
            lease_time,
            chosen.most,
            consumer,
            name_process(),
            randbits(31) << 32,
            chosen.topics,
        ),
    )


def to_deliveries(rows: Rows, directory: Directory, now: int) -> tuple[list[Delivery], list[tuple[Any, Failure]]]:
    """What a claim has leased; and the tokens of what cannot be read, with the failures that say why."""
    deliveries: list[Delivery] = []
    bad: list[tuple[Any, Failure]] = []
    for lane, _, *row in rows:
        try:
            deliveries.append(_to_delivery(directory.lanes[lane], now, *row))
        except UNREADABLE as error:
            bad.append(((row[0], row[1]), unreadable(error)))
    return deliveries, bad


def _to_delivery(
    lane: Lane,
    now: int,
    seq: int,
    token: int,
    attempt: int,
    lost: int,
    expires_at: int | None,
    unrouted_at: int | None,
    _trail: bytes | None,
    *body: Any,
) -> Delivery:
    return Delivery(
        to_envelope(lane.queue, lane.topic, *body),
        attempt,
        lost,
        (seq, token),
        None if unrouted_at is None else max(0, now - unrouted_at) / MICRO,
        None if expires_at is None else (expires_at - now) / MICRO,
    )


def leaving_trail(rows: Rows, now: int) -> list[Step]:
    """What notes who leased a suspect, in case it is lost again."""
    steps = []
    for _, _, seq, token, _, lost, _, _, packed, *_ in rows:
        if is_suspect(lost):
            known = to_trail(packed)
            trail = Trail(now if known is None else known.since, name_process(), now)
            steps.append(Step(_TRAIL, (seq, token, pack(trail))))
    return steps


def looking_for_any(chosen: Wanted) -> Step:
    """What tells whether there is anything in these lanes."""
    return Step(_ANY, (chosen.ids,))


def looking_around(look: Step, chosen: Wanted) -> Step:
    """The same look of a claim, and whether there is anything in these lanes: one trip less where a claim is likely to
    find nothing.
    """
    return Step(_LOOK_FOR_ANY, (*look.arguments, chosen.ids))


def counting(lanes: Sequence[Lane]) -> Step:
    """What counts the ready messages of these lanes."""
    return Step(_COUNT, ([lane.id for lane in lanes],))


def split(tokens: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Seqs and tokens in the order in which rows are to be locked."""
    valid = sorted({token for token in tokens if isinstance(token, tuple) and len(token) == 2})
    return [seq for seq, _ in valid], [token for _, token in valid]


def extending(tokens: Sequence[Any], lease_time: int) -> Step:
    """What starts these leases anew."""
    return Step(_EXTEND, (*split(tokens), lease_time))


def extending_apart(left: Mapping[Any, float], lease_time: int) -> Step:
    """What extends these leases, which are some, while the event loop is blocked: each by its seconds at the most."""
    rows = sorted((seq, token, min(micros(seconds), lease_time)) for (seq, token), seconds in left.items())
    return Step(_EXTEND_APART, tuple(zip(*rows, strict=True)))


def reporting(progress: Sequence[tuple[Any, bytes | None]]) -> Step:
    """What notes that runs have begun, which ends their ttl, and how far they have come."""
    last: dict[Any, bytes | None] = {}
    for token, packed in progress:
        last[token] = packed if packed is not None else last.get(token)
    seqs, tokens = split(list(last))
    return Step(_REPORT, (seqs, tokens, [last[pair] for pair in zip(seqs, tokens, strict=True)]))


def cancellations(consumer: int) -> Step:
    """The statement that finds which leases of this consumer are cancelled."""
    return Step(_CANCELLATIONS, (consumer,))


def seconds_until(moment: int | None, now: int) -> float:
    """Seconds until a moment; infinity for none."""
    return math.inf if moment is None else max(0.0, (moment - now) / MICRO)
