"""Schedules in the same file: a tick moves its schedule and publishes its message in one transaction."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from ...envelope import Envelope
from ...errors import ConfigurationError
from ...ports import CLOCK_SLACK, Declaration, DueSchedules, Schedule, StoredSchedule, TickOutcome
from .clock import MICRO
from .publishing import publish_declaring
from .rows import Body, Key, to_id, to_key
from .store import Store
from .unreadable import fetch_all, read_or

log = logging.getLogger("repid.sqlite")

_REPLACE = """
INSERT OR REPLACE INTO schedule (name, body, next_at, every, paused, fired, skipped, last_id, declaration)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_ALL = "SELECT name, body, next_at, paused, fired, skipped, last_id, declaration FROM schedule"
_BY_NAME = f"{_ALL} ORDER BY name"
_OF_NAMES = f"{_ALL} WHERE name IN (SELECT value FROM json_each(?)) ORDER BY name"  # noqa: S608  of our own

DUE = f"{_ALL} WHERE paused = 0 AND next_at <= ? ORDER BY next_at LIMIT ?"
AHEAD = f"""{_ALL} WHERE paused = 0 AND every IS NOT NULL AND next_at - every > ? AND next_at > ?
ORDER BY next_at - every LIMIT ?"""
NEXT = "SELECT min(next_at) FROM schedule WHERE paused = 0 AND next_at > ?"
"""These three go by the indexes, and touch no more rows than they give."""

_encode = msgspec.msgpack.Encoder().encode
_decode_schedule = msgspec.msgpack.Decoder(Schedule).decode
_decode_declaration = msgspec.msgpack.Decoder(Declaration).decode


def encode_schedule(schedule: Schedule) -> bytes:
    """The schedule as it is stored. Raises `ConfigurationError` if it cannot be written."""
    try:
        return _encode(schedule)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"schedule {schedule.name!r} cannot be written to SQLite ({error})") from error


def replace(store: Store, old: StoredSchedule | None, new: StoredSchedule, body: bytes) -> bool:
    """Store `new` if `old` is what is there; whether it was."""
    name = new.schedule.name
    found = find(store, [name])
    if (found[0] if found else None) != old:
        return False
    last_id = None if new.last_id is None else to_key(new.last_id)
    declaration = None if new.declaration is None else _encode(new.declaration)
    fields = (float(new.next_at), new.schedule.every, new.paused, new.fired, new.skipped, last_id, declaration)
    store.execute(_REPLACE, (name, body, *fields))
    return True


def find(store: Store, names: Collection[str] | None) -> list[StoredSchedule]:
    """All of them, or those of these names; sorted by name."""
    if names is None:
        rows = fetch_all(store.connection, _BY_NAME)
    else:
        rows = fetch_all(store.connection, _OF_NAMES, (json.dumps(list(names), ensure_ascii=False),))
    return _read_all(store, rows)


def _read_all(store: Store, rows: Sequence[tuple[Any, ...]]) -> list[StoredSchedule]:
    found = [_read(store, *row) for row in rows]
    return [schedule for schedule in found if schedule is not None]


def _read(store: Store, name: str, *row: Any) -> StoredSchedule | None:
    """The schedule of a row; None, said once, where it cannot be read."""

    def report(error: Exception) -> None:
        if name not in store.reported:
            store.reported.add(name)
            log.error("the schedule %r cannot be read, so it does not tick (declare or remove it): %s", name, error)

    return read_or(lambda: _stored(*row), report)


def due(store: Store, limit: int) -> DueSchedules:
    """What is due, those whose interval is too far away last, and when the next one is."""
    now = store.now / MICRO
    found = _read_first(store, DUE, (now,), limit)
    found += _read_first(store, AHEAD, (now + CLOCK_SLACK, now), limit - len(found))
    [next_at] = store.execute(NEXT, (now,)).fetchone()
    next_at = next_at if isinstance(next_at, int | float) else math.inf
    return DueSchedules(found, next_at, now)


def _read_first(store: Store, sql: str, parameters: Sequence[float], limit: int) -> list[StoredSchedule]:
    """The first `limit` that can be read: those that cannot be read stay due, and must not keep the others from it."""
    asked = limit
    while asked:
        rows = fetch_all(store.connection, sql, (*parameters, asked))
        found = _read_all(store, rows)
        if len(found) >= limit or len(rows) < asked:
            return found[:limit]
        asked *= 2
    return []


def _stored(
    body: bytes, next_at: float, paused: int, fired: int, skipped: int, last_id: Key | None, declaration: bytes | None
) -> StoredSchedule:
    return StoredSchedule(
        schedule=_decode_schedule(body),
        next_at=float(next_at),
        paused=bool(paused),
        fired=int(fired),
        skipped=int(skipped),
        last_id=None if last_id is None else to_id(last_id),
        declaration=None if declaration is None else _decode_declaration(declaration),
    )


def remove(store: Store, name: str) -> bool:
    """Forget it; whether there was one of that name."""
    return store.execute("DELETE FROM schedule WHERE name = ?", (name,)).rowcount > 0


def tick(
    store: Store, name: str, expected_next: float, next_at: float, envelopes: Sequence[Envelope], bodies: Sequence[Body]
) -> TickOutcome:
    """Move the schedule, if it is still to tick at `expected_next`, and publish the one envelope, if it is given."""
    row = store.execute("SELECT body, next_at, paused, last_id FROM schedule WHERE name = ?", (name,)).fetchone()
    if row is None or row[2] or row[1] != expected_next:
        return "lost"
    body, _, _, last_id = row
    schedule = read_or(lambda: _decode_schedule(body), lambda _: None)
    if schedule is None:
        return "lost"
    fires = bool(envelopes) and not (schedule.overlap == "skip" and _is_live(store, last_id))
    if fires:
        store.waiting.clear()  # ticks are not counted
        fires = publish_declaring(store, envelopes, bodies) == [None]
    if fires:
        sql = "UPDATE schedule SET next_at = ?, fired = fired + 1, last_id = ? WHERE name = ?"
        store.execute(sql, (float(next_at), bodies[0][0], name))
        return "fired"
    store.execute("UPDATE schedule SET next_at = ?, skipped = skipped + 1 WHERE name = ?", (float(next_at), name))
    return "skipped"


def _is_live(store: Store, key: Key | None) -> bool:
    return key is not None and store.execute("SELECT 1 FROM message WHERE id = ?", (key,)).fetchone() is not None
