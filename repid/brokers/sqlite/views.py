"""Looking at what is in the file, and removing it by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from ...delivery import StoredResult
from ...delivery.shelf import CANCELLED
from ...ports import BrowsedMessage, Cancelled, Category, Counts, Snapshot
from ..shared.keys import Place, to_place
from ..shared.packing import to_failure, to_progress
from . import results
from .claiming import LANES_AT_ONCE
from .clock import MICRO
from .directory import Channel
from .rows import BODY, Key, to_key
from .store import BITE, Store
from .unreadable import fetch_all, show_envelope

_LIVE = f"message.seq, message.lane, enqueued_at, attempt, lost, failure, {BODY}"
_LEASE = f"lease.since, lease.worker, {_LIVE}"
_READY = f"SELECT rank, {_LIVE} FROM message WHERE seq = ?"  # noqa: S608
_READY_AFTER = """
SELECT * FROM (SELECT rank, seq FROM ready WHERE lane = ? AND (rank, seq) > (?, ?) ORDER BY rank, seq LIMIT ?)
"""
_SCHEDULED = f"""
SELECT scheduled.due, {_LIVE} FROM scheduled JOIN message ON message.seq = scheduled.seq
WHERE (scheduled.due, scheduled.seq) > (?, ?) AND scheduled.lane IN (SELECT id FROM lane WHERE queue = ?)
ORDER BY scheduled.due, scheduled.seq LIMIT ?
"""  # noqa: S608
_LEASED = f"""
SELECT CASE boot WHEN ? THEN until ELSE 0 END AS ending, {_LEASE} FROM lease JOIN message ON message.seq = lease.seq
WHERE (ending, lease.seq) > (?, ?) AND lease.lane IN (SELECT id FROM lane WHERE queue = ?)
ORDER BY ending, lease.seq LIMIT ?
"""  # noqa: S608
_DEAD = f"""
SELECT key, lane, enqueued_at, died_at, reason, attempt, lost, failure, {BODY} FROM dead
WHERE queue = ? AND key > ? ORDER BY key LIMIT ?
"""  # noqa: S608
_FIND_DEAD = f"""
SELECT (SELECT name FROM queue WHERE queue.id = found.queue), key, lane, enqueued_at, died_at, reason, attempt, lost,
    failure, {BODY}
FROM dead AS found WHERE id = ? ORDER BY key
"""  # noqa: S608
_FIND_LIVE = f"""
SELECT lease.seq IS NOT NULL, CASE lease.boot WHEN ? THEN lease.until ELSE 0 END, scheduled.due, message.rank, {_LEASE}
FROM message LEFT JOIN lease ON lease.seq = message.seq
LEFT JOIN scheduled ON scheduled.due = message.due AND scheduled.seq = message.seq WHERE message.id = ?
"""  # noqa: S608
_PLACE = """
SELECT message.attempt, message.progress, lease.seq IS NOT NULL, lease.progress, lease.cancelling,
    EXISTS (SELECT 1 FROM scheduled WHERE scheduled.due = message.due AND scheduled.seq = message.seq)
