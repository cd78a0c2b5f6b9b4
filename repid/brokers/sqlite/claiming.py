"""Messages out: leasing what is ready, by rank over all lanes of a consumer; and the leases themselves.

Of each lane a claim takes the first ones, so it is a range of `ready` that moves: one statement for each lane reads it
and two move it, however many messages it has. Rows are read one by one: a claim that is full of bytes reads no further.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from math import inf
from typing import Any, TypeAlias

from ...delivery import Delivery, Failure, poison_failure
from ...delivery.shelf import End, after_lost_lease
from ...errors import UsageError
from ...ports import ANYTHING, AtMost
from ..process import name_process
from ..shared.packing import Trail, pack, to_trail
from .clock import MICRO
from .directory import Lane
from .results import purge
from .rows import READ, compose, lane_headers, to_list
from .shelving import shelve, take_lease
from .store import LEASES_TOLD_APART, Store, split
from .unreadable import is_unreadable, read_or, to_unreadable

log = logging.getLogger("repid.sqlite")

_HEADS = f"""
SELECT ready.rank, ready.seq, ready.lane, attempt, lost, leases, unrouted_at, expires_at, {READ}
FROM ready JOIN message ON message.seq = ready.seq WHERE ready.lane = ? ORDER BY ready.rank, ready.seq LIMIT ?
"""  # noqa: S608
_ONE = f"""
SELECT ready.rank, ready.seq, ready.lane, attempt, lost, leases, unrouted_at, expires_at, {READ}
FROM ready JOIN message ON message.seq = ready.seq WHERE ready.lane = ? AND ready.seq = ?
"""  # noqa: S608
_BY_SEQ = f"""
SELECT message.rank, message.seq, ready.lane, attempt, lost, leases, unrouted_at, expires_at, {READ}
FROM message JOIN ready ON ready.lane = message.lane AND ready.rank = message.rank AND ready.seq = message.seq
WHERE message.seq = ?
"""  # noqa: S608
_LEASE = f"""
INSERT INTO lease (seq, n, lane, until, boot, consumer, since, worker)
SELECT ready.seq, message.leases % {LEASES_TOLD_APART}, ready.lane, ?, ?, ?, ?, ?
FROM ready JOIN message ON message.seq = ready.seq WHERE ready.lane = ? AND (ready.rank, ready.seq) <= (?, ?)
"""  # noqa: S608
_TAKE = "DELETE FROM ready WHERE lane = ? AND (rank, seq) <= (?, ?)"
_STRIKE_OUT = "DELETE FROM ready WHERE lane = ? AND NOT EXISTS (SELECT 1 FROM message WHERE message.seq = ready.seq)"
_BRANCH = "SELECT * FROM (SELECT rank, seq, lane FROM ready WHERE lane = ? ORDER BY rank, seq LIMIT ?)"
_PAYLOAD = 9
"""Where the payload is in a row of `_HEADS`."""

RESCUED_AT_ONCE = 300
"""Leases that one transaction takes back: that takes some ten milliseconds (measured)."""

_LANES_SIDE_BY_SIDE = 8

Head: TypeAlias = tuple[int, int, int]
"""Rank, seq and lane of a message that is ready."""

LANES_AT_ONCE = 100
"""SQLite takes at most 500 branches in one statement."""

_SPLIT = f"(SELECT value / {LEASES_TOLD_APART} AS seq, value % {LEASES_TOLD_APART} AS n FROM json_each(?))"  # noqa: S608
_VALID = f"SELECT count(*) FROM {_SPLIT} AS token JOIN lease ON lease.seq = token.seq AND lease.n = token.n"  # noqa: S608
_EXTEND = "UPDATE lease SET until = ?, boot = ? WHERE seq = ? AND n = ?"
_EXTEND_ALL = f"UPDATE lease SET until = ?, boot = ? WHERE seq IN (SELECT seq FROM {_SPLIT})"  # noqa: S608

_START_ALL = f"""
UPDATE message SET expires_at = NULL WHERE expires_at IS NOT NULL AND seq IN (
    SELECT token.seq FROM {_SPLIT} AS token JOIN lease ON lease.seq = token.seq AND lease.n = token.n
)
"""  # noqa: S608


def closed() -> UsageError:
    """The error for a call on a consumer whose block was left."""
    return UsageError("this consumer is closed: receive inside its `async with server.consume(...)` block")


def has_any(store: Store, consumer: int, at_most: AtMost) -> bool:
    """Whether there is something that this consumer may take, or the consumer is closed and has to be told."""
    if consumer not in store.consumers:
        return True
    try:
        return _has_any(store, consumer, at_most)
    except TypeError:  # a rank that is no number: a claim buries what has it
        return True


def _has_any(store: Store, consumer: int, at_most: AtMost) -> bool:
    lanes = [lane for lane, _ in _lanes(store, consumer, 1, at_most)]
    if at_most.first < inf and not _first_fits(store, lanes, at_most.first):
        lanes = []
    if at_most.alone:
        lanes += store.directory.suspects_for(consumer, store.boot, store.boot_now)
    return any(
        store.execute("SELECT 1 FROM ready WHERE lane = ? LIMIT 1", (lane.id,)).fetchone() is not None for lane in lanes
    )


def _first_fits(store: Store, lanes: Sequence[Lane], size: float) -> bool:
    """Whether the payload of the next message of these lanes has at most `size` bytes."""
    for _, seq, _ in _heads(store, [(lane, 1) for lane in lanes], 1):
        (length,) = store.execute("SELECT length(payload) FROM message WHERE seq = ?", (seq,)).fetchone()
        return bool(length <= size)
    return False


def claim(store: Store, consumer: int, limit: int, at_most: AtMost) -> list[Delivery]:
    """Lease the next messages by rank, at most `limit`, or one suspect; perhaps none."""
    if consumer not in store.consumers:
        raise closed()
    store.waiting.clear()
    try:
        return _claim(store, consumer, limit, at_most)
    except TypeError:
        if not _bury_unranked(store):
            raise
        return _claim(store, consumer, limit, at_most)


def _claim(store: Store, consumer: int, limit: int, at_most: AtMost) -> list[Delivery]:
    suspects = store.directory.suspects_for(consumer, store.boot, store.boot_now) if at_most.alone else []
    if suspects and (counted := count_heads(store, [(lane, 1) for lane in suspects], 1)):
        found = _draw(store, consumer, list(counted.items()), ANYTHING)
        if found:
            _leave_trail(store, found[0])
            return found
    lanes = list(_lanes(store, consumer, limit, at_most))
    if len(lanes) <= 1 and not at_most.groups:
        return _draw(store, consumer, [(lane.id, cap) for lane, cap in lanes], at_most)
    heads = _heads_within(store, lanes, limit, at_most)
    counts = Counter(head[2] for head in heads)
    return _draw(store, consumer, list(counts.items()), at_most, heads)


def count_suspects(store: Store, consumer: int) -> int:
    """How many ready messages this consumer may get only alone."""
    lanes = store.directory.suspects_for(consumer, store.boot, store.boot_now)
    counted = (store.execute("SELECT count(*) FROM ready WHERE lane = ?", (lane.id,)).fetchone() for lane in lanes)
    return sum(count for (count,) in counted)


def _leave_trail(store: Store, delivery: Delivery) -> None:
    """Note which worker leases a suspect, in case the message is lost again."""
    seq, _ = split(delivery.token)
    (packed,) = store.execute("SELECT trail FROM message WHERE seq = ?", (seq,)).fetchone()
    known = to_trail(packed)
    trail = Trail(store.now if known is None else known.since, name_process(), store.now)
    store.execute("UPDATE message SET trail = ? WHERE seq = ?", (pack(trail), seq))


def _lanes(store: Store, consumer: int, limit: int, at_most: AtMost) -> Iterator[tuple[Lane, int]]:
    """The lanes that may be taken from, each with how many at most."""
    lanes: Iterable[Lane] = store.directory.lanes_for(consumer, store.boot, store.boot_now)
    if not at_most.groups and len(store.directory.lanes) > LANES_AT_ONCE:
        lanes = _first_lanes(store, consumer, limit, at_most)
    for lane in lanes:
        cap = at_most.of(lane.queue, lane.topic) if at_most.topics else None
        group = at_most.group(lane.queue, lane.topic) if at_most.groups else None
        cap = min(limit if cap is None else cap, limit if group is None else at_most.groups[group][1], limit)
        if cap > 0:
            yield lane, cap


def _first_lanes(store: Store, consumer: int, limit: int, at_most: AtMost) -> list[Lane]:
    """Those of many lanes in which the first `limit` messages are."""
    known = store.directory.lanes
    mine = store.directory.ids_for(consumer, store.boot, store.boot_now)

    def may_take(id_: int) -> bool:
        if id_ not in mine:
            return False
        cap = at_most.of(known[id_].queue, known[id_].topic) if at_most.topics else None
        return cap is None or cap > 0

    return [known[id_] for id_ in store.heads.first_lanes(may_take, limit)]


def _heads_within(store: Store, lanes: Sequence[tuple[Lane, int]], limit: int, at_most: AtMost) -> list[Head]:
    """The first `limit` messages of these lanes, if no group has more than it may."""
    if not at_most.groups:
        return _heads(store, lanes, limit)
    parts: dict[int | None, list[tuple[Lane, int]]] = {}
    for lane, cap in lanes:
        parts.setdefault(at_most.group(lane.queue, lane.topic), []).append((lane, cap))
    heads = [
        _heads(store, part, limit if group is None else min(limit, at_most.groups[group][1]))
        for group, part in parts.items()
    ]
    return list(islice(heapq.merge(*heads), limit))


def count_heads(store: Store, lanes: Sequence[tuple[Lane, int]], limit: int) -> dict[int, int]:
    """How many messages of each lane are among the first `limit` of all, at most the given number of each."""
    return Counter(lane for _, _, lane in _heads(store, lanes, limit))


def _heads(store: Store, lanes: Sequence[tuple[Lane, int]], limit: int) -> list[Head]:
    """The first `limit` messages of these lanes, with at most the given number of each lane."""
    if len(lanes) > LANES_AT_ONCE:
        mine = {lane.id for lane, _ in lanes}
        first = set(store.heads.first_lanes(mine.__contains__, limit))
        lanes = [entry for entry in lanes if entry[0].id in first]
    heads: list[list[Head]] = []
    for start in range(0, len(lanes), LANES_AT_ONCE):
        part = lanes[start : start + LANES_AT_ONCE]
        sql = " UNION ALL ".join([_BRANCH] * len(part)) + " ORDER BY rank, seq LIMIT ?"
        arguments = [value for lane, cap in part for value in (lane.id, cap)]
        heads.append(store.execute(sql, (*arguments, limit)).fetchall())
    return list(islice(heapq.merge(*heads), limit))


def _draw(
    store: Store,
    consumer: int,
    counts: Sequence[tuple[int, int]],
    at_most: AtMost,
    heads: Sequence[Head] | None = None,
) -> list[Delivery]:
    """Lease the first messages of these lanes, by rank, as far as their payloads are not too big. Bury the unreadable.

    `counts`: how many of each lane. `heads`: which messages these are, if that is known.
    """
    while True:
        try:
            rows = _read(store, counts, heads, at_most)
            deliveries = _to_deliveries(store, rows)
            break
        except Exception as error:
            if not is_unreadable(error) or not _bury_unreadable(store, counts):
                raise
            heads = None
    terms = (store.boot_now + store.lease_timeout, store.boot, consumer, store.now, name_process())
    lasts = {row[2]: row for row in rows}  # of each lane
    for rank, seq, lane, *_ in lasts.values():
        store.execute(_LEASE, (*terms, lane, rank, seq))
        store.execute(_TAKE, (lane, rank, seq))
    if not rows:  # a place without its message would look for ever as if there were something
        for lane, _ in counts:
            store.execute(_STRIKE_OUT, (lane,))
    store.heads.took_from(lasts or [lane for lane, _ in counts])
    return deliveries


def _read(
    store: Store, counts: Sequence[tuple[int, int]], heads: Sequence[Head] | None, at_most: AtMost
) -> list[tuple[Any, ...]]:
    """Read the rows of these messages, by rank, as far as their payloads are not too big."""
    rows: list[tuple[Any, ...]] = []
    left, longest = at_most.size, at_most.first
    with closing(_rows_of(store, counts, heads)) as found:
        for row in found:
            size = len(row[_PAYLOAD])
            if size > longest:
                break
            rows.append(row)
            left = longest = left - size
    return rows


def _rows_of(
    store: Store, counts: Sequence[tuple[int, int]], heads: Sequence[Head] | None
) -> Generator[tuple[Any, ...], None, None]:
    """The rows one by one. Many lanes are not read side by side: each statement would have to be compiled anew."""
    if heads is not None and len(counts) > _LANES_SIDE_BY_SIDE:
        for _, seq, _ in heads:
            yield from store.execute(_BY_SEQ, (seq,)).fetchall()
        return
    with ExitStack() as stack:
        cursors = [stack.enter_context(closing(store.execute(_HEADS, entry))) for entry in counts]
        yield from cursors[0] if len(cursors) == 1 else heapq.merge(*cursors)


def _bury_unreadable(store: Store, counts: Sequence[tuple[int, int]]) -> int:
    """Make dead letters of the messages that cannot be read among the first of these lanes; returns how many."""
    buried = 0
    for lane, count in counts:
        heads = store.execute("SELECT seq FROM ready WHERE lane = ? ORDER BY rank, seq LIMIT ?", (lane, count))
        for (seq,) in heads.fetchall():
            failure = read_or(lambda: _find_fault(store, lane, seq), to_unreadable)  # noqa: B023  called at once
            if failure is not None:
                _bury(store, lane, seq, failure)
                buried += 1
    return buried


def _bury_unranked(store: Store) -> int:
    """Make dead what is ready and has a rank that is no number; how many. Ranks of several lanes cannot be compared
    then.
    """
    found = store.execute("SELECT lane, seq FROM ready WHERE typeof(rank) NOT IN ('integer', 'real')").fetchall()
    for lane, seq in found:
        _bury(store, lane, seq, to_unreadable(TypeError("its rank is no number")))
    return len(found)


def _bury(store: Store, lane: int, seq: int, failure: Failure) -> None:
    """Make dead what is ready and cannot be read."""
    known = store.directory.lanes.get(lane)
    log.error("a message in %r (its seq is %d) is dead: %s", known and known.queue, seq, failure.text)
    store.execute("DELETE FROM ready WHERE lane = ? AND seq = ?", (lane, seq))
    store.heads.forget()
    store.end(seq, End("payload", failure, "failure"))


def _find_fault(store: Store, lane: int, seq: int) -> None:
    """Raise where the row of a message cannot be read."""
    row = store.execute(_ONE, (lane, seq)).fetchone()
    if row is not None:
        _to_deliveries(store, [row])


def _to_deliveries(store: Store, rows: Iterable[tuple[Any, ...]]) -> list[Delivery]:
    """The deliveries of rows of `_HEADS`. Raises whatever comes of a row that cannot be read."""
    now, lanes = store.now, store.directory.lanes
    deliveries = []
    of_lane: int | None = None
    for _, seq, lane, attempt, lost, leases, unrouted_at, expires_at, key, payload, content_type, packed, extra in rows:
        if type(attempt) is not int or type(lost) is not int:
            raise TypeError("its counts are no numbers")
        if lane != of_lane:
            of_lane = lane
            _, queue, topic, _ = lanes[lane]
            headers = lane_headers(topic)
        delivery = Delivery(
            compose(queue, headers, key, payload, content_type, packed, extra),
            attempt,
            lost,
            seq * LEASES_TOLD_APART + leases % LEASES_TOLD_APART,
            None if unrouted_at is None else max(0, now - unrouted_at) / MICRO,
            None if expires_at is None else (expires_at - now) / MICRO,
        )
        deliveries.append(delivery)
    return deliveries


def are_valid(store: Store, tokens: Sequence[int], packed: str) -> bool:
    """Whether every one of these different tokens is that of a lease; `packed` holds them as JSON."""
    count: int = store.execute(_VALID, (packed,)).fetchone()[0]
    return count == len(tokens)


def extend(store: Store, tokens: Sequence[int]) -> list[bool]:
    """Start each lease anew, also one that has ended but was not rescued. False: that lease is lost."""
    until = store.boot_now + store.lease_timeout
    packed = to_list(tokens)
    if len(set(tokens)) == len(tokens) and are_valid(store, tokens, packed):
        store.execute(_EXTEND_ALL, (until, store.boot, packed))
        return [True] * len(tokens)
    rows = [(until, store.boot, *split(token)) for token in tokens]
    return [store.execute(_EXTEND, row).rowcount > 0 for row in rows]


def rescue(store: Store) -> int:
    """Take back leases that have ended, of any consumer. Returns how many; if it is `RESCUED_AT_ONCE`, there may be
    more.

    Clear up what else the dead left behind.
    """
    ended = store.execute(
        "SELECT seq, n FROM lease WHERE boot <> ? OR until <= ? LIMIT ?",
        (store.boot, store.boot_now, RESCUED_AT_ONCE),
    ).fetchall()
    for seq, n in ended:
        _take_back(store, seq, n)
    overdue = store.directory.overdue(store.boot, store.boot_now)
    if overdue:
        store.directory.close(overdue)
    store.directory.remove_empty_lanes()
    purge(store.connection, store.now)
    return len(ended)


def _take_back(store: Store, seq: int, n: int) -> None:
    leased = take_lease(store, seq, n)
    if leased is None:  # a place without its message
        store.execute("DELETE FROM lease WHERE seq = ?", (seq,))
        return

    def poisoned(lost: int) -> Failure:
        trail = to_trail(leased.trail) or Trail(store.now)
        times = ((store.now - (moment or store.now)) / MICRO for moment in (trail.leased_at, trail.since))
        return poison_failure(lost, trail.worker, *times)

    shelve(store, leased, after_lost_lease(leased.stored, store.now, poisoned))


def report(store: Store, progress: Sequence[tuple[int, bytes | None]]) -> None:
    """Note that the runs under these tokens have begun, which ends their ttl, and how far they have come.

    Nothing happens where a lease is lost.
    """
    store.each(
        "UPDATE lease SET progress = coalesce(?, progress) WHERE seq = ? AND n = ?",
        [(packed, *split(token)) for token, packed in progress],
    )
    store.execute(_START_ALL, (to_list([token for token, _ in progress if 0 <= token < 2**63]),))


def cancellations(store: Store, consumer: int) -> list[int]:
    """The tokens of this consumer's leases whose messages were cancelled."""
    if consumer not in store.consumers:
        raise closed()
    found = store.execute("SELECT seq, n FROM lease WHERE cancelling = 1 AND consumer = ?", (consumer,))
    return [seq * LEASES_TOLD_APART + n for seq, n in found]
