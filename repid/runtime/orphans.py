"""Schedules whose actor is in no worker: they are reported, and those that actors declared end.

Theory. A worker declares the schedules of its actors again and again, and the store notes that every `RENEW_EVERY`
seconds (`repid.schedule`). So a schedule of a queue that is read here, that is not declared here, and whose note has
not changed for `ENDS_AFTER` looks in a row is declared by nobody. What this relies on:

* Only this worker's own looks count, `LOOK_EVERY` seconds apart. No two clocks are compared: a clock that is set, a
  store that was away, a time without any worker, and a machine that slept prove nothing, since those who declare get
  the time between two looks to do so.
* The end is one atomic step on the note that was seen. A worker that declares at the same moment wins.
* Of consumers only the topics are known, and neither which version declares what nor those at another server with the
  same store of schedules. So the note decides, and who consumes what only spares reports.

Which queue's worker looks matters: one that does not read the queue says nothing about its actors.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..logs import Log
from ..ports import Broker, StoredSchedule
from ..schedule import RENEW_EVERY, ended, may_end
from .actor_runners import ActorRunners
from .outage import look_every
from .scheduler import Scheduling

log = Log("repid.worker")

LOOK_EVERY = RENEW_EVERY
"""Seconds between two looks."""

ENDS_AFTER = 3
"""Looks in a row after the first one. The note may be one look old when the last worker that declares goes."""


class Orphans:
    """The schedules of the queues that are read here, and that are not declared here or have no actor here."""

    def __init__(self, scheduling: Scheduling, runners: ActorRunners, broker: Broker) -> None:
        self.scheduling = scheduling
        self._store = scheduling.store
        self._reported: set[str] = set()
        """Those that were named already."""
        self._runners = runners
        self._broker = broker
        self._queues = runners.topics
        self._declared = {schedule.name for schedule in runners.schedules}
        self._looks: dict[tuple[str, float | None], int] = {}
        """For each, with when it was declared last: how many looks in a row have found it so."""

    async def report(self) -> None:
        """Warn of each of them, once, unless an open consumer takes its messages."""
        await self._report(await self._store.schedules())

    async def _report(self, schedules: Sequence[StoredSchedule]) -> None:
        lacking = [
            stored for stored in schedules if self._lack_of(stored) and stored.schedule.name not in self._reported
        ]
        knows = bool(lacking) and self._broker.capabilities.readers
        readers = await self._broker.readers() if knows else []
        for stored in lacking:
            name, model = stored.schedule.name, stored.schedule.envelope
            if any(model.topic in (reader.get(model.queue) or ()) for reader in readers):
                continue
            self._reported.add(name)
            log.warning(
                "schedule %r sends messages for actor %r to queue %r, but this worker, which reads that queue, has %s: "
                "if no other worker has it, %s: app.schedules.remove(%r)",
                name,
                model.topic,
                model.queue,
                self._lack_of(stored),
                "it ends in a while, or remove it now" if may_end(stored) else "remove the schedule",
                name,
            )

    def _lack_of(self, stored: StoredSchedule) -> str | None:
        """What this worker, which reads its queue, does not have; None: nothing is amiss."""
        if stored.schedule.envelope.queue not in self._queues or stored.paused:
            return None
        if self._runners.runner_for(stored.schedule.envelope) is None:
            return "no such actor"
        if may_end(stored) and stored.schedule.name not in self._declared:
            return "that actor without the schedule"
        return None

    async def watch(self) -> None:
        """Look until cancelled."""
        await look_every(LOOK_EVERY, self.look, "cannot look for schedules without an actor")

    async def look(self) -> None:
        """Look once: report, and end what was found so often enough. If it fails, counting starts again."""
        former, self._looks = self._looks, {}
        schedules = await self._store.schedules()
        await self._report(schedules)
        for stored in schedules:
            name, model = stored.schedule.name, stored.schedule.envelope
            if name in self._declared or model.queue not in self._queues or not may_end(stored):
                continue
            declared_at = None if stored.declaration is None else stored.declaration.declared_at
            looks = former.get((name, declared_at), -1) + 1
            if looks < ENDS_AFTER or not await self._store.replace_schedule(
                stored, ended(stored, await self._store.now())
            ):
                self._looks[name, declared_at] = looks
                continue
            log.warning(
                "schedule %r of actor %r on queue %r has ended: no worker has declared it for %g minutes. A worker "
                "that declares it brings it back, and so does app.schedules.resume(%r)",
                name,
                model.topic,
                model.queue,
                (ENDS_AFTER - 1) * LOOK_EVERY / 60,
                name,
            )
