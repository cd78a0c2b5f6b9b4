"""Schedules → messages. Every worker ticks; the broker sees to it that each tick happens once.

Theory. A worker asks what is due and when the next schedule is, and rests until then. Whatever would make it wrong to
rest so long is news (`ScheduleStore.schedule_changes`): a schedule that is due earlier was stored, in whatever process,
or the link is up again. News that comes during a look is noted, and followed by another look. Two things are not told:
that the clock by which schedules tick was set, and news that was lost on its way. Each costs `LONGEST_REST` at the
most. However many schedules are stored, there is one look in `GATHERING` seconds for that.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection

import msgspec
import trio

from ..envelope import Envelope
from ..errors import BrokerError, ConfigurationError
from ..logs import Log
from ..ports import LONGEST_REST, Schedule, ScheduleStore, StoredSchedule, TickOutcome
from ..schedule import DECLARE_EVERY, declared, due_tick, pulled_back, tick_envelope
from .outage import log_unavailable

log = Log("repid.worker")

GATHERING = 0.25
"""Seconds between two looks that follow news: what is stored meanwhile is found by the second one."""

AFTER_FAILURE = 1.0
"""Seconds until the next look after one that failed, unless there is news, as there is of a link that is up again."""

AT_ONCE = 100
"""How many schedules tick at once."""


class Scheduling(msgspec.Struct, frozen=True):
    """Where the schedules of a worker are kept, and how one of them ticks: see `ScheduleStore.tick`."""

    store: ScheduleStore
    tick: Callable[[str, float, float, Envelope | None], Awaitable[TickOutcome]]


async def store_schedules(store: ScheduleStore, schedules: Collection[Schedule], *, starting: bool = True) -> None:
    """Store what actors declare. See `repid.schedule` for what that changes where something is stored already.

    Not `starting`: what was removed meanwhile stays removed.
    """
    left = list(schedules)
    while left:
        there = {stored.schedule.name: stored for stored in await store.schedules([one.name for one in left])}
        now = await store.now()
        pairs = [(there.get(schedule.name), schedule) for schedule in left]
        wanted = [
            (stored, schedule, new)
            for stored, schedule in pairs
            if (stored is not None or starting) and (new := _declared(stored, schedule, now)) is not None
        ]
        outcomes = await store.replace_schedules([(stored, new) for stored, _, new in wanted])
        left = []
        for (stored, schedule, _), is_stored in zip(wanted, outcomes, strict=True):
            if not is_stored:  # a tick or another worker was quicker
                left.append(schedule)
            elif stored is not None and stored.ended_at is not None:
                log.info("schedule %r had ended and ticks again: its actor declares it", schedule.name)


def _declared(stored: StoredSchedule | None, schedule: Schedule, now: float) -> StoredSchedule | None:
    """What is to be stored in its place, if anything."""
    try:
        wanted = declared(stored, schedule, "actor", now)
    except ConfigurationError as error:
        log.error("the schedule of actor %r is not stored: %s", schedule.envelope.topic, error)  # noqa: TRY400  no bug
        return None
    return None if wanted is stored else wanted


async def tick_due(scheduling: Scheduling) -> None:
    """Tick what is due now, for callers without a worker that goes on. Raises `BrokerUnavailable`."""
    await _Ticker(scheduling).tick_all()


async def run_schedules(scheduling: Scheduling, schedules: Collection[Schedule]) -> None:
    """Tick until cancelled, and declare again what actors have declared."""
    ticker, store = _Ticker(scheduling), scheduling.store
    declare_at, known_losses = trio.current_time() + DECLARE_EVERY, store.data_losses
    with store.schedule_changes() as wait_for_change:
        while True:
            looked_at, pause = trio.current_time(), AFTER_FAILURE
            try:
                losses = store.data_losses
                if looked_at >= declare_at or losses != known_losses:
                    await store_schedules(store, schedules, starting=losses != known_losses)
                    declare_at, known_losses = trio.current_time() + DECLARE_EVERY, losses
                pause = min(LONGEST_REST, await ticker.tick_all())
            except BrokerError as error:
                log_unavailable(error, "cannot look at the schedules")
            rests_until = trio.current_time() + pause
            if schedules:
                rests_until = min(rests_until, declare_at)
            if await wait_for_change(rests_until):
                await trio.sleep_until(min(looked_at + GATHERING, rests_until))


class _Ticker:
    """Ticks what is due. `_unable`: schedules that are due but cannot tick in this version of the program."""

    def __init__(self, scheduling: Scheduling) -> None:
        self._store, self._tick_on_server = scheduling.store, scheduling.tick
        self._unable: dict[str, Schedule] = {}

    async def tick_all(self) -> float:
        """Tick what is due, all at once, so that the broker may do it in one step; the seconds until more is due."""
        limit = AT_ONCE + len(self._unable)
        found = await self._store.due_schedules(limit)
        if not found.due:
            return max(0.0, found.next_at - found.now)
        upcoming = [found.next_at if len(found.due) < limit else found.now]
        failures: list[BrokerError] = []

        async def tick(stored: StoredSchedule) -> None:
            try:
                upcoming.append(await self._tick(stored, found.now))
            except BrokerError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for stored in found.due:
                nursery.start_soon(tick, stored)
        if failures:
            raise failures[0]
        return max(0.0, min(upcoming) - found.now)

    async def _tick(self, stored: StoredSchedule, now: float) -> float:
        """Returns when it ticks next; infinity if it does not, or if that cannot be computed, which is logged once."""
        name = stored.schedule.name
        earlier = pulled_back(stored, now)
        if earlier is not None:
            if await self._store.replace_schedule(stored, earlier):
                log.warning("the clock was set back: the next tick of schedule %r is pulled back", name)
            return earlier.next_at
        if self._unable.get(name) == stored.schedule:
            return math.inf
        self._unable.pop(name, None)
        try:
            due = due_tick(stored, now)
        except ConfigurationError as error:  # another version of the program may be able to
            log.error("schedule %r cannot tick here: %s", name, error)  # noqa: TRY400  no bug
            self._unable[name] = stored.schedule
            return math.inf
        if due is None:
            return math.inf
        envelope = tick_envelope(stored) if due.fires else None
        outcome = await self._tick_on_server(name, stored.next_at, due.next_at, envelope)
        if outcome == "skipped":
            log.info("a tick of schedule %r was skipped", name)
        return due.next_at
