"""When schedules tick, and who decides about them: pure; the time comes in.

Times are seconds since 1970 on the broker's wall clock, which may be stepped.

**Ticks.** The next tick of an interval is computed from the tick before it, never from the moment a worker happens to
look, so that intervals do not drift. The next tick is always later than now, and than the tick before it. A tick is
missed if it is more than `MISSED_AFTER` late, or if the one after it is due too; then one tick catches up for all that
were missed, or none does. A clock that is set back repeats no tick: what counts is the stored time of the next one.
Only that of an interval is pulled back, so that it is never further away than the interval.

**Declarations.** A program declares its schedules at every start. What is stored beside a schedule is the fingerprint
of the declaration it came from. A declaration with this fingerprint changes nothing: the next tick keeps its time, and
what an operator has changed stays as it is. Another declaration takes the place of all that.

In a rolling deploy two versions of a program declare different things for a while, and workers of both may start at
any time. So a declaration that was replaced does not come back at once. It becomes the rival of the one that holds;
every worker declares again every `DECLARE_EVERY` seconds, and one with the declaration that holds sends the rival away.
A rival that was not sent away for `RIVAL_WAITS` seconds takes over: no worker with the other declaration is left, so it
was rolled back. A declaration that nobody has seen before takes over at once.

**Ends.** The schedule of an actor that was removed from the program ends; it is not deleted. While a worker with the
actor lives, it declares the schedule, in any version; every `RENEW_EVERY` seconds that is noted as `declared_at`.
A worker that reads the queue and does not declare the schedule checks whether that moves (`repid.runtime.orphans`). If
it does not for long enough, no live worker has the actor, and the schedule is `ended`: it is paused, and says so. Any
declaration of an actor takes that back: a worker that starts, or one that was cut off from the server meanwhile and
declares again. So a wrong end costs ticks, and no schedule. What is never ended: a job that a program enqueued by hand,
as that program may not be running now; what is paused; and what was declared by a version of repid that noted no
`declared_at`, since its workers would not take the end back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256

import msgspec
from msgspec.structs import replace

from .cron import check_cron, next_time
from .envelope import Envelope
from .errors import ConfigurationError
from .names import check_duration, check_one_of
from .ports import CLOCK_SLACK, Declaration, Missed, Origin, Overlap, Schedule, StoredSchedule

MISSED_AFTER = 60.0
"""Seconds that a tick may be late before it counts as missed."""

SHORTEST_INTERVAL = 0.001
LONGEST_INTERVAL = 100 * 366 * 86400.0
"""Bounds of `every`: the ids of ticks count milliseconds, and the time of the next one must be a date."""

DECLARE_EVERY = 20.0
RIVAL_WAITS = 60.0
"""Seconds; see above. The second is longer than the first by a missed turn."""

RENEW_EVERY = 300.0
"""Seconds between two notes that a schedule is declared. Each is a write for each schedule of an actor."""

_SUPERSEDED_KEPT = 8


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
    timezone: str | None = None,
    overlap: Overlap = "skip",
    missed: Missed = "one",
) -> Schedule:
    """A checked schedule. Raises `ConfigurationError`, naming `what`, for a rule that makes no sense."""
    if (every is None) == (cron is None):
        if cron is not None:
            raise ConfigurationError(f"{what} has both an interval and a cron expression: give one of them")
        raise ConfigurationError(
            f"{what} has neither an interval nor a cron expression: give every=... or cron=... "
            "(timezone, overlap and missed are options of schedules)"
        )
    if every is not None and timezone is not None:
        raise ConfigurationError(f"{what} has an interval and a timezone, which is for cron expressions: drop it")
    zone = "UTC" if timezone is None else timezone
    check_one_of(f"overlap of {what}", overlap, ("skip", "allow"))
    check_one_of(f"missed of {what}", missed, ("one", "none"))
    return Schedule(
        name=name,
        envelope=envelope,
        every=None if every is None else _check_interval(what, every),
        cron=None if cron is None else check_cron(what, cron, zone),
        timezone=zone,
        overlap=overlap,
        missed=missed,
    )


def schedule_name(queue: str, actor: str) -> str:
    """The name of a schedule without an id: "queue:actor". A colon in one of them is written %3A."""
    return ":".join(part.replace("%", "%25").replace(":", "%3A") for part in (queue, actor))


# Ticks


def first_tick(schedule: Schedule, now: float) -> float:
    """When a schedule that is stored now ticks for the first time."""
    return _after(schedule, now, now)


def due_tick(stored: StoredSchedule, now: float) -> Due | None:
    """The tick whose time has come, with the time of the one after it; None: it has not."""
    if stored.paused or now < stored.next_at:
        return None
    schedule, next_at = stored.schedule, stored.next_at
    was_missed = now - next_at > MISSED_AFTER or _after(schedule, next_at, next_at) <= now
    return Due(_after(schedule, next_at, now), fires=not was_missed or schedule.missed == "one")


def pulled_back(stored: StoredSchedule, now: float) -> StoredSchedule | None:
    """The schedule with an earlier next tick, if a clock that was set back left that too far away; else None."""
    every = stored.schedule.every
    if every is None or stored.paused or stored.next_at - every <= now + CLOCK_SLACK:
        return None
    return replace(stored, next_at=now + every)


def resumed(stored: StoredSchedule, now: float) -> StoredSchedule:
    """The schedule without its pause, or its end. What was due meanwhile was missed."""
    if not stored.paused:
        return stored
    stored = _without_end(stored)
    if stored.schedule.missed == "one" or stored.next_at > now:
        return replace(stored, paused=False)
    next_at = _after(stored.schedule, stored.next_at, now)
    return replace(stored, paused=False, next_at=next_at, skipped=stored.skipped + 1)


def paused(stored: StoredSchedule) -> StoredSchedule:
    """The schedule held by an operator: also one that has ended, which a declaration does not bring back then."""
    return replace(_without_end(stored), paused=True)


def tick_envelope(stored: StoredSchedule) -> Envelope:
    """What the tick that is due publishes. Its id is made of the schedule's name and the tick's time."""
    moment = datetime.fromtimestamp(stored.next_at, UTC).isoformat(timespec="milliseconds")
    return replace(stored.schedule.envelope, id=f"{stored.schedule.name}@{moment}")


def _after(schedule: Schedule, last: float, now: float) -> float:
    """The first tick after `now`, of those counted on from `last`."""
    if schedule.every is None:
        assert schedule.cron is not None
        return next_time(f"schedule {schedule.name!r}", schedule.cron, schedule.timezone, now)
    passed = max(0.0, (now - last) // schedule.every)
    following = last + (passed + 1) * schedule.every
    return following if following > now else following + schedule.every


# Declarations


def declared(stored: StoredSchedule | None, schedule: Schedule, origin: Origin, now: float) -> StoredSchedule:
    """What is to be stored for what a program declares at its start; `stored` itself: nothing is to be changed."""
    mark, declared_at = fingerprint(schedule), now if origin == "actor" else None
    if stored is None or (stored.ended_at is not None and origin != "actor"):
        declaration = Declaration(origin, mark, declared_at=declared_at)
        return StoredSchedule(schedule=schedule, next_at=first_tick(schedule, now), declaration=declaration)
    holds = stored.declaration or Declaration(origin, fingerprint(stored.schedule))
    if holds.origin != origin:
        raise ConfigurationError(_taken(schedule, holds.origin))
    if origin == "actor" and (renewed := _renewed(holds, now)) is not holds:
        noted = replace(stored, declaration=renewed)
        stored, holds = noted if holds.ended_at is None else resumed(noted, now), renewed
    if mark == holds.fingerprint:
        return (
            stored if holds.rival is None else replace(stored, declaration=replace(holds, rival=None, rival_since=0.0))
        )
    if mark in holds.superseded and origin == "actor":
        if holds.rival is None or holds.rival_since > now:
            return replace(stored, declaration=replace(holds, rival=mark, rival_since=now))
        if now - holds.rival_since < RIVAL_WAITS:
            return stored
    superseded = (*(each for each in holds.superseded if each != mark), holds.fingerprint)[-_SUPERSEDED_KEPT:]
    is_kept = _rule(stored.schedule) == _rule(schedule) or (stored.next_at <= now and not stored.paused)
    return replace(
        stored,
        schedule=schedule,
        next_at=stored.next_at if is_kept else first_tick(schedule, now),
        declaration=Declaration(origin, mark, superseded, declared_at=holds.declared_at),
    )


def _renewed(holds: Declaration, now: float) -> Declaration:
    """The declaration with a note that it was made again, unless there is a fresh one, and without its end."""
    if holds.ended_at is not None:  # nobody was left who could send a rival away: what is declared takes over at once
        return replace(holds, superseded=(), rival=None, rival_since=0.0, declared_at=now, ended_at=None)
    is_fresh = holds.declared_at is not None and 0 <= now - holds.declared_at < RENEW_EVERY
    return holds if is_fresh else replace(holds, declared_at=now)


def may_end(stored: StoredSchedule) -> bool:
    """Whether the schedule ends if no worker declares it any more."""
    holds = stored.declaration
    return holds is not None and holds.declared_at is not None and not stored.paused


def ended(stored: StoredSchedule, now: float) -> StoredSchedule:
    """The schedule after its end: it does not tick until it is declared again, or resumed."""
    assert stored.declaration is not None
    return replace(stored, paused=True, declaration=replace(stored.declaration, ended_at=now))


def _without_end(stored: StoredSchedule) -> StoredSchedule:
    if stored.ended_at is None or stored.declaration is None:
        return stored
    return replace(stored, declaration=replace(stored.declaration, ended_at=None))


def check_same_arguments(stored: StoredSchedule | None, schedule: Schedule) -> None:
    """Raises `ConfigurationError` if a job without an id would take the place of one with other arguments."""
    if stored is None or stored.ended_at is not None:
        return
    if stored.schedule.envelope.payload != schedule.envelope.payload:
        actor, queue = schedule.envelope.topic, schedule.envelope.queue
        raise ConfigurationError(
            f"job {actor!r} recurs on queue {queue!r} already, with other arguments: give each of these jobs an id_ "
            f"of its own, or remove the other one first with app.schedules.remove({schedule.name!r})"
        )


def fingerprint(schedule: Schedule) -> str:
    """What tells one declaration from another: all that is declared, in a fixed form."""
    model = schedule.envelope
    content = (
        model.queue, model.payload, model.content_type, model.headers, model.reply_to, model.options, model.parameters
    )  # fmt: skip
    parts = (*_rule(schedule), schedule.overlap, schedule.missed, content)
    return sha256(msgspec.msgpack.encode(parts, order="deterministic")).hexdigest()[:16]


def _rule(schedule: Schedule) -> tuple[object, ...]:
    return schedule.every, schedule.cron, schedule.timezone


def _taken(schedule: Schedule, origin: Origin) -> str:
    owner = {"actor": "an actor's own schedule", "job": "a recurring job without an id", "id": "a recurring job's id"}
    return (
        f"the name {schedule.name!r} is taken by {owner[origin]}: give the recurring job an id_ of its own, or remove "
        f"the other one first with app.schedules.remove({schedule.name!r})"
    )


def _check_interval(what: str, every: float) -> float:
    interval = check_duration(f"the interval of {what}", every, positive=True)
    if not SHORTEST_INTERVAL <= interval <= LONGEST_INTERVAL:
        raise ConfigurationError(
            f"{what} has an interval of {interval} seconds: it must be at least {SHORTEST_INTERVAL} seconds and "
            "at most a hundred years"
        )
    return interval
