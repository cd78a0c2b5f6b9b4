"""Messages out: leasing what is ready, by rank over all lanes of a consumer; and the leases themselves.

Of each lane a claim takes the first ones, so it is a range of `ready` that moves: one statement for each lane reads it
and two move it, however many messages it has.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import msgspec

from ...delivery import Delivery
from ...errors import UsageError
from .clock import MICRO
from .directory import Lane
from .results import conclude, purge
from .rows import BODY, to_envelope
from .store import LEASES_TOLD_APART, MOST_LOST, Store

Limits = Mapping[tuple[str, str], int]

_HEADS = f"""
SELECT ready.rank, ready.seq, attempt, lost, leases, unrouted_at, expires_at, {BODY}
FROM ready JOIN message ON message.seq = ready.seq WHERE ready.lane = ? ORDER BY ready.rank, ready.seq LIMIT ?
"""  # noqa: S608
_LEASE = f"""
INSERT INTO lease (seq, n, lane, until, boot, consumer)
SELECT ready.seq, message.leases % {LEASES_TOLD_APART}, ready.lane, ?, ?, ?
FROM ready JOIN message ON message.seq = ready.seq WHERE ready.lane = ? AND (ready.rank, ready.seq) <= (?, ?)
"""  # noqa: S608
_TAKE = "DELETE FROM ready WHERE lane = ? AND (rank, seq) <= (?, ?)"
_BRANCH = "SELECT * FROM (SELECT rank, seq, lane FROM ready WHERE lane = ? ORDER BY rank, seq LIMIT ?)"
_LANES_AT_ONCE = 100
"""SQLite takes at most 500 branches in one statement."""

_SPLIT = f"(SELECT value / {LEASES_TOLD_APART} AS seq, value % {LEASES_TOLD_APART} AS n FROM json_each(?))"  # noqa: S608
_VALID = f"SELECT count(*) FROM {_SPLIT} AS token JOIN lease ON lease.seq = token.seq AND lease.n = token.n"  # noqa: S608
_EXTEND = "UPDATE lease SET until = ?, boot = ? WHERE seq = ? AND n = ?"
_EXTEND_ALL = f"UPDATE lease SET until = ?, boot = ? WHERE seq IN (SELECT seq FROM {_SPLIT})"  # noqa: S608


def closed() -> UsageError:
    """Somebody receives with a consumer whose block was left."""
    return UsageError("this consumer is closed: receive inside its `async with server.consume(...)` block")


def has_any(store: Store, consumer: int, limits: Limits) -> bool:
    """Whether there is something that this consumer may take, or the consumer is closed and has to be told."""
    return consumer not in store.consumers or any(
        store.execute("SELECT 1 FROM ready WHERE lane = ? LIMIT 1", (lane.id,)).fetchone() is not None
        for lane, _ in _lanes(store, consumer, 1, limits)
    )


def claim(store: Store, consumer: int, limit: int, limits: Limits) -> list[Delivery]:
    """Lease the next messages by rank, at most `limit`; perhaps none."""
    if consumer not in store.consumers:
        raise closed()
    lanes = list(_lanes(store, consumer, limit, limits))
    if len(lanes) > 1:
        counts = count_heads(store, lanes, limit)
        lanes = [(lane, counts[lane.id]) for lane, _ in lanes if lane.id in counts]
    taken: list[tuple[int, int, Delivery]] = []
    for lane, count in lanes:
        taken += _claim_lane(store, consumer, lane, count)
    if len(lanes) > 1:
        taken.sort(key=lambda entry: entry[:2])
    return [delivery for _, _, delivery in taken]


def _lanes(store: Store, consumer: int, limit: int, limits: Limits) -> Iterator[tuple[Lane, int]]:
    """The lanes that may be taken from, each with how many at most."""
    for lane in store.directory.lanes_for(consumer, store.boot, store.boot_now):
        cap = limits.get((lane.queue, lane.topic), limit) if limits and lane.topic is not None else limit
        if cap > 0:
            yield lane, min(cap, limit)


def count_heads(store: Store, lanes: Sequence[tuple[Lane, int]], limit: int) -> dict[int, int]:
    """How many of each lane are among the first `limit` of all of them, if at most so many of each are."""
    if len(lanes) > _LANES_AT_ONCE:
        used = store.directory.used_lanes()
        lanes = [entry for entry in lanes if entry[0].id in used]
    heads: list[list[tuple[int, int, int]]] = []
    for start in range(0, len(lanes), _LANES_AT_ONCE):
        part = lanes[start : start + _LANES_AT_ONCE]
        sql = " UNION ALL ".join([_BRANCH] * len(part)) + " ORDER BY rank, seq LIMIT ?"
        arguments = [value for lane, cap in part for value in (lane.id, cap)]
        heads.append(store.execute(sql, (*arguments, limit)).fetchall())
    counts: dict[int, int] = {}
    for _, _, lane_id in islice(heapq.merge(*heads), limit):
        counts[lane_id] = counts.get(lane_id, 0) + 1
    return counts


def _claim_lane(store: Store, consumer: int, lane: Lane, count: int) -> list[tuple[int, int, Delivery]]:
    rows = store.execute(_HEADS, (lane.id, count)).fetchall()
    if not rows:
        return []
    last = (lane.id, rows[-1][0], rows[-1][1])
    until = store.boot_now + store.lease_timeout
    store.execute(_LEASE, (until, store.boot, consumer, *last))
    store.execute(_TAKE, last)
    now, queue, topic = store.now, lane.queue, lane.topic
    taken = []
    for rank, seq, attempt, lost, leases, unrouted_at, expires_at, *body in rows:
        token = seq * LEASES_TOLD_APART + leases % LEASES_TOLD_APART
        delivery = Delivery(
            to_envelope(queue, topic, body),
            attempt,
            lost,
            token,
            None if unrouted_at is None else max(0, now - unrouted_at) / MICRO,
            None if expires_at is None else (expires_at - now) / MICRO,
        )
        taken.append((rank, seq, delivery))
    return taken


def are_valid(store: Store, tokens: Sequence[int], packed: str) -> bool:
    """Whether every one of these different tokens is that of a lease; `packed` holds them as JSON."""
    count: int = store.execute(_VALID, (packed,)).fetchone()[0]
    return count == len(tokens)


def extend(store: Store, tokens: Sequence[int]) -> list[bool]:
    """Start the lease of each anew, also of one that has ended but was not rescued; False where it is lost."""
    until = store.boot_now + store.lease_timeout
    packed = pack_tokens(tokens)
    if len(set(tokens)) == len(tokens) and are_valid(store, tokens, packed):
        store.execute(_EXTEND_ALL, (until, store.boot, packed))
        return [True] * len(tokens)
    rows = [(until, store.boot, *split(token)) for token in tokens]
    return [store.execute(_EXTEND, row).rowcount > 0 for row in rows]


def split(token: int) -> tuple[int, int]:
    """Seq and n of a token; those of no lease for a number that is no token of ours."""
    return divmod(token, LEASES_TOLD_APART) if 0 <= token < 2**63 else (-1, -1)


def pack_tokens(tokens: Sequence[int]) -> str:
    """The tokens as JSON, for SQLite's json_each."""
    return msgspec.json.encode(tokens).decode()


