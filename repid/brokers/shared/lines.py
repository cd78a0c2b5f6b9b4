"""The calls of one server that wait for room in full queues: one line for each queue, first come, first served.

Theory. A driver never waits: it answers that there is no room. Then the call stands in line, and only the first of a
line looks for room: it publishes, and where it is refused it waits for news of room, or a while, and publishes again.
When it has what it wants, or is cancelled, the next one is the first. A call that comes later stands behind the others
although there may be room meanwhile, so order is kept within this process. Nothing but the calls themselves runs, and a
queue has a line only while a call waits for it.

Nothing can make room any more where every consumer of the queue belongs to a worker that itself does nothing but wait
for room: all its runs wait for room in such queues, and it claims nothing from them meanwhile. The first of the line
looks for that when it has waited for `STUCK_AFTER`. It is the greatest set of workers of this server for which
it holds, so workers that wait for each other are found too; a reader elsewhere, of which the engine tells, means that
there may be room. Then the first call in line that belongs to such a worker raises `QueueFull`. Its run fails, the
worker claims again, and that makes room for the others.

Readers elsewhere may wait for this worker in turn, and no engine tells that. So they are counted on for `TRUST_FOR`
only: if there was no room all that time, a worker of this server that reads the queue and does nothing but wait makes
room itself, in the same way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import trio

from ...envelope import Envelope
from ...errors import BrokerRefused, PublishUnknown, QueueFull
from ...logs import Log
from ...ports import News, SendingRun, SendingWorker, sending_run
from .hub import Hub, Subscription
from .unserved import UNSERVED_AFTER, UnservedQueues

log = Log("repid.server")

Offer: TypeAlias = Callable[[Sequence[Envelope]], Awaitable[Sequence[BrokerRefused | None]]]
"""Publishes what there is room for now."""

FIRST_PIECE = 100
"""How many messages that wait for room are offered at first; then twice as many as there was room for."""

STUCK_AFTER = 1.0
"""Seconds without any room after which the first of a line checks whether there can be any."""

TRUST_FOR = 60.0
"""Seconds without any room after which no reader elsewhere is expected to make some."""

LONGEST_POLL = 1.0
"""Seconds after which the first of a line looks for room at the latest, whether there was news or not."""

LOG_EVERY = 60.0
"""Seconds of waiting after which the log says so."""

_NOTHING_CAN = "nothing can make room in it: every worker that reads it waits itself for room"
_NOBODY_HAS = (
    f"there was no room in it for {TRUST_FOR:.0f} s: this worker, which reads it, waits itself for room, and no other "
    "one has made any"
)
_MAYBE_ROOM = News(ready=False, events=False, ids=(), room=True, schedules=False)


class Place:
    """One call in a line; see `ports.Turn`."""

    __slots__ = (
        "_began",
        "_line",
        "_lines",
        "_poll",
        "_since",
        "_tell_at",
        "_was_told",
        "error",
        "is_first",
        "run",
        "subscription",
    )

    def __init__(self, lines: Lines, line: Line, run: SendingRun | None) -> None:
        self.run = run
        self.is_first = trio.Event()
        self.error: QueueFull | None = None
        self.subscription = Subscription("room", frozenset())
        self._lines = lines
        self._line = line
        self.moved()
        self._began = self._since
        self._tell_at = self._began + LOG_EVERY
        self._was_told = False

    def moved(self) -> None:
        """There was room for something."""
        self._poll = self._lines.first_poll
        self._since = trio.current_time()

    async def wait(self, refusal: QueueFull) -> None:
        """Wait until there may be room. Raises `QueueFull` if nothing can make room any more."""
        self._line.readers = refusal.readers
        now = trio.current_time()
        if now - self._since >= STUCK_AFTER:
            self._lines.give_up_if_stuck(self._line, trusts_others=now - self._since < TRUST_FOR)
            self.check()
        await self._tell(now, refusal)
        await self._lines.hub.wait(self.subscription, now + self._poll)
        self._poll = min(2 * self._poll, LONGEST_POLL)
        self.check()

    async def _tell(self, now: float, refusal: QueueFull) -> None:
        """Log that the call waits, if it is time for that."""
        is_unread = refusal.readers == 0
        waited = now - self._began
        if now >= self._tell_at or (is_unread and not self._was_told and waited >= UNSERVED_AFTER):
            self._tell_at = now + LOG_EVERY
            self._was_told = True
            reasons = await self._lines.unserved.reasons([self._line.queue])
            why = reasons and reasons[self._line.queue]
            log.warning("a call has waited for %.0f s for room: %s%s", waited, refusal, f". {why}" if why else "")

    def check(self) -> None:
        """Raise what was decided about this call."""
        if self.error is not None:
            raise self.error


class Line:
    """Those who wait for room in one queue. `readers`: of the queue, as the engine said last."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.places: list[Place] = []
        self.readers: int | None = None


