"""The front door to every engine: what users open and call.

`Server` is written once, over a driver (`repid.ports.driver`). Every public call of every engine passes through here:

* arguments are checked before anything is sent, and what the engine does not claim is refused (`NotSupported`);
* a call made under asyncio crosses to trio (`hosted`);
* connection blocks are counted, and belong to one trio run;
* a call is checked, shielded, bounded and shown to instruments (`shared.calls`);
* concurrent publishes to a remote engine become one request (`shared.coalescer`);
* a call for which a full queue has no room waits in line until there is some (`shared.lines`);
* a task that waits for messages, lease events or watched jobs waits for news of the engine (`shared.hub`), then asks
  again;
* the link is opened again when it breaks, and consumers survive that (`shared.link`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Self, cast

import trio
from msgspec.structs import replace
from trio.lowlevel import TrioToken, checkpoint_if_cancelled, current_trio_token, enable_ki_protection

from ..delivery import Bounds, NewResult, StoredResult
from ..envelope import Envelope, new_id
from ..errors import (
    BrokerError,
    BrokerRefused,
    NoAnswer,
    NotConnected,
    NotSupported,
    PublishUnknown,
    UsageError,
    misused,
)
from ..hosts import hosted, hosted_context, hosted_unless, is_cancelled
from ..logs import Log
from ..names import check_one_of
from ..ports import (
    CATEGORIES,
    LARGEST_PAYLOADS,
    BrowsedMessage,
    Cancelled,
    Capabilities,
    Category,
    Counts,
    CreatingDriver,
    DeadKeepingDriver,
    Driver,
    DueSchedules,
    ForgettingDriver,
    FullDriver,
    HandingDriver,
    ImmediateDriver,
    Instrument,
    LinkState,
    News,
    PauseTellingDriver,
    Role,
    Schedule,
    ScheduleChange,
    Sight,
    Snapshot,
    StoredSchedule,
    TellingDriver,
    TickOutcome,
    Topics,
    WaitForChange,
    in_parts,
)
from ..process import inherits
from ..run_token import is_running
from ..tracebacks import without_passwords
from .checks import (
    check_bounds,
    check_claimed,
    check_envelopes,
    check_instruments,
    check_queue,
    check_queues,
    check_results,
    check_schedule,
    check_several,
    check_sizes,
    check_taken,
    takes_all,
)
from .consumer import Consumer
from .shared.calls import Calls
from .shared.coalescer import Coalescer
from .shared.hub import Hub
from .shared.lines import LONGEST_POLL, Lines, must_wait
from .shared.link import Link
from .shared.ticking import tick_elsewhere
from .shared.unserved import UnservedQueues
from .shared.watching import Following, Queues, Watchers

log = Log("repid.server")

STATE_ROLES: frozenset[Role] = frozenset({"results", "schedules"})
"""The roles that another server can fill."""

LARGEST_REQUEST = 1000
"""Messages or ids that concurrent calls put into one request."""

_NEW_SCHEDULES = News(ready=False, events=False, ids=(), room=False)

FIRST_POLL = 0.01
"""Seconds after which to look for room again, at first, where another process may have made room and nobody tells."""


def _stays(server: Server) -> bool:
    """Whether a call of this server may run in any task: see `Calls.stays`."""
    return server._calls.stays  # noqa: SLF001  a decorator of this class


class Server:
    """One server, opened with `connection()`; every other call outside raises `NotConnected`.

    Programs under asyncio make these calls in the same way. Calls for what the engine does not claim (see
    `capabilities`) raise `NotSupported`. `instruments` are called with each call that has ended. `state` is another
    server, which keeps results and schedules where this engine cannot; it is open while this one is. A result is stored
    there before its message is settled; no result is stored of a message that ends without a worker (poison, a ttl). An
    engine without the role "tracking" does not know whether the former message of a schedule is live: it ticks
    schedules as with overlap "allow". `place`: where the engine is, in words for logs, without a password.
    """

    if not TYPE_CHECKING:
        __reduce__ = misused(
            "a server has the connection of its process, so it cannot be pickled: import its app in the other process, "
            "or make a server there"
        )

    def __init__(
        self,
        driver: Driver,
        *,
        instruments: Iterable[Instrument] = (),
        state: Server | None = None,
        place: str = "",
    ) -> None:
        own_name, of_driver = type(self).__name__, type(driver).__name__
        self.name = f"Server({of_driver})" if type(self) is Server else own_name
        """What errors, log lines and instruments call it."""
        self.place = without_passwords(place)
        """Where the engine is, in words, without a password; empty if it is in this process."""
        self._driver = driver
        self._state = state
        own = driver.capabilities
        self._roles = cast("FullDriver", driver)  # each role is called only after a check that it is claimed
        self._results = self._roles if state is None or own.has("results") else state
        self._schedules = self._roles if state is None or own.has("schedules") else state
        self._calls = Calls(driver, self.name)
        self._calls.instruments.extend(check_instruments(instruments))
        self._capabilities = _with_state(own, state)
        self._takes_all = takes_all(own)
        self._put: Callable[[Envelope], bool] | None = None
        """Where the driver can: publishes one message by a plain call."""
        if (
            own.calls == "local"
            and isinstance(driver, ImmediateDriver)
            and _at_once_is_of_publish(type(driver))
            and _at_once_is_of_publish(type(self))
        ):
            self._put = driver.publish_at_once
        self._forgetting = cast("ForgettingDriver", driver) if hasattr(driver, "data_losses") else None
        self.data_losses = 0
        """How often the engine was found to have lost its data while the server was open."""
        self._depth = 0  # how many connection blocks are open
        self._lock = threading.Lock()  # two threads may run trio; held for one step, never over an await
        self._start_anew()
        inherits(self, Server._start_anew_in_child)

    def _start_anew(self) -> None:
        """Forget everything that belongs to a connection."""
        self._consumers: dict[str, Consumer] = {}
        self._untold: dict[str, None] = {}  # keys of the consumers that were closed while the link was down
        self._bounds: dict[str, Bounds] = {}  # of the queues that were bounded here
        self._hub = Hub(self._calls.news)
        self._looks = Coalescer(partial(self._look, is_shared=True), most=LARGEST_REQUEST)
        if isinstance(self._driver, TellingDriver):
            self._driver.tell_at_once(self._hub.tell_at_once)
        is_local = self._driver.capabilities.calls == "local"
        how_to_start = (
            "start one with `python -m repid worker MODULE:APP`"
            if self._capabilities.shared
            else "messages in memory need one in this process: run app.run_worker() in a task"
        )
        knows = self._capabilities
        self._unserved = UnservedQueues(
            self.readers if knows.readers else None,
            self.paused_of if knows.has("queue_admin") else None,
            how_to_start,
        )
        look_at_many = self._look if is_local else self._looks.ask
        self._watchers = Watchers(
            self._hub,
            self._looks.ask,
            look_at_many,
            self._unserved,
            is_local=is_local,
            is_down=lambda: self._calls.is_down,
        )
        if isinstance(self._driver, HandingDriver):
            self._driver.hand_over(self._watchers.takers)
        self._lines = Lines(self._hub, self._unserved, LONGEST_POLL if is_local else FIRST_POLL)
        self._publishes = Coalescer(self._publish_in_parts, most=LARGEST_REQUEST, weigh=_weight)
        self._calls.detach()

    def __repr__(self) -> str:
        at = f" at {self.place}" if self.place else ""
        return f"<{self.name}{at}, {self.link.state}>"

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
        """The state of the link to the engine: closed, up, or down, since when and why."""
        return self._calls.state

    def add_instrument(self, instrument: Instrument) -> None:
        """Show each call to the engine to this instrument when the call has ended."""
        self._calls.instruments.append(instrument)

    # Connection

    def create_nothing(self) -> None:
        """Create no file and no schema when this is opened next: `connection` raises `ConfigurationError` instead.

        So a place that is given wrongly is not made.
        """
        if isinstance(self._driver, CreatingDriver):
            self._driver.create_nothing()

    @hosted_context
    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Self]:
        """Open the server for a block. Blocks nest; leaving the outermost one also closes its consumers.

        Raises `BrokerUnavailable` if the engine cannot be reached, `ConfigurationError` if it can never be used in this
        way, and `UsageError` if it is open in another event loop.
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
                self._calls.link = Link(self.name, self._open_link, self._subscribe_again)
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
        """Let this run open the server. A run that crashed never left its block: its connection is forgotten."""
        if self._calls.token is token:
            return
        self._calls.pid = os.getpid()
        if self._calls.token is not None:
            if is_running(self._calls.token):
                raise UsageError(
                    f"this {self.name} is open in another event loop of the process (of another thread, or of a client "
                    "of app.sync() that is not closed), and belongs to one at a time: close it there, or make a server "
                    "of its own for this one"
                )
            self._forget_connection()
        self._calls.attach(token)

    def _start_anew_in_child(self) -> None:
        """Forget the parent's connection without touching it: the child opens one of its own."""
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
        """Subscribe all consumers again: the link was opened anew, and the engine may have forgotten them.

        Those that were closed while the link was down, also just now, could not tell: the engine and its driver may
        take them for alive.
        """
        losses = 0 if self._forgetting is None else self._forgetting.data_losses
        if losses != self.data_losses:
            await self._declare_again()
            self.data_losses = losses
        for consumer in list(self._consumers.values()):
            if consumer.is_open:
                await self._driver.subscribe(consumer.key, consumer.queues)
        while self._untold:
            key = next(iter(self._untold))
            await self._driver.unsubscribe(key)
            self._untold.pop(key, None)
        self._lines.begin_anew()
        self._hub.tell_all()

    async def _declare_again(self) -> None:
        """The engine has lost its data: declare what the consumers read, with the bounds that were set here."""
        read = {queue for consumer in self._consumers.values() if consumer.is_open for queue in consumer.queues}
        if read:
            log.warning(
                "%s has lost its data, messages and schedules among it; queues that are read here are declared again",
                self.name,
            )
            await self._driver.declare(sorted(read))
        if self._bounds:
            await self._roles.set_bounds(self._bounds)

    # Messages

    @hosted_unless(_stays)
    async def declare(self, queues: Iterable[str]) -> None:
        """Create the queues that do not exist yet. Idempotent."""
        names = check_queues(queues)
        await self._calls("declare", partial(self._driver.declare, names), count=len(names))

    @hosted_unless(_stays)
    async def set_bounds(self, bounds: Mapping[str, Bounds]) -> None:
        """Declare these queues, and bound them from now on, in place of former bounds; `UNBOUNDED` removes them.

        Every process that uses the engine keeps them. What waits already stays, also where it is more than that. Raises
        `NotSupported` where the engine does not claim bounds.
        """
        if not self._capabilities.bounds:
            raise NotSupported(
                f"{self.name} cannot bound queues: leave max_size, max_bytes and when_full out, or use a server that "
                "can, such as InMemoryServer"
            )
        check_bounds(bounds)
        await self._calls("set_bounds", partial(self._roles.set_bounds, bounds), count=len(bounds))
        self._bounds |= bounds
        self._lines.tell_of_room()

    def publish_at_once(self, envelope: Envelope) -> bool:
        """Publish one message that a producer has made, and so checked, where that takes no wait: the engine is local,
        and no pause is due. It returns False, and has done nothing, where that cannot be, or where the message is
        refused: then `publish` it.
        """
        put = self._put
        return put is not None and not self._lines.by_queue and self._calls.is_at_once() and put(envelope)

    @enable_ki_protection
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all. Returns for each None, or why it was refused (`QueueNotDeclared`, `DuplicateId`, `QueueFull`).

        Waits for room in queues that are full, if they are bounded so (`repid.delivery.bounds`). Several messages are
        published in pieces then, as room comes: if this is cancelled meanwhile, the first ones may be published, and
        what waits is not.

        When this returns, the messages are as durable as the server promises, and a refused one has not harmed the
        others. On a local engine one call is one step, and other tasks wait meanwhile: publish tens of thousands in
        several calls. A result that is stored under the result id of an accepted message is removed: it belonged to
        another message.

        Raises `ConfigurationError`, and publishes none, if one of them cannot be sent. If this is cancelled: a local
        engine has published none; the answer of a remote one is waited for, at most five seconds. Raises
        `PublishUnknown` if there was no answer, or if the disk failed after it had taken them: publish again under the
        same ids. A remote engine takes 32 MiB for one message at most. It gets more than 8192 messages, or more than 16
        MiB, in several calls, each with its five seconds; what one of them raises, the former ones are published.
        """
        check_envelopes(envelopes)
        if not self._takes_all:
            check_claimed(self.name, self._capabilities, envelopes)
        looks_around = self._calls.looks_around()
        if looks_around is None or self._lines.by_queue:
            return await self._publish_in_turn(envelopes)
        if looks_around and is_cancelled():  # the same as there, in fewer steps
            await checkpoint_if_cancelled()
        outcomes = await self._driver.publish(envelopes)
        if looks_around and time.perf_counter() >= self._calls.turns.due:
            await self._calls.turns.give()
        if any(outcomes) and any(map(must_wait, outcomes)):
            return await self._wait_for_room(envelopes, outcomes)
        return outcomes

    @hosted_unless(_stays)
    async def _publish_in_turn(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish where that takes a crossing, a pause, an instrument, or a place behind others."""
        if self._lines.by_queue and any(envelope.queue in self._lines.by_queue for envelope in envelopes):
            return await self._publish_behind_others(envelopes)
        outcomes = await self._offer(envelopes)
        if any(outcomes) and any(map(must_wait, outcomes)):
            return await self._wait_for_room(envelopes, outcomes)
        return outcomes

    async def _offer(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish what there is room for now."""
        if self._capabilities.calls == "remote":
            self._calls.check()
            try:
                return await self._publishes.ask(envelopes)
            except NoAnswer as error:
                raise PublishUnknown([envelope.id for envelope in envelopes]) from error
        return await self._publish(envelopes)

    @hosted
    async def _publish_behind_others(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        return await self._lines.publish_behind_others(envelopes, self._offer)

    @hosted
    async def _wait_for_room(
        self, envelopes: Sequence[Envelope], outcomes: Sequence[BrokerRefused | None]
    ) -> list[BrokerRefused | None]:
        return await self._lines.publish(envelopes, outcomes, self._offer)

    async def _publish(self, envelopes: Sequence[Envelope], *, is_shared: bool = False) -> list[BrokerRefused | None]:
        publish = partial(self._driver.publish, envelopes)
        return await self._calls("publish", publish, count=len(envelopes), is_shared=is_shared)

    async def _publish_in_parts(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish on a remote engine, in as many calls as it takes for each to keep its time.

        They are several for one big request only: what several callers ask for is done in one step, or not at all.
        """
        outcomes: list[BrokerRefused | None] = []
        for part in in_parts(envelopes, _size):
            outcomes += await self._publish(part, is_shared=True)
        return outcomes

    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncIterator[Consumer]:
        """Open a consumer of these declared queues, in a trio task. Raises `QueueNotDeclared`."""
        check_taken(queues)
        elsewhere = self._state if self._results is self._state else None  # if the engine cannot keep results
        consumer = Consumer(self._calls, self._driver, self._lines, new_id(), queues, elsewhere)
        consumers, hub, unserved = self._consumers, self._hub, self._unserved
        try:
            consumers[consumer.key] = consumer
            await self._calls("subscribe", partial(self._driver.subscribe, consumer.key, consumer.queues))
            yield consumer
        finally:
            consumers.pop(consumer.key, None)
            unserved.closed(consumer.queues)
            if consumer.is_open:
                consumer.is_open = False
                hub.tell_all()
                await self._unsubscribe(consumer)

    @enable_ki_protection
    async def _unsubscribe(self, consumer: Consumer) -> None:
        """Tell the engine that the consumer is closed, at once or when the link is up again.

        Where there was no answer the engine was told, or will notice the silence of the consumer.
        """
        with trio.CancelScope(shield=True), suppress(BrokerError, NotConnected):
            if self._calls.is_down:
                self._untold[consumer.key] = None
            await self._calls("unsubscribe", partial(self._driver.unsubscribe, consumer.key))

    # Looking after queues

    @hosted_unless(_stays)
    async def queues(self) -> list[str]:
        """The names of all declared queues, in order. `Repid.list_queues` tells counts, ages and readers of each."""
        self._need("queue_admin", "list queues")
        return await self._calls("queues", self._roles.queues)

    @hosted_unless(_stays)
    async def readers(self) -> list[Mapping[str, Topics]]:
        """What each open consumer takes, of any process: its queues, each with its topics (None: all).

        One whose process died is among them for half a minute or so. Raises `NotSupported` where the engine does not
        claim `readers`.
        """
        if not self._capabilities.readers:
            raise NotSupported(f"{self.name} does not know the consumers of its queues")
        return await self._calls("readers", self._roles.readers)

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
    async def paused_of(self, queues: Iterable[str]) -> list[bool]:
        """Whether each queue is paused, in one call. Raises `QueueNotDeclared`. Counts nothing, unless the engine's
        driver can tell it in no other way (it is no `PauseTellingDriver`).
        """
        self._need("queue_admin", "tell which queues are paused")
        names = check_several("paused_of", queues)
        driver = self._driver
        if isinstance(driver, PauseTellingDriver):
            return await self._calls("paused", partial(driver.paused, names), queue=_only(names), count=len(names))
        return [counts.paused for counts in await self.counts_of(names)]

    @hosted_unless(_stays)
    async def browse(
        self, queue: str, category: Category, *, limit: int = 100, after: str | None = None
    ) -> list[BrowsedMessage]:
        """Look at messages without leasing them, in the order in which they would be handled.

        `after`: the key of the last message that was seen; what comes behind it is shown.
        """
        self._need("queue_admin", "show messages")
        check_queue(queue)
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
        """Remove every ready and scheduled message of the queue; returns how many. Leased and dead ones stay."""
        self._need("queue_admin", "flush queues")
        check_queue(queue)
        removed = await self._calls("flush", partial(self._roles.flush, queue), queue=queue)
        self._lines.tell_of_room()
        return removed

    @hosted_unless(_stays)
    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it; later verdicts are refused. Nothing happens if there is no such
        queue.
        """
        self._need("queue_admin", "delete queues")
        check_queue(queue)
        await self._calls("delete", partial(self._roles.delete, queue), queue=queue)
        self._bounds.pop(queue, None)
        self._lines.tell_of_room()

    @hosted_unless(_stays)
    async def revive(self, queue: str, keys: Iterable[str] | None = None) -> list[BrokerRefused | None]:
        """Make dead messages (all of the queue, or those with these keys) ready again, as new ones.

        `attempt` is 1 again, `lost` 0, and a ttl starts anew. Returns one answer for each: `DuplicateId` if a live
        message has its id, `BrokerRefused` if no dead message has the key.
        """
        self._need("queue_admin", "revive dead messages")
        check_queue(queue)
        chosen = None if keys is None else check_several("revive", keys)
        return await self._calls("revive", partial(self._roles.revive, queue, chosen), queue=queue)

    @hosted_unless(_stays)
    async def delete_messages(self, queue: str, keys: Iterable[str] | None = None) -> int:
        """Remove dead messages (all of the queue's, or those with these keys) for good; how many."""
        self._need("queue_admin", "delete dead messages")
        check_queue(queue)
        chosen = None if keys is None else check_several("delete_messages", keys)
        return await self._calls("delete_messages", partial(self._roles.delete_messages, queue, chosen), queue=queue)

    @hosted_unless(_stays)
    async def store_dead(self, messages: Sequence[BrowsedMessage]) -> None:
        """Keep dead letters that `browse` has shown on another server, with the times, reasons and failures they had
        there.

        A dead letter of the same id and moment of death that is here already is left as it is, so the call may be
        repeated. Raises `QueueNotDeclared`, and `NotSupported` where the engine cannot do that.
        """
        if not isinstance(self._driver, DeadKeepingDriver):
            raise NotSupported(f"{self.name} cannot keep dead letters of other servers")
        envelopes = [message.envelope for message in messages]
        check_envelopes(envelopes)
        if self._capabilities.calls == "remote":
            check_sizes(self.name, envelopes)
        store = partial(self._driver.store_dead, messages)
        await self._calls("store_dead", store, count=len(messages))

    @hosted_unless(_stays)
    async def pause(self, queue: str) -> None:
        """Hand out nothing of this queue, to no consumer, until `resume`. What is leased goes on."""
        self._need("queue_admin", "pause queues")
        check_queue(queue)
        await self._calls("pause", partial(self._roles.pause, queue, paused=True), queue=queue)

    @hosted_unless(_stays)
    async def resume(self, queue: str) -> None:
        """Hand out its messages again."""
        self._need("queue_admin", "resume queues")
        check_queue(queue)
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
        answers = await self._calls("cancel", partial(self._roles.cancel, wanted), count=len(wanted))
        self._lines.tell_of_room()
        return answers

    @hosted
    async def watch(
        self, id_: str, result_id: str, seen: Snapshot | None = None, *, queue: str | None = None
    ) -> Snapshot:
        """How the message stands, as soon as that differs from `seen`; of several dead ones the last.

        Waits until it does, also while the link is down, if something was `seen`. What changes faster than it
        is looked at is seen in its last state only. Cancelling loses nothing. However many watch, the engine is
        asked for all of them at once. `queue`: of the message; if it is ready there for five seconds, and
        nobody reads the queue or it is paused, the log says so.
        """
        self._need("tracking", "watch messages")
        check_several("watch", (id_, result_id))
        self._calls.check()
        return await self._watchers.watch((id_, result_id), seen, queue)

    @contextmanager
    def follow(self, queues: Queues | None = None) -> Iterator[Following]:
        """Follow many messages until they have ended, in a trio task: with one watch, however many there are.

        `queues` gives those where messages that are followed wait now. It is called when none has ended for five
        seconds: the log says then which of these nobody reads or are paused.
        """
        self._need("tracking", "watch messages")
        self._calls.check()
        with self._watchers.follow(self._calls.check, queues) as following:
            yield following

    async def _look(self, ids: Sequence[tuple[str, str]], *, is_shared: bool = False) -> list[Sight]:
        snapshots = partial(self._roles.snapshots, ids)
        return await self._calls("snapshots", snapshots, count=len(ids), is_shared=is_shared)

    # Results

    @hosted_unless(_stays)
    async def store_results(self, results: Sequence[NewResult]) -> None:
        """Store results, in place of those with the same ids. Raises `ConfigurationError`, and stores none, for a bad
        ttl.
        """
        self._need("results", "store results")
        check_results(self.name, self.capabilities, results)
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
        """The server's clock: seconds since 1970. It may be stepped forward or back; schedules allow for that."""
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

        False: a tick or another program was quicker, so read it again.
        """
        [is_stored] = await self.replace_schedules([(old, new)])
        return is_stored

    @hosted_unless(_stays)
    async def replace_schedules(self, changes: Sequence[ScheduleChange]) -> list[bool]:
        """As `replace_schedule` for many, of different names; for each whether it was stored.

        Cancelled: some may be stored.
        """
        self._need("schedules", "keep schedules")
        envelopes = [new.schedule.envelope for _, new in changes]
        for _, new in changes:
            check_schedule(new.schedule.name)
        check_envelopes(envelopes)
        check_claimed(self.name, self.capabilities, envelopes)
        outcomes: list[bool] = []
        for start in range(0, len(changes), LARGEST_REQUEST):
            part = changes[start : start + LARGEST_REQUEST]
            call = partial(self._schedules.replace_schedules, part)
            outcomes += await self._calls("replace_schedules", call, count=len(part))
            if any(outcomes):
                self._hub.tell(_NEW_SCHEDULES)
        return outcomes

    @contextmanager
    def schedule_changes(self) -> Iterator[WaitForChange]:
        """Note for a block, in a trio task, that schedules were stored, by whatever process. What it gives waits until
        one was since its last call, or until that moment of trio's clock, and returns whether one was. What is removed,
        or is not due for some time, is no news. Cancelling the wait loses nothing.
        """
        self._need("schedules", "keep schedules")
        if self._state is not None and self._schedules is self._state:
            with self._state.schedule_changes() as wait_for_change:
                yield wait_for_change
        else:
            with self._hub.subscribed("schedules") as subscription:
                yield partial(self._hub.wait, subscription)

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
    async def remove_schedule(self, name: str) -> bool:
        """Remove the schedule; what it has published stays. False: no schedule has that name."""
        self._need("schedules", "remove schedules")
        check_schedule(name)
        return await self._calls("remove_schedule", partial(self._schedules.remove_schedule, name))

    @hosted_unless(_stays)
    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """Make `next_at` the schedule's next time and publish, if its next tick is still `expected_next`.

        One atomic step, unless another server (`state`) keeps the schedules: see `shared.ticking`.
        """
        self._need("schedules", "tick schedules")
        check_schedule(name)
        if envelope is not None:
            check_envelopes([envelope])
            check_claimed(self.name, self.capabilities, [envelope])
        if self._state is not None and self._schedules is self._state:
            return await tick_elsewhere(self, self._state, name, expected_next, next_at, envelope)
        return await self._calls("tick", partial(self._schedules.tick, name, expected_next, next_at, envelope))

    def _need(self, role: Role, what: str) -> None:
        """Raises `NotSupported` if neither the engine nor its `state` has the role."""
        if role not in self._capabilities.roles:
            raise NotSupported(
                f"{self.name} cannot {what}: it does not have the role {role!r}; use a server that has it, such as "
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


def _at_once_is_of_publish(kind: type) -> bool:
    """Whether the `publish_at_once` of a class, of drivers or of servers, belongs to its `publish`. It does not where a
    subclass has written a `publish` of its own, which notes or changes what is sent, and has only inherited the other.
    """
    for each in kind.__mro__:
        if "publish_at_once" in vars(each):
            return True
        if "publish" in vars(each):
            return False
    return False


def _weight(envelopes: Sequence[Envelope]) -> int:
    """How many messages they count for in a request, whose payloads are to be no more than `LARGEST_PAYLOADS`."""
    size = sum([len(envelope.payload) for envelope in envelopes])
    return len(envelopes) + size * LARGEST_REQUEST // LARGEST_PAYLOADS


def _size(envelope: Envelope) -> int:
    return len(envelope.payload)


def _only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None