FROM message LEFT JOIN lease ON lease.seq = message.seq WHERE message.id = ?
"""

_BEFORE_ALL: Place = (-(2**63), -(2**63))
_LANES = "(SELECT id FROM lane WHERE queue = ?)"


def counts(store: Store, name: str) -> Counts:
    """How many messages of the queue are where."""
    channel = store.directory.channel(name)
    ready, scheduled, leased = (
        store.execute(f"SELECT count(*) FROM {table} WHERE lane IN {_LANES}", (channel.id,)).fetchone()[0]  # noqa: S608
        for table in ("ready", "scheduled", "lease")
    )
    dead = store.execute("SELECT count(*) FROM dead WHERE queue = ?", (channel.id,)).fetchone()[0]
    dropped = store.execute("SELECT dropped FROM queue WHERE id = ?", (channel.id,)).fetchone()[0]
    return Counts(ready, scheduled, leased, dead, channel.paused, channel.bounds, dropped)


# Browsing


def browse(store: Store, name: str, category: Category, limit: int, after: str | None) -> list[BrowsedMessage]:
    """The first `limit` messages of the queue in that place, behind the one with the key `after`.

    They come by rank, by due time, by end of lease, or by age of death. The key of a live message holds its place in
    this order, so a message that has left meanwhile still tells where to go on.
    """
    channel = store.directory.channel(name)
    limit = int(min(max(limit, 0), 2**31))
    start = _BEFORE_ALL if after is None else to_place(after)
    if start is None:
        return []
    if category == "ready":
        return list(_browse_ready(store, channel, start, limit))
    if category == "scheduled":
        rows = fetch_all(store.connection, _SCHEDULED, (*start, channel.id, limit))
        return [_show(store, channel.name, category, row, due=row[0]) for row in rows]
    if category == "leased":
        rows = fetch_all(store.connection, _LEASED, (store.boot, *start, channel.id, limit))
        return [_show_leased(store, channel.name, row) for row in rows]
    rows = fetch_all(store.connection, _DEAD, (channel.id, start[1], limit))
    return [_show_dead(store, channel.name, row) for row in rows]


def find(store: Store, id_: str) -> list[BrowsedMessage]:
    """The messages with this id: the live one, then dead ones."""
    key = to_key(id_)
    found = [_show_live(store, row) for row in fetch_all(store.connection, _FIND_LIVE, (store.boot, key))]
    return found + [_show_dead(store, name, row) for name, *row in fetch_all(store.connection, _FIND_DEAD, (key,))]


def _show_live(store: Store, row: Sequence[Any]) -> BrowsedMessage:
    is_leased, until, due, rank, since, worker, *shown = row
    lane = store.directory.lanes.get(shown[1])
    queue = "" if lane is None else lane.queue  # only a damaged row has no lane
    if is_leased:
        return _show_leased(store, queue, (until, since, worker, *shown))
    if due is not None:
        return _show(store, queue, "scheduled", (due, *shown), due=due)
    return _show(store, queue, "ready", (rank, *shown))


def _browse_ready(store: Store, channel: Channel, start: Place, limit: int) -> Iterator[BrowsedMessage]:
    lanes = [lane.id for lane in channel.all_lanes()]
    heads: list[Place] = []
    for begin in range(0, len(lanes), LANES_AT_ONCE):
        part = lanes[begin : begin + LANES_AT_ONCE]
        sql = " UNION ALL ".join([_READY_AFTER] * len(part)) + " ORDER BY rank, seq LIMIT ?"
        arguments = [value for lane in part for value in (lane, *start, limit)]
        heads = sorted([*heads, *store.execute(sql, (*arguments, limit)).fetchall()], key=_in_order)[:limit]
    for _, seq in heads:
        for row in fetch_all(store.connection, _READY, (seq,)):
            yield _show(store, channel.name, "ready", row)


def _in_order(place: Place) -> tuple[bool, Place]:
    """As SQLite has it: behind all numbers comes what is no number, which is in no order here."""
    rank, seq = place
    return (False, place) if isinstance(rank, int | float) else (True, (0, seq))


def _to_time(moment: object) -> float | None:
    """A time of the file in seconds since 1970; None if there is none, or the row is damaged."""
    return moment / MICRO if isinstance(moment, int | float) else None


def _show_leased(store: Store, queue: str, row: Sequence[Any]) -> BrowsedMessage:
    until, since, worker, *shown = row
    due = store.now + until - store.boot_now if isinstance(until, int | float) else None
    live = _show(store, queue, "leased", (until, *shown), due=due)
    return replace(live, leased_at=_to_time(since), leased_by=worker if isinstance(worker, str) else None)


def _show(store: Store, queue: str, category: Category, row: Sequence[Any], *, due: object = None) -> BrowsedMessage:
    place, seq, lane, enqueued_at, attempt, lost, failure, *body = row
    envelope, unreadable = show_envelope(queue, _topic(store, lane), body)
    return BrowsedMessage(
        envelope=envelope,
        category=category,
        key=f"{seq}@{place}",
        attempt=attempt,
        lost=lost,
        seen_at=store.now / MICRO,
        enqueued_at=_to_time(enqueued_at),
        due_at=_to_time(due),
        failure=to_failure(failure) or unreadable,
    )


def _topic(store: Store, lane: int) -> str | None:
    found = store.directory.lanes.get(lane)
    return None if found is None else found.topic


def _show_dead(store: Store, queue: str, row: Sequence[Any]) -> BrowsedMessage:
    key, lane, enqueued_at, died_at, reason, attempt, lost, failure, *body = row
    envelope, unreadable = show_envelope(queue, _topic(store, lane), body)
    return BrowsedMessage(
        envelope=envelope,
        category="dead",
        key=str(key),
        attempt=attempt,
        lost=lost,
        seen_at=store.now / MICRO,
        enqueued_at=_to_time(enqueued_at),
        died_at=_to_time(died_at),
        reason=reason,
        failure=to_failure(failure) or unreadable,
    )


# Watching


def watch(store: Store, id_: str, result_id: str) -> Snapshot:
    """The state of the message; of several dead ones it is the last one's."""
    key = to_key(id_)
    result = results.fetch_one(store.connection, store.now, to_key(result_id))
    row = store.execute(_PLACE, (key,)).fetchone()
    if row is None:
        return _watch_dead(store, key, result)
    attempt, progress, leased, present, cancelling, scheduled = row
    return Snapshot(
        state="leased" if leased else "scheduled" if scheduled else "ready",
        attempt=attempt,
        progress=to_progress(present if leased else progress),
        cancelling=bool(cancelling),
        result=result,
    )


