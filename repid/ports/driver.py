"""The protocol of a driver: the small part behind a server that knows one engine.

The front door (`repid.brokers.door.Server`) is written once for all engines. It checks arguments, crosses hosts, counts
connections, waits for messages, keeps time limits, watches jobs and calls instruments. A driver carries out short,
batched calls and knows nothing of all that. `docs/writing-a-broker.md` is the guide.

The rules for every call of a driver:

* It runs in a trio task, and several calls may run at the same time.
* It never waits for messages; only `news` waits.
* It raises `BrokerUnavailable` where the engine cannot be reached or does not answer, and then the door may repeat it.
* What it raises of `BrokerRefused` concerns the caller; nothing was changed then.
* `capabilities.calls` says what cancelling does to it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

import msgspec

from ..delivery import Delivery, NewResult, Progress, Settlement, StoredResult
from ..envelope import Envelope
from ..errors import BrokerRefused
from .broker import AtMost, BrowsedMessage, Cancelled, Category, Counts, LeaseEvent, Sight, Topics, UnderWay, Verdict
from .capabilities import Capabilities
from .schedules import DueSchedules, StoredSchedule, TickOutcome


class Claimed(msgspec.Struct, frozen=True):
    """What a claim gave.

    `next_in`: seconds until something that this consumer takes will be ready, as far as is known. `suspects`: after a
    claim of 0, how many ready messages it could be given if it held nothing else (`repid.delivery.blame`).
    """

    deliveries: list[Delivery]
    next_in: float = float("inf")
    suspects: int = 0


class News(msgspec.Struct, frozen=True):
    """What may have changed since the last `news`: it is only a hint that it may be worth asking again.

    ready: there may be something to claim. events: there may be lease events. ids: messages and results that may have
    changed, of those that are watched; None: any of them.
    """

    ready: bool = True
    events: bool = True
    ids: Collection[str] | None = None


class Driver(Protocol):
    """The modest profile: what every engine must be able to do. One driver object serves one server object."""

    @property
    def capabilities(self) -> Capabilities:
        """What the engine claims to do."""
        ...

    @property
    def lease_timeout(self) -> float:
        """Seconds after which a lease that was neither settled nor extended may be rescued."""
        ...

    def link(self, watched: Collection[str]) -> AbstractAsyncContextManager[None]:
        """Keep the link to the engine open for a block; raise `BrokerUnavailable` where that fails.

        `watched` always holds the ids of messages and results that somebody watches just now. Everything the driver
        starts ends with the block. A link that was never left belongs to a run that crashed: drop what it left.
        """
        ...

    async def declare(self, queues: Sequence[str]) -> None:
        """Create the queues that do not exist yet."""
        ...

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all; for each None, or why it was refused. When it returns they are as durable as is claimed."""
        ...

    async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
        """Note that a consumer takes these topics of these queues. Raises `QueueNotDeclared`. Repeating it is harmless."""
        ...

    async def unsubscribe(self, consumer: str) -> None:
        """The consumer takes nothing any more. What it leased stays leased."""
        ...

    async def claim(self, consumer: str, limit: int, at_most: AtMost) -> Claimed:
        """Lease up to `limit` messages that are ready now, and say when the next one will be.

        With a limit of 0 nothing is leased, and only `suspects` is answered.
        """
        ...

    async def settle(self, consumer: str, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Carry out each disposition with its outbox (whose queues are declared if need be) and its result."""
        ...

    async def extend(self, consumer: str, deliveries: Sequence[Delivery]) -> list[bool]:
        """Start the lease of each anew; False: it is lost."""
        ...

    async def rescue(self) -> int:
        """Take back every lease that has ended, whoever holds it; how many."""
        ...

    async def news(self, wait: float) -> News | None:
        """Wait at most `wait` seconds for something to change; None: nothing has.

        Changes since the last call are answered at once. Called by one task at a time, and only while somebody
        waits. Cancelling it loses nothing that a later call would not tell.
        """
        ...


class QueueAdminDriver(Protocol):
    """The role "queue_admin"."""

    async def queues(self) -> list[str]:
        """The names of all declared queues."""
        ...

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """How many messages of each queue are in each place. Raises `QueueNotDeclared`."""
        ...

    async def browse(self, queue: str, category: Category, limit: int, after: str | None) -> list[BrowsedMessage]:
        """Look at messages without leasing them, in the order in which they would be handled.

        `after`: the key of a message: go on behind it.
        """
        ...

    async def find(self, ids: Sequence[str]) -> list[list[BrowsedMessage]]:
        """For each id the messages that have it: the live one, and dead ones."""
        ...

    async def flush(self, queue: str) -> int:
        """Remove every ready and scheduled message of the queue; how many."""
        ...

    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it. Nothing happens where there is none."""
        ...

    async def revive(self, queue: str, keys: Sequence[str] | None) -> list[BrokerRefused | None]:
        """Make dead messages ready again, as new ones; for each None, or why not."""
        ...

    async def delete_messages(self, queue: str, keys: Sequence[str] | None) -> int:
        """Remove dead messages (None: all of the queue's); how many."""
        ...

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Hand out nothing of this queue, or hand out its messages again."""
        ...


class TrackingDriver(Protocol):
    """The role "tracking"."""

    async def cancel(self, ids: Sequence[str]) -> list[Cancelled]:
        """Remove the live message with each id, or have its run cancelled."""
        ...

    async def snapshots(self, ids: Sequence[tuple[str, str]]) -> list[Sight]:
        """How each message stands; the pairs are message id and result id. Of several dead ones the last."""
        ...

    async def report(self, consumer: str, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:
        """Note how far runs have come; what is not leased under its token any more is passed over."""
        ...

    async def events(self, consumer: str) -> list[LeaseEvent]:
        """The lease events of this consumer that it was not told of yet."""
        ...


class ResultDriver(Protocol):
    """The role "results"."""

    async def store_results(self, results: Sequence[NewResult]) -> None:
        """Store results, in place of those with the same ids."""
        ...

    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """The result under each id; None where there is none, or none any more."""
        ...


class ScheduleDriver(Protocol):
    """The role "schedules"."""

    async def now(self) -> float:
        """The engine's clock: seconds since 1970."""
        ...

    async def schedules(self, names: Collection[str] | None) -> list[StoredSchedule]:
        """All of them, or those of these names that are there; sorted by name."""
        ...

    async def due_schedules(self, limit: int) -> DueSchedules:
        """Those that are due and not paused, the next moment when one will be, and the engine's time."""
        ...

    async def replace_schedule(self, old: StoredSchedule | None, new: StoredSchedule) -> bool:
        """Store `new` if what is stored under its name equals `old` (None: nothing is), in one step; whether it did."""
        ...

    async def remove_schedule(self, name: str) -> bool:
        """Forget it; what it has published stays. False: there is none of that name."""
        ...

    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """Move it on and publish, in one step, if its next tick is still `expected_next`."""
        ...


@runtime_checkable
class WaitingDriver(Protocol):
    """Optional, for engines in this process: a waiting claim is handed its messages in the publisher's own step.

    It shortens the way of a message; without it the door asks again after each `news`.
    """

    async def claim_or_wait(self, consumer: str, limit: int, at_most: AtMost, deadline: float) -> list[Delivery]:
        """As `claim`, but wait for messages until that moment of trio's clock. Cancelled: nothing was leased.

        The list is also empty where the consumer was closed meanwhile.
        """
        ...

    def set_limits(self, consumer: str, at_most: AtMost) -> None:
        """The claim of this consumer that waits just now heeds these limits from now on."""
        ...


@runtime_checkable
class SteadyDriver(Protocol):
    """Optional, for engines with a thread of their own: it extends leases while the event loop is blocked.

    Without it a worker whose loop is blocked for longer than a lease loses what it is working on.
    """

    def vouch(self, consumer: str, under_way: UnderWay) -> None:
        """Ask `under_way` several times in each lease, and extend what it names, until the consumer is closed."""
        ...


class FullDriver(Driver, QueueAdminDriver, TrackingDriver, ResultDriver, ScheduleDriver, Protocol):
    """A driver that has every role."""
