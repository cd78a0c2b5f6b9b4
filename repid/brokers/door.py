"""The front door to every engine: what users open and call.

`Server` is written once, over a driver (`repid.ports.driver`). Every public call of every engine passes through here:

* arguments are checked before anything is sent, and what the engine does not claim is refused (`NotSupported`);
* a call made under asyncio crosses to trio (`hosted`);
* connection blocks are counted, and belong to one trio run;
* a call is checked, shielded, bounded and shown to instruments (`shared.calls`);
* concurrent publishes to a remote engine become one request (`shared.coalescer`);
* whoever waits for messages, lease events or watched jobs waits for news of the engine (`shared.hub`), then asks again;
* the link is opened again when it breaks, and consumers survive that (`shared.link`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Self, cast

import trio
from msgspec.structs import replace
from trio.lowlevel import TrioToken, checkpoint_if_cancelled, current_trio_token, enable_ki_protection

from ..delivery import NewResult, StoredResult
from ..envelope import Envelope, new_id
from ..errors import (
    BrokerError,
    BrokerRefused,
    NoAnswer,
    NotConnected,
    NotSupported,
    PublishUnknown,
    UsageError,
)
from ..hosts import hosted, hosted_context, hosted_unless
from ..names import check_one_of
from ..ports import (
    CATEGORIES,
    BrowsedMessage,
    Cancelled,
    Capabilities,
    Category,
    Counts,
    Driver,
    DueSchedules,
    FullDriver,
    Instrument,
    LinkState,
    ResultStore,
    Role,
    Schedule,
    Sight,
    Snapshot,
    StoredSchedule,
    TickOutcome,
    Topics,
)
from ..process import inherits
from .checks import check_claimed, check_envelopes, check_queues, check_results, check_several
from .consumer import Consumer
from .shared.calls import Calls
from .shared.coalescer import Coalescer
from .shared.hub import Hub
from .shared.link import Link
from .shared.ticking import tick_elsewhere
from .shared.watching import Watchers

STATE_ROLES: frozenset[Role] = frozenset({"results", "schedules"})
"""What another server can do for an engine that cannot."""

LARGEST_REQUEST = 1000
"""Messages or ids that concurrent calls put into one request."""


def _stays(server: Server) -> bool:
    """Whether a call of this server may run in any task: see `Calls.stays`."""
    return server._calls.stays  # noqa: SLF001  a decorator of this class


class Server:
    """One server, opened with `connection()`; every other call outside raises `NotConnected`.

    Programs under asyncio make these calls in the same way. Calls for what the engine does not claim (see
    `capabilities`) raise `NotSupported`. `instruments` are called with each call that has ended. `state` is another
    server, which keeps results and schedules where this engine cannot; it is open while this one is. A result is stored
    there before its message is settled; nothing is stored of a message that ends without a worker (poison, a ttl). An engine that
    cannot be asked how a message stands (role "tracking") does not know of an overlap: schedules are ticked then as with
    overlap "allow".
    """

    def __init__(self, driver: Driver, *, instruments: Iterable[Instrument] = (), state: Server | None = None) -> None:
        self._name = type(self).__name__
        self._driver = driver
        self._state = state
        own = driver.capabilities
        self._roles = cast("FullDriver", driver)  # each role is called only after a check that it is claimed
        self._results = self._roles if state is None or own.has("results") else state
        self._schedules = self._roles if state is None or own.has("schedules") else state
        self._calls = Calls(driver, self._name)
        self._calls.instruments.extend(instruments)
        self._capabilities = _with_state(own, state)
        self._depth = 0  # how many connection blocks are open
        self._lock = threading.Lock()  # two threads may run trio; held for one step, never over an await
        self._start_anew()
        inherits(self)

    def _start_anew(self) -> None:
        """Nothing that belonged to a connection is kept."""
        self._consumers: dict[str, Consumer] = {}
        self._hub = Hub(self._calls.news)
        self._looks = Coalescer(self._look, most=LARGEST_REQUEST)
        self._watchers = Watchers(self._hub, self._looks.ask)
        self._publishes = Coalescer(self._publish, most=LARGEST_REQUEST)
        self._calls.link = self._calls.token = None

    def __repr__(self) -> str:
        return f"<{self._name}, {self.link.state}>"

    @property
    def capabilities(self) -> Capabilities:
        """What the server claims to do, with the help of its `state`."""
        return self._capabilities

    @property
    def is_connected(self) -> bool:
        """Whether a `connection()` block is open."""
        return self._depth > 0

    @property
    def link(self) -> LinkState:
        """How the link to the engine stands: closed, up, or down, since when and why."""
        return self._calls.state

    def add_instrument(self, instrument: Instrument) -> None:
        """Have each call to the engine shown to this instrument, when it has ended."""
        self._calls.instruments.append(instrument)

    # Connection

    @hosted_context
    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Self]:
        """Open the server for a block. Blocks nest; leaving the outermost one also closes its consumers.

        Raises `BrokerUnavailable` where the engine cannot be reached, `ConfigurationError` where it can never be used
        in this way, and `UsageError` where another trio run has this server open.
        """
        async with AsyncExitStack() as stack:
            if self._state is not None:
                await stack.enter_async_context(self._state.connection())
            token = await self._enter()
            try:
                yield self
            finally:
                await self._leave(token)

    @enable_ki_protection
    async def _enter(self) -> TrioToken:
        await checkpoint_if_cancelled()
        token = current_trio_token()
        with self._lock:
            self._take_over(token)
            self._depth += 1
            if self._calls.link is None:
                self._calls.link = Link(self._name, self._open_link, self._subscribe_again)
            link = self._calls.link
        try:
            await link.open()
        except BaseException:
            await self._leave(token)
            raise
        return token

    @enable_ki_protection
    async def _leave(self, token: TrioToken) -> None:
        with self._lock:
            if self._calls.token is not token:
                return  # that run had crashed, and another one has taken over
            self._depth -= 1
            if self._depth > 0:
                return
            link, hub = self._calls.link, self._hub
            self._forget_connection()
        hub.tell_all()
        if link is not None:
            await link.close()

    def _take_over(self, token: TrioToken) -> None:
        """Let this run have the server open. A run that crashed never left its block: what it had is forgotten."""
        if self._calls.token is token:
            return
        self._calls.pid = os.getpid()
        if self._calls.token is not None:
            if _is_running(self._calls.token):
                raise UsageError(f"another trio run has this {self._name} open: it belongs to one run at a time")
            self._forget_connection()
        self._calls.token = token

    def after_fork_in_child(self) -> None:
        """Nothing of the parent's connection is touched: the child opens one of its own."""
        self._lock = threading.Lock()  # another thread may have held it
        self._forget_connection()

    def _forget_connection(self) -> None:
        self._depth = 0
        for consumer in self._consumers.values():
            consumer.is_open = False
        self._start_anew()

    def _open_link(self) -> AbstractAsyncContextManager[None]:
        return self._driver.link(self._watchers.watched)

    async def _subscribe_again(self) -> None:
        """The link is open anew: the engine may have forgotten who takes what."""
        for consumer in self._consumers.values():
            await self._driver.subscribe(consumer.key, consumer.queues)
        self._hub.tell_all()

    # Messages

    @hosted_unless(_stays)
    async def declare(self, queues: Iterable[str]) -> None:
        """Create the queues that do not exist yet. Idempotent."""
        names = check_queues(queues)
        await self._calls("declare", partial(self._driver.declare, names), count=len(names))

    @hosted_unless(_stays)
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all; for each None, or why it was refused (`QueueNotDeclared`, `DuplicateId`).

        When it returns they are as durable as the server promises, and a refused one has not harmed its neighbours. One
        call is one step on a local engine, which keeps others waiting: give tens of thousands in several calls.
        A result that is stored under an accepted message's result id is removed: it was another message's.

        Raises `ConfigurationError`, and publishes none, where one cannot be sent. Cancelled: none was published by a
        local engine; a remote one is waited for, at most five seconds. `PublishUnknown`: there was no answer; publish
        again under the same ids.
        """
        check_envelopes(envelopes)
        check_claimed(self._name, self.capabilities, envelopes)
        if self._capabilities.calls == "remote":
            self._calls.check()
            try:
                return await self._publishes.ask(envelopes)
            except NoAnswer as error:
                raise PublishUnknown([envelope.id for envelope in envelopes]) from error
        return await self._publish(envelopes)

    @property
    def _result_store(self) -> ResultStore | None:
        """Where results go that the engine cannot keep."""
        return self._state if self._results is self._state else None

    async def _publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        return await self._calls("publish", partial(self._driver.publish, envelopes), count=len(envelopes))

    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncIterator[Consumer]:
        """Open a consumer of these declared queues, in a trio task. Raises `QueueNotDeclared`."""
        consumer = Consumer(self._calls, self._driver, self._hub, new_id(), queues, self._result_store)
        consumers, hub = self._consumers, self._hub
        try:
            consumers[consumer.key] = consumer
            await self._calls("subscribe", partial(self._driver.subscribe, consumer.key, consumer.queues))
            yield consumer
        finally:
            consumers.pop(consumer.key, None)
            if consumer.is_open:
                consumer.is_open = False
                hub.tell_all()
                await self._unsubscribe(consumer)

    @enable_ki_protection
    async def _unsubscribe(self, consumer: Consumer) -> None:
        """Nobody waits for this: an engine that is away learns of it by the consumer's silence."""
        with trio.CancelScope(shield=True), suppress(BrokerError, NotConnected):
            await self._calls("unsubscribe", partial(self._driver.unsubscribe, consumer.key))

    # Looking after queues

    @hosted_unless(_stays)
    async def queues(self) -> list[str]:
        """The names of all declared queues, in order."""
        self._need("queue_admin", "list queues")
        return await self._calls("queues", self._roles.queues)

    @hosted_unless(_stays)
    async def counts(self, queue: str) -> Counts:
        """How many messages of the queue are in each place. Raises `QueueNotDeclared`."""
        return (await self.counts_of([queue]))[0]

    @hosted_unless(_stays)
    async def counts_of(self, queues: Iterable[str]) -> list[Counts]:
        """How many messages of each queue are in each place, in one call. Raises `QueueNotDeclared`."""
        self._need("queue_admin", "count messages")
        names = check_several("counts_of", queues)
        return await self._calls("counts", partial(self._roles.counts, names), queue=_only(names), count=len(names))

    @hosted_unless(_stays)
    async def browse(
        self, queue: str, category: Category, *, limit: int = 100, after: str | None = None
    ) -> list[BrowsedMessage]:
        """Look at messages without leasing them, in the order in which they would be handled.

        `after`: the key of the last message that was seen; what comes behind it is shown.
        """
        self._need("queue_admin", "show messages")
        check_one_of("category", category, CATEGORIES)
        browse = partial(self._roles.browse, queue, category, max(limit, 0), after)
        return await self._calls("browse", browse, queue=queue)

    @hosted_unless(_stays)
    async def find(self, ids: Iterable[str]) -> list[list[BrowsedMessage]]:
        """For each id the messages that have it: the live one first, then dead ones."""
        self._need("queue_admin", "find messages")
        wanted = check_several("find", ids)
        return await self._calls("find", partial(self._roles.find, wanted), count=len(wanted))

    @hosted_unless(_stays)
    async def flush(self, queue: str) -> int:
        """Remove every ready and scheduled message of the queue; how many. Leased and dead ones stay."""
        self._need("queue_admin", "flush queues")
        return await self._calls("flush", partial(self._roles.flush, queue), queue=queue)

    @hosted_unless(_stays)
    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it; late verdicts are refused. Where there is none, nothing happens."""
        self._need("queue_admin", "delete queues")
        await self._calls("delete", partial(self._roles.delete, queue), queue=queue)

    @hosted_unless(_stays)
    async def revive(self, queue: str, keys: Iterable[str] | None = None) -> list[BrokerRefused | None]:
        """Make dead messages (all of the queue's, or those with these keys) ready again, as new ones.

        `attempt` is 1 again, `lost` 0, and a ttl starts anew. One answer for each: `DuplicateId` where its id is alive
        again, `BrokerRefused` where no dead one has the key.
        """
        self._need("queue_admin", "revive dead messages")
        chosen = None if keys is None else check_several("revive", keys)
        return await self._calls("revive", partial(self._roles.revive, queue, chosen), queue=queue)

    @hosted_unless(_stays)
    async def delete_messages(self, queue: str, keys: Iterable[str] | None = None) -> int:
        """Remove dead messages (all of the queue's, or those with these keys) for good; how many."""
        self._need("queue_admin", "delete dead messages")
        chosen = None if keys is None else check_several("delete_messages", keys)
        return await self._calls("delete_messages", partial(self._roles.delete_messages, queue, chosen), queue=queue)

    @hosted_unless(_stays)
    async def pause(self, queue: str) -> None:
        """Hand out nothing of this queue, to no consumer, until `resume`. What is leased goes on."""
        self._need("queue_admin", "pause queues")
        await self._calls("pause", partial(self._roles.pause, queue, paused=True), queue=queue)

    @hosted_unless(_stays)
    async def resume(self, queue: str) -> None:
        """Hand out its messages again."""
        self._need("queue_admin", "resume queues")
        await self._calls("resume", partial(self._roles.pause, queue, paused=False), queue=queue)

    # Following messages

    @hosted_unless(_stays)
    async def cancel(self, id_: str) -> Cancelled:
        """Remove the live message with this id, or have its run cancelled.

        Its result is stored as "cancelled", unless the sender wanted none stored (`store_result=False`).
        """
        return (await self.cancel_each([id_]))[0]

    @hosted_unless(_stays)
    async def cancel_each(self, ids: Iterable[str]) -> list[Cancelled]:
        """As `cancel`, for several ids in one call."""
        self._need("tracking", "cancel messages")
        wanted = check_several("cancel_each", ids)
        return await self._calls("cancel", partial(self._roles.cancel, wanted), count=len(wanted))

    @hosted
    async def watch(self, id_: str, result_id: str, seen: Snapshot | None = None) -> Snapshot:
        """How the message stands, as soon as that differs from `seen`; of several dead ones the last.

        Waits until it does. What changes faster than it is looked at is seen in its last state only. Cancelling loses
        nothing. However many watch, the engine is asked for all of them at once.
        """
        self._need("tracking", "watch messages")
        self._calls.check()
        return await self._watchers.watch((id_, result_id), seen)

    async def _look(self, ids: Sequence[tuple[str, str]]) -> list[Sight]:
        return await self._calls("snapshots", partial(self._roles.snapshots, ids), count=len(ids))

    # Results

    @hosted_unless(_stays)
    async def store_results(self, results: Sequence[NewResult]) -> None:
        """Store results, in place of those with the same ids. Raises `ConfigurationError`, and stores none, for a bad ttl."""
        self._need("results", "store results")
        check_results(results)
        await self._calls("store_results", partial(self._results.store_results, list(results)), count=len(results))

    @hosted_unless(_stays)
    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """The result under each id; None where there is none, or none any more."""
        self._need("results", "fetch results")
        wanted = check_several("fetch_results", ids)
        return await self._calls("fetch_results", partial(self._results.fetch_results, wanted), count=len(wanted))

    # Schedules

    @hosted_unless(_stays)
    async def now(self) -> float:
        """The server's clock: seconds since 1970. It may be stepped; schedules bear that."""
        self._need("schedules", "tell its time")
        return await self._calls("now", self._schedules.now)

    @hosted_unless(_stays)
    async def put_schedule(self, schedule: Schedule, next_at: float) -> None:
        """Store a schedule, in place of one of the same name, whose counts, pause and declaration it keeps."""
        while True:
            found = await self.schedules([schedule.name])
            old = found[0] if found else None
            new = (
                StoredSchedule(schedule=schedule, next_at=next_at)
                if old is None
                else replace(old, schedule=schedule, next_at=next_at)
            )
            if await self.replace_schedule(old, new):
                return

    @hosted_unless(_stays)
    async def replace_schedule(self, old: StoredSchedule | None, new: StoredSchedule) -> bool:
        """Store `new` if what is stored under its name equals `old` (None: nothing is); whether it did.

        False: a tick or somebody else was quicker, so look again.
        """
        self._need("schedules", "keep schedules")
        check_envelopes([new.schedule.envelope])
        check_claimed(self._name, self.capabilities, [new.schedule.envelope])
        return await self._calls("replace_schedule", partial(self._schedules.replace_schedule, old, new))

    @hosted_unless(_stays)
    async def schedules(self, names: Collection[str] | None = None) -> list[StoredSchedule]:
        """All schedules, or those of these names that are there; sorted by name."""
        self._need("schedules", "keep schedules")
        chosen = None if names is None else check_several("schedules", names)
        return await self._calls("schedules", partial(self._schedules.schedules, chosen))

    @hosted_unless(_stays)
    async def due_schedules(self, limit: int) -> DueSchedules:
        """The schedules that are due and not paused, the next moment when one will be, and the server's time."""
        self._need("schedules", "keep schedules")
        return await self._calls("due_schedules", partial(self._schedules.due_schedules, limit))

    @hosted_unless(_stays)
    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """Hold its ticks, or let them go on. False: there is none of that name."""
        while True:
            found = await self.schedules([name])
            if not found:
                return False
            if await self.replace_schedule(found[0], replace(found[0], paused=paused)):
                return True

    @hosted_unless(_stays)
    async def remove_schedule(self, name: str) -> bool:
        """Forget it; what it has published stays. False: there is none of that name."""
        self._need("schedules", "remove schedules")
        return await self._calls("remove_schedule", partial(self._schedules.remove_schedule, name))

    @hosted_unless(_stays)
    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """Make `next_at` the schedule's next time and publish, if its next tick is still `expected_next`.

        One atomic step, unless another server (`state`) keeps the schedules: see `shared.ticking`.
        """
        self._need("schedules", "tick schedules")
        if envelope is not None:
            check_envelopes([envelope])
            check_claimed(self._name, self.capabilities, [envelope])
            if self._state is not None and self._schedules is self._state:
                return await tick_elsewhere(self, self._state, name, expected_next, next_at, envelope)
        return await self._calls("tick", partial(self._schedules.tick, name, expected_next, next_at, envelope))

    def _need(self, role: Role, what: str) -> None:
        """Raises `NotSupported` where neither the engine nor its `state` has the role."""
        if role not in self._capabilities.roles:
            raise NotSupported(
                f"{self._name} cannot {what}: it does not have the role {role!r}; use a server that has it, such as "
                "SQLiteServer" + (", or give it one as state=" if role in STATE_ROLES else "")
            )


def _with_state(own: Capabilities, state: Server | None) -> Capabilities:
    """What the engine can do with the help of the server that keeps its results and schedules.

    A settlement and its result are two steps then.
    """
    if state is None:
        return own
    helped = state.capabilities.roles & STATE_ROLES - own.roles
    return replace(own, roles=own.roles | helped, outbox="publish_first" if "results" in helped else own.outbox)


def _only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _is_running(token: TrioToken) -> bool:
    try:
        token.run_sync_soon(lambda: None)
    except trio.RunFinishedError:
        return False
    return True
