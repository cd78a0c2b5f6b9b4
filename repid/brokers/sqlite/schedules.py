"""Schedules in the same file: a tick moves its schedule and publishes its message in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...envelope import Envelope
from ...ports import Schedule, StoredSchedule, TickOutcome
from .publishing import publish_declaring
from .rows import Body, Key, to_id
from .store import Store

_PUT = """
INSERT INTO schedule (name, body, next_at) VALUES (?, ?, ?)
ON CONFLICT (name) DO UPDATE SET body = excluded.body, next_at = excluded.next_at
"""

encode_schedule = msgspec.msgpack.Encoder().encode
_decode_schedule = msgspec.msgpack.Decoder(Schedule).decode


def put(store: Store, name: str, body: bytes, next_at: float) -> None:
    """Store a schedule, in place of one of the same name, whose counts and pause it keeps."""
    store.execute(_PUT, (name, body, float(next_at)))


def all_of(store: Store) -> list[StoredSchedule]:
    """All of them, by name."""
    rows = store.execute("SELECT body, next_at, paused, fired, skipped, last_id FROM schedule ORDER BY name").fetchall()
    return [
        StoredSchedule(
            schedule=_decode_schedule(body),
            next_at=next_at,
            paused=bool(paused),
            fired=fired,
            skipped=skipped,
            last_id=None if last_id is None else to_id(last_id),
        )
        for body, next_at, paused, fired, skipped, last_id in rows
    ]


def pause(store: Store, name: str, *, paused: bool) -> bool:
    """Hold its ticks or let them go on; whether there is one of that name."""
    return store.execute("UPDATE schedule SET paused = ? WHERE name = ?", (paused, name)).rowcount > 0


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
    fires = bool(envelopes) and not (_decode_schedule(body).overlap == "skip" and _is_live(store, last_id))
    if fires:
        fires = publish_declaring(store, envelopes, bodies) == [None]
    if fires:
        sql = "UPDATE schedule SET next_at = ?, fired = fired + 1, last_id = ? WHERE name = ?"
        store.execute(sql, (float(next_at), bodies[0][0], name))
        return "fired"
    store.execute("UPDATE schedule SET next_at = ?, skipped = skipped + 1 WHERE name = ?", (float(next_at), name))
    return "skipped"


def _is_live(store: Store, key: Key | None) -> bool:
    return key is not None and store.execute("SELECT 1 FROM message WHERE id = ?", (key,)).fetchone() is not None
