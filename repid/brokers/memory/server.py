"""The async shell of the memory broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

from trio.lowlevel import checkpoint

from ...delivery import NewResult, StoredResult
from ...envelope import Envelope
from ...errors import BrokerRefused, ConfigurationError
from ...hosts import hosted, hosted_context
from ...ports import (
    BrowsedMessage,
    Cancelled,
    Capabilities,
    Category,
    Counts,
    DueSchedules,
    Schedule,
    Snapshot,
    StoredSchedule,
    TickOutcome,
    Topics,
)
from ...retry import seconds
from ..checks import check_envelopes, check_queues, check_results
from . import views
from .consumer import InMemoryConsumer
from .schedules import Schedules
from .session import Session
from .taker import Taker


class InMemoryServer:
    """A broker inside the process. Messages live in this object, outlast connections and trio runs, and end with it.

    `lease_timeout`: a lease that was neither settled nor extended for so many seconds may be rescued. Payloads,
    headers and parameters are handed over as they are, not copied.
    """

    capabilities = Capabilities(filters_topics=True, atomic_outbox=True, durable=False, shared=False)

    def __init__(self, *, lease_timeout: float | timedelta = 60.0) -> None:
        lease_timeout = seconds(lease_timeout)
        if not lease_timeout > 0:
            raise ConfigurationError(f"lease_timeout must be more than 0 seconds, but is {lease_timeout}")
        self._session = Session(lease_timeout)
        self._store = self._session.store
        self._schedules = Schedules(self._store)

    @property
    def is_connected(self) -> bool:
        """Whether a `connection()` block is open."""
        return self._session.depth > 0

    @hosted_context
    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[InMemoryServer, None]:
        """Open the broker for a block. Blocks nest; leaving the outermost one also closes its consumers.

        Raises `UsageError` where another trio run has it open.
        """
        await checkpoint()
        token = self._session.enter()
        try:
            yield self
        finally:
            self._session.leave(token)

    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncGenerator[InMemoryConsumer, None]:
        """Open a consumer of these declared queues. Raises `QueueNotDeclared`."""
        taker = Taker(queues)
        try:
            await self._session.step(lambda _: self._store.directory.open(taker))
            yield InMemoryConsumer(self._session, taker)
        finally:
            self._session.close_consumer(taker)

    @hosted
    async def declare(self, queues: Iterable[str]) -> None:
        """Create the queues that do not exist yet. Idempotent."""
        names = check_queues(queues)
        await self._session.step(lambda _: self._store.directory.declare(names))

    @hosted
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all; for each None, or why it was refused. Cancelled: none was published.

        Raises `ConfigurationError`, and publishes none, where a payload is not bytes.
        """
        check_envelopes(envelopes)
        return await self._session.step(partial(self._store.publish, envelopes))

    @hosted
    async def counts(self, queue: str) -> Counts:
        """How many messages of the queue are in each place. Raises `QueueNotDeclared`."""
        return await self._session.step(lambda now: views.counts(self._store, queue, now))

    @hosted
    async def browse(self, queue: str, category: Category, *, limit: int = 100) -> list[BrowsedMessage]:
        """Look at messages without leasing them, in the order in which they would be handled."""
        return await self._session.step(lambda now: views.browse(self._store, queue, category, limit, now))

    @hosted
    async def flush(self, queue: str) -> int:
        """Remove every ready and scheduled message of the queue; how many. Leased and dead ones stay."""
        return await self._session.step(lambda now: self._store.flush(queue, now))

    @hosted
    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it; late verdicts are refused. Where there is none, nothing happens."""
        await self._session.step(lambda now: self._store.delete(queue, now))

    @hosted
    async def revive(self, queue: str, keys: Iterable[int] | None = None) -> list[BrokerRefused | None]:
        """Make dead messages ready again, as new ones (a ttl starts anew).

        One answer for each: `DuplicateId` where its id is alive, `BrokerRefused` where no dead one has the key.
        """
        return await self._session.step(lambda now: self._store.revive(queue, keys, now))

    @hosted
    async def delete_messages(self, queue: str, keys: Iterable[int] | None = None) -> int:
        """Remove dead messages (all, or those with these keys) for good; how many. Cancelled: none was removed."""
        return await self._session.step(lambda now: self._store.delete_dead(queue, keys, now))

    @hosted
    async def pause(self, queue: str) -> None:
        """Hand out nothing of this queue until `resume`. Raises `QueueNotDeclared`."""
        await self._session.step(lambda now: self._store.pause(queue, now))

    @hosted
    async def resume(self, queue: str) -> None:
        """Hand out its messages again. Raises `QueueNotDeclared`."""
        await self._session.step(lambda now: self._store.resume(queue, now))

    @hosted
    async def cancel(self, id_: str) -> Cancelled:
        """Remove the live message with this id, or have its run cancelled."""
        return await self._session.step(lambda now: self._store.cancel(id_, now))

    @hosted
    async def watch(self, id_: str, result_id: str, seen: Snapshot | None = None) -> Snapshot:
        """How the message stands, as soon as that differs from `seen`. Cancelling loses nothing."""
        return await self._session.watch(id_, result_id, seen)

    @hosted
    async def store_results(self, results: Sequence[NewResult]) -> None:
        """Store results, in place of those with the same ids. Raises `ConfigurationError`, and stores none, for a bad ttl."""
        check_results(results)
        await self._session.step(lambda now: self._store.store_results(results, now))

    @hosted
    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """The result under each id; None where there is none, or none any more."""
        return await self._session.step(lambda now: views.fetch(self._store, ids, now, self._session.clock.epoch))

    @hosted
    async def now(self) -> float:
        """Seconds since 1970 on the broker's clock, which is never stepped."""
        return await self._session.step(lambda now: self._session.clock.epoch + now)

    @hosted
    async def put_schedule(self, schedule: Schedule, next_at: float) -> None:
        """Store a schedule, in place of one of the same name, whose counts, pause and declaration it keeps."""
        check_envelopes([schedule.envelope])
        await self._session.step(lambda _: self._schedules.put(schedule, next_at))

    @hosted
    async def replace_schedule(self, old: StoredSchedule | None, new: StoredSchedule) -> bool:
        """Store `new` if what is stored under its name equals `old` (None: nothing is); whether it did."""
        check_envelopes([new.schedule.envelope])
        return await self._session.step(lambda _: self._schedules.replace(old, new))

    @hosted
    async def schedules(self, names: Collection[str] | None = None) -> list[StoredSchedule]:
        """All schedules, or those of these names that are there; sorted by name."""
        return await self._session.step(lambda _: self._schedules.find(names))

    @hosted
    async def due_schedules(self, limit: int) -> DueSchedules:
        """At most `limit` schedules that are due and not paused, and when the next one is, at one moment."""
        return await self._session.step(lambda now: self._schedules.due(limit, self._session.clock.epoch + now))

    @hosted
    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """Hold its ticks, or let them go on. False: there is none of that name."""
        return await self._session.step(lambda _: self._schedules.pause(name, paused=paused))

    @hosted
    async def remove_schedule(self, name: str) -> bool:
        """Forget it; what it has published stays. False: there is none of that name."""
        return await self._session.step(lambda _: self._schedules.remove(name))

    @hosted
    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """Move the schedule on and publish, if it is still where it was expected to be. Cancelled: neither was done."""
        if envelope is not None:
            check_envelopes([envelope])
        return await self._session.step(lambda now: self._schedules.tick(name, expected_next, next_at, envelope, now))


InMemoryMessageBroker = InMemoryServer
