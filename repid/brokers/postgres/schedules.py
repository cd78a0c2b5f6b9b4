"""Schedules in the same database: a tick moves its schedule and publishes its message in one transaction."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from ...errors import ConfigurationError
from ...ports import (
    CLOCK_SLACK,
    Declaration,
    DueSchedules,
    Schedule,
    ScheduleChange,
    StoredSchedule,
    TickOutcome,
    is_due_soon,
)
from .binding import Statement, Step, statement
from .directory import Directory
from .pool import Pool, transaction
from .publishing import Sending, publish_in
from .rows import MICRO, check_name, to_id, to_key
from .wire import Rows

log = logging.getLogger("repid.postgres")

_COLUMNS = "name, body, next_at, paused, fired, skipped, last_id, declaration"
_ALL = statement(f"SELECT {_COLUMNS} FROM {{s}}.schedule ORDER BY name")
_OF_NAMES = statement(f"SELECT {_COLUMNS} FROM {{s}}.schedule WHERE name = ANY($1) ORDER BY name", "text[]")
_HOLD = statement(f"SELECT {_COLUMNS} FROM {{s}}.schedule WHERE name = ANY($1) ORDER BY name FOR UPDATE", "text[]")
_NOW = Step(statement("SELECT {s}.clock()"))
_DUE = statement(
    f"SELECT {_COLUMNS} FROM {{s}}.schedule WHERE NOT paused AND next_at <= {{s}}.clock() / 1e6::float8 "
    "ORDER BY next_at LIMIT $1",
    "int8",
)
_AHEAD = statement(
    f"""
    SELECT {_COLUMNS} FROM {{s}}.schedule WHERE NOT paused AND every IS NOT NULL
    AND next_at > {{s}}.clock() / 1e6::float8
    AND next_at - every > {{s}}.clock() / 1e6::float8 + $2 ORDER BY next_at - every LIMIT $1
    """,
    "int8",
    "float8",
)
_NEXT = statement("SELECT min(next_at) FROM {s}.schedule WHERE NOT paused AND next_at > {s}.clock() / 1e6::float8")
_LOOK = statement(
    """
    SELECT {s}.clock(), (SELECT min(next_at) FROM {s}.schedule WHERE NOT paused), EXISTS (
        SELECT FROM {s}.schedule WHERE NOT paused AND every IS NOT NULL AND next_at > {s}.clock() / 1e6::float8
        AND next_at - every > {s}.clock() / 1e6::float8 + $1
    )
    """,
    "float8",
)
_COLUMNS_AND_EVERY = f"{_COLUMNS}, every"


def _storing(on_conflict: str) -> Statement:
    return statement(
        f"""
        INSERT INTO {{s}}.schedule ({_COLUMNS_AND_EVERY})
        SELECT name, body, next_at, paused <> 0, fired, skipped, last_id, declaration, every
        FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9) AS t ({_COLUMNS_AND_EVERY}) ORDER BY name
        ON CONFLICT (name) {on_conflict} RETURNING name
        """,
        "text[]",
        "bytea[]",
        "float8[]",
        "int8[]",
        "int8[]",
        "int8[]",
        "bytea[]",
        "bytea[]",
        "float8[]",
    )


_INSERT = _storing("DO NOTHING")
_UPDATE = _storing(
    "DO UPDATE SET body = excluded.body, next_at = excluded.next_at, paused = excluded.paused, fired = excluded.fired,"
    " skipped = excluded.skipped, last_id = excluded.last_id, declaration = excluded.declaration, "
    "every = excluded.every"
)
"""For schedules that are there and held."""

_REMOVE = statement("DELETE FROM {s}.schedule WHERE name = $1 RETURNING 1", "text")
_IS_LIVE = statement("SELECT 1 FROM {s}.message WHERE id = $1", "bytea")
_FIRED = statement(
    "UPDATE {s}.schedule SET next_at = $2, fired = fired + 1, last_id = $3 WHERE name = $1", "text", "float8", "bytea"
)
_SKIPPED = statement("UPDATE {s}.schedule SET next_at = $2, skipped = skipped + 1 WHERE name = $1", "text", "float8")

_encode = msgspec.msgpack.Encoder().encode
_decode_schedule = msgspec.msgpack.Decoder(Schedule).decode
_decode_declaration = msgspec.msgpack.Decoder(Declaration).decode


async def now(pool: Pool) -> float:
    """The server's clock: seconds since 1970."""
    [[(moment,)]] = await pool.run([_NOW])
    return float(moment / MICRO)


async def find(pool: Pool, names: Collection[str] | None) -> list[StoredSchedule]:
    """All of them, or those of these names; sorted by name."""
    if names is None:
        return _read_all(await pool.ask(_ALL))
    return _read_all(await pool.ask(_OF_NAMES, [name for name in names if "\0" not in name]))


