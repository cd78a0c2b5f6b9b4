"""Schedules as brokers keep them: what each tick publishes, and when the next one is due.

Times are seconds since 1970 on the broker's clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol, TypeAlias

import msgspec

from ..envelope import Envelope

Overlap: TypeAlias = Literal["skip", "allow"]
"""What a tick does while the former tick's message is live (ready, scheduled or leased): it is recorded as skipped,
or published all the same."""

Missed: TypeAlias = Literal["one", "none"]
"""What happens after a time without a worker: one tick catches up for all that were missed, or none does. A tick that
is less than a minute late was not missed."""

Origin: TypeAlias = Literal["actor", "job", "id"]
"""What declares a schedule: an actor's options; a recurring job without an id, or with one. They may be named alike."""

TickOutcome: TypeAlias = Literal["fired", "skipped", "lost"]
"""fired: the message was published. skipped: it was not, because of an overlap. lost: another worker was quicker, or
the schedule was changed, paused or removed meanwhile."""


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """One recurring intent. Exactly one of `every` (seconds) and `cron` is set; `timezone` is for cron.

    `envelope` is the model of what each tick publishes; its id is the schedule's name.
    """

    name: str
    envelope: Envelope
    every: float | None = None
    cron: str | None = None
    timezone: str = "UTC"
    overlap: Overlap = "skip"
    missed: Missed = "one"


LONGEST_REST = 10.0
"""Seconds after which a worker looks for due schedules again, although nothing was told: so long may it take until it
notices that the clock was set, or that news of a change was lost.
"""

SOON = 2 * LONGEST_REST
"""Seconds. A schedule that is due later than this is found in time by the next look, however slow that is."""

CLOCK_SLACK = 0.001
"""Seconds. A rounded time may seem to be further away than it is by this much."""


class Declaration(msgspec.Struct, frozen=True):
    """Which declaration a schedule came from, as the fingerprint of all that was declared.

    `superseded`: the fingerprints that it replaced, the latest last. `rival`: one of them that another program declares
    again, and since when. `declared_at`: of an actor's, when a worker declared it last, to within minutes; None: not
    known. `ended_at`: when it ended because no worker declared it any more; None: it has not. `repid.schedule` has the
    rules.
    """

    origin: Origin
    fingerprint: str
    superseded: tuple[str, ...] = ()
    rival: str | None = None
    rival_since: float = 0.0
    declared_at: float | None = None
    ended_at: float | None = None


class StoredSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule and its state. `last_id` is the id of the last message that it published.

    `declaration` says where it came from; later changes of the schedule do not change that. One that has ended is
    paused, too.
    """

    schedule: Schedule
    next_at: float
    paused: bool = False
    fired: int = 0
    skipped: int = 0
    last_id: str | None = None
    declaration: Declaration | None = None

    @property
    def ended_at(self) -> float | None:
        """When it ended because no worker declared it any more; None: it has not ended."""
        return None if self.declaration is None else self.declaration.ended_at


def is_due_soon(stored: StoredSchedule, now: float) -> bool:
    """Whether workers must be told that it was stored: it is due before all of them have looked again."""
    every = stored.schedule.every
    is_ahead = every is not None and stored.next_at - every > now  # it is pulled back
    return not stored.paused and (stored.next_at <= now + SOON or is_ahead)


ScheduleChange: TypeAlias = tuple[StoredSchedule | None, StoredSchedule]
"""What must be stored under the name now (None: nothing), and what is to be stored in its place."""


class DueSchedules(msgspec.Struct, frozen=True):
    """`due`: schedules whose time has come, the longest waiting first. `next_at`: when the next of the others is due
    (infinity: none is). `now`: the broker's clock.
    """

    due: list[StoredSchedule]
    next_at: float
    now: float


WaitForChange: TypeAlias = Callable[[float], Awaitable[bool]]
"""See `ScheduleStore.schedule_changes`."""


class ScheduleStore(Protocol):
    """The part of a broker that keeps schedules."""

    @property
    def data_losses(self) -> int:
        """How often it was found to have lost what it had kept. Workers store the schedules of their actors then."""
        ...

    def schedule_changes(self) -> AbstractContextManager[WaitForChange]:
        """Note for a block, in a trio task, that schedules were stored. What it gives waits for that: until there was
        news since its last call, or until that moment of trio's clock. Returns whether there was. Cancelling it loses
        nothing.
        """
        ...

    async def now(self) -> float:
        """The broker's clock: seconds since 1970. It may be set to another time; schedules cope with that."""
        ...

    async def put_schedule(self, schedule: Schedule, next_at: float) -> None:
        """Store a schedule. One of the same name is replaced; its counts, pause and declaration are kept."""
        ...

    async def replace_schedule(self, old: StoredSchedule | None, new: StoredSchedule) -> bool:
        """Store `new` if what is stored under its name equals `old` (None: nothing is), in one atomic step.

        Returns whether it did. If not, a tick or another program was quicker: read the schedule again.
        """
        ...

    async def replace_schedules(self, changes: Sequence[ScheduleChange]) -> list[bool]:
        """As `replace_schedule`, for many of different names; for each whether it was stored. Each is one step."""
        ...

    async def schedules(self, names: Collection[str] | None = None) -> list[StoredSchedule]:
        """All schedules, or those that have these names; sorted by name."""
        ...

    async def due_schedules(self, limit: int) -> DueSchedules:
        """At most `limit` schedules that are due and not paused, and when the next one is due, read at one moment.

        An interval's schedule is due too if its next time is further away than the interval (by more than
        `CLOCK_SLACK`): then the clock was set back. These come last.
        """
        ...

    async def remove_schedule(self, name: str) -> bool:
        """Remove the schedule; what it has published stays. False: no schedule has that name."""
        ...

    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """If the schedule is there, not paused and its next tick is still `expected_next`: make `next_at` the next,
        and publish `envelope` (its queue is declared if need be), all in one atomic step.

        With overlap "skip", while the message `last_id` is live, the tick is counted as skipped instead. An envelope
        whose id is live is counted as skipped too, and so is a tick without an envelope.
        """
        ...
