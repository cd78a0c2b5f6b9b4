"""The broker port: batched everywhere, because a batch is what makes it fast and a batch of one is free.

Words. A message is *ready* (may be claimed), *scheduled* (will be ready later), *leased* (claimed by a consumer,
not yet settled) or *dead* (kept for inspection, never claimed). *Live* means one of the first three. Every
message is in exactly one of these places until it is acknowledged, flushed or deleted.

Time is the broker's own. All durations are in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args, runtime_checkable

import msgspec
from msgspec.structs import replace

from ..delivery import Bounds, Delivery, Failure, NewResult, Progress, Reason, Settlement, StoredResult, Token
from ..envelope import Envelope
from ..errors import BrokerRefused, QueueFull
from .capabilities import Capabilities
from .link import LinkState
from .room import SendingRun, Turn
from .schedules import ScheduleStore

Category: TypeAlias = Literal["ready", "scheduled", "leased", "dead"]
CATEGORIES: tuple[Category, ...] = get_args(Category)

Topics: TypeAlias = frozenset[str] | None
"""The topics a consumer takes from one queue. None: every message, also those without a topic."""


LARGEST_CALL = 8192
"""Messages that one call is about, for engines that may take a while: a tenth of what a slow one does in the time of a
call. One that is about more is made in parts."""

LARGEST_PAYLOADS = 16 * 2**20
"""Bytes of payloads and results in one such call, if it is about several messages."""

T = TypeVar("T")


def in_parts(items: Sequence[T], size_of: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """The items in order, in parts that one call can be about each; one that is too big is a part of its own."""
    start = size = 0
    for place, item in enumerate(items):
        own = size_of(item)
        size += own
        if place > start and (place - start >= LARGEST_CALL or size > LARGEST_PAYLOADS):
            yield items[start:place]
            start, size = place, own
    yield items[start:]


class AtMost(msgspec.Struct, frozen=True, kw_only=True):
    """What one `receive` may bring, besides its number.

    `topics`: how many messages of one (queue, topic). `groups`: how many messages of several (queue, topic) together;
    each pair is in one group at most, and a topic of None means the whole queue. `size`: how many bytes of payload all
    messages may have together; `first`: how many the first of them may have, which may be more. `alone`: the caller
    holds no lease, so the list may be one suspect (see `repid.delivery.blame`).
    """

    topics: Mapping[tuple[str, str], int] = {}
    groups: Sequence[tuple[Collection[tuple[str, str | None]], int]] = ()
    size: float = float("inf")
    first: float = float("inf")
    alone: bool = True

    def of(self, queue: str, topic: str | None) -> int | None:
        """The limit of one (queue, topic). Returns None if there is none."""
        return self.topics.get((queue, topic)) if topic is not None else None

    def group(self, queue: str, topic: str | None) -> int | None:
        """The index of the group of one (queue, topic). Returns None if it is in no group."""
        for index, (members, _) in enumerate(self.groups):
            if (queue, topic) in members or (queue, None) in members:
                return index
        return None


ANYTHING = AtMost()
"""No limit but the number."""


def at_most_of(limits: AtMost | Mapping[tuple[str, str], int] | None) -> AtMost:
    """The limits that a caller of `receive` gave, as `AtMost`."""
    if limits is None:
        return ANYTHING
    return limits if isinstance(limits, AtMost) else AtMost(topics=dict(limits))


class Counts(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """How many messages of one queue are in each place, whether it is paused, and how it is bounded.

    `bounds`: None if it is not. `dropped`: how many messages were dropped so far because the queue was full.
    """

    ready: int = 0
    scheduled: int = 0
    leased: int = 0
    dead: int = 0
    paused: bool = False
    bounds: Bounds | None = None
    dropped: int = 0


class BrowsedMessage(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """One message as `browse` shows it.

    `key` names this message to `revive`, also where several dead messages have the same id. Times are seconds since
    1970 on the server's clock, `seen_at` among them, the moment at which the server looked: count ages from it. Each of
    the other times is None where it does not apply, or where an older repid did not record it.

    `enqueued_at`: when the message was published, or revived. `due_at`: when a scheduled one becomes ready, or the
    lease of a leased one ends. `leased_at` and `leased_by`: since when it is leased (extending the lease does not
    change that) and by which worker process. `died_at`: when it became a dead letter.
    """

    envelope: Envelope
    category: Category
    key: str
    attempt: int
    lost: int
    seen_at: float
    enqueued_at: float | None = None
    due_at: float | None = None
    leased_at: float | None = None
    leased_by: str | None = None
    died_at: float | None = None
    reason: Reason | None = None
    failure: Failure | None = None

    @property
    def due_in(self) -> float | None:
        """Seconds until a scheduled one is ready or a lease ends, to the microsecond."""
        return None if self.due_at is None else round(self.due_at - self.seen_at, 6)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one message. `state` is "gone" when the message is neither live nor dead; `result` is its stored
    result.

    `attempt` and `progress` are those of the current run or the last one, as far as they are known.
    """

    state: Literal["ready", "scheduled", "leased", "dead", "gone"]
    attempt: int = 0
    progress: Progress | None = None
    cancelling: bool = False
    result: StoredResult | None = None


