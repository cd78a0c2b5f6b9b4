"""The driver of the Redis engine: each call is one script, or several that are sent together.

Theory. The scripts decide and change in one step; this module makes their arguments and reads their answers. What a
call gives is cut into batches, because a script keeps everybody else waiting; they are sent without waiting for each
other, and the server carries them out in their order. A server that ends may carry out the first ones only, so what is
published is cut as seldom as can be: what the front door sends together for several callers is one batch, and none of
their calls is halved.

How consumers sleep and are woken: `claiming`.
"""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from typing import Any, TypeVar

import msgspec
import trio

from ...delivery import (
    UNBOUNDED,
    Bounds,
    Delivery,
    NewResult,
    Progress,
    Settlement,
    StoredResult,
    Token,
    refusal,
)
from ...envelope import Envelope
from ...errors import (
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    DuplicateId,
    QueueNotDeclared,
    RepidError,
)
from ...logs import Log
from ...ports import (
    EVERYTHING,
    REFUSED,
    SETTLED,
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
from ..process import name_process
from ..shared.dropping import DropLog
from ..shared.extender import Extender
from . import schedules
from .address import Address
from .claiming import MOST_CLAIMED, NONCE_SIZE, Subscription, split_given
from .errors import FAILED, explain_open
from .finding import ANSWER_TIME
from .layout import (
    LEASE_HEAD,
    LONGEST_NAME,
    MICRO,
    UNREADABLE,
    micros,
    pack,
    pack_bounds,
    pack_failure,
    pack_result,
    takes_of,
    to_argument,
    to_bounds,
    to_delivery,
    to_entries,
    to_id,
    to_key,
    to_lease,
    to_result,
    to_takes,
)
from .news import NewsBox
from .settling import INVALID, VALID, batches_of, lease_of, pack_acks, pack_settlement, to_verdict
from .showing import end_of, show, to_dead_key, to_place, to_sight, unreadable
from .wire import Wire, opened

T = TypeVar("T")

log = Log("repid.redis")

BATCH = 100
"""Messages that one script settles, revives, cancels or looks at."""

PUBLISHED_AT_ONCE = 1000
"""Messages that one script publishes. The front door sends no more than that together for several callers."""

PUBLISHED_SIZE = 16 * 2**20
"""Bytes of payload that one script publishes, if it is about several messages. The same holds for these."""

ADMIN_BATCH = 1000
"""Messages that one script removes or looks for, results that it stores or fetches, or leases that it takes back."""

CONSUMER_TIME = 30.0
"""Seconds after which a consumer of which nothing was heard is believed dead: what only it takes goes to others."""

BEAT_TIME = 7.5
"""Seconds between two signs of life."""

LATE_TIME = 20.0
"""Seconds without a sign of life after which a consumer that sleeps is taken for frozen: what it was given goes to
another one.
"""

WATCH_TIME = 30.0
"""Seconds after which who watches a message looks again, and is entered anew."""

MOST = 2**31
"""More than anything is counted to."""


class RedisDriver:
    """One prefix of one database of one server."""

    capabilities: Capabilities = msgspec.structs.replace(EVERYTHING, calls="remote")

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext | None,
        prefix: str,
        *,
        lease_timeout: float,
        dead_ttl: float | None,
        wait_replicas: int,
    ) -> None:
        self.capabilities = msgspec.structs.replace(self.capabilities, dead_ttl=dead_ttl)
        self.lease_timeout = lease_timeout
        self._lease = micros(lease_timeout)
        self._address = address
        self._context = context
        self._prefix = prefix
        self._wait_replicas = wait_replicas
        self._extender = Extender(lease_timeout, self._extend_apart)
        self._wire: Wire | None = None
        self._nursery: trio.Nursery | None = None  # set together with the wire
        self._channel = ""
        self._sleepers = f"{{{prefix}}}:sleepers".encode()
        self._tell: Callable[[News], bool] | None = None
        self._news = NewsBox()
        self._drop_log = DropLog()
        self._worker = name_process().encode()[:200]
        self._subscriptions: dict[bytes, Subscription] = {}
        self._known: dict[bytes, Subscription] = {}  # those of the links before, until they come back
        self._last_claim = 0.0, 0  # the moment of the last answer to a claim, on trio's clock and on the server's
        self._epoch = b""  # what names the data that the server has
        self.data_losses = 0
        self._last_beat = 0.0  # the moment at which the last sign of life that arrived was sent
        self._cancels = 0  # how often the server told that somebody cancels a message that is leased

    # The link

    @asynccontextmanager
    async def link(self, watched: Collection[str]) -> AsyncIterator[None]:  # noqa: ARG002  the server is told at each look
        """Open both connections, and see that the server can be used."""
        self._channel = f"{{{self._prefix}}}:link:{secrets.token_hex(8)}"
        self._news = news = NewsBox(self._tell)
        self._known |= self._subscriptions  # an attempt to open the link may fail before they have come back
        self._subscriptions = {}
        for one in self._known.values():
            one.forget_given()
        try:
            async with opened(self._address, self._context, self._prefix, f"repid-{os.getpid()}") as wire:
                with trio.fail_after(ANSWER_TIME):
                    await self._check(wire)
                async with trio.open_nursery() as nursery:
                    with trio.fail_after(ANSWER_TIME):
                        await self._listen(wire, news)
                    nursery.start_soon(self._beat, wire)
                    self._wire, self._nursery = wire, nursery
                    try:
                        with self._extender.working():
                            yield
                    finally:
                        self._wire = self._nursery = None
                        news.close()
                    nursery.cancel_scope.cancel()
        except FAILED as error:
            raise explain_open(error, str(self._address)) from error
        except BaseExceptionGroup as group:
            ours, others = group.split((RepidError, *FAILED))
            if ours is None or others is not None:
                raise
            leaf = _leaf(ours)
            leaf = leaf.__cause__ or leaf
            raise explain_open(leaf, str(self._address)) from leaf

    async def _check(self, wire: Wire) -> None:
        """Raise where the server evicts keys, cannot write, or has too few replicas."""
        info = await wire.command(b"INFO")
        found = dict(line.split(":", 1) for line in _text(info).splitlines() if ":" in line)
        policy = found.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys"):
            raise ConfigurationError(
                f"{self._address} throws messages away when its memory is full (maxmemory-policy {policy}): set "
                "maxmemory-policy to noeviction"
            )
        if int(found.get("connected_slaves", 0)) < self._wait_replicas:
            raise BrokerUnavailable(
                f"{self._address} has {found.get('connected_slaves', 0)} replicas, but "
                f"wait_replicas={self._wait_replicas}"
            )
        await wire.command(b"PUBLISH", self._channel, b"e")  # a user who may not do that may not subscribe
        self._note_epoch(await self._give_sign_of_life(wire, judges=False))

    def _note_epoch(self, epoch: bytes) -> bool:
        """Whether the server has lost the data that it had at the last time."""
        is_lost = self._epoch not in {b"", epoch}
        self._epoch = epoch
        self.data_losses += is_lost
        return is_lost

    async def _give_sign_of_life(self, wire: Wire, *, judges: bool) -> bytes:
        """Returns the name of the data that the server has. `judges`: have consumers taken for frozen that are late.
        Not while we may be late ourselves, for want of the server: then they are, too.
        """
        began = trio.current_time()
        signs = [(key, one.fields) for key, one in self._subscriptions.items()]
        late = micros(LATE_TIME) if judges and not self._is_late() else 0
        request = (micros(CONSUMER_TIME), signs, late, secrets.token_bytes(16))
        epoch: bytes = await wire.run("beat", request)
        if self._is_late():  # what the consumers were given before this may be another's by now
            for one in self._subscriptions.values():
                one.forget_given()
        self._last_beat = began
        return epoch

    def _is_late(self) -> bool:
        """Whether the server may take this process for frozen, as far as is known here."""
        return trio.current_time() - self._last_beat > LATE_TIME

    async def _beat(self, wire: Wire) -> None:
        while True:
            await trio.sleep(BEAT_TIME)
            self._known.clear()  # what has not come back by now was closed meanwhile: the front door waits less
            with trio.fail_after(ANSWER_TIME):
                is_lost = self._note_epoch(await self._give_sign_of_life(wire, judges=True))
                await wire.sign_of_life()
            if is_lost:  # consumers must be entered anew, and queues declared
                raise BrokerUnavailable(f"{self._address} has lost its data")

    async def _listen(self, wire: Wire, news: NewsBox) -> None:
        def tell(message: bytes) -> None:
            if message == b"r":
                news.note_ready()
            elif message == b"e":
                self._cancels += 1
                news.note_events()
            elif message == b"s":
                news.note_schedules()
            elif message[:1] == b"d":
                self._note_given(message)
                news.note_ready()
            else:
                news.note_id(message[1:])

        await wire.listen([self._channel, f"{{{self._prefix}}}:all"], tell)

    def _note_given(self, message: bytes) -> None:
        """Note what a sleeper was given. One that claimed again, or stopped waiting, takes it no more."""
        given = split_given(message)
        for one in self._subscriptions.values():
            if one.nonce == given[0][:NONCE_SIZE]:
                one.given = given

    @property
    def wire(self) -> Wire:
        """The open connections."""
        if self._wire is None:
            raise BrokerUnavailable(f"{self._address} is not connected")
        return self._wire

    # Messages in

    async def declare(self, queues: Sequence[str]) -> None:
        """Create the queues that do not exist yet."""
        await self._sure(self.wire.run("declare", [_to_name(queue) for queue in queues]))

    async def set_bounds(self, bounds: Mapping[str, Bounds]) -> None:
        """Create the queues that do not exist yet, and bound them."""
        packed = [(_to_name(queue), pack_bounds(one)) for queue, one in bounds.items()]
        await self._sure(self.wire.run("set_bounds", packed))

    async def _bounds_of(self, queue: str) -> tuple[Bounds, int]:
        """The bounds of a queue as they are now, and how many consumers read it."""
        packed, readers = await self.wire.run("bounds", queue.encode())
        return to_bounds(packed) or UNBOUNDED, readers

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all; for each None, or why it was refused. Where the memory is full that is why."""
        wire = self.wire
        batches = _batches(envelopes, to_entries(envelopes))
        sent = [wire.put("publish", *batch) for batch in batches]
        outcomes: list[BrokerRefused | None] = []
        full: dict[str, tuple[Bounds, int]] = {}
        for batch, answer in zip(batches, sent, strict=True):
            try:
                found = await answer.see_through()
            except BrokerRefused as error:
                outcomes += [copy(error) for _ in batch]  # each is raised on its own
                continue
            for place, letter in enumerate(self._without_dropped(found), len(outcomes)):
                outcomes.append(
                    None if letter == _ACCEPTED else await self._why_refused(letter, envelopes[place], full)
                )
        if self._wait_replicas:
            await self._sure()
        return outcomes

    async def _why_refused(self, letter: int, envelope: Envelope, full: dict[str, tuple[Bounds, int]]) -> BrokerRefused:
        """The error that a letter of the script stands for. `full`: the full queues that were asked about already."""
        queue = envelope.queue
        if letter == _NOT_DECLARED:
            return QueueNotDeclared(queue)
        if letter != _FULL:
            return DuplicateId(envelope.id, queue)
        if queue not in full:
            with trio.CancelScope(shield=True):
                full[queue] = await self._bounds_of(queue)
        bounds, readers = full[queue]
        return refusal(queue, bounds, 1, len(envelope.payload), readers)

    def _without_dropped(self, found: Any) -> Any:
        """What a script answered; what it has dropped from full queues is noted (`with_dropped` in part_bounds.lua)."""
        if not (isinstance(found, list) and found and isinstance(found[-1], list)):
            return found
        answers, told = found
        for queue, count in zip(told[::2], told[1::2], strict=True):
            self._drop_log.note(_text(queue), count)
        return answers

    # Consumers

    async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
        """Enter a consumer. One that was entered before finds its queues declared, whatever the server forgot."""
        key, takes = consumer.encode(), takes_of(queues)
        known = self._subscriptions.get(key) or self._known.get(key)
        fields = [field for prefix, _, lanes in takes for field in ([prefix] if isinstance(lanes, bool) else [*lanes])]
        packed, taken = to_argument((self._channel, takes)), b"" if known is None else known.taken
        request = (key, micros(CONSUMER_TIME), known is not None, fields, taken)
        missing = await self.wire.run("subscribe", request, packed)
        if missing:
            raise QueueNotDeclared(_text(missing))
        prefixes = [prefix for prefix, _, _ in takes]
        if known is None:
            self._subscriptions[key] = Subscription(packed, fields, prefixes, {})
        else:
            known.takes = packed
            self._subscriptions[key] = known
            self._known.pop(key, None)
        if not self._epoch:  # the data gets its name as soon as there is a queue
            self._note_epoch(await self._give_sign_of_life(self.wire, judges=False))

    async def unsubscribe(self, consumer: str) -> None:
        """Strike it off; what it leased stays leased."""
        key = consumer.encode()
        self._extender.forget(consumer)
        one = self._subscriptions.pop(key, None) or self._known.pop(key, None)
        await self.wire.run("unsubscribe", (key, b"" if one is None else one.taken))

    async def claim(self, consumer: str, limit: int, at_most: AtMost, *, waits: bool = True) -> Claimed:
        """Lease what is ready now. `waits`: where nothing is, the consumer is entered among the sleepers."""
        while True:
            claimed = await self._claim(consumer, limit, at_most, waits=waits)
            if claimed is not None:
                return claimed

    async def _claim(self, consumer: str, limit: int, at_most: AtMost, *, waits: bool) -> Claimed | None:
        """Claim once. None: all that was found is dead now, and there may be more behind it."""
        key = consumer.encode()
        one = self._subscriptions[key]
        nonce, cancels, was_asleep = secrets.token_bytes(NONCE_SIZE), self._cancels, one.is_asleep
        if limit > 0:
            one.claims += 1
            if one.given is not None and (given := self.given(consumer, at_most)):
                await self.wire.send()  # that it is taken
                return Claimed(given)
            one.is_asleep = one.is_asleep or waits  # already now: the answer may never come
            one.nonce, one.at_most, one.cancels = nonce, at_most, cancels
        request = one.to_claim(
            key, limit, at_most, self._lease, nonce, self._worker, waits=waits, was_asleep=was_asleep
        )
        now, due_in, suspects, *found = await self.wire.run("claim", request, one.takes)
        self._last_claim = trio.current_time(), now
        if limit > 0 and waits and not found:
            one.is_asleep = True
        elif one.nonce == nonce:  # of several claims at once the last one: their answers may be read in any order
            one.is_asleep = False
        deliveries = await self._to_deliveries(one, found, now, cancels)
        if found and not deliveries:
            return None
        return Claimed(deliveries, due_in / MICRO if due_in >= 0 else float("inf"), suspects)

    def given(self, consumer: str, at_most: AtMost) -> list[Delivery]:
        """What it was given while it slept, if it may still have that: what waited here for long may be another's now.

        What it may not have, or cannot be read, is put back by its next claim.
        """
        one = self._subscriptions.get(consumer.encode())
        if one is None or one.given is None:
            return []
        (lease, record), one.given = one.given, None
        since, _ = to_lease(lease)
        now = self._server_time(since)
        if at_most != one.at_most or self._is_late() or now - since > self._lease / 2:
            return []
        try:
            delivery = to_delivery(lease, record, LEASE_HEAD + len(self._worker), now)
        except UNREADABLE:
            return []
        one.taken, one.is_asleep = one.nonce, False
        self.wire.put_command(b"HDEL", self._sleepers, consumer.encode())  # it is sent in this step, too
        one.held[delivery.envelope.id] = lease
        if one.cancels != self._cancels:
            self._news.note_events()
        return [delivery]

    def _server_time(self, since: int) -> int:
        """The server's time now, at the earliest: what was handed over then may have waited here, while its ttl went
        on.
        """
        answered, then = self._last_claim
        return max(since, then + micros(trio.current_time() - answered))

    async def _to_deliveries(self, one: Subscription, found: Sequence[bytes], now: int, cancels: int) -> list[Delivery]:
        """The deliveries of leases, each followed by the record of its message. What cannot be read is dead then.

        `cancels`: how many cancellations had been heard of before any of these leases began. If there were more since,
        one of them may be that of such a message, which `events` did not ask about, because it was not held yet.
        """
        deliveries: list[Delivery] = []
        bad: list[tuple[bytes, Exception]] = []
        held, at = one.held, LEASE_HEAD + len(self._worker)
        for lease, record in zip(found[::2], found[1::2], strict=True):
            try:
                delivery = to_delivery(lease, record, at, now)
            except UNREADABLE as error:
                bad.append((lease, error))
            else:
                deliveries.append(delivery)
                held[delivery.envelope.id] = lease
        if deliveries and cancels != self._cancels:
            self._news.note_events()
        if bad:
            await self._bury(bad)
        return deliveries

    def stop_waiting(self, consumer: str) -> None:
        """Have its entry among the sleepers withdrawn soon, unless it claims again before that."""
        key = consumer.encode()
        one = self._subscriptions.get(key)
        if one is not None and one.is_asleep and self._wire is not None and self._nursery is not None:
            one.is_asleep = False
            one.forget_given()
            self._nursery.start_soon(self._withdraw, self._wire, key, one, one.claims)

    async def _withdraw(self, wire: Wire, key: bytes, one: Subscription, claims: int) -> None:
        """Withdraw the entry of a consumer that has stopped waiting after its claim number `claims`.

        If it claims meanwhile, it looks once more: the entry of that claim may have been withdrawn, where the server
        had to be given the script first.
        """
        if one.claims != claims:
            return
        with trio.fail_after(ANSWER_TIME):
            await wire.run("withdraw", (key, one.prefixes, one.taken))
        if one.claims != claims:
            self._news.note_ready()

    async def _bury(self, bad: Iterable[tuple[bytes, Exception]]) -> None:
        """Make dead what nobody can read: it must not come again and again."""
        for lease, error in bad:
            failure = unreadable(error)
            log.error("a message on %s (its lease is %r) is dead: %s", self._address, lease, failure.text)
            await self.wire.run("bury", (lease, pack_failure(failure)))

    async def settle(self, consumer: str, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Carry out each disposition with its outbox and result in one step."""
        wire = self.wire
        sent = [
            (
                plain,
                batch,
                wire.ask("ack", *pack_acks(batch)) if plain else wire.ask("settle", [*map(pack_settlement, batch)]),
            )
            for plain, batch in batches_of(settlements, BATCH)
        ]
        verdicts: list[Verdict] = []
        for plain, batch, answer in sent:
            found = self._without_dropped(await answer.get())
            if plain and INVALID not in found:
                verdicts += [SETTLED] * len(batch)
            elif plain:
                verdicts += [SETTLED if letter == VALID else REFUSED for letter in found]
            else:
                verdicts += [
                    await self._no_room(one, each) if isinstance(each, bytes) else to_verdict(each)
                    for one, each in zip(batch, found, strict=True)
                ]
        await self._sure()
        one = self._subscriptions.get(consumer.encode())
        if one is not None:
            for settlement, verdict in zip(settlements, verdicts, strict=True):
                if verdict.full is None:
                    one.held.pop(settlement.delivery.envelope.id, None)
        return verdicts

    async def _no_room(self, settlement: Settlement, queue: bytes) -> Verdict:
        name = _text(queue)
        sizes = [len(envelope.payload) for envelope in settlement.outbox if envelope.queue == name]
        bounds, readers = await self._bounds_of(name)
        return Verdict("full", full=refusal(name, bounds, len(sizes), sum(sizes), readers))

    async def extend(self, consumer: str, deliveries: Sequence[Delivery]) -> list[bool]:
        """Start the lease of each anew, also of one that has ended and was not rescued yet."""
        wire = self.wire
        leases = [lease_of(delivery) for delivery in deliveries]
        sent = [wire.ask("extend", (self._lease, some)) for some in _bites(leases, MOST_CLAIMED)]
        answers = [letter == VALID for answer in sent for letter in await answer.get()]
        one = self._subscriptions.get(consumer.encode())
        if one is not None:
            for delivery, is_ours in zip(deliveries, answers, strict=True):
                if not is_ours:
                    one.held.pop(delivery.envelope.id, None)
        return answers

    def vouch(self, consumer: str, under_way: UnderWay) -> None:
        """Have a thread extend these leases while the event loop is blocked."""
        self._extender.vouch(consumer, under_way)

    async def _extend_apart(self, left: Mapping[Token, float]) -> None:
        """Extend these leases in the loop of a thread, while our own is blocked."""
        async with opened(self._address, self._context, self._prefix, f"repid-leases-{os.getpid()}") as wire:
            seconds, more = await wire.command(b"TIME")
            now = int(seconds) * MICRO + int(more)
            ends = [each for token, time in left.items() for each in (now + min(micros(time), self._lease), token)]
            await wire.command(b"ZADD", f"{{{self._prefix}}}:leases", b"XX", b"GT", *ends)

    async def rescue(self) -> int:
        """Take back every lease that has ended."""
        rescued = count = await self.wire.run("rescue", ADMIN_BATCH)
        while count == ADMIN_BATCH:
            count = await self.wire.run("rescue", ADMIN_BATCH)
            rescued += count
        ttl = self.capabilities.dead_ttl
        while ttl is not None and await self.wire.run("remove_old", (micros(ttl), ADMIN_BATCH)) == ADMIN_BATCH:
            pass
        return int(rescued)

    @property
    def sees_publishes_through(self) -> bool:
        """Whether this driver itself sees a publish through. It cannot with TLS, or where it waits for replicas."""
        return self._context is None and not self._wait_replicas

    def tell_at_once(self, tell: Callable[[News], bool]) -> None:
        """Have news told in this way from the next link on; `news` returns where `tell` says that it must."""
        self._tell = tell

    async def news(self, wait: float) -> News | None:
        """Wait until the server tells of a change. After `wait` seconds without any it may be worth asking all the
        same.
        """
        news = self._news
        if self._wire is None:
            raise BrokerUnavailable(f"{self._address} is not connected")
        found = await news.next(wait)
        if news.is_closed:
            raise BrokerUnavailable(f"the connection to {self._address} was closed")
        return found

    # Looking after queues

    async def queues(self) -> list[str]:
        """The names of all queues."""
        names = await self.wire.command(b"HKEYS", f"{{{self._prefix}}}:queues")
        return sorted(_text(name) for name in names)

    async def readers(self) -> list[Mapping[str, Topics]]:
        """What each open consumer takes."""
        return [to_takes(fields) for fields in await self.wire.run("readers", None)]

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """How many messages of each queue are where."""
        found = await self.wire.run("counts", [queue.encode() for queue in queues])
        if isinstance(found, bytes):
            raise QueueNotDeclared(found.decode())
        return [
            Counts(ready, scheduled, leased, dead, bool(paused), to_bounds(bounds), dropped)
            for ready, scheduled, leased, dead, paused, bounds, dropped in found
        ]

    async def browse(self, queue: str, category: Category, limit: int, after: str | None) -> list[BrowsedMessage]:
        """Look at messages in the order in which they would be handled."""
        place = None if after is None else to_place(after, category)
        if after is not None and place is None:
            return []
        argument = (queue.encode(), category, min(limit, MOST), place if place is not None else False)
        found = await self.wire.run("browse", argument)
        if isinstance(found, bytes):
            raise QueueNotDeclared(queue)
        now, *messages = found
        return [show(one, queue, now) for one in messages]

    async def find(self, ids: Sequence[str]) -> list[list[BrowsedMessage]]:
        """The messages with these ids, live ones first."""
        wire = self.wire
        keys = [to_key(id_) for id_ in ids]
        found: list[list[BrowsedMessage]] = []
        for answer in [wire.ask("find", some) for some in _bites(keys, ADMIN_BATCH)]:
            now, *shown = await answer.get()
            found += [[show(one, "", now) for one in some] for some in shown]
        return found

    async def flush(self, queue: str) -> int:
        """Remove what is ready or scheduled; how many. What comes in meanwhile may stay."""
        [counted] = await self.counts([queue])
        left = counted.ready + counted.scheduled
        removed = 0
        while left > 0:
            count = await self.wire.run("flush", (queue.encode(), min(ADMIN_BATCH, left)))
            if count <= 0:
                break
            removed, left = removed + count, left - count
        return removed

    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it."""
        name = queue.encode()
        while not await self.wire.run("delete", name):
            while await self.wire.run("flush", (name, ADMIN_BATCH)) > 0:
                pass
            await self.delete_messages(queue, None)

    async def revive(self, queue: str, keys: Sequence[str] | None) -> list[BrokerRefused | None]:
        """Make dead messages ready again, as new ones."""
        chosen = await self._dead_keys(queue) if keys is None else [to_dead_key(key) for key in keys]
        answers: list[BrokerRefused | None] = []
        for start in range(0, max(len(chosen), 1), BATCH):
            some = chosen[start : start + BATCH]
            letters = await self.wire.run("revive", (queue.encode(), some))
            if letters == [b"q"]:
                raise QueueNotDeclared(queue)
            for key, letter in zip(some, letters, strict=True):
                if letter[:1] == b"d":
                    answers.append(DuplicateId(to_id(letter[1:]), queue))
                elif letter in {b"n", b"u"}:
                    shown = int.from_bytes(key, "big")
                    answers.append(
                        BrokerRefused(
                            f"no dead message in {queue!r} has the key {shown}"
                            if letter == b"n"
                            else f"the dead message in {queue!r} with the key {shown} cannot be read: "
                            "it can only be deleted"
                        )
                    )
                else:
                    answers.append(None)
        return answers

    async def _dead_keys(self, queue: str) -> list[bytes]:
        keys: list[bytes] = []
        while True:
            found = await self.wire.run("dead_keys", (queue.encode(), keys[-1] if keys else False, ADMIN_BATCH))
            if isinstance(found, bytes):
                raise QueueNotDeclared(queue)
            keys += found
            if len(found) < ADMIN_BATCH:
                return keys

    async def delete_messages(self, queue: str, keys: Sequence[str] | None) -> int:
        """Remove dead messages; how many."""
        chosen = await self._dead_keys(queue) if keys is None else [to_dead_key(key) for key in keys]
        removed = 0
        for start in range(0, max(len(chosen), 1), ADMIN_BATCH):
            count = await self.wire.run("delete_dead", (queue.encode(), chosen[start : start + ADMIN_BATCH]))
            if count < 0:
                raise QueueNotDeclared(queue)
            removed += count
        return removed

    async def store_dead(self, messages: Sequence[BrowsedMessage]) -> None:
        """Keep dead letters of another server."""
        entries = to_entries(message.envelope for message in messages)
        for batch, some in zip(_bites(entries, BATCH), _bites(messages, BATCH), strict=True):
            undeclared = await self.wire.run("store_dead", (batch, [end_of(message) for message in some]))
            if undeclared:
                raise QueueNotDeclared(_text(undeclared))
        await self._sure()

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Hand out nothing of the queue, or its messages again."""
        if not await self.wire.run("pause", (queue.encode(), paused)):
            raise QueueNotDeclared(queue)

    # Following messages

    async def cancel(self, ids: Sequence[str]) -> list[Cancelled]:
        """Remove what waits; have the consumers told whose runs the others are."""
        wire = self.wire
        keys = [to_key(id_) for id_ in ids]
        sent = [wire.ask("cancel", some) for some in _bites(keys, BATCH)]
        return [_CANCELLED[word] for answer in sent for word in await answer.get()]

    async def snapshots(self, ids: Sequence[tuple[str, str]]) -> list[Sight]:
        """How each message stands. Changes are told to this client from now on, for a while."""
        wire = self.wire
        channel, lasts = self._channel.encode(), micros(WATCH_TIME)
        pairs = [(to_key(id_), to_key(result_id)) for id_, result_id in ids]
        sent = [wire.ask("snapshots", (channel, lasts, some)) for some in _bites(pairs, BATCH)]
        found = [one for answer in sent for one in await answer.get()]
        return [to_sight(result_id, *one) for (_, result_id), one in zip(ids, found, strict=True)]

    async def report(self, consumer: str, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:  # noqa: ARG002  any may
        """Note that runs have begun and how far they have come."""
        noted = [(lease_of(delivery), False if how_far is None else pack(how_far)) for delivery, how_far in progress]
        await self.wire.run("report", noted)

    async def events(self, consumer: str) -> list[LeaseEvent]:
        """Whose runs somebody has cancelled, until their leases have ended."""
        one = self._subscriptions.get(consumer.encode())
        if one is None or not one.held:
            return []
        held = list(one.held.items())
        marks = await self.wire.run("requests", [to_key(id_) for id_, _ in held])
        return [LeaseEvent(token, "cancel") for (_, token), mark in zip(held, marks, strict=True) if mark]

    # Results

    async def store_results(self, results: Sequence[NewResult]) -> None:
        """Store results, in place of those with the same ids."""
        wire = self.wire
        for answer in [wire.ask("store_results", some) for some in _bites([*map(pack_result, results)], ADMIN_BATCH)]:
            await answer.get()
        await self._sure()

    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """The result under each id, or None."""
        wire = self.wire
        sent = [wire.ask("fetch_results", some) for some in _bites([*map(to_key, ids)], ADMIN_BATCH)]
        found = [stored for answer in sent for stored in await answer.get()]
        return [to_result(id_, stored) for id_, stored in zip(ids, found, strict=True)]

    # Schedules

    async def now(self) -> float:
        """The server's clock: seconds since 1970."""
        return (await schedules.due(self.wire, 0)).now

    async def schedules(self, names: Collection[str] | None) -> list[StoredSchedule]:
        """All of them, or those of these names."""
        return await schedules.find(self.wire, self._prefix, names)

    async def replace_schedules(self, changes: Sequence[ScheduleChange]) -> list[bool]:
        """Store each schedule, if the old one is what is there."""
        outcomes: list[bool] = await self._sure(schedules.replace(self.wire, self._prefix, changes))
        return outcomes

    async def due_schedules(self, limit: int) -> DueSchedules:
        """Those that are due."""
        return await schedules.due(self.wire, limit)

    async def remove_schedule(self, name: str) -> bool:
        """Forget it."""
        return bool(await self.wire.run("remove_schedule", name.encode()))

    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """Move the schedule on and publish, if it is still where it was expected to be."""
        entries = to_entries([] if envelope is None else [envelope])
        found = await self._sure(schedules.tick(self.wire, name, expected_next, next_at, entries))
        outcome: TickOutcome = self._without_dropped(found).decode()
        return outcome

    async def _sure(self, call: Awaitable[T] | None = None) -> Any:
        """Wait until as many replicas as was asked for have what was written before."""
        answer = None if call is None else await call
        if self._wait_replicas:
            wait = round(ANSWER_TIME / 2 * 1000)
            reached = await self.wire.command(b"WAIT", self._wait_replicas, wait)
            if reached < self._wait_replicas:
                raise BrokerUnavailable(
                    f"{self._address} has it, but only {reached} of {self._wait_replicas} replicas (wait_replicas) "
                    f"confirmed it within {wait / 1000:g} s"
                )
        return answer


_ACCEPTED, _FULL, _NOT_DECLARED = ord("a"), ord("f"), ord("q")
_CANCELLED: dict[bytes, Cancelled] = {b"cancelled": "cancelled", b"requested": "requested", b"unknown": "unknown"}


def _to_name(queue: str) -> bytes:
    """The name of a queue that is to be declared."""
    name = queue.encode()
    if len(name) > LONGEST_NAME:
        raise ConfigurationError(f"the name of queue {queue[:40]!r}… is longer than {LONGEST_NAME} bytes")
    return name


def _batches(envelopes: Sequence[Envelope], entries: list[bytes]) -> list[list[bytes]]:
    if len(entries) == 1:
        return [entries]
    batches: list[list[bytes]] = []
    batch: list[bytes] = []
    size = 0
    for envelope, entry in zip(envelopes, entries, strict=True):
        if batch and (len(batch) == PUBLISHED_AT_ONCE or size + len(envelope.payload) > PUBLISHED_SIZE):
            batches.append(batch)
            batch, size = [], 0
        batch.append(entry)
        size += len(envelope.payload)
    if batch:
        batches.append(batch)
    return batches


def _bites(whole: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (whole[start : start + size] for start in range(0, len(whole), size))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _leaf(error: BaseException) -> BaseException:
    """The error itself, or the first one of a group."""
    return _leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