def _watch_dead(store: Store, key: Key, result: StoredResult | None) -> Snapshot:
    sql = "SELECT attempt, progress FROM dead WHERE id = ? ORDER BY key DESC LIMIT 1"
    row = store.execute(sql, (key,)).fetchone()
    if row is None:
        return Snapshot(state="gone", result=result)
    return Snapshot(state="dead", attempt=row[0], progress=to_progress(row[1]), result=result)


# Removing


def cancel(store: Store, id_: str) -> Cancelled:
    """Remove the live message with this id, or ask its worker to cancel the run."""
    row = store.execute("SELECT seq FROM message WHERE id = ?", (to_key(id_),)).fetchone()
    if row is None:
        return "unknown"
    (seq,) = row
    found = store.execute("UPDATE lease SET cancelling = max(cancelling, 1) WHERE seq = ?", (seq,))
    if found.rowcount:
        store.has_requests = True
        return "requested"
    store.take_out(seq)
    store.end(seq, CANCELLED)
    return "cancelled"


def waiting(store: Store, name: str, before: int) -> list[int]:
    """Some of the queue's messages that are ready or scheduled and older than the number `before`; none if all have
    gone.
    """
    channel = store.directory.channel(name)
    for table in ("ready", "scheduled"):
        sql = f"SELECT seq FROM {table} WHERE lane IN {_LANES} AND seq < ? LIMIT ?"  # noqa: S608
        found = [seq for (seq,) in store.execute(sql, (channel.id, before, BITE)).fetchall()]
        if found:
            return found
    return []


def next_number(store: Store, name: str) -> int:
    """A number that none of the queue's messages has reached yet."""
    store.directory.channel(name)
    (number,) = store.execute("SELECT next_seq FROM meta").fetchone()
    return int(number)


def dead_keys(store: Store, name: str, *, all_of_them: bool) -> list[int]:
    """The keys of the queue's dead messages, the first that died first, or of none. Raises `QueueNotDeclared`."""
    channel = store.directory.channel(name)
    if not all_of_them:
        return []
    return [key for (key,) in store.execute("SELECT key FROM dead WHERE queue = ? ORDER BY key", (channel.id,))]


def _flush(store: Store, name: str) -> int:
    """Remove what is ready or scheduled; returns how many."""
    channel = store.directory.channel(name)
    store.heads.forget()
    removed = 0
    for table in ("ready", "scheduled"):
        mine = f"FROM {table} WHERE lane IN {_LANES}"
        removed += store.execute(f"DELETE FROM message WHERE seq IN (SELECT seq {mine})", (channel.id,)).rowcount  # noqa: S608
        store.execute(f"DELETE {mine}", (channel.id,))
    return removed


def last_dead(store: Store, name: str) -> int:
    """The key of the queue's last dead message; 0 if it has none."""
    channel = store.directory.channel(name)
    (key,) = store.execute("SELECT coalesce(max(key), 0) FROM dead WHERE queue = ?", (channel.id,)).fetchone()
    return int(key)


def delete_first_dead(store: Store, name: str, last: int) -> int:
    """Remove the first dead messages of the queue, up to the key `last`; returns how many."""
    channel = store.directory.channel(name)
    chosen = "SELECT key FROM dead WHERE queue = ? AND key <= ? ORDER BY key LIMIT ?"
    return store.execute(f"DELETE FROM dead WHERE key IN ({chosen})", (channel.id, last, BITE)).rowcount  # noqa: S608


def has_old_dead(store: Store, ttl: int) -> bool:
    """Whether there are messages that have been dead for `ttl`."""
    sql = "SELECT 1 FROM dead WHERE died_at <= ? LIMIT 1"
    return store.execute(sql, (store.now - ttl,)).fetchone() is not None


def delete_old_dead(store: Store, ttl: int) -> int:
    """Remove the first messages that have been dead for `ttl`, in any queue; returns how many."""
    chosen = "SELECT key FROM dead WHERE died_at <= ? ORDER BY died_at LIMIT ?"
    return store.execute(f"DELETE FROM dead WHERE key IN ({chosen})", (store.now - ttl, BITE)).rowcount  # noqa: S608


def delete_dead(store: Store, name: str, keys: Sequence[int]) -> int:
    """Remove the dead messages of the queue with these keys; returns how many."""
    channel = store.directory.channel(name)
    sql = "DELETE FROM dead WHERE queue = ? AND key IN (SELECT value FROM json_each(?))"
    return store.execute(sql, (channel.id, json.dumps(keys))).rowcount


def delete(store: Store, name: str) -> None:
    """Remove the queue with everything in it. Nothing happens if there is no such queue."""
    channel = store.directory.channels.get(name)
    if channel is None:
        return
    _flush(store, name)
    store.execute(f"DELETE FROM message WHERE seq IN (SELECT seq FROM lease WHERE lane IN {_LANES})", (channel.id,))  # noqa: S608
    store.execute(f"DELETE FROM lease WHERE lane IN {_LANES}", (channel.id,))  # noqa: S608
    store.execute("DELETE FROM dead WHERE queue = ?", (channel.id,))
    store.directory.remove(channel)
