"""The account of one worker: where each of its deliveries is, and what became of those it no longer has.

Theory. A delivery has one record, its `Holding`, and every change of its state is a method here. All of them are
synchronous, so no other task ever sees half of a change. What holds between any two of them:

* `held`, `parked` and `running` are the numbers of holdings in these states; `kept` is the number of those whose lease
  is ours and whose actor left them without a verdict. They are counted along, because they are asked for with each run.
* `holdings` has exactly the deliveries whose lease is ours, from `lease` to `settled`, `lost` or `abandon`, and `size`
  the bytes of their payloads. One that is not ours is never settled, and is dropped when its turn comes.
* A limit of an actor counts in `claimed` what is held, parked or running for it, in `busy` what is running.
* `unsettled` verdicts were handed over and are not answered. A lease that is lost meanwhile is not counted as refused: the
  answer decides.
* `started` counts runs begun, and what got a final verdict without a run: `messages_limit` is about that.

The reader waits here for room, and the executors for the settler: whoever changes what they wait for wakes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import trio

from ..delivery import Ack, Cancel, DeadLetter, Delivery, Disposition, Release, Retry, Token
from ..envelope import Envelope
from ..ports import Verdict
from .holding import NO_ARGUMENTS, Holding, State
from .limits import Limit
from .roles import Role


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker did. Verdicts count once the broker has accepted them.

    processed: runs that were started and have ended.
    succeeded: acknowledged. failed: acknowledged or dead-lettered with an error. retried: to be run again.
    released: given back without using an attempt (rejected, snoozed, unrouted, or the worker stopped).
    cancelled: removed because somebody cancelled them.
    dead: dead-lettered for whatever reason, the failed among them.
    dropped: outbox messages left out because their id was alive.
    refused: verdicts that came after the lease was lost.
    unknown: verdicts that were sent and not answered before the lease was over: most likely the broker had taken them.
    abandoned: threads that did not end within the grace; their messages come back when the lease ends.
    unsettled: verdicts the broker did not take in time; their messages come back when the lease ends.
    """

    processed: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    released: int = 0
    dead: int = 0
    cancelled: int = 0
    dropped: int = 0
    refused: int = 0
    unknown: int = 0
    abandoned: int = 0
    unsettled: int = 0


