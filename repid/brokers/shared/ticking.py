"""A tick whose schedule is kept by one server (`state=`, or the `schedule_store=` of an app) and whose message goes to
another.

Theory. The two cannot change in one step, so the order decides what a crash in between does. Where the engine refuses
an id that is alive, the message goes first, under an id that names the tick: workers that tick at once, and the one
that ticks again after a crash, publish it once. Where it does not compare ids, the schedule is moved first, which only
one worker can do; a crash right after that loses this one tick, which is better than each tick twice wherever two
workers run. A message that was refused, or certainly not sent, moves the schedule back.
"""

from __future__ import annotations

import trio
from msgspec.structs import replace

from ...envelope import Envelope
from ...errors import BrokerRefused, BrokerUnavailable, DuplicateId
from ...ports import Broker, ScheduleStore, TickOutcome

PUBLISHING_TIME = 10.0
"""Seconds for which a worker that stops still tries to publish a tick whose schedule it has moved."""


async def tick_elsewhere(
    engine: Broker, state: ScheduleStore, name: str, expected_next: float, next_at: float, envelope: Envelope | None
) -> TickOutcome:
    """Publish to the engine, and move the schedule that `state` keeps, if its next tick is still `expected_next`."""
    if envelope is None:
        return await state.tick(name, expected_next, next_at, None)
    found = await state.schedules([name])
    if not found or found[0].paused or found[0].next_at != expected_next:
        return "lost"
    old = found[0]
    if old.schedule.overlap == "skip" and await _is_live(engine, old.last_id):
        return await state.tick(name, expected_next, next_at, None)
    compares_ids = engine.capabilities.unique_ids != "none"
    message = replace(envelope, id=f"{name}@{expected_next:.6f}") if compares_ids else envelope
    moved = replace(old, next_at=next_at, fired=old.fired + 1, last_id=message.id)
    await engine.declare([message.queue])
    if compares_ids:
        await _publish(engine, message)
        return "fired" if await state.replace_schedule(old, moved) else "lost"
    if not await state.replace_schedule(old, moved):
        return "lost"
    with trio.CancelScope(shield=True, deadline=trio.current_time() + PUBLISHING_TIME):  # a stop loses no tick
        try:
            await _publish(engine, message)
        except (BrokerUnavailable, BrokerRefused):
            await state.replace_schedule(moved, old)
            raise
    return "fired"


async def _publish(engine: Broker, message: Envelope) -> None:
    """Publish one message to a declared queue. Another worker that was quicker with the same tick is as good."""
    refused = (await engine.publish([message]))[0]
    if refused is not None and not isinstance(refused, DuplicateId):
        raise refused


async def _is_live(engine: Broker, id_: str | None) -> bool:
    """Whether the message is ready, scheduled or leased; False also where the engine cannot be asked."""
    if id_ is None or not engine.capabilities.has("tracking"):
        return False
    return (await engine.watch(id_, id_)).state not in {"dead", "gone"}