async def due(pool: Pool, limit: int, first: Sequence[Step]) -> DueSchedules:
    """What is due, those whose interval is too far away last, and when the next one is. `first` is done before the
    look, in a transaction of its own.
    """
    *_, [(moment, next_at, is_any_ahead)] = await pool.run(first, [Step(_LOOK, (CLOCK_SLACK,))])
    if not is_any_ahead and (next_at is None or next_at > moment / MICRO):
        return DueSchedules([], math.inf if next_at is None else next_at, moment / MICRO)
    ready, ahead, [(next_at,)], [(moment,)] = await pool.run(
        [Step(_DUE, (limit,)), Step(_AHEAD, (limit, CLOCK_SLACK)), Step(_NEXT), _NOW]
    )
    found = _read_all(ready) + _read_all(ahead)
    return DueSchedules(found[:limit], math.inf if next_at is None else next_at, moment / MICRO)


async def replace(pool: Pool, changes: Sequence[ScheduleChange]) -> tuple[list[bool], bool]:
    """Store each new one if the old one is what is there. Returns for each whether it was, and whether others must be
    told of any.
    """
    rows = {new.schedule.name: _to_row(new) for _, new in changes}
    async with transaction(pool) as wire:
        held, [(moment,)] = await wire.run([Step(_HOLD, (list(rows),)), _NOW])
        there = {stored.schedule.name: stored for stored in _read_all(held)}
        names = {name for name, *_ in held}  # also of those that cannot be read
        wanted = [new.schedule.name for old, new in changes if there.get(new.schedule.name) == old]
        steps = [
            Step(insert, tuple(zip(*(rows[name] for name in some), strict=True)))
            for insert, some in (
                (_UPDATE, [name for name in wanted if name in names]),
                (_INSERT, [name for name in wanted if name not in names]),
            )
            if some
        ]
        stored = {name for answer in await wire.run(steps) for (name,) in answer}
    is_news = any(new.schedule.name in stored and is_due_soon(new, moment / MICRO) for _, new in changes)
    return [new.schedule.name in stored for _, new in changes], is_news


async def remove(pool: Pool, name: str) -> bool:
    """Forget it; whether there was one of that name."""
    return "\0" not in name and bool(await pool.ask(_REMOVE, name))


async def tick(
    pool: Pool, directory: Directory, name: str, expected_next: float, next_at: float, sending: Sending | None
) -> TickOutcome:
    """Move the schedule, if it is still to tick at `expected_next`, and publish the one envelope, if it is given."""
    if "\0" in name:
        return "lost"
    async with transaction(pool) as wire:
        [rows] = await wire.run([Step(_HOLD, ([name],))])
        found = _read_all(rows)
        if not found or found[0].paused or found[0].next_at != expected_next:
            return "lost"
        stored = found[0]
        fires = sending is not None
        if fires and stored.schedule.overlap == "skip" and stored.last_id is not None:
            [live] = await wire.run([Step(_IS_LIVE, (to_key(stored.last_id),))])
            fires = not live
        if fires and sending is not None:
            await publish_in(wire, directory, sending)
            fires = sending.outcomes == [None]
            if fires:
                [envelope] = sending.envelopes
                await wire.run([Step(_FIRED, (name, float(next_at), to_key(envelope.id)))])
                return "fired"
        await wire.run([Step(_SKIPPED, (name, float(next_at)))])
    return "skipped"


def _to_row(new: StoredSchedule) -> tuple[Any, ...]:
    schedule = new.schedule
    check_name("the name of a schedule", schedule.name)
    try:
        body = _encode(schedule)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"schedule {schedule.name!r} cannot be written to PostgreSQL ({error})") from error
    return (
        schedule.name,
        body,
        float(new.next_at),
        int(new.paused),
        new.fired,
        new.skipped,
        None if new.last_id is None else to_key(new.last_id),
        None if new.declaration is None else _encode(new.declaration),
        schedule.every,
    )


def _read_all(rows: Rows) -> list[StoredSchedule]:
    found = [_read(*row) for row in rows]
    return [schedule for schedule in found if schedule is not None]


def _read(name: str, body: bytes, next_at: float, *rest: Any) -> StoredSchedule | None:
    paused, fired, skipped, last_id, declaration = rest
    try:
        return StoredSchedule(
            schedule=_decode_schedule(body),
            next_at=next_at,
            paused=paused,
            fired=fired,
            skipped=skipped,
            last_id=None if last_id is None else to_id(last_id),
            declaration=None if declaration is None else _decode_declaration(declaration),
        )
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        log.error(  # noqa: TRY400  the row is at fault, no code
            "the schedule %r cannot be read, so it does not tick (declare or remove it): %s", name, error
        )
        return None
