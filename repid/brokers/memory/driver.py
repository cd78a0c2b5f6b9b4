"""The driver of the memory engine: the store, its clock and the consumers that wait.

Every call is one synchronous step, so the driver is a local one: nothing in it waits but `news` and `claim_or_wait`.
An interrupt in the middle of a step would leave half of it: the front door protects its calls from Ctrl-C, and what it
calls directly protects itself.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio
from msgspec.structs import replace
from trio.lowlevel import enable_ki_protection

from ...delivery import Bounds, Delivery, NewResult, Progress, Settlement, StoredResult
from ...envelope import Envelope
from ...errors import BrokerRefused
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
    Taker,
    TickOutcome,
    Topics,
    Verdict,
)
from . import tending, views
from .record import Subscription
from .schedules import Schedules
from .store import Store
from .waiting import Clock, Waiter, WaitingReceives

T = TypeVar("T")

LONGEST_GATHERING = 0.001
"""Seconds for which news of several messages waits for news of more."""


class MemoryDriver:
    """Messages in this object. They outlast links and trio runs, and end with it."""

    capabilities: Capabilities = replace(EVERYTHING, calls="local", durable=False, shared=False)

    def __init__(self, lease_timeout: float, dead_ttl: float | None = None) -> None:
        self.capabilities = replace(self.capabilities, dead_ttl=dead_ttl)
        self.lease_timeout = lease_timeout
        self.store = Store(lease_timeout, dead_ttl)
        self._clock = Clock()
        self._waiting = WaitingReceives(self.store, self._clock)
        self._schedules = Schedules(self.store)
        self._subscriptions: dict[str, Subscription] = {}
        # those of earlier links too, while they have leases: a consumer that comes back is told of requests of then
        self._known: weakref.WeakValueDictionary[str, Subscription] = weakref.WeakValueDictionary()
        self._last_run: weakref.ref[trio.lowlevel.TrioToken] | None = None
        self._links = 0

    @asynccontextmanager
    async def link(self, watched: Mapping[str, int]) -> AsyncIterator[None]:
        """Attach to this trio run. What a crashed run left is dropped: its tasks do not exist any more."""
        self._links += 1
        link = self._links
        self._drop()
        token = trio.lowlevel.current_trio_token()
        if self._last_run is None or self._last_run() is not token:
            self._clock.attach()
            self._last_run = weakref.ref(token)
        self.store.watch(watched)
        self.store.results.epoch = self._clock.epoch
        async with trio.open_nursery() as nursery:
            await nursery.start(self._waiting.keep_time)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                if link == self._links:  # else a later one has taken over
                    self._waiting.wake_all()
                    self._drop()

    def hand_over(self, takers: Mapping[str, Taker]) -> None:
        """Give results to those who take them, and store them not."""
        self.store.results.takers = takers

    def _drop(self) -> None:
        self._waiting.abandon()
        self.store.watch({})
        self.store.directory.close_all()
        self._subscriptions.clear()

    async def declare(self, queues: Sequence[str]) -> None:
        """Create the queues that do not exist yet."""
        self._step(lambda _: self.store.directory.declare(queues))

    async def set_bounds(self, bounds: Mapping[str, Bounds]) -> None:
        """Create the queues that do not exist yet, and bound them."""
        self._step(partial(tending.set_bounds, self.store, bounds))

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all; for each None, or why it was refused."""
        return self._step(partial(self.store.publish, envelopes))

    @enable_ki_protection
    def publish_at_once(self, envelope: Envelope) -> bool:
        """Publish one message. False: nothing is done."""
        now = self._clock.look()  # as in `_step`
        try:
            return self.store.put(envelope, now)
        finally:
            if self._waiting.waiters:
                self._waiting.serve(now)
            if self.store.full:
                tending.tell_of_room(self.store)

    # Consumers

    async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
        """Note what the consumer takes: it is no stray from now on."""
        if consumer not in self._subscriptions:
            subscription = self._known.get(consumer) or Subscription(queues)
            self._step(lambda _: self.store.directory.open(subscription))
            self._subscriptions[consumer] = self._known[consumer] = subscription

    async def unsubscribe(self, consumer: str) -> None:
        """Close the consumer. Waiting claims look again, because its topics may be strays now."""
        subscription = self._subscriptions.pop(consumer, None)
        if subscription is not None:
            self.store.directory.close(subscription)
            self._waiting.wake_all()

    async def claim(self, consumer: str, limit: int, at_most: AtMost) -> Claimed:
        """Lease what is ready now."""
        subscription = self._subscriptions[consumer]
        if not limit:
            return Claimed([], suspects=self._step(partial(self.store.suspects, subscription)))
        deliveries = self._step(partial(self.store.receive, subscription, limit, at_most))
        return Claimed(deliveries, max(0.0, self.store.next_due() - self._clock.look()))

    @enable_ki_protection
    async def claim_or_wait(
        self, consumer: str, limit: int, at_most: AtMost, deadline: float, take: Take
    ) -> list[Delivery]:
        """Lease what is ready now, or what becomes ready first, in the step of its publisher."""
        await trio.lowlevel.checkpoint_if_cancelled()
        subscription = self._subscriptions[consumer]
        deliveries = self._step(partial(self.store.receive, subscription, limit, at_most))
        if deliveries:
            take(deliveries)
            await trio.lowlevel.cancel_shielded_checkpoint()
            return deliveries
        while True:
            waiter = Waiter(subscription, limit, at_most, deadline, take)
            deliveries = await self._waiting.wait(waiter)
            at_most = waiter.at_most  # as they are now
            if not deliveries and consumer in self._subscriptions:
                deliveries = self._step(partial(self.store.receive, subscription, limit, at_most))
                if deliveries:
                    take(deliveries)
            if deliveries or consumer not in self._subscriptions or trio.current_time() >= deadline:
                return deliveries

    @enable_ki_protection
    def set_limits(self, consumer: str, at_most: AtMost) -> None:
        """Have a claim of this consumer that is waiting use these limits from now on."""
        subscription = self._subscriptions.get(consumer)
        if subscription is not None:
            self._waiting.set_limits(subscription, at_most, self._clock.look())

    async def settle(self, consumer: str, settlements: Sequence[Settlement]) -> list[Verdict]:  # noqa: ARG002  any may
        """Carry out each disposition with its outbox and result in one step."""
        return self._step(partial(self.store.settle, settlements))

    async def extend(self, consumer: str, deliveries: Sequence[Delivery]) -> list[bool]:  # noqa: ARG002  any may
        """Start the lease of each anew, also of one that has ended and was not rescued yet."""
        return self._step(partial(self.store.extend, deliveries))

    async def rescue(self) -> int:
        """Take back every lease that has ended."""
        return self._step(self.store.rescue)

    async def news(self, wait: float) -> News | None:
        """Wait for changes of what is watched, and for lease events. Waiting claims need no news."""
        changes = self.store.changes
        news = changes.take()
        if news is None:
            rung = trio.Event()
            changes.ring = rung.set
            with trio.move_on_after(wait):
                await rung.wait()
                await self._let_more_change()
            news = changes.take()
        return news

    async def _let_more_change(self) -> None:
        """Where several have changed, wait as long as more do in every turn: to look at many at once costs less."""
        ids, before, until = self.store.changes.ids, 1, time.perf_counter() + LONGEST_GATHERING
        while len(ids) > before and time.perf_counter() < until:
            before = len(ids)
            await trio.lowlevel.checkpoint()

    # Looking after queues

    async def queues(self) -> list[str]:
        """The names of all queues."""
        return sorted(self.store.channels)

    async def readers(self) -> list[Mapping[str, Topics]]:
        """What each open consumer takes."""
        return self.store.directory.takers()

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """How many messages of each queue are where."""
        return self._step(lambda now: [views.counts(self.store, queue, now) for queue in queues])

    async def browse(self, queue: str, category: Category, limit: int, after: str | None) -> list[BrowsedMessage]:
        """Look at messages in the order in which they would be handled."""
        epoch = self._clock.epoch
        return self._step(lambda now: views.browse(self.store, queue, category, limit, after, now, epoch))

    async def find(self, ids: Sequence[str]) -> list[list[BrowsedMessage]]:
        """The messages with these ids, live ones first."""
        epoch = self._clock.epoch
        return self._step(lambda now: [views.find(self.store, id_, now, epoch) for id_ in ids])

    async def flush(self, queue: str) -> int:
        """Remove what is ready or scheduled; how many."""
        return self._step(partial(tending.flush, self.store, queue))

    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it."""
        self._step(partial(tending.delete, self.store, queue))

    async def revive(self, queue: str, keys: Sequence[str] | None) -> list[BrokerRefused | None]:
        """Make dead messages ready again."""
        return self._step(partial(tending.revive, self.store, queue, keys))

    async def delete_messages(self, queue: str, keys: Sequence[str] | None) -> int:
        """Remove dead messages; how many."""
        return self._step(partial(tending.delete_dead, self.store, queue, keys))

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Hand out nothing of the queue, or its messages again."""
        self._step(partial(tending.pause if paused else tending.resume, self.store, queue))

    # Following messages

    async def cancel(self, ids: Sequence[str]) -> list[Cancelled]:
        """Remove the messages that wait; have the consumers of the others told."""
        return self._step(lambda now: [self.store.cancel(id_, now) for id_ in ids])

    async def snapshots(self, ids: Sequence[tuple[str, str]]) -> list[Sight]:
        """The state of each message, and how long it stays true if no call changes it."""
        epoch = self._clock.epoch
        return self._step(lambda now: views.look(self.store, ids, now, epoch))

    async def report(self, consumer: str, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:  # noqa: ARG002  any may
        """Note how far runs have come."""
        self._step(partial(self.store.report, progress))

    async def events(self, consumer: str) -> list[LeaseEvent]:
        """The cancelled runs of this consumer, until their leases have ended."""
        subscription = self._subscriptions.get(consumer)
        return [] if subscription is None else [LeaseEvent(token, "cancel") for token in subscription.requests]

    # Results and schedules

    async def store_results(self, results: Sequence[NewResult]) -> None:
        """Store results, in place of those with the same ids."""
        self._step(partial(self.store.store_results, results))

    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """The result under each id, or None."""
        return self._step(lambda now: views.fetch(self.store, ids, now, self._clock.epoch))

    async def now(self) -> float:
        """Seconds since 1970 on a clock that is never stepped."""
        return self._step(lambda now: self._clock.epoch + now)

    async def schedules(self, names: Collection[str] | None) -> list[StoredSchedule]:
        """All schedules, or those of these names."""
        return self._schedules.find(names)

    async def due_schedules(self, limit: int) -> DueSchedules:
        """Those that are due."""
        return self._schedules.due(limit, await self.now())

    async def replace_schedules(self, changes: Sequence[ScheduleChange]) -> list[bool]:
        """Store each schedule, if the old one is what is there."""
        return [self._schedules.replace(old, new) for old, new in changes]

    async def remove_schedule(self, name: str) -> bool:
        """Remove a schedule."""
        return self._schedules.remove(name)

    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """Move the schedule on and publish, if it is still where it was expected to be."""
        return self._step(lambda now: self._schedules.tick(name, expected_next, next_at, envelope, now))

    def _step(self, operation: Callable[[float], T]) -> T:
        """Change the store, and serve the claims that wait for what that made ready."""
        now = self._clock.look()
        try:
            return operation(now)
        finally:
            if self._waiting.waiters:
                self._waiting.serve(now)
            if self.store.full:
                tending.tell_of_room(self.store)
