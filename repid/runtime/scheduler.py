"""Schedules → messages. Every worker ticks; the broker sees to it that each tick happens once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping

import trio

from ..envelope import Envelope
from ..errors import BrokerUnavailable, ConfigurationError
from ..ports import Broker, Schedule, StoredSchedule
from ..schedule import DECLARE_EVERY, declared, due_tick, pulled_back, tick_envelope

log = logging.getLogger("repid.worker")

LONGEST_SLEEP = 1.0
"""Seconds until the schedules are looked at again, because others may have changed them."""


async def store_schedules(broker: Broker, schedules: Collection[Schedule], *, starting: bool = True) -> None:
    """Store what actors declare. See `repid.schedule` for what that changes where something is stored already.

    Not `starting`: what was removed meanwhile stays removed.
    """
    if not schedules:
        return
    names = [schedule.name for schedule in schedules]
    there = {stored.schedule.name: stored for stored in await broker.schedules(names)}
    now = await broker.now()
    for schedule in schedules:
        stored = there.get(schedule.name)
        if stored is not None or starting:
            await _declare(broker, stored, schedule, now)


async def _declare(broker: Broker, stored: StoredSchedule | None, schedule: Schedule, now: float) -> None:
    while True:
        try:
            wanted = declared(stored, schedule, "actor", now)
        except ConfigurationError as error:
            log.error("the schedule of actor %r is not stored: %s", schedule.envelope.topic, error)  # noqa: TRY400  no bug
            return
        if wanted is stored or await broker.replace_schedule(stored, wanted):
            return
        found = await broker.schedules([schedule.name])  # a tick or another worker was quicker
        stored = found[0] if found else None


async def report_unhandled(broker: Broker, find: Mapping[str, Callable[[Envelope], object | None]]) -> None:
    """Warn of schedules whose messages go to a queue that is read here, but to an actor that is not here.

    `find`: for each queue that is read, what gives the actor for an envelope.
    """
    for stored in await broker.schedules():
        model = stored.schedule.envelope
        if model.queue in find and find[model.queue](model) is None and not stored.paused:
            log.warning(
                "schedule %r sends messages for actor %r to queue %r, but this worker, which reads that queue, has no "
                "such actor: if no other worker has it either, remove the schedule: app.schedules.remove(%r)",
                stored.schedule.name,
                model.topic,
                model.queue,
                stored.schedule.name,
            )


async def run_schedules(broker: Broker, schedules: Collection[Schedule]) -> None:
    """Tick until cancelled, and declare again what actors have declared."""
    declare_at = trio.current_time() + DECLARE_EVERY
    while True:
        pause = LONGEST_SLEEP
        try:
            if trio.current_time() >= declare_at:
                await store_schedules(broker, schedules, starting=False)
                declare_at = trio.current_time() + DECLARE_EVERY
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
        earlier = pulled_back(stored, now)
        if earlier is not None and await broker.replace_schedule(stored, earlier):
            log.warning("the clock was set back: the next tick of schedule %r is pulled back", stored.schedule.name)
            return earlier.next_at
        return stored.next_at
    envelope = tick_envelope(stored) if due.fires else None
    outcome = await broker.tick(stored.schedule.name, stored.next_at, due.next_at, envelope)
    if outcome == "skipped":
        log.info("a tick of schedule %r was skipped", stored.schedule.name)
    return due.next_at
