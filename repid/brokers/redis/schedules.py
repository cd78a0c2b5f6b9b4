"""Schedules under the same prefix: a tick moves its schedule and publishes its message in one script.

A schedule is stored as its next time, its interval (0: none), flags, counts, the last id, its declaration and itself.
Scripts read and change the first parts only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from ...errors import ConfigurationError
from ...logs import Log
from ...ports import CLOCK_SLACK, SOON, Declaration, DueSchedules, Schedule, ScheduleChange, StoredSchedule
from .layout import UNREADABLE, to_id, to_key
from .wire import Wire

log = Log("repid.redis")

_HEAD = struct.Struct(">ddBQQH")
_PAUSED, _SKIPS = 1, 2

_encode = msgspec.msgpack.Encoder().encode
_decode_schedule = msgspec.msgpack.Decoder(Schedule).decode
_decode_declaration = msgspec.msgpack.Decoder(Declaration | None).decode


def _pack(stored: StoredSchedule) -> bytes:
    schedule = stored.schedule
    flags = _PAUSED * stored.paused + _SKIPS * (schedule.overlap == "skip")
    last_id = b"" if stored.last_id is None else to_key(stored.last_id)
    try:
        declaration, body = _encode(stored.declaration), _encode(schedule)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"schedule {schedule.name!r} cannot be written to Redis ({error})") from error
    head = _HEAD.pack(float(stored.next_at), schedule.every or 0.0, flags, stored.fired, stored.skipped, len(last_id))
    return b"%b%b%b%b%b" % (head, last_id, len(declaration).to_bytes(4, "big"), declaration, body)


def _unpack(value: bytes) -> StoredSchedule:
    next_at, _, flags, fired, skipped, length = _HEAD.unpack_from(value)
    at = _HEAD.size + length
    last_id = value[_HEAD.size : at]
    start = at + 4
    end = start + int.from_bytes(value[at:start], "big")
    return StoredSchedule(
        schedule=_decode_schedule(value[end:]),
        next_at=next_at,
        paused=bool(flags & _PAUSED),
        fired=fired,
        skipped=skipped,
        last_id=to_id(last_id) if last_id else None,
        declaration=_decode_declaration(value[start:end]),
    )


def _read_all(values: Sequence[bytes | None]) -> list[StoredSchedule]:
    found: list[StoredSchedule] = []
    for value in values:
        if value:
            try:
                found.append(_unpack(value))
            except UNREADABLE as error:
                log.error(  # noqa: TRY400  the text says it
                    "a schedule cannot be read, so it does not tick (declare or remove it): %s", error
                )
    return found


async def find(wire: Wire, prefix: str, names: Collection[str] | None) -> list[StoredSchedule]:
    """All of them, or those of these names; sorted by name."""
    key = f"{{{prefix}}}:schedules"
    if names is None:
        values = await wire.command(b"HVALS", key)
    else:
        values = await wire.command(b"HMGET", key, *(name.encode() for name in names)) if names else []
    return sorted(_read_all(values), key=lambda stored: stored.schedule.name)


async def replace(wire: Wire, prefix: str, changes: Sequence[ScheduleChange]) -> list[bool]:
    """Store each new one if the old one is what is there; whether it was. The script compares what was read again."""
    names = [new.schedule.name.encode() for _, new in changes]
    values = await wire.command(b"HMGET", f"{{{prefix}}}:schedules", *names)
    given: list[Any] = []
    for name, value, (old, new) in zip(names, values, changes, strict=True):
        found = _read_all([value])
        if (found[0] if found else None) == old:
            ticks = None if new.paused else float(new.next_at)
            every = new.schedule.every
            ahead = False if ticks is None or every is None else ticks - every
            given.append(
                (name, False if value is None else value, _pack(new), False if ticks is None else ticks, ahead)
            )
    stored = set(await wire.run("replace_schedules", (given, SOON)))
    return [name in stored for name in names]


async def due(wire: Wire, limit: int) -> DueSchedules:
    """What is due, those whose interval is too far away last, and when the next one is."""
    now, next_at, *values = await wire.run("due_schedules", (limit, CLOCK_SLACK))
    return DueSchedules(_read_all(values), float(next_at) if next_at else math.inf, float(now))


async def tick(wire: Wire, name: str, expected_next: float, next_at: float, entries: Sequence[bytes]) -> Any:
    """Move the schedule, if it is still to tick at `expected_next`, and publish the one entry, if it is given. Returns
    what the script answers.
    """
    argument = (name.encode(), float(expected_next), float(next_at), entries[0] if entries else False)
    return await wire.run("tick", argument)
