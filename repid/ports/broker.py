"""The broker port: batched everywhere, because a batch is what makes it fast and a batch of one is free.

Words. A message is *ready* (may be claimed), *scheduled* (will be ready later), *leased* (claimed by a consumer,
not yet settled) or *dead* (kept for inspection, never claimed). *Live* means one of the first three. Every
message is in exactly one of these places until it is acknowledged, flushed or deleted.

Time is the broker's own. All durations are in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeAlias, get_args

import msgspec

from ..delivery import Delivery, Failure, NewResult, Progress, Reason, Settlement, StoredResult, Token
from ..envelope import Envelope
from ..errors import BrokerRefused
from .capabilities import Capabilities
from .link import LinkState
from .schedules import ScheduleStore

Category: TypeAlias = Literal["ready", "scheduled", "leased", "dead"]
CATEGORIES: tuple[Category, ...] = get_args(Category)

Topics: TypeAlias = frozenset[str] | None
"""The topics a consumer takes from one queue. None: every message, also those without a topic."""


class AtMost(msgspec.Struct, frozen=True, kw_only=True):
    """What one `receive` may bring, besides its number.

    `topics`: how many messages of one (queue, topic). `groups`: how many of several (queue, topic) together; each is in
    one group at most, and a topic of None means the whole queue. `size`: how many bytes of payload together; `first`:
    how many the first message may have, which may be more. `alone`: the caller holds no lease, so the list may be one suspect (see `repid.delivery.blame`).
    """

    topics: Mapping[tuple[str, str], int] = {}
    groups: Sequence[tuple[Collection[tuple[str, str | None]], int]] = ()
    size: float = float("inf")
    first: float = float("inf")
    alone: bool = True

    def of(self, queue: str, topic: str | None) -> int | None:
        """The limit of one (queue, topic); None: it has none."""
        return self.topics.get((queue, topic)) if topic is not None else None

    def group(self, queue: str, topic: str | None) -> int | None:
        """The index of its group; None: it is in none."""
        for index, (members, _) in enumerate(self.groups):
            if (queue, topic) in members or (queue, None) in members:
                return index
        return None


ANYTHING = AtMost()
"""No limit but the number."""


def at_most_of(limits: AtMost | Mapping[tuple[str, str], int] | None) -> AtMost:
    """What a caller of `receive` has given, in one form."""
    if limits is None:
        return ANYTHING
    return limits if isinstance(limits, AtMost) else AtMost(topics=dict(limits))


class Counts(msgspec.Struct, frozen=True):
    """How many messages of one queue are in each place, and whether it is paused."""

    ready: int = 0
    scheduled: int = 0
    leased: int = 0
    dead: int = 0
    paused: bool = False


class BrowsedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message as `browse` shows it. `due_in`: seconds until a scheduled one is ready or a lease ends.

    `key` names this very message to `revive`, also where several dead ones carry one id.
    """

    envelope: Envelope
    category: Category
    key: str
    attempt: int
    lost: int
    due_in: float | None = None
    reason: Reason | None = None
    failure: Failure | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """How one message stands. `state` is "gone" once it is neither live nor dead; `result` is what was stored of it.

    `attempt` and `progress` are those of the present or last run, as far as they are known.
    """

    state: Literal["ready", "scheduled", "leased", "dead", "gone"]
    attempt: int = 0
    progress: Progress | None = None
    cancelling: bool = False
    result: StoredResult | None = None


class Sight(msgspec.Struct, frozen=True):
    """A snapshot, and for how many seconds it holds if nobody does anything."""

    snapshot: Snapshot
    holds_for: float = float("inf")


Cancelled: TypeAlias = Literal["cancelled", "requested", "unknown"]
"""What `cancel` did: removed a waiting message; asked the worker that runs it; or there was none."""


class Verdict(msgspec.Struct, frozen=True):
    """The server's answer to one settlement.

    settled: carried out. refused: the lease was no longer the delivery's (fencing); nothing was done then, the outbox
    included. unknown: the settlement was sent before and not answered, and now the lease is over: most likely it was
    carried out then. `dropped` counts outbox messages that were left out because their id is alive.
    """

    outcome: Literal["settled", "refused", "unknown"]
    dropped: int = 0

    @property
    def accepted(self) -> bool:
        """Whether it was carried out for certain."""
        return self.outcome == "settled"


SETTLED = Verdict("settled")
REFUSED = Verdict("refused")
UNKNOWN = Verdict("unknown")


class LeaseEvent(msgspec.Struct, frozen=True):
    """What happened to the lease with this token. lost: it has ended. cancel: somebody cancels the message."""

    token: Token
    kind: Literal["lost", "cancel"]


UnderWay: TypeAlias = Callable[[], Mapping[Token, float]]
"""The leases of a worker that are about to end although the work under them goes on, each with the seconds for which it
may be extended at most. It may be called from any thread; what it returns holds for that moment only."""


