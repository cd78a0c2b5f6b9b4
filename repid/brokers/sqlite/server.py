"""The async shell of the SQLite broker."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from ...delivery import NewResult, StoredResult
from ...envelope import Envelope
from ...errors import BrokerRefused, ConfigurationError, QueueNotDeclared
from ...hosts import hosted, hosted_context
from ...names import check_one_of
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
from ..checks import check_envelopes, check_queues
from . import publishing, schedules, views
from . import results as stored_results
from .clock import MICRO, Clock
from .consumer import SQLiteConsumer, open_consumer
from .requests import Publication, Request
from .rows import to_bodies
from .schema import Opening
from .session import Session
from .store import BITE, Store

Synchronous: TypeAlias = Literal["NORMAL", "FULL", "EXTRA"]
"""When what was committed is safe. FULL, EXTRA: at once. NORMAL: at once if this process or another dies; if the
machine loses power, the last transactions before that may be lost, whole. The file is never damaged."""


class SQLiteServer:
    """A broker in one file, for any number of processes on one machine. The file is made if it does not exist.

    `synchronous`: with FULL, the default, what `publish` accepted survives a loss of power; see `Synchronous`.
    `lease_timeout`: a lease that was neither settled nor extended for so many seconds may be rescued. `file_mode`: the permissions of the file, and of the files -wal and -shm beside it, if it is created; the default
    lets nobody but its owner read them, 0o660 its group too. Those of a file that exists are left as they are.
    `clock` is for tests. The file must be on a local disk: SQLite's locks do not work over a network.

    One thread works on the file while a connection is open. Calls that wait at the same time share a transaction, so
    many concurrent publishers cost little more than one. Of a cancelled call nothing has happened; a call that was
    being carried out when it was cancelled is seen through and returns.
    """

    capabilities = Capabilities(filters_topics=True, atomic_outbox=True, durable=True, shared=True)

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "FULL",
        lease_timeout: float | timedelta = 60.0,
        file_mode: int = 0o600,
        clock: Clock | None = None,
    ) -> None:
        lease_timeout = seconds(lease_timeout)
        if not lease_timeout > 0:
            raise ConfigurationError(f"lease_timeout must be more than 0 seconds, but is {lease_timeout}")
        check_one_of("synchronous", synchronous, ("NORMAL", "FULL", "EXTRA"))
        self.path = _check_path(path)
        _check_mode(file_mode)
        self._session = Session(Opening(self.path, synchronous, file_mode), lease_timeout, clock or Clock())

    @property
    def is_connected(self) -> bool:
        """Whether a `connection()` block is open."""
        return self._session.depth > 0

    @hosted_context
    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[SQLiteServer, None]:
        """Open the file for a block. Blocks nest; leaving the outermost one also closes its consumers.

        Raises `ConfigurationError` where the file cannot be used, `UsageError` where another trio run has it open.
        """
        token = await self._session.enter()
        try:
            yield self
        finally:
            await self._session.leave(token)

    def consume(self, queues: Mapping[str, Topics]) -> AbstractAsyncContextManager[SQLiteConsumer]:
        """Open a consumer of these declared queues. Raises `QueueNotDeclared`."""
        return open_consumer(self._session, queues)

    # Messages

    @hosted
    async def declare(self, queues: Iterable[str]) -> None:
        """Create the queues that do not exist yet. Idempotent."""
        names = check_queues(queues)
        if not await self._session.look(lambda store: store.directory.channels.keys() >= set(names)):
            await self._session.change(lambda store: store.directory.declare(names))

    @hosted
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all; for each None, or why it was refused. Cancelled: none was published.

        Raises `ConfigurationError`, and publishes none, where one cannot be written to a file.
        """
        check_envelopes(envelopes)
        return await self._session.ask(Publication(list(envelopes), to_bodies(envelopes)))

    @hosted
    async def counts(self, queue: str) -> Counts:
        """How many messages of the queue are in each place. Raises `QueueNotDeclared`. Takes time where many are."""
        return await self._session.look(lambda store: views.counts(store, queue))

    @hosted
    async def browse(self, queue: str, category: Category, *, limit: int = 100) -> list[BrowsedMessage]:
        """Look at messages without leasing them, in the order in which they would be handled."""
        return await self._session.look(lambda store: views.browse(store, queue, category, limit))

    @hosted
    async def flush(self, queue: str) -> int:
        """Remove every ready and scheduled message of the queue; how many. Leased and dead ones stay.

        Cancelled: some may be removed.
        """
        removed = 0
        before = await self._session.look(lambda store: views.next_number(store, queue))
        while some := await self._session.look(partial(views.waiting, name=queue, before=before)):
            removed += await self._session.change(partial(Store.remove_waiting, seqs=some))
        return removed

    @hosted
    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it; late verdicts are refused. Where there is none, nothing happens.

        Cancelled: some messages may be removed.
        """
        with suppress(QueueNotDeclared):
            await self.flush(queue)
            await self.delete_messages(queue)
        await self._session.change(lambda store: views.delete(store, queue))

    @hosted
    async def revive(self, queue: str, keys: Iterable[int] | None = None) -> list[BrokerRefused | None]:
        """Make dead messages ready again, as new ones (a ttl starts anew).

        One answer for each: `DuplicateId` where its id is alive, `BrokerRefused` where no dead one has the key.
        Cancelled: some may be revived.
        """
        dead = await self._session.look(partial(views.dead_keys, name=queue, all_of_them=keys is None))
        chosen = dead if keys is None else list(keys)
        answers: list[BrokerRefused | None] = []
        for start in range(0, len(chosen), publishing.REVIVED_AT_ONCE):
            some = chosen[start : start + publishing.REVIVED_AT_ONCE]
            answers += await self._session.change(partial(publishing.revive, queue=queue, keys=some))
        return answers

    @hosted
    async def delete_messages(self, queue: str, keys: Iterable[int] | None = None) -> int:
        """Remove dead messages (all, or those with these keys) for good; how many. Cancelled: some may be removed."""
        if keys is None:
            last = await self._session.look(lambda store: views.last_dead(store, queue))
            return await self._in_bites(lambda store: views.delete_first_dead(store, queue, last))
        waiting = list(keys)
        await self._session.look(lambda store: store.directory.channel(queue))  # complains of an undeclared queue
        removed = 0
        for start in range(0, len(waiting), BITE):
            some = waiting[start : start + BITE]
            removed += await self._session.change(partial(views.delete_dead, name=queue, keys=some))
        return removed

    async def _in_bites(self, remove: Callable[[Store], int]) -> int:
        """Remove in transactions that are short, until nothing is left to remove; how many."""
        removed = count = await self._session.change(remove)
        while count:
            count = await self._session.change(remove)
            removed += count
        return removed

    @hosted
    async def pause(self, queue: str) -> None:
        """Hand out nothing of this queue, to no consumer, until `resume`. What is leased goes on."""
        await self._session.change(lambda store: store.directory.pause(queue, paused=True))

    @hosted
    async def resume(self, queue: str) -> None:
        """Hand out its messages again."""
        await self._session.change(lambda store: store.directory.pause(queue, paused=False))

    @hosted
    async def cancel(self, id_: str) -> Cancelled:
        """Remove the live message with this id, or have its run cancelled."""
        return await self._session.change(lambda store: views.cancel(store, id_))

    @hosted
    async def watch(self, id_: str, result_id: str, seen: Snapshot | None = None) -> Snapshot:
        """How the message stands, as soon as that differs from `seen`; of several dead ones the last."""

        def watch(store: Store) -> Snapshot | None:
            snapshot = views.watch(store, id_, result_id)
            return None if snapshot == seen else snapshot

        return await self._session.ask(Request(watch, is_wish=True))

    # Results

    @hosted
    async def store_results(self, results: Sequence[NewResult]) -> None:
        """Store results, in place of those with the same ids."""
        new = list(results)
        await self._session.change(lambda store: stored_results.store(store.connection, store.now, new))

    @hosted
    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """The result under each id; None where there is none, or none any more."""
        wanted = list(ids)
        return await self._session.look(lambda store: stored_results.fetch(store.connection, store.now, wanted))

    # Schedules

    @hosted
    async def now(self) -> float:
        """The wall clock: seconds since 1970. It may be stepped; schedules bear that."""
        return await self._session.look(lambda store: store.now / MICRO)

    @hosted
    async def put_schedule(self, schedule: Schedule, next_at: float) -> None:
        """Store a schedule, in place of one of the same name, whose counts, pause and declaration it keeps."""
        body = schedules.encode_schedule(schedule)
        await self._session.change(lambda store: schedules.put(store, schedule, body, next_at))

    @hosted
    async def replace_schedule(self, old: StoredSchedule | None, new: StoredSchedule) -> bool:
        """Store `new` if what is stored under its name equals `old` (None: nothing is); whether it did."""
        body = schedules.encode_schedule(new.schedule)
        return await self._session.change(lambda store: schedules.replace(store, old, new, body))

    @hosted
    async def schedules(self, names: Collection[str] | None = None) -> list[StoredSchedule]:
        """All of them, or those of these names that are there; sorted by name."""
        chosen = None if names is None else list(names)
        return await self._session.look(lambda store: schedules.find(store, chosen))

    @hosted
    async def due_schedules(self, limit: int) -> DueSchedules:
        """At most `limit` schedules that are due and not paused, and when the next one is, at one moment."""
        return await self._session.look(lambda store: schedules.due(store, limit))

    @hosted
    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """Hold its ticks, or let them go on. False: there is none of that name."""
        return await self._session.change(lambda store: schedules.pause(store, name, paused=paused))

    @hosted
    async def remove_schedule(self, name: str) -> bool:
        """Forget it; what it has published stays. False: there is none of that name."""
        return await self._session.change(lambda store: schedules.remove(store, name))

    @hosted
    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """Make `next_at` the schedule's next time and publish, if its next tick is still `expected_next`."""
        envelopes = [] if envelope is None else [envelope]
        check_envelopes(envelopes)
        bodies = to_bodies(envelopes)
        return await self._session.change(
            lambda store: schedules.tick(store, name, expected_next, next_at, envelopes, bodies)
        )


def _check_path(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    if text in {"", ":memory:"} or text.startswith("file:"):
        raise ConfigurationError(
            f"SQLiteServer needs the path of a file, but got {text!r}: for messages that live in this process only "
            "there is InMemoryServer"
        )
    return str(Path(text).absolute())


def _check_mode(mode: int) -> None:
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o777 or mode & 0o600 != 0o600:
        shown = oct(mode) if type(mode) is int else repr(mode)
        raise ConfigurationError(
            f"file_mode must be permissions with which the owner may read and write, such as 0o600 or 0o660, but is {shown}"
        )


SQLiteMessageBroker = SQLiteServer
