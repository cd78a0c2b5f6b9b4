"""Schedules → messages. Every worker ticks; the broker sees to it that each tick happens once."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import trio

from ..errors import BrokerUnavailable, ConfigurationError
from ..ports import Broker, Schedule, StoredSchedule
from ..schedule import due_tick, first_tick, tick_envelope

log = logging.getLogger("repid.worker")

LONGEST_SLEEP = 1.0
"""Seconds until the schedules are looked at again, because others may have changed them."""


async def store_schedules(broker: Broker, schedules: Iterable[Schedule]) -> None:
    """Store what actors declare. A schedule that is there as it should be keeps the time of its next tick."""
    wanted = list(schedules)
    if not wanted:
        return
    there = {stored.schedule.name: stored.schedule for stored in await broker.schedules()}
    now = await broker.now()
    for schedule in wanted:
        if there.get(schedule.name) != schedule:
            await broker.put_schedule(schedule, first_tick(schedule, now))


async def run_schedules(broker: Broker) -> None:
    """Tick until cancelled."""
    while True:
        pause = LONGEST_SLEEP
        try:
            pause = min(pause, await _tick_all(broker))
        except BrokerUnavailable as error:
            log.warning("cannot look at the schedules: %s", error)
        await trio.sleep(pause)


async def _tick_all(broker: Broker) -> float:
    """Tick what is due; the seconds until the next one is."""
    stored, now = await broker.schedules(), await broker.now()
    upcoming = math.inf
    for schedule in stored:
        if not schedule.paused:
            upcoming = min(upcoming, await _tick(broker, schedule, now))
    return max(0.0, upcoming - now)


async def _tick(broker: Broker, stored: StoredSchedule, now: float) -> float:
    """When it ticks next."""
    try:
        due = due_tick(stored, now)
    except ConfigurationError as error:  # another version of the program may be able to
        log.error("schedule %r cannot tick here: %s", stored.schedule.name, error)  # noqa: TRY400  no bug
        return math.inf
    if due is None:
        return stored.next_at
    envelope = tick_envelope(stored) if due.fires else None
    outcome = await broker.tick(stored.schedule.name, stored.next_at, due.next_at, envelope)
    if outcome == "skipped":
        log.info("a tick of schedule %r was skipped", stored.schedule.name)
    return due.next_at
