"""When schedules tick: pure; the time comes in. Seconds since 1970, as everywhere on a broker's wall clock.

Rules. The next tick is computed from the tick before it, never from the moment a worker happens to look, so that
intervals do not drift. After a time in which nobody looked, one tick catches up for all that were missed, or none
does. A clock that is stepped back delays ticks and repeats none: what counts is the stored time of the next one.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec

from .envelope import Envelope
from .errors import ConfigurationError, MissingExtra
from .ports import Missed, Overlap, Schedule, StoredSchedule

if TYPE_CHECKING:
    from collections.abc import Callable


class Due(msgspec.Struct, frozen=True):
    """A tick whose time has come. `fires`: False where it was missed and is passed over."""

    next_at: float
    fires: bool


def make_schedule(
    what: str,
    name: str,
    envelope: Envelope,
    *,
    every: float | None = None,
    cron: str | None = None,
    timezone: str = "UTC",
    overlap: Overlap = "skip",
    missed: Missed = "one",
) -> Schedule:
    """A checked schedule. Raises `ConfigurationError`, beginning with `what`, for a rule that makes no sense."""
    if (every is None) == (cron is None):
        problem = "both an interval and a cron expression" if cron is not None else "neither an interval nor cron"
        raise ConfigurationError(f"{what} has {problem}: a schedule has exactly one of them")
    schedule = Schedule(
        name=name, envelope=envelope, every=every, cron=cron, timezone=timezone, overlap=overlap, missed=missed
    )
    if cron is not None:
        _cron_after(what, schedule, 0.0)
    return schedule


def first_tick(schedule: Schedule, now: float) -> float:
    """When a schedule that is stored now ticks for the first time."""
    return _after(schedule, now, now)


def due_tick(stored: StoredSchedule, now: float) -> Due | None:
    """The tick whose time has come, with the time of the one after it; None: it has not."""
    if stored.paused or now < stored.next_at:
        return None
    schedule = stored.schedule
    following = _after(schedule, stored.next_at, stored.next_at)
    was_missed = following <= now
    if was_missed:
        following = _after(schedule, stored.next_at, now)
    return Due(following, fires=not was_missed or schedule.missed == "one")


def tick_envelope(stored: StoredSchedule) -> Envelope:
    """What the tick that is due publishes. Its id is made of the schedule's name and the tick's time."""
    moment = datetime.fromtimestamp(stored.next_at, ZoneInfo("UTC")).isoformat(timespec="milliseconds")
    return msgspec.structs.replace(stored.schedule.envelope, id=f"{stored.schedule.name}@{moment}")


def _after(schedule: Schedule, last: float, now: float) -> float:
    """The first tick after `now`, of those counted on from `last`."""
    if schedule.every is None:
        return _cron_after(f"schedule {schedule.name!r}", schedule, now)
    passed = max(0.0, (now - last) // schedule.every)
    following = last + (passed + 1) * schedule.every
    return following if following > now else following + schedule.every


def _cron_after(what: str, schedule: Schedule, now: float) -> float:
    cron_times, error = _cronsim()
    try:
        zone = ZoneInfo(schedule.timezone)
    except (KeyError, ValueError, OSError):
        raise ConfigurationError(f"{what} has an unknown time zone {schedule.timezone!r}") from None
    try:
        upcoming = cron_times(schedule.cron, datetime.fromtimestamp(now, zone))
        return float(next(upcoming).timestamp())
    except error as reason:
        raise ConfigurationError(f"{what} has a cron expression that is none, {schedule.cron!r}: {reason}") from None
    except StopIteration:
        raise ConfigurationError(f"{what} has a cron expression that never comes true: {schedule.cron!r}") from None


def _cronsim() -> tuple[Callable[..., Any], type[Exception]]:
    try:
        from cronsim import CronSim, CronSimError  # noqa: PLC0415  an extra
    except ImportError:
        raise MissingExtra("a cron schedule", "cron") from None
    return CronSim, CronSimError