class Sight(msgspec.Struct, frozen=True):
    """A snapshot, and the number of seconds for which it stays true if no call changes the message."""

    snapshot: Snapshot
    holds_for: float = float("inf")


Cancelled: TypeAlias = Literal["cancelled", "requested", "unknown"]
"""What `cancel` did. cancelled: it removed a waiting message. requested: it asked the worker that runs the message.
unknown: no live message has this id."""


class Verdict(msgspec.Struct, frozen=True):
    """The server's answer to one settlement.

    settled: it was carried out. refused: the lease was not the delivery's any more (fencing); then nothing was done,
    and no outbox was published. unknown: the settlement was sent before and not answered, and now the lease has ended:
    most likely it was carried out the first time. full: a bounded queue has no room for its outbox (`full` says more);
    nothing was done, and the lease goes on: make the same call again when there is room. `dropped` counts messages of
    the outbox that were left out because a live message has their id.
    """

    outcome: Literal["settled", "refused", "unknown", "full"]
    dropped: int = 0
    full: QueueFull | None = None

    @property
    def accepted(self) -> bool:
        """Whether it was carried out for certain."""
        return self.outcome == "settled"


SETTLED = Verdict("settled")
REFUSED = Verdict("refused")
UNKNOWN = Verdict("unknown")


class LeaseEvent(msgspec.Struct, frozen=True):
    """What happened to the lease with this token. lost: it has ended. cancel: the message was cancelled."""

    token: Token
    kind: Literal["lost", "cancel"]


Take: TypeAlias = Callable[[list[Delivery]], None]
"""Takes what was leased, before anything else can happen. It must not raise."""

UnderWay: TypeAlias = Callable[[], Mapping[Token, float]]
"""Gives the leases of a worker that are about to end while the work under them goes on, each with the number of seconds
for which it may be extended at most. It may be called from any thread. What it returns is true at that moment only."""


