"""The broker port: batched everywhere, because a batch is what makes it fast and a batch of one is free.

Words. A message is *ready* (may be claimed), *scheduled* (will be ready later), *leased* (claimed by a consumer,
not yet settled) or *dead* (kept for inspection, never claimed). *Live* means one of the first three. Every
message is in exactly one of these places until it is acknowledged, flushed or deleted.

Time is the broker's own. All durations are in seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeAlias

import msgspec

from ..delivery import Delivery, Failure, NewResult, Progress, Reason, Settlement, StoredResult
from ..envelope import Envelope
from ..errors import BrokerRefused
from .schedules import ScheduleStore

Category: TypeAlias = Literal["ready", "scheduled", "leased", "dead"]

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


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker claims to do. The conformance suite tests what is claimed.

    `filters_topics`: `receive` never hands over what another open consumer takes and this one does not, and keeps
    to `at_most`. `atomic_outbox`: a settlement and its outbox happen together or not at all. `durable`: what
    `publish` accepted survives the end of the process. `shared`: several processes may use it at once.
    """

    filters_topics: bool
    atomic_outbox: bool
    durable: bool
    shared: bool


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
    key: int
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


Cancelled: TypeAlias = Literal["cancelled", "requested", "unknown"]
"""What `cancel` did: removed a waiting message; asked the worker that runs it; or there was none."""


class Verdict(msgspec.Struct, frozen=True):
    """The broker's answer to one settlement.

    `accepted` is False where the lease was no longer the delivery's (fencing): nothing was done then, the outbox
    included. `dropped` counts outbox messages that were left out because their id is alive.
    """

    accepted: bool
    dropped: int = 0


SETTLED = Verdict(accepted=True)
REFUSED = Verdict(accepted=False)


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
        `max_wait` without any the list is empty; 0 asks without waiting. Cancelling loses nothing: nothing is leased then.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Carry out each disposition, with its outbox and result in the same step; answer in the same order.

        A message whose cancellation was requested is never made ready again: it is removed instead, as cancelled.

        Outbox messages to undeclared queues declare them. Raises `BrokerUnavailable` if nothing was settled;
        the same call may then be made again, and what had been settled after all is answered as refused.
        """
        ...

    async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        """Start the lease of each anew. False: it is not ours any more."""
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

    async def cancellations(self) -> list[int]:
        """Wait until somebody cancels messages that are leased to this consumer; the tokens of their leases.

        Each request is given once. Whoever gets it cancels the run and settles with `Cancel`.
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

    Programs under asyncio make these calls too, all but `consume`, whose consumer works in trio: of `repid.hosts`,
    put `@hosted_context` on `connection` and `@hosted` on the others. The conformance suite tries each.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What it claims to do."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether a `connection()` block is open."""
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
        When it returns they are as durable as the broker promises, and a refused one has not harmed its
        neighbours. Cancelled: none was published.
        """
        ...

    def consume(self, queues: Mapping[str, Topics]) -> AbstractAsyncContextManager[Consumer]:
        """Open a consumer of these declared queues."""
        ...

    async def counts(self, queue: str) -> Counts:
        """How many messages of the queue are in each place."""
        ...

    async def browse(self, queue: str, category: Category, *, limit: int = 100) -> list[BrowsedMessage]:
        """Look at messages without leasing them, in the order in which they would be handled."""
        ...

    async def flush(self, queue: str) -> int:
        """Remove every ready and scheduled message of the queue; how many. Leased and dead ones stay."""
        ...

    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it. Late verdicts on its leases are refused."""
        ...

    async def revive(self, queue: str, keys: Iterable[int] | None = None) -> list[BrokerRefused | None]:
        """Make dead messages (all of the queue's, or those with these keys) ready again, as new ones.

        `attempt` is 1 again and `lost` 0. One answer for each: `DuplicateId` where its id is alive again.
        """
        ...

    async def delete_messages(self, queue: str, keys: Iterable[int] | None = None) -> int:
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

    async def watch(self, id_: str, result_id: str, seen: Snapshot | None = None) -> Snapshot:
        """How the message stands, as soon as that differs from `seen`; of several dead ones the last.

        Waits until it does. What changes faster than it is looked at is seen in its last state only.
        """
        ...
