"""Moving all that waits from one server to another: queues, messages, dead letters and schedules.

Theory. A message is published to the new server, and then it is removed from the old one. If the move is killed in
between, it is on both, and the next move finds its id alive on the new server, since the queue is paused there until
the move has ended: so no worker can have run it meanwhile. On the old server the queue is paused, too, for good: what
its workers cannot take can be removed. On the new server the queue has no bounds until the move has ended, as nothing
makes room in it meanwhile. How a queue is to be there after the move is noted on the old server, as a result, before it
is paused: the next move finds it there. A queue whose messages are leased is not moved: its workers must be stopped
first.

What moves is published as new: its attempts begin again, and what is left of its ttl goes with it. Order is kept within
a priority. Dead letters keep everything (`store_dead`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from .brokers import Server
from .delivery import DAY, UNBOUNDED, Bounds, NewResult
from .envelope import Envelope, new_id
from .errors import DuplicateId, UsageError, did_you_mean
from .ports import BrowsedMessage, Category

BATCH = 100
"""Messages that are published, and then removed, in one step."""

SHORTEST = 0.001
"""Seconds of delay of a message that is due this very moment: so it stays a scheduled one."""

NOTE = "repid.move/"
"""With the name of a queue: the id of the result that says how the queue is to be when it has moved."""

NOTE_TTL = 30.0 * DAY
MARK_TTL = 60.0

UNREADABLE = ("UnreadableRow", "UnreadableRecord")
"""The failures of messages that cannot be read."""

WAITING: tuple[Category, ...] = ("ready", "scheduled")


class Moved(msgspec.Struct):
    """What became of one queue: how many messages of each place have moved.

    `was_there`: how many had ids that were alive on the new server, as after a move that was cut off; they stay as they
    are there. `leased`: how many were being run, so nothing of the queue was moved. `left`: how many stay behind: they
    cannot be read, or were sent meanwhile. `is_paused`: whether the queue is paused on the new server, because it was
    before.
    """

    name: str
    ready: int = 0
    scheduled: int = 0
    dead: int = 0
    was_there: int = 0
    leased: int = 0
    left: int = 0
    is_paused: bool = False

    @property
    def waiting(self) -> int:
        """How many that waited have left the old server."""
        return self.ready + self.scheduled + self.was_there

    @property
    def total(self) -> int:
        """How many have left the old server."""
        return self.waiting + self.dead


class _Ending(msgspec.Struct, frozen=True):
    """How a queue is to be on the new server when it has moved. `bounds`: those that it has had there, if any."""

    is_paused: bool
    bounds: Bounds | None


class MoveReport(msgspec.Struct):
    """What a move has done. `kept`: schedules that the new server had already; they stay on both."""

    queues: list[Moved] = []
    schedules: list[str] = []
    kept: list[str] = []

    @property
    def left_behind(self) -> list[str]:
        """A line for each thing that stays on the old server, and what to do about it."""
        lines = []
        for queue in self.queues:
            if queue.leased:
                lines.append(
                    f"queue {queue.name!r}: {queue.leased} message(s) are being run: stop its workers, then run this "
                    "again"
                )
            if queue.left:
                lines.append(
                    f"queue {queue.name!r}: {queue.left} message(s) cannot be read, or were sent meanwhile: run this "
                    "again"
                )
        return lines + [
            f"schedule {name!r}: the new server has another one of that name: remove one of them" for name in self.kept
        ]


Told = Callable[[str, int, int], None]
"""Is told how far the move is: the queue, how many of its messages have moved, and how many there are."""


class Move:
    """From one open server to another. `told` is called after each step."""

    def __init__(self, source: Server, target: Server, told: Told = lambda *_: None) -> None:
        self._source = source
        self._target = target
        self._told = told

    async def run(self, queues: Sequence[str] | None = None) -> MoveReport:
        """Move these queues (None: all, and the schedules). May be repeated, and goes on where a former one was cut
        off.

        Raises `UsageError` if both servers keep the same messages, or if one of the queues does not exist; then
        nothing was moved. Cancelled: what has moved has moved.
        """
        await self._check_apart()
        there = await self._source.queues()
        for name in queues or ():
            if name not in there:
                hint = did_you_mean(name, there) or f"; there are: {', '.join(there) or 'none'}"
                raise UsageError(f"there is no queue {name!r} to move on the old server{hint}")
        report = MoveReport()
        if queues is None:
            await self._move_schedules(report)
        for name in there if queues is None else queues:
            report.queues.append(await self._move_queue(name))
        return report

    async def _check_apart(self) -> None:
        """Raise where both are the same: what has moved there would be removed. The old one is not changed by it."""
        mark = NewResult(id=f"{NOTE}{new_id()}", state="success", ttl=MARK_TTL)
        await self._target.store_results([mark])
        if await self._source.fetch_results([mark.id]) != [None]:
            raise UsageError("both servers keep the same messages: there is nothing to move")

    async def _move_schedules(self, report: MoveReport) -> None:
        for stored in await self._source.schedules():
            name = stored.schedule.name
            if not await self._target.replace_schedule(None, stored) and await self._target.schedules([name]) != [
                stored
            ]:
                report.kept.append(name)  # it is not from a move that was cut off
                continue
            await self._source.remove_schedule(name)
            report.schedules.append(name)

    async def _move_queue(self, name: str) -> Moved:
        source = self._source
        counts = await source.counts(name)
        if counts.leased:
            await self._rescue(name)
            counts = await source.counts(name)
        if not counts.leased:
            ending = await self._pause(name)
            counts = await source.counts(name)
            if counts.leased:  # they were leased just before the queue was paused
                await self._unpause(name, ending)
        if counts.leased:
            return Moved(name, leased=counts.leased)
        if ending.bounds is not None:
            await self._target.set_bounds({name: UNBOUNDED})
        moved = Moved(name, is_paused=ending.is_paused)
        total = counts.ready + counts.scheduled + counts.dead
        self._told(name, 0, total)
        done = -1
        while done < moved.waiting:  # what falls due meanwhile changes its place
            done = moved.waiting
            for category in WAITING:
                await self._move_all(moved, category, total)
        await self._move_all(moved, "dead", total)
        bounds = counts.bounds or ending.bounds
        if bounds is not None and self._target.capabilities.bounds:
            await self._target.set_bounds({name: bounds})  # not before: what is there may be more
            await self._note(name, replace(ending, bounds=None))
        if not ending.is_paused:
            await self._target.resume(name)
        counts = await source.counts(name)
        moved.left = counts.ready + counts.scheduled + counts.dead
        return moved

    async def _move_all(self, moved: Moved, category: Category, total: int) -> None:
        """Move what is in one place and can be read, some at a time."""
        after: str | None = None
        while some := await self._source.browse(moved.name, category, limit=BATCH, after=after):
            after = some[-1].key
            readable = [one for one in some if one.failure is None or one.failure.type not in UNREADABLE]
            if not readable:
                continue
            if category == "dead":
                await self._target.store_dead(readable)
                await self._source.delete_messages(moved.name, [message.key for message in readable])
                moved.dead += len(readable)
            else:
                await self._move_waiting(moved, category, readable)
            self._told(moved.name, moved.total, total)

    async def _move_waiting(self, moved: Moved, category: Category, messages: Sequence[BrowsedMessage]) -> None:
        outcomes = await self._target.publish([_anew(message) for message in messages])
        for outcome in outcomes:
            if outcome is not None and not isinstance(outcome, DuplicateId):
                raise outcome
        there = sum(outcome is not None for outcome in outcomes)
        moved.was_there += there
        if category == "ready":
            moved.ready += len(messages) - there
        else:
            moved.scheduled += len(messages) - there
        await self._source.cancel_each([message.envelope.id for message in messages])

    async def _rescue(self, name: str) -> None:
        """Take back the leases of workers that died: where all are stopped, nobody else does."""
        async with self._source.consume({name: frozenset()}) as consumer:
            while await consumer.rescue():
                pass

    async def _pause(self, name: str) -> _Ending:
        """Pause the queue on both servers; how it is to be after the move."""
        source, target = self._source, self._target
        await target.declare([name])
        is_paused, there = (await source.counts(name)).paused, await target.counts(name)
        former: _Ending | None = None
        if is_paused:
            [note] = await source.fetch_results([NOTE + name])
            former = None if note is None else msgspec.json.decode(note.payload, type=_Ending | None)
        if former is None:
            ending = _Ending(is_paused or there.paused, there.bounds)
        else:  # a former move has paused it
            ending = replace(former, bounds=there.bounds or former.bounds)
        await self._note(name, ending)
        await source.pause(name)  # before the other one: a queue that is paused here has its note
        await target.pause(name)
        return ending

    async def _unpause(self, name: str, ending: _Ending) -> None:
        """Undo that: nothing was moved."""
        if ending.bounds is not None:
            await self._target.set_bounds({name: ending.bounds})
        if not ending.is_paused:
            await self._source.resume(name)
            await self._target.resume(name)
        await self._note(name, None)

    async def _note(self, name: str, ending: _Ending | None) -> None:
        payload = msgspec.json.encode(ending)
        await self._source.store_results([NewResult(id=NOTE + name, state="success", payload=payload, ttl=NOTE_TTL)])


def _anew(message: BrowsedMessage) -> Envelope:
    """What to publish in place of a message that waits: it has waited for a part of its delay and its ttl already."""
    options = message.envelope.options
    delay = None if message.due_in is None else max(message.due_in, SHORTEST)
    ttl = options.ttl
    if ttl is not None and message.enqueued_at is not None:
        ends_in = message.enqueued_at + (options.delay or 0.0) + ttl - message.seen_at
        ttl = max(ends_in - (delay or 0.0), 0.0) if message.attempt == 1 else None  # a start has ended it
    if delay == options.delay and ttl == options.ttl:
        return message.envelope
    return replace(message.envelope, options=replace(options, delay=delay, ttl=ttl))