class Consumer(Protocol):
    """Leases messages of some queues to one worker.

    When its block is left, the messages that it leased and did not hand over are released.
    """

    @property
    def lease_timeout(self) -> float:
        """Seconds after which `rescue` may take back a lease that was neither settled nor extended."""
        ...

    async def receive(
        self,
        limit: int,
        *,
        at_most: AtMost | Mapping[tuple[str, str], int] | None = None,
        max_wait: float = float("inf"),
        take: Take | None = None,
    ) -> list[Delivery]:
        """Lease up to `limit` ready messages, by rank over all queues; wait until there is at least one.

        `at_most` limits how many messages of one (queue, topic) may be among them, and more (`AtMost`). A message that
        was lost twice is handed out alone, before others, and only to a caller that holds no other message
        (`AtMost.alone`). If there is none for `max_wait` seconds, the list is empty; 0 asks without waiting. Cancelling
        loses nothing: what was claimed is returned although the caller was cancelled. `take` is called with it first,
        as soon as it is known: with an engine in this process, in the step of the publisher.
        """
        ...

    def set_limits(self, at_most: AtMost | Mapping[tuple[str, str], int] | None) -> None:
        """Have a `receive` of this consumer that is waiting use these limits from now on."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Carry out each disposition, with its outbox and result; answer in the same order.

        A message whose cancellation was requested is never made ready again: it is removed instead, as cancelled.
        Outbox messages to undeclared queues declare them. Raises `BrokerUnavailable` if the server did not
        answer; then make the same call again. What was settled by the first call is then answered as unknown.
        """
        ...

    def turn(self, queue: str, run: SendingRun | None) -> AbstractAsyncContextManager[Turn]:
        """Wait, before the block, for this call's turn to look for room in a full queue, among all that wait
        for that.
        """
        ...

    async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        """Start each lease anew. False: that lease is lost. If this is cancelled, each may have been extended."""
        ...

    def vouch(self, under_way: UnderWay) -> None:
        """Have the leases that `under_way` names extended while the event loop is blocked.

        Does nothing if the driver cannot do that (it is no `SteadyDriver`).
        """
        ...

    async def rescue(self) -> int:
        """Take back every lease that has expired, of any consumer; returns how many.

        Each message is ready again with `lost` one higher, or at 10 a dead letter with the reason poison.
        """
        ...

    async def suspects(self) -> int:
        """How many ready messages this consumer could get if it held no message."""
        ...

    async def report(self, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:
        """Note how far runs have come, for those who watch them; None notes only that the run has begun. A message
        whose run has begun has no ttl any more, even if its lease is lost. Deliveries whose lease is lost are left out.
        """
        ...

    async def wait_link(self, at_most: float) -> None:
        """Wait this many seconds, or until the link is up again if it is down: what failed may be done then."""
        ...

    async def events(self) -> list[LeaseEvent]:
        """Wait for lease events; each is given once. If this call is cancelled, it has taken none.

        On a cancellation the worker cancels the run and settles with `Cancel`.
        """
        ...


class Followed(Protocol):
    """The messages that one task follows until they have ended. Each is given as the id of the message and of its
    result.
    """

    def add(self, messages: Iterable[tuple[str, str]], *, look_first: bool = True, take_results: bool = False) -> None:
        """Follow these from now on. Those that are not published yet must be before the next `ended`.

        `look_first=False`: they are published then and have no ttl, so that a local engine will tell of each end. What
        was refused must be added again. `take_results`: nobody else will want the results. A local engine does not have
        to store them, and one that it did not store expires in the moment in which it came.
        """
        ...

    async def look(self, messages: Sequence[tuple[str, str]]) -> list[Snapshot]:
        """How these stand now, whether they are followed or not. A result that was taken and not told of yet is there,
        too.
        """
        ...

    def wake(self) -> None:
        """End the present wait of `ended`, or the next one. May be called by any task of the trio run."""
        ...

    async def ended(self) -> list[tuple[tuple[str, str], Snapshot]]:
        """Wait until some have ended; those are followed no more. Woken, it returns an empty list. Cancelled, it loses
        none.

        A message that was never published has ended, too.
        """
        ...


class ResultStore(Protocol):
    """Where results are kept until they expire. A broker is one too: it stores a result as it settles."""

    async def store_results(self, results: Sequence[NewResult]) -> None:
        """Store results; each replaces the one with the same id."""
        ...

    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """The result under each id, or None if there is none or it has expired."""
        ...


async def store_apart(store: ResultStore, settlements: Sequence[Settlement]) -> list[Settlement]:
    """Store the results of settlements in a server of their own; returns the settlements without them.

    To be called before the messages are settled: after a crash in between, the results are stored once more.
    """
    results = [settlement.result for settlement in settlements if settlement.result is not None]
    if results:
        await store.store_results(results)
    return [replace(settlement, result=None) for settlement in settlements]


def name_of(broker: Broker) -> str:
    """What errors call a server: its class, and its driver where that is a plain `Server`."""
    return getattr(broker, "name", type(broker).__name__)


def where(broker: Broker) -> str:
    """The server and its place, in words for a log."""
    place = getattr(broker, "place", "")
    return f"{name_of(broker)} at {place}" if place else name_of(broker)


def how_to_resume(queue: str) -> str:
    """What to do about a paused queue, in words for a log."""
    return f"`python -m repid resume MODULE:APP {queue}`, or Queue({queue!r}).resume(), lets workers have them"


class Broker(ScheduleStore, ResultStore, Protocol):
    """One message broker. Open it with `connection()`; every other call outside raises `NotConnected`.

    `repid.brokers.door.Server` implements it over the driver of any engine. Programs under asyncio can make these calls
    too, except `consume`, whose consumer works in trio.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What the server claims to do."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether a `connection()` block is open."""
        ...

    @property
    def link(self) -> LinkState:
        """The state of the link to the engine."""
        ...

    def connection(self) -> AbstractAsyncContextManager[Broker]:
        """Keep the connection open for a block. Blocks nest; the outermost one closes what it opened."""
        ...

    async def declare(self, queues: Iterable[str]) -> None:
        """Create the queues that do not exist yet. Idempotent."""
        ...

    async def set_bounds(self, bounds: Mapping[str, Bounds]) -> None:
        """Declare these queues, and bound them from now on, in place of former bounds; `UNBOUNDED` removes them."""
        ...

    def publish_at_once(self, envelope: Envelope) -> bool:
        """Publish one message that a producer has made, and so checked, where that takes no wait. It returns False, and
        has done nothing, where that cannot be, or where the message is refused: then `publish` it.
        """
        ...

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all. Returns for each None, or why it was refused (`QueueNotDeclared`, `DuplicateId`, `QueueFull`).

        Waits for room in queues that are full and bounded so. A result that is stored under the result id of an
        accepted message is removed: it belonged to another message. When this returns, the messages are as durable as
        the server promises, and a refused message has not harmed the others. If this is cancelled: a local engine has
        published none; the answer of a remote one is waited for. Raises `PublishUnknown` if no answer came.
        """
        ...

    def consume(self, queues: Mapping[str, Topics]) -> AbstractAsyncContextManager[Consumer]:
        """Open a consumer of these declared queues."""
        ...

    async def queues(self) -> list[str]:
        """The names of all declared queues, in order."""
        ...

    async def readers(self) -> list[Mapping[str, Topics]]:
        """What each open consumer takes, of any process: its queues, each with its topics (None: all).

        One whose process died is among them for half a minute or so. Raises `NotSupported` where the engine does not
        claim `readers`.
        """
        ...

    async def counts(self, queue: str) -> Counts:
        """How many messages of the queue are in each place."""
        ...

    async def counts_of(self, queues: Iterable[str]) -> list[Counts]:
        """The same for several queues in one call."""
        ...

    async def paused_of(self, queues: Iterable[str]) -> list[bool]:
        """Whether each queue is paused, in one call, which does not take the longer the more messages there are."""
        ...

    async def browse(
        self, queue: str, category: Category, *, limit: int = 100, after: str | None = None
    ) -> list[BrowsedMessage]:
        """Look at messages without leasing them, in the order in which they would be handled.

        `after`: the key of the last message that was seen; what comes behind it is shown.
        """
        ...

    async def find(self, ids: Iterable[str]) -> list[list[BrowsedMessage]]:
        """For each id the messages that have it: the live one first, then dead ones."""
        ...

    async def flush(self, queue: str) -> int:
        """Remove every ready and scheduled message of the queue; returns how many. Leased and dead ones stay."""
        ...

    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it. Verdicts on its leases that come later are refused."""
        ...

    async def revive(self, queue: str, keys: Iterable[str] | None = None) -> list[BrokerRefused | None]:
        """Make dead messages (all of the queue, or those with these keys) ready again, as new ones.

        `attempt` is 1 again and `lost` 0. Returns one answer for each: `DuplicateId` if a live message has its id.
        """
        ...

    async def delete_messages(self, queue: str, keys: Iterable[str] | None = None) -> int:
        """Remove dead messages (all of the queue, or those with these keys) for ever; returns how many.

        Keys that no dead message has are ignored. The other messages of the queue stay, and so do stored results. If
        this is cancelled, some of the messages may be removed.
        """
        ...

    async def pause(self, queue: str) -> None:
        """Give no message of this queue to any consumer until `resume`. Messages that are leased go on."""
        ...

    async def resume(self, queue: str) -> None:
        """Give messages of this queue to consumers again."""
        ...

    async def cancel(self, id_: str) -> Cancelled:
        """Remove the live message with this id, or ask its worker to cancel the run.

        Its result is stored as "cancelled", unless the sender wanted none stored (`store_result=False`).
        """
        ...

    async def cancel_each(self, ids: Iterable[str]) -> list[Cancelled]:
        """Do the same for several ids in one call."""
        ...

    async def watch(
        self, id_: str, result_id: str, seen: Snapshot | None = None, *, queue: str | None = None
    ) -> Snapshot:
        """Wait until the state of the message differs from `seen`, and return it. Of several dead ones it is the last
        one's.

        Of changes that follow each other quickly only the last one may be seen. `queue`: where the message waits; the
        log says after a while if nobody reads it.
        """
        ...

    def follow(self, queues: Callable[[], Iterable[str]] | None = None) -> AbstractContextManager[Followed]:
        """Follow many messages until they have ended, in a trio task: with one watch, however many there are.

        `queues` gives those where they wait now; the log says after a while which of them nobody reads.
        """
        ...


@runtime_checkable
class Transactional(Protocol):
    """Optional, for servers in a database: they publish in a transaction of the caller's own."""

    async def publish_in(self, connection: Any, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish, as part of the transaction of this connection; one outcome for each envelope."""
        ...


@runtime_checkable
class Migrating(Protocol):
    """Optional, for servers whose tables another person may have to make: what `python -m repid migrate` calls."""

    async def migrate(self) -> bool:
        """Make the tables, or bring them up to date; returns whether there was anything to do. The server may be
        closed.
        """
        ...

    async def migration_sql(self) -> str:
        """The SQL that `migrate` would execute; empty if there is nothing to do."""
        ...