class Ledger:
    """The holdings of one worker, and its counts. Nobody else changes the state of a holding."""

    def __init__(self, tasks_limit: int, messages_limit: float, claim_bytes: float = math.inf) -> None:
        self.tasks_limit = tasks_limit
        self.messages_limit = messages_limit
        self.claim_bytes = claim_bytes
        self.size = 0
        """Bytes of payload of every delivery whose lease is ours."""
        self.suspects = 0
        """How many messages are believed to wait until this worker holds nothing (see `quarantine`)."""
        self.holdings: dict[Delivery, Holding] = {}
        """Every delivery whose lease is ours."""
        self._cancelled_before_arrival: dict[Token, None] = {}
        """Tokens of cancelled messages whose deliveries are still on their way from the broker."""
        self._lost_with_verdict: set[Delivery] = set()
        """Those whose lease was lost while their verdict was on its way."""
        self.held = 0
        self.parked = 0
        self.running = 0
        self.kept = 0
        self.unsettled = 0
        self.started = 0
        self.finished = 0
        self.succeeded = self.failed = self.retried = self.released = self.dead = self.cancelled = 0
        self.dropped = self.refused = self.unknown = self.abandoned = 0
        self.suspended_runs = 0
        """How many runs had to wait for something."""
        self.finished_when_woken = 0
        """How many runs had ended when the reader was last told that there is room."""
        self._refill_at = -1.0
        self._reader = trio.lowlevel.ParkingLot()
        self._executors = trio.lowlevel.ParkingLot()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held, running or waiting for its settlement."""
        return not (self.held or self.parked or self.running or self.unsettled)

    @property
    def holds_anything(self) -> bool:
        """Whether there is a lease that will get a verdict."""
        return len(self.holdings) > self.kept

    @property
    def size_left(self) -> float:
        """How many more bytes of payload may be claimed."""
        return max(0.0, self.claim_bytes - self.size)

    @property
    def first_left(self) -> float:
        """How many bytes a message may have that is claimed alone: any number where half of the bound is free.

        Otherwise a message that is nearly as big as the bound would wait until all small ones have ended.
        """
        return math.inf if 2 * self.size <= self.claim_bytes else self.size_left

    def lease(
        self, deliveries: list[Delivery], find: Callable[[Envelope], Role | None], asked: float, lease_timeout: float
    ) -> list[Holding]:
        """Enter a batch as held, which was asked for at that moment. `find` gives the role that takes an envelope."""
        ends, now = asked + lease_timeout, trio.current_time()
        batch = []
        for delivery in deliveries:
            role = find(delivery.envelope)
            holding = self.holdings[delivery] = Holding(delivery, role, ends)
            batch.append(holding)
            self.size += len(delivery.envelope.payload)
            if delivery.ttl_left is not None:
                holding.expires_at = now + delivery.ttl_left
            if role is not None and role.limits:
                for limit in role.limits:
                    limit.claimed += 1
            if self._cancelled_before_arrival and delivery.token in self._cancelled_before_arrival:
                del self._cancelled_before_arrival[delivery.token]
                holding.is_cancelled = True
        self.held += len(batch)
        return batch

    def cancelled_before_arrival(self, token: Token) -> None:
        """A message was cancelled whose delivery is not here: it has been settled, or is about to come.

        No more are remembered than can be on their way.
        """
        self._cancelled_before_arrival[token] = None
        if len(self._cancelled_before_arrival) > 2 * self.tasks_limit:
            del self._cancelled_before_arrival[next(iter(self._cancelled_before_arrival))]

    def cancel(self, holding: Holding) -> None:
        """Somebody cancelled the message: its run is being cancelled, or will not be started."""
        holding.is_cancelled = True

    def park(self, holding: Holding, limit: Limit | None, since: float = math.inf) -> None:
        """Set a held one aside: for a limit, which keeps it in its queue with the moment since when, or a former run."""
        holding.state = State.PARKED
        self.held -= 1
        self.parked += 1
        if limit is not None:
            holding.parked_by = limit
            limit.parked[holding] = since
        self.notify()

    def unpark(self, holding: Holding) -> None:
        """What it waited for has come: it is held again."""
        holding.state = State.HELD
        self.parked -= 1
        self.held += 1
        if holding.parked_by is not None:
            del holding.parked_by.parked[holding]
            holding.parked_by = None

    def turn_away(self, holding: Holding, *, is_final: bool = False) -> None:
        """A held one will not be run. `is_final`: its verdict counts for `messages_limit` as a run does."""
        holding.state = State.ENDED
        self.held -= 1
        self.started += is_final
        if holding.role is not None:
            for limit in holding.role.limits:
                limit.claimed -= 1
        self.notify()

    def begin(self, holding: Holding, role: Role) -> None:
        """A held one has become a run of its role."""
        holding.state = State.RUNNING
        self.held -= 1
        self.running += 1
        self.started += 1
        if role.limits:
            for limit in role.limits:
                limit.busy += 1
        if self.held <= self._refill_at or self.started >= self.messages_limit:
            self.notify()

    def suspended(self) -> None:
        """A run has to wait for something."""
        self.suspended_runs += 1

    def end(self, holding: Holding, role: Role) -> None:
        """A run has ended, whatever its fate, or was given up before its actor was called. What it needed is let go."""
        holding.state = State.ENDED
        self.running -= 1
        if holding.called:
            self.finished += 1
        else:
            self.started -= 1
        if role.limits:
            seconds = trio.current_time() - holding.began
            for limit in role.limits:
                limit.ended(seconds)
                limit.claimed -= 1
        holding.message = holding.context = None
        holding.arguments = NO_ARGUMENTS
        if self.held <= self._refill_at:
            self.notify()

    def keep(self, holding: Holding) -> None:
        """Its actor, in the mode `manual`, returned without a verdict: the lease stays with us until one comes."""
        if holding.is_ours:
            holding.is_kept = True
            self.kept += 1

    def defer(self, holding: Holding, disposition: Disposition) -> None:
        """A verb gave a verdict that is to be handed over when the run has ended."""
        holding.deferred = disposition

    def take_up(self, holding: Holding) -> None:
        """A kept one gets its verdict."""
        if holding.is_kept:
            holding.is_kept = False
            self.kept -= 1

    def extended(self, holding: Holding, ends: float) -> None:
        """The lease was extended."""
        holding.lease_ends = ends

    def notify(self) -> None:
        """Wake the reader if what it waits for has come about."""
        if self.held <= self._refill_at:
            self._refill_at = -1
            self.finished_when_woken = self.finished
            self._reader.unpark()

    async def wait_for_change(self, *, held: float = math.inf) -> None:
        """Wait until something has changed and at most so many deliveries are held."""
        self._refill_at = held
        await self._reader.park()

    async def wait_to_settle(self) -> None:
        """Wait while more verdicts are unsettled than a worker may have: 2 × tasks_limit."""
        while self.unsettled >= 2 * self.tasks_limit:
            await self._executors.park()

    @property
    def is_congested(self) -> bool:
        """Whether executors must wait for the settler before they start more."""
        return self.unsettled >= 2 * self.tasks_limit

    def handed_over(self, delivery: Delivery) -> None:
        """A verdict is on its way to the broker."""
        self.unsettled += 1
        holding = self.holdings.get(delivery)
        if holding is not None:
            holding.has_verdict = True

    def settled(self, delivery: Delivery, disposition: Disposition, verdict: Verdict) -> None:
        """The broker has answered."""
        holding = self.holdings.get(delivery)
        if holding is not None:
            self._give_up(holding)
        self.dropped += verdict.dropped
        if verdict.outcome != "settled":
            if verdict.outcome == "unknown":
                self.unknown += 1
            else:
                self.refused += holding is not None or delivery in self._lost_with_verdict
            self._lost_with_verdict.discard(delivery)
            return
        if holding is None:
            if delivery in self._lost_with_verdict:
                self._lost_with_verdict.discard(delivery)
            else:
                self.refused -= 1  # it was believed lost before it had a verdict, and counted so
        if type(disposition) is Ack and disposition.failure is None:
            self.succeeded += 1
        else:
            self._count(disposition)

    def _count(self, disposition: Disposition) -> None:
        """Count a disposition that is not the most usual one."""
        match disposition:
            case Ack():
                self.failed += 1
            case Retry():
                self.retried += 1
            case Release():
                self.released += 1
            case Cancel():
                self.cancelled += 1
            case DeadLetter(reason=reason):
                self.dead += 1
                self.failed += reason in {"failed", "nacked"}

    def verdicts_returned(self, count: int) -> None:
        """`count` verdicts are no longer on their way."""
        self.unsettled -= count
        self._executors.unpark_all()
        self.notify()

    def lost(self, holding: Holding) -> None:
        """Its lease is no longer ours; nothing may be settled."""
        if not holding.is_ours:
            return
        self._give_up(holding)
        if holding.has_verdict:
            self._lost_with_verdict.add(holding.delivery)
        else:
            self.refused += 1
        self.notify()

    def abandon(self, holding: Holding) -> None:
        """Leave it to its lease: its thread goes on and nobody can stop it."""
        if holding.is_ours:
            self._give_up(holding)
            if holding.has_verdict:
                self._lost_with_verdict.add(holding.delivery)
        self.abandoned += 1

    def _give_up(self, holding: Holding) -> None:
        """Its lease is not ours any more, and a cancellation of its message none of our business."""
        delivery = holding.delivery
        del self.holdings[delivery]
        self.size -= len(delivery.envelope.payload)
        if holding.is_kept:
            self.take_up(holding)
        holding.is_ours = holding.is_cancelled = False

    def report(self) -> Report:
        """The account as it stands."""
        return Report(
            processed=self.finished,
            succeeded=self.succeeded,
            failed=self.failed,
            retried=self.retried,
            released=self.released,
            dead=self.dead,
            cancelled=self.cancelled,
            dropped=self.dropped,
            refused=self.refused,
            unknown=self.unknown,
            abandoned=self.abandoned,
            unsettled=self.unsettled,
        )
