"""The driver of the PostgreSQL engine: each call is one round trip, or a transaction of a few.

Theory. The modules beside this one make the statements, each for one matter: `publishing`, `claiming`, `settling`,
`shelving`, `views`, `results`, `schedules`, `directory`. This one sends them on connections of a pool, and tells those
who wait that something has changed (`news`).

* `_directory` is a copy of what is declared. A statement that relies on it does nothing where its version is not the
  present one any more; then the copy is read again, and the statement is made anew.
* Whatever changes a message tells of it twice: tasks of this process by `NewsBox.note`, sleeping ones of others by a
  statement (`NewsBox.waking`) that is sent with the change, behind its transaction.
* `_marks` and `_fronts` remember where claims may begin, and when something is due. What puts a message back where
  claims have passed calls `_marks.forget`.
* What workers ask is `asked_again`: where another transaction has locked what is needed, they make the call again.
* Many messages are changed in bites, so that no transaction lasts long: one that does keeps the server from removing
  old rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from copy import copy
from typing import Any

import trio
from msgspec.structs import replace

from ...delivery import UNBOUNDED, Bounds, Delivery, Failure, NewResult, Progress, Settlement, StoredResult, Token
from ...envelope import Envelope
from ...errors import BrokerError, BrokerRefused, BrokerUnavailable, NotConnected, QueueNotDeclared, UsageError
from ...ports import (
    ANYTHING,
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
    TickOutcome,
    Topics,
    UnderWay,
    Verdict,
)
from ..shared.dropping import DropLog
from ..shared.extender import Extender
from ..shared.keys import to_number
from ..shared.notes import ids_in
from ..shared.packing import pack
from . import bounding, claiming, directory, publishing, results, schedules, schema, settling, shelving, views
from .binding import Step, statement
from .borrowing import Borrowed
from .errors import Locked, asked_again
from .news import BURY_SLEEPERS, NEW_MEMBER, NewsBox, channel_of
from .pool import Pool, in_transaction, transaction
from .rows import micros
from .wire import Rows, Wire, connect

log = logging.getLogger("repid.postgres")

BEAT = directory.CONSUMER_TIME / 4
"""Seconds after which the others hear of our consumers again."""

SILENCE = 5.0
"""Seconds within which the server must answer what we ask by ourselves."""

MIGRATION_TIME = 600.0
"""Seconds within which the tables must be made, or brought up to date."""

_STAY = Step(
    statement(
        "SELECT set_config('idle_session_timeout', '0', FALSE) FROM pg_settings WHERE name = 'idle_session_timeout'"
    )
)
"""Has PostgreSQL (14 or newer) keep the connection that waits for notifications, however long it waits."""


class PostgresDriver:
    """One schema of one database. Calls may run at the same time, each on a connection of its own."""

    capabilities: Capabilities = replace(EVERYTHING, calls="remote")

    def __init__(
        self,
        conninfo: str,
        options: Mapping[str, Any],
        schema_name: str,
        lease_timeout: float,
        *,
        connections: int,
        listen: bool,
        migrate: bool,
        dead_ttl: float | None = None,
    ) -> None:
        self.capabilities = replace(self.capabilities, dead_ttl=dead_ttl)
        self._dead_ttl = dead_ttl
        self.lease_timeout = lease_timeout
        self._lease = micros(min(lease_timeout, 1e9))
        self._conninfo = conninfo
        self._options = options
        self._schema = schema_name
        self._most = connections
        self._listens = listen
        self._migrates = migrate
        self._directory = directory.Directory()
        self._marks = claiming.Marks()
        self._fronts = claiming.Fronts()
        self._drop_log = DropLog()
        self._ids: dict[str, int] = {}  # of the consumers, as the database has them; they outlast a link, as leases do
        self._takes: dict[int, bytes] = {}  # what each of these takes
        self._idle: set[str] = set()  # the consumers whose last claim found nothing
        self._tables: int | None = None  # the number of one of our tables
        self._is_locked_out = False
        self.data_losses = 0
        self._extender = Extender(lease_timeout, self._extend_apart)
        self._open_pool: Pool | None = None
        self._open_news: NewsBox | None = None

    # The link

    def create_nothing(self) -> None:
        """Use the schema only as it is, from the next link on."""
        self._migrates = False

    @asynccontextmanager
    async def link(self, watched: Collection[str]) -> AsyncIterator[None]:
        """Open the first connection, bring the schema up to date, and listen."""
        pool = Pool(self._most, self._connect)
        listener: Wire | None = None
        error: Exception | None = None
        try:
            member = await self._set_up(pool)
            news = NewsBox(member, channel_of(self._schema), watched, self._asking(pool), listens=self._listens)
            if self._listens:
                listener = await self._connect()
                listen = Step(statement(f"LISTEN {schema.quoted(channel_of(self._schema))}"))
                with _answered():
                    await listener.run([_STAY], [listen])
            self._open_pool, self._open_news = pool, news
            async with trio.open_nursery() as nursery:
                if listener is not None:
                    nursery.start_soon(_listen, listener, news)
                nursery.start_soon(self._beat, pool, news)
                try:
                    with self._extender.working():
                        yield
                except Exception as raised:  # noqa: BLE001  raised below: a nursery would put it into a group
                    error = raised
                nursery.cancel_scope.cancel()
            if error is not None:
                raise error
            with suppress(BrokerError), trio.move_on_after(SILENCE, shield=True):
                await pool.run([news.leaving()])
        finally:
            self._open_pool = self._open_news = None
            pool.close()
            if listener is not None:
                listener.close()

    async def _set_up(self, pool: Pool) -> int:
        """Look at the server and its schema. Returns our number among its members."""
        async with pool.wire() as wire:
            with _answered():
                await schema.check_server(wire, listens=self._listens)
                is_current = await schema.is_current(wire, self._schema, migrates=self._migrates)
            if not is_current:
                with _answered(MIGRATION_TIME):
                    await schema.migrate(wire, self._schema)
            with _answered():
                self._directory.tables = None
                await self._directory.refresh(wire)
                [[(member, tables)]] = await wire.run([NEW_MEMBER])
        if self._tables not in {None, tables}:  # somebody has dropped them
            self.data_losses += 1
            self._ids.clear()
            self._takes.clear()
            self._marks.forget()
        self._tables = tables
        return int(member)

    async def migrate(self) -> bool:
        """Bring the schema up to date; whether there was anything to do."""
        with closing(await self._connect()) as wire:
            with _answered():
                await schema.check_server(wire, listens=self._listens)
            with _answered(MIGRATION_TIME):
                return await schema.migrate(wire, self._schema)
        raise AssertionError  # `_answered` raises

    async def migration_sql(self) -> str:
        """What `migrate` would do, for those who do it by hand; empty if there is nothing to do."""
        with closing(await self._connect()) as wire, _answered():
            return schema.script(await schema.pending(wire, self._schema))
        raise AssertionError  # `_answered` raises

    async def _connect(self) -> Wire:
        return await connect(self._conninfo, self._options, schema.quoted(self._schema), prepares=self._listens)

    def _asking(self, pool: Pool) -> Callable[[Step], Awaitable[Rows]]:
        async def ask(step: Step) -> Rows:
            with _answered():
                [rows] = await pool.run([step])
            return rows

        return ask

    async def _beat(self, pool: Pool, news: NewsBox) -> None:
        """Say now and then that our consumers are there; that also shows whether the server is."""
        while True:
            await trio.sleep(BEAT)
            try:
                with _answered():
                    await directory.beat(pool, self._takes)
            except BrokerUnavailable as error:
                news.broke(error)
                return

    @property
    def _pool(self) -> Pool:
        if self._open_pool is None:
            raise BrokerUnavailable("the link to PostgreSQL is closed")
        return self._open_pool

    @property
    def _news(self) -> NewsBox:
        if self._open_news is None:
            raise BrokerUnavailable("the link to PostgreSQL is closed")
        return self._open_news

    async def news(self, wait: float) -> News | None:
        """Wait until somebody has changed something that we wait for."""
        news = self._news
        with trio.move_on_after(wait):
            return await news.next()
        return None

    # Messages

    async def declare(self, queues: Sequence[str]) -> None:
        """Create the queues that do not exist yet."""
        async with self._pool.wire() as wire:
            await self._look(wire)
            if not self._directory.queues.keys() >= set(queues):
                await wire.run(directory.declaring(queues))
                await self._directory.refresh(wire)

    async def set_bounds(self, bounds: Mapping[str, Bounds]) -> None:
        """Create the queues that do not exist yet, and bound them."""
        async with self._pool.wire() as wire:
            await self._look(wire)
            present = self._directory
            if not all(
                name in present.queues and present.bounds.get(name, UNBOUNDED) == one for name, one in bounds.items()
            ):
                await wire.run(bounding.setting(dict(bounds)))
                await present.refresh(wire)

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all; for each None, or why it was refused."""
        sending = publishing.Sending(envelopes)
        if not envelopes:
            return []
        news = self._news
        ids = [envelope.id for envelope in envelopes]
        await publishing.publish(self._pool, self._directory, sending, news.waking(ready=True, ids=ids))
        news.note(ready=True, ids=ids)
        await self._tell_of_dropped(sending.dropped)
        return sending.outcomes

    async def publish_in(self, connection: Any, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish in the transaction of somebody else's connection."""
        borrowed = Borrowed(connection, schema.quoted(self._schema))
        sending, news = publishing.Sending(envelopes), self._news
        async with borrowed.transaction([envelope.id for envelope in envelopes]):
            if await borrowed.run([publishing.HOLD_LANES]) != [[(self._tables,)]]:
                async with self._pool.wire() as wire:
                    await self._directory.refresh(wire)  # raises where it is ours that have changed
                raise UsageError(
                    "the connection= is to another database than the server is, with tables of repid's of its own: "
                    "nothing was published; roll back, and give a connection to the same database"
                )
            async with self._pool.wire() as wire:
                with _answered():
                    await self._look(wire)
                await publishing.refuse_full_in(borrowed.run, self._directory, sending)
                with _answered():
                    await publishing.prepare(wire, self._directory, sending)
                # Before another task reads the directory anew.
                steps = sending.storing(self._directory, publishing.UNCHECKED)
            if steps:
                sending.take((await borrowed.run([*steps, news.telling()]))[:-1])
        return sending.outcomes

    # Consumers

    @asked_again
    async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
        """Enter a consumer, under the number it had in an earlier link. What fell due meanwhile is left to
        the claims.
        """
        async with self._pool.wire() as wire:
            await self._directory.refresh(wire)
        for queue in queues:
            self._directory.number(queue)
        id_, packed = await directory.open_consumer(self._pool, queues, self._ids.get(consumer))
        self._ids[consumer] = id_
        self._takes[id_] = packed

    async def unsubscribe(self, consumer: str) -> None:
        """Strike it off."""
        self._extender.forget(consumer)
        self._idle.discard(consumer)
        id_ = self._ids.pop(consumer, None)
        if id_ is not None:
            self._takes.pop(id_, None)
            with suppress(NotConnected, BrokerError):
                await self._pool.run(directory.closing([id_]), [self._news.waking(ready=True)])
                self._news.note(ready=True)  # what it alone took may be another's now

    @asked_again
    async def claim(self, consumer: str, limit: int, at_most: AtMost, *, waits: bool = True) -> Claimed:
        """Lease what is ready now. `waits`: where nothing is, this process asks to be woken."""
        news = self._news
        claimed = await self._lease_unlocked(consumer, limit, at_most)
        if claimed.deliveries:
            self._idle.discard(consumer)
        elif limit:
            self._idle.add(consumer)
        if limit and waits and not claimed.deliveries:
            news.waits_for_messages(consumer)
        elif limit:
            news.waits_no_more(consumer)
        return claimed

    def stop_waiting(self, consumer: str) -> None:
        """Ask to be woken for its messages no more, from the next time on when this process waits."""
        if self._open_news is not None:
            self._open_news.waits_no_more(consumer)

    async def _lease_unlocked(self, consumer: str, limit: int, at_most: AtMost) -> Claimed:
        """Lease some; nothing for the moment where a whole table is locked (LOCK TABLE, VACUUM FULL): the link stands,
        and others use it.
        """
        try:
            claimed = await self._lease_some(consumer, limit, at_most)
        except Locked as error:
            if not self._is_locked_out:
                log.warning("nothing can be claimed now; it is tried until it can: %s", error)
            self._is_locked_out = True
            return Claimed([], next_in=claiming.BUSY)
        self._is_locked_out = False
        return claimed

    async def _lease_some(self, consumer: str, limit: int, at_most: AtMost) -> Claimed:
        id_, most = self._ids[consumer], int(min(limit, 2**31))
        async with self._pool.wire() as wire:
            await self._know(wire, id_)
            if not most:
                lanes = self._directory.lanes_for(id_)[1]
                if not lanes:  # as it is in the copy that the last claim found up to date
                    return Claimed([])
                [_, _, [(count,)]] = await wire.run([claiming.PROMOTE, claiming.LOOK, claiming.counting(lanes)])
                return Claimed([], suspects=count)
            if at_most.alone and self._directory.lanes_for(id_)[1]:
                found = await self._claim(wire, id_, 1, ANYTHING, suspects=True)
                if found.deliveries:
                    return found
            is_idle = consumer in self._idle
            return await self._claim(wire, id_, most, at_most, suspects=False, is_idle=is_idle)

    async def _know(self, wire: Wire, id_: int) -> None:
        """Have a copy of the directory that has this consumer in it."""
        if not self._directory.knows(id_):
            await self._directory.refresh(wire)
        if not self._directory.knows(id_):  # it was believed dead
            await directory.beat_on(wire, {id_: self._takes[id_]})
            await self._directory.refresh(wire)

    async def _claim(
        self, wire: Wire, id_: int, limit: int, at_most: AtMost, *, suspects: bool, is_idle: bool = False
    ) -> Claimed:
        """`is_idle`: the last claim found nothing, and so will this one, as it seems."""
        while True:
            version = self._directory.version
            chosen = claiming.wanted(self._directory.lanes_for(id_)[suspects], limit, at_most)
            is_full = self._fronts.begin()
            [_, rows, [look]] = await wire.run(
                [
                    self._fronts.promote,
                    claiming.claiming(version, chosen, limit, at_most, self._lease, id_, self._marks.low(chosen)),
                    claiming.looking_around(self._fronts.look, chosen) if is_idle else self._fronts.look,
                ]
            )
            now, found, due, expiry = look[:4]
            self._fronts.note(now, due, expiry)
            is_cut_short = self._marks.note(rows, limit, now)
            if expiry is not None and expiry <= now:
                await self._expire(wire)
            if rows:
                deliveries, bad = claiming.to_deliveries(rows, self._directory, now)
                self._news.note(ids=[delivery.envelope.id for delivery in deliveries])
                if trails := claiming.leaving_trail(rows, now):  # who has a suspect
                    await wire.run(trails)
                if bad:
                    await self._bury(wire, dict(bad))
                if deliveries:
                    return Claimed(deliveries)
                continue
            if is_cut_short or not is_full:
                self._fronts.forget()
                continue
            if found != version:
                await self._directory.refresh(wire)
                await self._know(wire, id_)
            elif not (due is not None and due <= now) and not (expiry is not None and expiry <= now):
                soon = min(claiming.seconds_until(due, now), claiming.seconds_until(expiry, now))
                if not is_idle:
                    [[look]] = await wire.run([claiming.looking_for_any(chosen)])
                return Claimed([], next_in=min(soon, self._retry_in(at_most) if look[-1] else math.inf))

    @staticmethod
    def _retry_in(at_most: AtMost) -> float:
        """In how many seconds to ask again after a claim that gave nothing, because of what others have locked."""
        return claiming.BUSY if at_most.first == math.inf else claiming.BLOCKED

    async def _expire(self, wire: Wire) -> None:
        """Bury what has expired where it waited."""
        while True:
            async with in_transaction(wire):
                taken = [one for rows in await wire.run(shelving.taking_expired()) for one in shelving.to_taken(rows)]
                await shelving.shelve(wire, [(one, shelving.after_expiry(one)) for one in taken])
            await self._tell_of(wire, taken, ready=False)
            if len(taken) < shelving.EXPIRED_AT_ONCE:
                return

    async def _bury(self, wire: Wire, bad: Mapping[Any, Failure]) -> None:
        """Make dead what was leased just now and cannot be read: it must not come again and again."""
        async with in_transaction(wire):
            [rows] = await wire.run([shelving.taking(list(bad))])
            taken = shelving.to_taken(rows)
            await shelving.shelve(wire, [(one, shelving.after_reading(one, bad[one.seq, one.token])) for one in taken])
        for one in taken:
            log.error("the message %r is dead: %s", one.id, bad[one.seq, one.token].text)
        await self._tell_of(wire, taken, ready=False)

    async def _tell_of(self, ask: Wire | Pool, taken: Sequence[shelving.Taken], *, ready: bool) -> None:
        """Tell those who watch what was taken out of its place; `ready`: those, too, who wait for messages."""
        if taken:
            ids = [id_ for one in taken for id_ in (one.id, one.result_id)]
            self._news.note(ready=ready, ids=ids)
            await ask.run([self._news.waking(ready=ready, ids=ids)])

    async def _tell_of_dropped(self, dropped: Mapping[str, Sequence[shelving.Taken]]) -> None:
        """Tell the log and those who watch what full queues have dropped."""
        for queue, taken in dropped.items():
            self._drop_log.note(queue, len(taken))
        await self._tell_of(self._pool, [one for taken in dropped.values() for one in taken], ready=False)

    @asked_again
    async def settle(self, consumer: str, settlements: Sequence[Settlement]) -> list[Verdict]:  # noqa: ARG002  any may
        """Carry out each disposition with its outbox and result in one step."""
        ids = list(ids_in(settlements))
        goes_on = any(one.outbox or not settling.ends(one) for one in settlements)
        news = self._news
        dropped: dict[str, list[shelving.Taken]] = {}
        after = news.waking(ready=goes_on, ids=ids)
        verdicts = await settling.settle(self._pool, self._directory, settlements, after, dropped)
        await self._tell_of_dropped(dropped)
        if goes_on:
            self._marks.forget()
        news.note(ready=goes_on, ids=ids)
        return verdicts

    @asked_again
    async def extend(self, consumer: str, deliveries: Sequence[Delivery]) -> list[bool]:  # noqa: ARG002  any may
        """Start the lease of each anew, also of one that has ended and was not rescued yet."""
        tokens = [delivery.token for delivery in deliveries]
        [rows] = await self._pool.run([claiming.extending(tokens, self._lease)])
        extended = {token for (token,) in rows}
        return [token[1] in extended for token in tokens]

    def vouch(self, consumer: str, under_way: UnderWay) -> None:
        """Have a thread extend these leases while the event loop is blocked."""
        self._extender.vouch(consumer, under_way)

    async def _extend_apart(self, left: Mapping[Token, float]) -> None:
        """Extend these leases in the loop of a thread, while our own is blocked."""
        with closing(await self._connect()) as wire:
            await wire.run([claiming.extending_apart(left, self._lease)])

    @asked_again
    async def rescue(self) -> int:
        """Take back every lease that has ended, and clear up what else the dead left behind."""
        pool, rescued = self._pool, 0
        [[(has_ended, is_more_over)]] = await pool.run([shelving.LOOK_FOR_ENDED])
        while has_ended:
            async with transaction(pool) as wire:
                [rows] = await wire.run([shelving.taking_ended()])
                taken = shelving.to_taken(rows)
                await shelving.shelve(wire, [(one, shelving.after_loss(one)) for one in taken])
            rescued += len(taken)
            if taken:
                self._marks.forget()
                await self._tell_of(pool, taken, ready=True)
            has_ended = len(taken) >= shelving.RESCUED_AT_ONCE
        if is_more_over:
            await pool.run([results.PURGE], [BURY_SLEEPERS])
            if await directory.bury(pool):
                self._news.note(ready=True)
        if self._dead_ttl is not None and await views.delete_old_dead(pool, micros(self._dead_ttl)):
            self._news.note(ids=None)
        return rescued

    # Looking after queues

    async def _look(self, wire: Wire) -> None:
        """Have an up-to-date copy of the directory. What has fallen due, however much, is left to others."""
        [[(_, version, _, _)]] = await wire.run([claiming.LOOK])
        if version != self._directory.version:
            await self._directory.refresh(wire)

    async def _refresh(self, wire: Wire) -> None:
        """Have an up-to-date copy of the directory, make ready all that is due, and bury what has expired."""
        while True:
            [_, [(now, version, due, expiry)]] = await wire.run([claiming.PROMOTE, claiming.LOOK])
            if expiry is not None and expiry <= now:
                await self._expire(wire)
            if version != self._directory.version:
                await self._directory.refresh(wire)
            if due is None or due > now:
                return

    async def queues(self) -> list[str]:
        """The names of all queues."""
        async with self._pool.wire() as wire:
            await self._look(wire)
        return sorted(self._directory.queues)

    async def readers(self) -> list[Mapping[str, Topics]]:
        """What each open consumer takes."""
        return await directory.takers(self._pool)

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """How many messages of each queue are where."""
        async with self._pool.wire() as wire:
            await self._refresh(wire)
            [rows] = await wire.run([views.counting([queue for queue in queues if "\0" not in queue])])
        found = views.to_counts(rows)
        for queue in queues:
            if queue not in found:
                raise QueueNotDeclared(queue)
        return [found[queue] for queue in queues]

    async def paused(self, queues: Sequence[str]) -> list[bool]:
        """Whether each queue is paused."""
        found = await directory.paused(self._pool, queues)
        for queue in queues:
            if queue not in found:
                raise QueueNotDeclared(queue)
        return [found[queue] for queue in queues]

    async def browse(self, queue: str, category: Category, limit: int, after: str | None) -> list[BrowsedMessage]:
        """Look at messages in the order in which they would be handled."""
        async with self._pool.wire() as wire:
            await self._refresh(wire)
            known = copy(self._directory)  # other tasks read theirs anew meanwhile
            step = views.browsing(known, queue, category, limit, after)
            [rows] = [[]] if step is None else await wire.run([step])
        return views.to_browsed(known, category, rows)

    async def find(self, ids: Sequence[str]) -> list[list[BrowsedMessage]]:
        """The messages with these ids, live ones first."""
        async with self._pool.wire() as wire:
            await self._refresh(wire)
            known = directory.Directory()
            answers = await known.refresh_and_read(wire, views.finding(ids))
        return views.to_found(known, ids, answers)

    async def flush(self, queue: str) -> int:
        """Remove what is ready or scheduled; how many. In bites, so that no transaction lasts long."""
        async with self._pool.wire() as wire:
            await self._refresh(wire)
        self._directory.number(queue)
        removed = await views.flush(self._pool, self._directory, queue, publishing.BATCH)
        await self._tell_all()
        return removed

    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it."""
        with suppress(QueueNotDeclared):
            await self.flush(queue)
            await self.delete_messages(queue, None)
        await views.delete(self._pool, self._directory, queue)
        async with self._pool.wire() as wire:
            await self._directory.refresh(wire)
        await self._tell_all()

    async def revive(self, queue: str, keys: Sequence[str] | None) -> list[BrokerRefused | None]:
        """Make dead messages ready again, in bites."""
        async with self._pool.wire() as wire:
            await self._refresh(wire)
        if keys is None:
            chosen = await views.dead_keys(self._pool, self._directory, queue)
        else:
            self._directory.number(queue)
            chosen = [to_number(key) for key in keys]
        answers: list[BrokerRefused | None] = []
        for start in range(0, len(chosen), views.BITE):
            part = chosen[start : start + views.BITE]
            answers += await publishing.revive(self._pool, self._directory, queue, part)
        await self._tell_all()
        return answers

    async def delete_messages(self, queue: str, keys: Sequence[str] | None) -> int:
        """Remove dead messages; how many. In bites, so that no transaction lasts long."""
        async with self._pool.wire() as wire:
            await self._refresh(wire)
        chosen = None if keys is None else [to_number(key) for key in keys]
        removed = await views.delete_dead(self._pool, self._directory, queue, chosen)
        await self._tell_all()
        return removed

    async def store_dead(self, messages: Sequence[BrowsedMessage]) -> None:
        """Keep dead letters of another server, in bites."""
        for start in range(0, len(messages), views.BITE):
            await publishing.store_dead(self._pool, messages[start : start + views.BITE])
        await self._tell_all()

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Hand out nothing of the queue, or its messages again."""
        async with self._pool.wire() as wire:
            await self._look(wire)
            self._directory.number(queue)
            await wire.run(directory.pausing(queue, paused=paused), [self._news.waking(everybody=True)])
        self._news.note(ready=True)

    async def _tell_all(self) -> None:
        """Anything may have changed."""
        self._marks.forget()
        self._news.note(ready=True, events=True, ids=None)
        await self._pool.run([self._news.waking(everybody=True)])

    # Following messages

    async def cancel(self, ids: Sequence[str]) -> list[Cancelled]:
        """Remove what waits; have the consumers told whose runs the others are."""
        outcomes = await views.cancel(self._pool, ids)
        self._news.note(events=True, ids=ids)
        await self._pool.run([self._news.waking(everybody="requested" in outcomes, ids=ids)])
        return outcomes

    async def snapshots(self, ids: Sequence[tuple[str, str]]) -> list[Sight]:
        """How each message stands."""
        self._news.watching(id_ for pair in ids for id_ in pair)
        async with self._pool.wire() as wire:
            [_, [(now, _, due, expiry)], *answers] = await wire.run(
                [claiming.PROMOTE, claiming.LOOK, *views.looking_at(ids)]
            )
            if expiry is not None and expiry <= now:
                await self._expire(wire)
                answers = await wire.run(views.looking_at(ids))
        soon = min(claiming.seconds_until(due, now), claiming.seconds_until(expiry, now))
        return [Sight(sight.snapshot, max(soon, claiming.BUSY)) for sight in views.to_sights(ids, answers)]

    @asked_again
    async def report(self, consumer: str, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:  # noqa: ARG002  any may
        """Note that runs have begun and how far they have come."""
        noted = [(delivery.token, None if how_far is None else pack(how_far)) for delivery, how_far in progress]
        ids = [delivery.envelope.id for delivery, _ in progress]
        await self._pool.run([claiming.reporting(noted)], [self._news.waking(ready=False, ids=ids)])
        self._news.note(ids=ids)

    @asked_again
    async def events(self, consumer: str) -> list[LeaseEvent]:
        """Whose runs somebody has cancelled."""
        rows = await self._pool.run([claiming.cancellations(self._ids[consumer])])
        return [LeaseEvent(token, "cancel") for token in rows[0]]

    # Results

    async def store_results(self, results_: Sequence[NewResult]) -> None:
        """Store results, in place of those with the same ids."""
        ids = [result.id for result in results_]
        if results_:
            await self._pool.run(results.storing(results_), [self._news.waking(ready=False, ids=ids)])
            self._news.note(ids=ids)

    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """The result under each id, or None."""
        [rows] = await self._pool.run([results.fetching(ids)])
        return results.in_order(ids, rows)

    # Schedules

    async def now(self) -> float:
        """The server's clock: seconds since 1970."""
        return await schedules.now(self._pool)

    async def schedules(self, names: Collection[str] | None) -> list[StoredSchedule]:
        """All of them, or those of these names."""
        return await schedules.find(self._pool, names)

    async def replace_schedules(self, changes: Sequence[ScheduleChange]) -> list[bool]:
        """Store each schedule, if the old one is what is there."""
        outcomes, is_news = await schedules.replace(self._pool, changes)
        if is_news:
            await self._pool.run([self._news.waking_for_schedules()])
        return outcomes

    async def due_schedules(self, limit: int) -> DueSchedules:
        """Those that are due."""
        with self._news.asking_for_schedules() as first:
            return await schedules.due(self._pool, limit, first)

    async def remove_schedule(self, name: str) -> bool:
        """Forget it."""
        return await schedules.remove(self._pool, name)

    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """Move the schedule on and publish, if it is still where it was expected to be."""
        sending = None if envelope is None else publishing.Sending([envelope])
        outcome = await schedules.tick(self._pool, self._directory, name, expected_next, next_at, sending)
        if outcome == "fired" and sending is not None:
            ids = [each.id for each in sending.envelopes]
            await self._pool.run([self._news.waking(ready=True, ids=ids)])
            self._news.note(ready=True, ids=ids)
            await self._tell_of_dropped(sending.dropped)
        return outcome


@contextmanager
def _answered(within: float | None = None) -> Iterator[None]:
    """Raise `BrokerUnavailable` if the block takes longer (than `SILENCE`): a connection that is half-open says
    nothing.
    """
    within = SILENCE if within is None else within
    with trio.move_on_after(within) as scope:
        yield
    if scope.cancelled_caught:
        raise BrokerUnavailable(f"PostgreSQL did not answer within {within:g} s")


async def _listen(listener: Wire, news: NewsBox) -> None:
    """Pass notifications on, until the connection breaks."""
    try:
        while True:
            for names in await listener.notified():
                news.heard(names)
    except BrokerUnavailable as error:
        news.broke(error)