class Consumer(Protocol):
    """Leases messages of some queues to one worker. Leaving its block releases what it leased and nobody got."""

    @property
    def lease_timeout(self) -> float:
        """A lease that was neither settled nor extended for so long may be given to somebody else by `rescue`."""
        ...

    async def receive(
        self,
        limit: int,
        *,
        at_most: AtMost | Mapping[tuple[str, str], int] | None = None,
        max_wait: float = float("inf"),
    ) -> list[Delivery]:
        """Lease up to `limit` ready messages, by rank over all queues; wait until there is at least one.

        `at_most` limits how many of one (queue, topic) may be among them, and more (`AtMost`). A message that was lost
        twice is handed out alone, before others, and only to a caller that holds nothing else (`AtMost.alone`). After
        `max_wait` seconds without any the list is empty; 0 asks without waiting. Cancelling loses nothing: what was
        claimed is returned, although the caller was cancelled meanwhile.
        """
        ...

    def set_limits(self, at_most: AtMost | Mapping[tuple[str, str], int] | None) -> None:
        """A `receive` of this consumer that waits just now heeds these limits from now on."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Carry out each disposition, with its outbox and result; answer in the same order.

        A message whose cancellation was requested is never made ready again: it is removed instead, as cancelled.
        Outbox messages to undeclared queues declare them. Raises `BrokerUnavailable` where there was no answer; make
        the same call again: what had been settled after all is then answered as unknown.
        """
        ...

    async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        """Start the lease of each anew. False: it is not ours any more. Cancelling: each may have been extended."""
        ...

    def vouch(self, under_way: UnderWay) -> None:
        """Have the leases that `under_way` names extended while the event loop is blocked, where the engine can do that.

        Where it cannot (`SteadyDriver`), this does nothing.
        """
        ...

    async def rescue(self) -> int:
        """Make ready again what expired leases hold, whoever's (`lost` + 1; dead as poison at 10); how many."""
        ...

    async def suspects(self) -> int:
        """How many ready messages this consumer could be given if it held nothing else."""
        ...

    async def report(self, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:
        """Note how far runs have come, for whoever watches, and (None) that they have begun: that ends the ttl of the
        message, should the lease be lost. What is not leased to us any more is passed over.
        """
        ...

    async def events(self) -> list[LeaseEvent]:
        """Wait for lease events; each is given once. Cancelled, this call has taken none.

        Whoever is told of a cancellation cancels the run and settles with `Cancel`.
        """
        ...


class ResultStore(Protocol):
    """Where results are kept until they expire. A broker is one too: what it settles, it stores in the same step."""

    async def store_results(self, results: Sequence[NewResult]) -> None:
        """Store results, in place of those with the same ids."""
        ...

    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """The result under each id; None where there is none, or none any more."""
        ...


class Broker(ScheduleStore, ResultStore, Protocol):
    """One message broker. Open it with `connection()`; every other call outside raises `NotConnected`.

    `repid.brokers.door.Server` implements it over the driver of any engine. Programs under asyncio make these calls
    too, all but `consume`, whose consumer works in trio.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What it claims to do."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether a `connection()` block is open."""
        ...

    @property
    def link(self) -> LinkState:
        """How the link to the engine stands."""
        ...

    def connection(self) -> AbstractAsyncContextManager[Broker]:
        """Keep the connection open for a block. Blocks nest; the outermost one closes what it opened."""
        ...

    async def declare(self, queues: Iterable[str]) -> None:
        """Create the queues that do not exist yet. Idempotent."""
        ...

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all; for each None, or why it was refused (`QueueNotDeclared`, `DuplicateId`).

        A result that is stored under an accepted message's result id is removed: it was another message's.
        When it returns they are as durable as the server promises, and a refused one has not harmed its neighbours.
        Cancelled: none was published by a local engine; a remote one is waited for. `PublishUnknown`: no answer came.
        """
        ...

    def consume(self, queues: Mapping[str, Topics]) -> AbstractAsyncContextManager[Consumer]:
        """Open a consumer of these declared queues."""
        ...

    async def queues(self) -> list[str]:
        """The names of all declared queues, in order."""
        ...

    async def counts(self, queue: str) -> Counts:
        """How many messages of the queue are in each place."""
        ...

    async def counts_of(self, queues: Iterable[str]) -> list[Counts]:
        """The same for several queues in one call."""
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
        """Remove every ready and scheduled message of the queue; how many. Leased and dead ones stay."""
        ...

    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it. Late verdicts on its leases are refused."""
        ...

    async def revive(self, queue: str, keys: Iterable[str] | None = None) -> list[BrokerRefused | None]:
        """Make dead messages (all of the queue's, or those with these keys) ready again, as new ones.

        `attempt` is 1 again and `lost` 0. One answer for each: `DuplicateId` where its id is alive again.
        """
        ...

    async def delete_messages(self, queue: str, keys: Iterable[str] | None = None) -> int:
        """Remove dead messages (all of the queue's, or those with these keys) for good; how many.

        Keys of no dead message are passed over. What else is in the queue stays, and so do stored results. Cancelled:
        some of them may be removed.
        """
        ...

    async def pause(self, queue: str) -> None:
        """Hand out nothing of this queue, to no consumer, until `resume`. What is leased goes on."""
        ...

    async def resume(self, queue: str) -> None:
        """Hand out its messages again."""
        ...

    async def cancel(self, id_: str) -> Cancelled:
        """Remove the live message with this id, or have its run cancelled.

        Its result is stored as "cancelled", unless the sender wanted none stored (`store_result=False`).
        """
        ...

    async def cancel_each(self, ids: Iterable[str]) -> list[Cancelled]:
        """The same for several ids in one call."""
        ...

    async def watch(self, id_: str, result_id: str, seen: Snapshot | None = None) -> Snapshot:
        """How the message stands, as soon as that differs from `seen`; of several dead ones the last.

        Waits until it does. What changes faster than it is looked at is seen in its last state only.
        """
        ...
