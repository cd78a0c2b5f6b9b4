"""The protocol of a driver: the small part behind a server that knows one engine.

The front door (`repid.brokers.door.Server`) is written once for all engines. It checks arguments, crosses hosts, counts
connections, waits for messages, keeps time limits, watches jobs and calls instruments. A driver carries out short,
batched calls and does none of this. `docs/writing-a-broker.md` is the guide.

The rules for every call of a driver:

* It runs in a trio task, and several calls may run at the same time.
* It never waits for messages; only `news` waits.
* It raises `BrokerUnavailable` if the engine cannot be reached or does not answer; then the front door may repeat it.
* If it raises `BrokerRefused`, the caller has made a mistake and nothing was changed.
* `capabilities.calls` says what cancelling does to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from ..delivery import Bounds, Delivery, NewResult, Progress, Settlement, StoredResult
from ..envelope import Envelope
from ..errors import BrokerRefused
from .broker import (
    AtMost,
    BrowsedMessage,
    Cancelled,
    Category,
    Counts,
    LeaseEvent,
    Sight,
    Take,
    Topics,
    UnderWay,
    Verdict,
)
from .capabilities import Capabilities
from .schedules import DueSchedules, ScheduleChange, StoredSchedule, TickOutcome


class Claimed(msgspec.Struct, frozen=True):
    """What a claim gave.

    `next_in`: seconds until a message that this consumer takes will be ready, as far as the driver knows. `suspects`:
    after a claim of 0, how many ready messages it could get if it held no message (`repid.delivery.blame`).
    """

    deliveries: list[Delivery]
    next_in: float = float("inf")
    suspects: int = 0


class News(msgspec.Struct, frozen=True):
    """What may have changed since the last `news`. It is only a hint that it may be worth asking again.

    ready: there may be something to claim. events: there may be lease events. room: a full queue may have room. ids:
    messages and results that may have changed, of those that are watched; None: any of them may have. schedules: one
    may be due earlier than before; see `ScheduleDriver`.
    """

    ready: bool = True
    events: bool = True
    ids: Collection[str] | None = None
    room: bool = True
    schedules: bool = True


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

    def link(self, watched: Mapping[str, int]) -> AbstractAsyncContextManager[None]:
        """Keep the link to the engine open for a block. Raises `BrokerUnavailable` if that fails.

        `watched` always holds the ids of the messages and results that are watched at the moment, each with the number
        of those who want to hear of every change of it: where that is 0, news of its end is enough. Everything that the
        driver starts ends with the block. If the link broke, the block raises `BrokerUnavailable`. A link that was
        never left belongs to a run that crashed: forget what is left of it.
        """
        ...

    async def declare(self, queues: Sequence[str]) -> None:
        """Create the queues that do not exist yet."""
        ...

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all. Returns for each None, or why it was refused. Then they are as durable as is claimed."""
        ...

    async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
        """Note that a consumer takes these topics of these queues. Raises `QueueNotDeclared`. May be repeated."""
        ...

    async def unsubscribe(self, consumer: str) -> None:
        """Give the consumer no more messages. What it leased stays leased.

        It may be one that was subscribed to an earlier link only: it was closed while the link was down.
        """
        ...

    async def claim(self, consumer: str, limit: int, at_most: AtMost) -> Claimed:
        """Lease up to `limit` messages that are ready now, and say when the next one will be.

        With a limit of 0 nothing is leased, and only `suspects` is answered.
        """
        ...

    async def settle(self, consumer: str, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Carry out each disposition with its outbox (whose queues are declared if need be) and its result, as if one
        after the other.
        """
        ...

    async def extend(self, consumer: str, deliveries: Sequence[Delivery]) -> list[bool]:
        """Start each lease anew. False: that lease is lost."""
        ...

    async def rescue(self) -> int:
        """Take back every lease that has ended, of any consumer; returns how many.

        Where `capabilities.dead_ttl` is set, dead letters that are older are removed too, in steps that are short.
        """
        ...

    async def news(self, wait: float) -> News | None:
        """Wait at most `wait` seconds for something to change. Returns None if nothing has.

        Changes since the last call are answered at once. It is called by one task at a time, and only while a task
        waits for news. If it is cancelled, a later call tells what this one would have told.
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
        """Remove every ready and scheduled message of the queue; returns how many."""
        ...

    async def delete(self, queue: str) -> None:
        """Remove the queue with everything in it. Nothing happens if there is no such queue."""
        ...

    async def revive(self, queue: str, keys: Sequence[str] | None) -> list[BrokerRefused | None]:
        """Make dead messages ready again, as new ones. Returns for each None, or why it was refused."""
        ...

    async def delete_messages(self, queue: str, keys: Sequence[str] | None) -> int:
        """Remove dead messages (None: all of the queue); returns how many."""
        ...

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Give no messages of this queue to consumers, or give them again."""
        ...


class TrackingDriver(Protocol):
    """The role "tracking"."""

    async def cancel(self, ids: Sequence[str]) -> list[Cancelled]:
        """Remove the live message with each id, or ask its worker to cancel the run."""
        ...

    async def snapshots(self, ids: Sequence[tuple[str, str]]) -> list[Sight]:
        """The state of each message, given as message id and result id. Of several dead ones it is the last one's."""
        ...

    async def report(self, consumer: str, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:
        """Note how far runs have come. Deliveries whose lease is lost are left out."""
        ...

    async def events(self, consumer: str) -> list[LeaseEvent]:
        """The lease events of this consumer, also those that were told before: all that still matter.

        A cancellation matters until its lease has ended. The front door gives each event to the worker once. So nothing
        is missed if an answer is lost on its way: the next answer repeats it.
        """
        ...


class ResultDriver(Protocol):
    """The role "results"."""

    async def store_results(self, results: Sequence[NewResult]) -> None:
        """Store results; each replaces the one with the same id."""
        ...

    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """The result under each id, or None if there is none or it has expired."""
        ...


class ScheduleDriver(Protocol):
    """The role "schedules".

    Workers sleep until the next schedule is due that they know of, for `LONGEST_REST` seconds at the most. So `news`
    must tell the other clients when one that is due before that is stored (`is_due_soon`).
    """

    async def now(self) -> float:
        """The engine's clock: seconds since 1970."""
        ...

    async def schedules(self, names: Collection[str] | None) -> list[StoredSchedule]:
        """All schedules, or those that have these names; sorted by name."""
        ...

    async def due_schedules(self, limit: int) -> DueSchedules:
        """Those that are due and not paused, the next moment when one will be, and the engine's time."""
        ...

    async def replace_schedules(self, changes: Sequence[ScheduleChange]) -> list[bool]:
        """Store each new schedule if what is stored under its name equals the old one (None: nothing is), each in one
        step; whether it did. The names differ.
        """
        ...

    async def remove_schedule(self, name: str) -> bool:
        """Remove the schedule; what it has published stays. False: no schedule has that name."""
        ...

    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """Make `next_at` the next time of the schedule and publish, in one step, if its next time is still
        `expected_next`.
        """
        ...


@runtime_checkable
class WaitingDriver(Protocol):
    """Optional, for engines in this process: the call that makes a message ready, or notices it, leases it to a waiting
    claim.

    It saves time; without it the front door asks again after each `news`.
    """

    async def claim_or_wait(
        self, consumer: str, limit: int, at_most: AtMost, deadline: float, take: Take
    ) -> list[Delivery]:
        """As `claim`, but wait for messages until that moment of trio's clock. If it is cancelled, nothing was leased.

        What is leased is given to `take` in the same step of the event loop, and returned. The list is also empty if
        the consumer was closed meanwhile.
        """
        ...

    def set_limits(self, consumer: str, at_most: AtMost) -> None:
        """Have a claim of this consumer that is waiting use these limits from now on."""
        ...


@runtime_checkable
class WakingDriver(Protocol):
    """Optional, for engines that wake only some of the consumers that wait when a message becomes ready.

    Without it, `news` must tell every client of each message that one of its consumers may take.
    """

    async def claim(self, consumer: str, limit: int, at_most: AtMost, *, waits: bool = True) -> Claimed:
        """As that of each driver. `waits`: the consumer waits for messages if there are none; if False, others are
        woken.
        """
        ...

    def stop_waiting(self, consumer: str) -> None:
        """No `receive` of this consumer waits any more: have others woken instead of it until its next claim.

        If it was woken since its last claim, others must be woken for that message. It is also called after a claim
        that gave messages.
        """
        ...


@runtime_checkable
class PauseTellingDriver(Protocol):
    """Optional, for engines with the role "queue_admin" that count the longer the more messages there are.

    Without it `counts` is asked which queues are paused: by each worker that starts, before it gets its first message.
    """

    async def paused(self, queues: Sequence[str]) -> list[bool]:
        """Whether each queue is paused. Raises `QueueNotDeclared`."""
        ...


@runtime_checkable
class TellingDriver(Protocol):
    """Optional, for engines that push their news: those who wait are woken in the step in which it comes.

    It saves time; without it they wait for the task that has called `news`.
    """

    def tell_at_once(self, tell: Callable[[News], bool]) -> None:
        """From the next link on, call `tell` with all news, in the trio run that has the link open. If it returns True,
        the call of `news` that is under way must return, with anything; otherwise it may go on.
        """
        ...


@runtime_checkable
class GivingDriver(Protocol):
    """Optional, for engines that push their news (`TellingDriver`) and lease a message to a consumer that waits before
    they tell it.

    It saves time: the message is handed over in the step in which the news comes. Without it the next claim gives it.
    """

    def given(self, consumer: str, at_most: AtMost) -> list[Delivery]:
        """What was leased to this consumer while it waited, if these are still its limits. Nothing is asked of the
        engine: what is not given here is left to the next claim.
        """
        ...


@runtime_checkable
class SureDriver(Protocol):
    """Optional, for remote engines: the driver itself keeps what the front door promises about the time and the
    cancellation of a publish.

    It saves time: without it the front door opens a cancel scope for each, which takes half as long as all else.
    """

    @property
    def sees_publishes_through(self) -> bool:
        """Whether a publish is seen through although its caller is cancelled, and raises `BrokerUnavailable` if no
        answer has come within five seconds. The link is opened anew then, as after any `BrokerUnavailable`.
        """
        ...


@runtime_checkable
class ImmediateDriver(Protocol):
    """Optional, for local engines: to publish one message is a plain call.

    It saves time: without it several coroutines are made for each message that is sent alone.
    """

    def publish_at_once(self, envelope: Envelope) -> bool:
        """Publish one message, which needs no check. Returns False, and has done nothing, where the message is refused:
        `publish` says why. Not called where a subclass has a `publish` of its own.
        """
        ...


Taker: TypeAlias = Callable[[Sequence[StoredResult]], None]
"""Takes results that do not have to be stored."""


@runtime_checkable
class HandingDriver(Protocol):
    """Optional, for local engines: results that one task waits for, and nobody else, are not stored."""

    def hand_over(self, takers: Mapping[str, Taker]) -> None:
        """Where results would be stored whose ids are in `takers` in that moment, call what is there with them instead.
        They expire then in the moment in which they came.
        """
        ...


@runtime_checkable
class SteadyDriver(Protocol):
    """Optional, for drivers with a thread of their own: it extends leases while the event loop is blocked.

    Without it a worker whose loop is blocked for longer than a lease loses what it is working on.
    """

    def vouch(self, consumer: str, under_way: UnderWay) -> None:
        """Call `under_way` several times in each lease, and extend what it names, until the consumer is closed."""
        ...


@runtime_checkable
class CreatingDriver(Protocol):
    """Optional, for engines that create what they need when they are opened: a file, or a schema."""

    def create_nothing(self) -> None:
        """From the next link on create nothing: raise `ConfigurationError` if what is needed is not there."""
        ...


@runtime_checkable
class ForgettingDriver(Protocol):
    """Optional, for engines whose data may be lost while they are in use: memory that nobody saved, tables that
    somebody dropped.

    Without it what workers have declared is missing until they start again.
    """

    @property
    def data_losses(self) -> int:
        """How often a link, when it was opened, was found to lead to other data than the one before."""
        ...


@runtime_checkable
class DeadKeepingDriver(Protocol):
    """Optional, for engines to which messages may be moved from others."""

    async def store_dead(self, messages: Sequence[BrowsedMessage]) -> None:
        """Keep these as dead letters, with what is known of them. Raises `QueueNotDeclared`.

        Does nothing for a dead letter of the same id and moment of death that is kept already.
        """
        ...


class BoundingDriver(Protocol):
    """What `bounds` claims. `publish` answers `QueueFull` for what has no room, and for all of that queue behind it in
    the call; `settle` answers "full" for a whole settlement. `repid.delivery.bounds` has the rules.
    """

    async def set_bounds(self, bounds: Mapping[str, Bounds]) -> None:
        """Create the queues that do not exist yet, and store their bounds with them, for all processes."""
        ...


class ReadersDriver(Protocol):
    """What `readers` claims."""

    async def readers(self) -> list[Mapping[str, Topics]]:
        """What each open consumer takes, of any process. One that was not closed, as its process died, is left out
        after a time of some seconds to minutes.
        """
        ...


class FullDriver(
    Driver, QueueAdminDriver, TrackingDriver, ResultDriver, ScheduleDriver, BoundingDriver, ReadersDriver, Protocol
):
    """A driver that has every role."""