class Lines:
    """The lines of one connection. `first_poll`: seconds after which to look again where there may be no news."""

    def __init__(self, hub: Hub, unserved: UnservedQueues, first_poll: float) -> None:
        self.hub = hub
        self.unserved = unserved
        self.first_poll = first_poll
        self.by_queue: dict[str, Line] = {}
        """Empty as long as no call waits, so that others can pass by at the cost of one look."""

    def tell_of_room(self) -> None:
        """A call of this server may have made room: have those who are first look for it."""
        if self.by_queue:
            self.hub.tell(_MAYBE_ROOM)

    def begin_anew(self) -> None:
        """The link is up again: other readers may come back a moment later, so each wait is counted from now on."""
        for line in self.by_queue.values():
            for place in line.places:
                place.moved()

    @asynccontextmanager
    async def turn(self, queue: str, run: SendingRun | None) -> AsyncIterator[Place]:
        """Stand in line, and wait for the turn before the block. Cancelling loses nothing.

        Raises `QueueFull` if nothing can make room any more.
        """
        line = self.by_queue.setdefault(queue, Line(queue))
        place = Place(self, line, run)
        line.places.append(place)
        counted = None if run is None or run.run is None else run.worker
        if counted is not None:
            counted.waits(1)
        try:
            if line.places[0] is not place:
                await place.is_first.wait()
                place.check()
                place.moved()
            with self.hub.subscribed_as(place.subscription):
                yield place
        finally:
            if counted is not None:
                counted.waits(-1)
            line.places.remove(place)
            if line.places:
                line.places[0].is_first.set()
            elif self.by_queue.get(queue) is line:
                del self.by_queue[queue]

    async def publish_behind_others(self, envelopes: Sequence[Envelope], offer: Offer) -> list[BrokerRefused | None]:
        """Publish where calls wait for some of the queues: behind those, and into the other queues at once."""
        outcomes = [_held_up(each.queue) if each.queue in self.by_queue else None for each in envelopes]
        at_once = [place for place, outcome in enumerate(outcomes) if outcome is None]
        answers: Sequence[BrokerRefused | None] = outcomes
        if at_once:
            found = dict(zip(at_once, await offer([envelopes[place] for place in at_once]), strict=True))
            answers = [found.get(place, outcome) for place, outcome in enumerate(outcomes)]
        return await self.publish(envelopes, answers, offer)

    async def publish(
        self, envelopes: Sequence[Envelope], answers: Sequence[BrokerRefused | None], offer: Offer
    ) -> list[BrokerRefused | None]:
        """Publish what had no room, as these answers say, and must wait for it; the answers to all.

        In pieces, as room comes, one queue after another. If this is cancelled, or raises, what waits still is not
        published.
        """
        outcomes = list(answers)
        waiting: dict[str, list[int]] = {}
        for place, outcome in enumerate(outcomes):
            if must_wait(outcome):
                waiting.setdefault(envelopes[place].queue, []).append(place)
        while waiting:
            queue = next(iter(waiting))
            places, piece = waiting[queue], FIRST_PIECE
            async with self.turn(queue, sending_run.get(None)) as turn:
                while places:
                    offered = places[:piece]
                    try:
                        answers = await offer([envelopes[place] for place in offered])
                    except PublishUnknown as error:  # what went in before is known to be there
                        raise PublishUnknown(
                            envelopes[place].id for each in waiting.values() for place in each
                        ) from error
                    for place, answer in zip(offered, answers, strict=True):
                        outcomes[place] = answer
                    full = [each for each in answers if isinstance(each, QueueFull) and each.can_wait]
                    places[: len(offered)] = [place for place in offered if must_wait(outcomes[place])]
                    accepted = len(offered) - len(full)
                    piece = max(2 * accepted, FIRST_PIECE)
                    if accepted:
                        turn.moved()
                    if full:
                        await turn.wait(full[0])
            del waiting[queue]
        return outcomes

    def give_up_if_stuck(self, line: Line, *, trusts_others: bool) -> None:
        """If nothing can make room in the queue of this line, have one call in it raise `QueueFull`.

        `trusts_others`: readers elsewhere may make room.
        """
        stuck = self._stuck_workers(trusts_others=trusts_others)
        if not any(worker.reads(line.queue) for worker in stuck):
            return
        for place in line.places:
            if place.run is not None and place.run.worker in stuck:
                why = _NOTHING_CAN if trusts_others else _NOBODY_HAS
                place.error = QueueFull(
                    line.queue,
                    f"queue {line.queue!r} is full, and {why}, so this message is refused; give the queue a larger "
                    "bound, or another worker",
                )
                place.is_first.set()
                return

    def _stuck_workers(self, *, trusts_others: bool) -> set[SendingWorker]:
        """Those that wait for room, do nothing else, and can expect some of each other only."""
        queues: dict[SendingWorker, set[str]] = {}
        runs: dict[SendingWorker, set[object]] = {}
        for line in self.by_queue.values():
            for worker, run in (place.run for place in line.places if place.run is not None):
                queues.setdefault(worker, set()).add(line.queue)
                runs.setdefault(worker, set()).update(() if run is None else (run,))
        stuck = {each for each in queues if each.can_only_wait(frozenset(queues[each]), len(runs[each]))}
        while True:
            still = {
                each
                for each in stuck
                if all(self._is_theirs(stuck, queue, trusts_others=trusts_others) for queue in queues[each])
            }
            if still == stuck:
                return stuck
            stuck = still

    def _is_theirs(self, workers: set[SendingWorker], queue: str, *, trusts_others: bool) -> bool:
        """Whether these workers read the queue, and nobody else does who may make room."""
        reading = sum(worker.reads(queue) for worker in workers)
        return reading > 0 and (not trusts_others or self.by_queue[queue].readers == reading)


def must_wait(outcome: BrokerRefused | None) -> bool:
    """Whether a message had no room, and its sender is to wait for some."""
    return isinstance(outcome, QueueFull) and outcome.can_wait


def _held_up(queue: str) -> QueueFull:
    return QueueFull(queue, f"other calls wait for room in queue {queue!r}", when_full="wait")