def rescue(store: Store) -> int:
    """Take back every lease that has ended, whoever holds it; how many. Clear up what else the dead left behind."""
    ended = store.execute(
        "SELECT seq, lane, cancelling FROM lease WHERE boot <> ? OR until <= ?", (store.boot, store.boot_now)
    ).fetchall()
    for seq, lane, cancelling in ended:
        end_lease(store, seq)
        if cancelling:
            conclude(store.connection, store.now, seq, "cancelled")
            store.remove(seq)
        else:
            _take_back(store, seq, lane)
    overdue = store.directory.overdue(store.boot, store.boot_now)
    if overdue:
        store.directory.close(overdue)
    store.directory.remove_empty_lanes()
    purge(store.connection, store.now)
    return len(ended)


def _take_back(store: Store, seq: int, lane: int) -> None:
    row = store.execute("SELECT lost + 1, rank, expires_at FROM message WHERE seq = ?", (seq,)).fetchone()
    lost, rank, expires_at = row
    store.execute("UPDATE message SET lost = ? WHERE seq = ?", (lost, seq))
    if lost >= MOST_LOST:
        store.give_up(seq, "poison")
    elif expires_at is not None and expires_at <= store.now:
        store.give_up(seq, "expired")
    else:
        store.make_ready(seq, lane, rank)
        if expires_at is not None:
            store.next_event = min(store.next_event, expires_at)


def end_lease(store: Store, seq: int) -> None:
    """Forget the lease of a message that lives on, or dies; its token is never valid again."""
    store.execute(
        "UPDATE message SET leases = leases + 1, progress = (SELECT progress FROM lease WHERE lease.seq = message.seq)"
        " WHERE seq = ?",
        (seq,),
    )
    store.execute("DELETE FROM lease WHERE seq = ?", (seq,))


def report(store: Store, progress: Sequence[tuple[int, bytes]]) -> None:
    """Note how far the runs under these tokens have come; where a lease is lost nothing happens."""
    store.each(
        "UPDATE lease SET progress = ? WHERE seq = ? AND n = ?",
        [(packed, *split(token)) for token, packed in progress],
    )


def has_cancellations(store: Store, consumer: int) -> bool:
    """Whether somebody cancels what this consumer has leased, or the consumer is closed and has to be told."""
    if consumer not in store.consumers:
        return True
    sql = "SELECT 1 FROM lease WHERE cancelling = 1 AND consumer = ? LIMIT 1"
    return store.execute(sql, (consumer,)).fetchone() is not None


def cancellations(store: Store, consumer: int) -> list[int]:
    """The tokens of this consumer's leases that somebody cancels, each once."""
    if consumer not in store.consumers:
        raise closed()
    found = store.execute("SELECT seq, n FROM lease WHERE cancelling = 1 AND consumer = ?", (consumer,)).fetchall()
    if found:
        store.execute("UPDATE lease SET cancelling = 2 WHERE cancelling = 1 AND consumer = ?", (consumer,))
    return [seq * LEASES_TOLD_APART + n for seq, n in found]
