"""The driver of the SQLite engine: each call is a request that the broker's thread carries out in a transaction."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import msgspec
import trio
from trio.lowlevel import enable_ki_protection

from ...delivery import Bounds, Delivery, NewResult, Phase, Progress, Settlement, Stopping, StoredResult, disposition_on
from ...envelope import Envelope
from ...errors import BrokerError, BrokerRefused, ConfigurationError, NotConnected, QueueNotDeclared
from ...ports import (
    EVERYTHING,
    AtMost,
    BrowsedMessage,
    Cancelled,
    Capabilities,
    Category,
    Claimed,
    Counts,
    DueSchedules,
    LeaseEvent,
    News,
    ScheduleChange,
    Sight,
    StoredSchedule,
    Take,
    TickOutcome,
    Topics,
    UnderWay,
    Verdict,
)
from ..shared.keys import to_number
from ..shared.notes import ids_in
from ..shared.packing import pack, to_progress
from . import bounding, claiming, publishing, results, schedules, settling, views
from .clock import MICRO, Clock, micros
from .file import File
from .requests import NEVER, Operation, Publication, touches_any
from .rows import to_bodies
from .schema import Opening
from .store import BITE, Store

CLOSING_TIME = 5.0
"""Seconds that closing a consumer waits for the thread. Closing writes nothing: only a hanging disk takes so long."""


class SQLiteDriver:
    """One file. Calls that wait at the same time share a transaction. What is cancelled while it waits was not done."""

    capabilities: Capabilities = EVERYTHING

    def __init__(self, opening: Opening, lease_timeout: float, clock: Clock, dead_ttl: float | None = None) -> None:
        self.capabilities = msgspec.structs.replace(self.capabilities, dead_ttl=dead_ttl)
        self._dead_ttl = micros(dead_ttl or 0.0)
        self.lease_timeout = lease_timeout
        self._file = File(opening, lease_timeout, clock)
        self._tell: Callable[[News], bool] | None = None
        self._ids: dict[str, int] = {}  # of the consumers, as the file has them; they outlast a link, as leases do
        self._waiting: dict[str, dict[_Wanted, None]] = {}  # by consumer, the claims of it that wait

    def create_nothing(self) -> None:
        """Open the file only if it is there, from the next link on."""
        self._file.create_nothing()

    @asynccontextmanager
    async def link(self, watched: Collection[str]) -> AsyncIterator[None]:
        """Open the file."""
        async with self._file.opened(watched, self._tell):
            yield

    def tell_at_once(self, tell: Callable[[News], bool]) -> None:
        """Have news told in this way from the next link on."""
        self._tell = tell

    async def declare(self, queues: Sequence[str]) -> None:
        """Create the queues that do not exist yet."""
        if not await self._file.look(lambda store: store.directory.channels.keys() >= set(queues)):
            await self._file.change(lambda store: store.directory.declare(queues))

    async def set_bounds(self, bounds: Mapping[str, Bounds]) -> None:
        """Create the queues that do not exist yet, and bound them."""
        wanted = dict(bounds)
        if not await self._file.look(lambda store: bounding.are_set(store, wanted)):
            await self._file.change(lambda store: bounding.set_bounds(store, wanted))

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all. Returns for each None, or why it was refused."""
        refused: list[BrokerRefused | None] = await self._file.queue.ask(
            Publication(envelopes=list(envelopes), bodies=to_bodies(envelopes))
        )
        return refused

    # Consumers

    async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
        """Enter a consumer, under the id it had in an earlier link."""
        known = self._ids.get(consumer)
        wanted = {name: None if topics is None else frozenset(topics) for name, topics in queues.items()}
        self._ids[consumer] = await self._file.change(lambda store: store.open(wanted, known), durable=NEVER)

    async def unsubscribe(self, consumer: str) -> None:
        """Remove a consumer."""
        id_ = self._ids.pop(consumer, None)
        self._waiting.pop(consumer, None)
        self._file.vouchers.pop(consumer, None)
        if id_ is not None:
            with suppress(NotConnected, BrokerError), trio.move_on_after(CLOSING_TIME):
                await self._file.queue.ask(Operation(lambda store: store.close([id_]), in_memory=True))

    async def claim(self, consumer: str, limit: int, at_most: AtMost) -> Claimed:
        """Lease what is ready now; the file is locked only if there is something."""
        id_, most = self._ids[consumer], int(min(limit, 2**31))
        if not most:
            return Claimed([], suspects=await self._file.look(lambda store: claiming.count_suspects(store, id_)))
        return Claimed(await self._claim(_Wanted(id_, most, at_most)))

    @enable_ki_protection
    async def claim_or_wait(
        self, consumer: str, limit: int, at_most: AtMost, deadline: float, take: Take
    ) -> list[Delivery]:
        """Lease what is ready now, or what becomes ready first: the file's thread claims it as soon as it sees it.

        What is not fetched within a second, because the event loop is blocked, is ready again for others; then the list
        is empty.
        """
        wanted = _Wanted(self._ids[consumer], int(min(limit, 2**31)), at_most)
        waiting = self._waiting.setdefault(consumer, {})
        waiting[wanted] = None  # from now on, since limits that are set during the first claim hold for the second one
        try:
            deliveries: list[Delivery] = await self._claim(wanted)  # the bell wakes for what is there already
            if not deliveries:
                with trio.CancelScope(deadline=deadline):
                    deliveries = await self._claim(wanted, undo=_give_back)
        finally:
            del waiting[wanted]
        if deliveries:
            take(deliveries)
        return deliveries

    async def _claim(
        self, wanted: _Wanted, undo: Callable[[list[Delivery], Store], None] | None = None
    ) -> list[Delivery]:
        request = Operation(wanted.claim, peek=wanted.is_there, touches=_ids_of, undo=undo)
        return await self._file.queue.ask(request) or []

    def set_limits(self, consumer: str, at_most: AtMost) -> None:
        """Have the claims of this consumer that wait use these limits from now on."""
        for wanted in self._waiting.get(consumer, ()):
            wanted.at_most = at_most
            self._file.stir()

    async def settle(self, consumer: str, settlements: Sequence[Settlement]) -> list[Verdict]:  # noqa: ARG002  any may
        """Carry out each disposition with its outbox and result in one step."""
        outboxes = [to_bodies(settlement.outbox) if settlement.outbox else () for settlement in settlements]
        return await self._file.change(
            lambda store: settling.settle(store, settlements, outboxes), touched=lambda _: ids_in(settlements)
        )

    async def extend(self, consumer: str, deliveries: Sequence[Delivery]) -> list[bool]:  # noqa: ARG002  any may
        """Start each lease anew, also one that has ended and was not rescued yet."""
        tokens = [delivery.token for delivery in deliveries]
        return await self._file.change(lambda store: claiming.extend(store, tokens), durable=NEVER)

    def vouch(self, consumer: str, under_way: UnderWay) -> None:
        """Have the thread extend these leases while the event loop is blocked."""
        self._file.vouchers[consumer] = under_way

    async def rescue(self) -> int:
        """Take back every lease that has ended."""
        rescued = count = await self._file.change(claiming.rescue, durable=NEVER, touched=_any_if_moved)
        while count == claiming.RESCUED_AT_ONCE:  # others get the lock in between
            count = await self._file.change(claiming.rescue, durable=NEVER, touched=_any_if_moved)
            rescued += count
        if (ttl := self._dead_ttl) and await self._file.look(lambda store: views.has_old_dead(store, ttl)):
            await self._in_bites(lambda store: views.delete_old_dead(store, ttl))
        return rescued

    async def news(self, wait: float) -> News | None:
        """Wait until any process has changed the file, or a message in it has become due."""
        with trio.move_on_after(wait):
            return await self._file.news.next()
        return None

    # Looking after queues

    async def queues(self) -> list[str]:
        """The names of all queues."""
        return await self._file.look(lambda store: sorted(store.directory.channels))

    async def readers(self) -> list[Mapping[str, Topics]]:
        """What each open consumer takes."""
        return await self._file.look(lambda store: store.directory.takers(store.boot, store.boot_now))

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """How many messages of each queue are where."""
        return await self._file.look(lambda store: [views.counts(store, queue) for queue in queues])

    async def paused(self, queues: Sequence[str]) -> list[bool]:
        """Whether each queue is paused."""
        return await self._file.look(lambda store: [store.directory.channel(queue).paused for queue in queues])

    async def browse(self, queue: str, category: Category, limit: int, after: str | None) -> list[BrowsedMessage]:
        """Look at messages in the order in which they would be handled."""
        return await self._file.look(lambda store: views.browse(store, queue, category, limit, after))

    async def find(self, ids: Sequence[str]) -> list[list[BrowsedMessage]]:
        """The messages with these ids, live ones first."""
        return await self._file.look(lambda store: [views.find(store, id_) for id_ in ids])

    async def flush(self, queue: str) -> int:
        """Remove what is ready or scheduled; returns how many. In bites, so that no transaction lasts long."""
        removed = 0
        before = await self._file.look(lambda store: views.next_number(store, queue))
        while some := await self._file.look(partial(views.waiting, name=queue, before=before)):
            removed += await self._file.change(partial(Store.remove_waiting, seqs=some), touched=touches_any)
        return removed

    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it, in bites."""
        with suppress(QueueNotDeclared):
            await self.flush(queue)
            await self.delete_messages(queue, None)
        await self._file.change(lambda store: views.delete(store, queue), touched=touches_any)

    async def revive(self, queue: str, keys: Sequence[str] | None) -> list[BrokerRefused | None]:
        """Make dead messages ready again, in bites."""
        dead = await self._file.look(partial(views.dead_keys, name=queue, all_of_them=keys is None))
        chosen = dead if keys is None else [to_number(key) for key in keys]
        answers: list[BrokerRefused | None] = []
        for start in range(0, len(chosen), publishing.REVIVED_AT_ONCE):
            some = chosen[start : start + publishing.REVIVED_AT_ONCE]
            answers += await self._file.change(partial(publishing.revive, queue=queue, keys=some), touched=touches_any)
        return answers

    async def store_dead(self, messages: Sequence[BrowsedMessage]) -> None:
        """Keep dead letters of another server, in bites."""
        for start in range(0, len(messages), BITE):
            some = messages[start : start + BITE]
            bodies = to_bodies(message.envelope for message in some)
            keep = partial(publishing.store_dead, messages=some, bodies=bodies)
            await self._file.change(keep, touched=touches_any)

    async def delete_messages(self, queue: str, keys: Sequence[str] | None) -> int:
        """Remove dead messages; returns how many. In bites, so that no transaction lasts long."""
        if keys is None:
            last = await self._file.look(lambda store: views.last_dead(store, queue))
            return await self._in_bites(lambda store: views.delete_first_dead(store, queue, last))
        chosen = [to_number(key) for key in keys]
        await self._file.look(lambda store: store.directory.channel(queue))  # complains of an undeclared queue
        removed = 0
        for start in range(0, len(chosen), BITE):
            some = chosen[start : start + BITE]
            removed += await self._file.change(partial(views.delete_dead, name=queue, keys=some), touched=touches_any)
        return removed

    async def _in_bites(self, remove: Callable[[Store], int]) -> int:
        """Remove in short transactions until nothing is left to remove; returns how many."""
        removed = count = await self._file.change(remove, touched=touches_any)
        while count:
            count = await self._file.change(remove, touched=touches_any)
            removed += count
        return removed

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Hand out nothing of the queue, or its messages again."""
        await self._file.change(lambda store: store.directory.pause(queue, paused=paused))

    # Following messages

    async def cancel(self, ids: Sequence[str]) -> list[Cancelled]:
        """Remove the messages that wait; have the consumers of the others told."""
        return await self._file.change(lambda store: [views.cancel(store, id_) for id_ in ids], touched=lambda _: ids)

    async def snapshots(self, ids: Sequence[tuple[str, str]]) -> list[Sight]:
        """The state of each message. That a message becomes due is news."""
        return await self._file.look(partial(self._look_at, ids))

    def _look_at(self, ids: Sequence[tuple[str, str]], store: Store) -> list[Sight]:
        began = time.monotonic()
        sights = [Sight(views.watch(store, *pair)) for pair in ids]
        self._file.news.looked(time.monotonic() - began)
        return sights

    async def report(self, consumer: str, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:  # noqa: ARG002  any may
        """Note that runs have begun and how far they have come."""
        noted = [(delivery.token, _pack_progress(delivery, how_far)) for delivery, how_far in progress]
        await self._file.change(
            lambda store: claiming.report(store, noted),
            durable=NEVER,
            touched=lambda _: [delivery.envelope.id for delivery, _ in progress],
        )

    async def events(self, consumer: str) -> list[LeaseEvent]:
        """The cancelled runs of this consumer, until their leases have ended."""
        id_ = self._ids[consumer]
        tokens = await self._file.look(lambda store: claiming.cancellations(store, id_))
        return [LeaseEvent(token, "cancel") for token in tokens]

    # Results

    async def store_results(self, results_: Sequence[NewResult]) -> None:
        """Store results, in place of those with the same ids."""
        new = list(results_)
        await self._file.change(
            lambda store: store.store_results(new),
            touched=lambda _: [result.id for result in new],
        )

    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """The result under each id, or None."""
        return await self._file.look(lambda store: results.fetch(store.connection, store.now, ids))

    # Schedules

    async def now(self) -> float:
        """The wall clock: seconds since 1970."""
        return await self._file.look(lambda store: store.now / MICRO)

    async def schedules(self, names: Collection[str] | None) -> list[StoredSchedule]:
        """All of them, or those of these names."""
        return await self._file.look(lambda store: schedules.find(store, names))

    async def replace_schedules(self, changes: Sequence[ScheduleChange]) -> list[bool]:
        """Store each schedule, if the old one is what is there."""
        bodies = [schedules.encode_schedule(new.schedule) for _, new in changes]
        return await self._file.change(
            lambda store: [
                schedules.replace(store, old, new, body) for (old, new), body in zip(changes, bodies, strict=True)
            ]
        )

    async def due_schedules(self, limit: int) -> DueSchedules:
        """Those that are due."""
        return await self._file.look(lambda store: schedules.due(store, limit))

    async def remove_schedule(self, name: str) -> bool:
        """Remove a schedule."""
        return await self._file.change(lambda store: schedules.remove(store, name))

    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """Move the schedule on and publish, if it is still where it was expected to be."""
        envelopes = [] if envelope is None else [envelope]
        bodies = to_bodies(envelopes)
        return await self._file.change(
            lambda store: schedules.tick(store, name, expected_next, next_at, envelopes, bodies),
            touched=lambda _: [envelope.id for envelope in envelopes],
        )


def _ids_of(deliveries: Sequence[Delivery] | None) -> list[str]:
    """The ids of what was leased."""
    return [delivery.envelope.id for delivery in deliveries or ()]


class _Wanted:
    """What a waiting claim takes, and within which limits; those may change while it waits."""

    __slots__ = ("at_most", "consumer", "limit")

    def __init__(self, consumer: int, limit: int, at_most: AtMost) -> None:
        self.consumer = consumer
        self.limit = limit
        self.at_most = at_most

    def is_there(self, store: Store) -> bool:
        """Whether there is any."""
        return claiming.has_any(store, self.consumer, self.at_most)

    def claim(self, store: Store) -> list[Delivery]:
        """Lease it."""
        return claiming.claim(store, self.consumer, self.limit, self.at_most)


def _give_back(deliveries: Sequence[Delivery], store: Store) -> None:
    """Make ready again what was leased to a consumer that has not seen it."""
    settling.settle(
        store,
        [Settlement(delivery, disposition_on(Phase.HELD, Stopping())) for delivery in deliveries],
        [()] * len(deliveries),
    )


def _any_if_moved(count: int) -> tuple[()] | None:
    """What a rescue may have changed: any message, or none."""
    return None if count else ()


def _pack_progress(delivery: Delivery, progress: Progress | None) -> bytes | None:
    if progress is None:
        return None
    packed = None
    with suppress(TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        packed = pack(progress)
    if packed is None or to_progress(packed) is None:
        raise ConfigurationError(
            f"the progress of message {delivery.envelope.id!r} must be finite numbers and a note that is text, but is "
            f"{progress!r}"
        )
    return packed
