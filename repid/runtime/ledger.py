"""The account of one worker: where each of its deliveries is, and what became of those it no longer has.

Theory. A delivery has one record, its `Holding`, and every change of its state is a method here. All of them are
synchronous, so no other task ever sees half of a change. What holds between any two of them:

* `held`, `parked` and `running` are the numbers of holdings in these states; `kept` is the number of those whose lease
  is ours and whose actor left them without a verdict. What is asked for with each run is counted along.
* `holdings` has exactly the deliveries whose lease is ours, from `lease` to `settled`, `lost` or `abandon`, and `size`
  the bytes of their payloads. One that is not ours is never settled, and is dropped when its turn comes. `size_aside`
  is the part of `size` that does not count for `claim_bytes`, and that of leases which were lost since, until they are
  answered.
* A limit of an actor counts in `claimed` what is held, parked or running for it, in `busy` what is running. Batches
  count there as runs, from the moment when an executor is told to start one.
* `unsettled` verdicts were handed over and are not answered; each leaves that number once, by `settled`, unless it is
  `set_aside`: then it is in that number instead until it is answered. A lease that is lost meanwhile is not counted as
  refused: the answer decides.
* The messages of a batch are begun and ended together, and each counts as a run. Only `runs`, which is compared with
  the limit of the worker, leaves out the `companions`: all messages of a batch except the first. In the mode `manual`
  there are none: each message may be kept, and takes a place by itself then.
* `started` counts runs begun, and what got a final verdict without a run: `messages_limit` is about that. A run that
  ends before its actor was called is taken for one that was not begun.

The reader waits here for room, and the executors for the settler: each change of what they wait for wakes them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import repeat

import msgspec
import trio

from ..delivery import (
    ON_PLAIN_RETURN,
    Ack,
    Cancel,
    DeadLetter,
    Delivery,
    Disposition,
    Release,
    Retry,
    Settlement,
    Token,
)
from ..ports import SETTLED, Verdict
from .actor_runners import ActorRunner
from .holding import ENDED, HELD, PARKED, RUNNING, Batch, Holding
from .limits import MOST_AHEAD, Gathering, Limit


class Report(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """What a worker did. Verdicts count once the server has accepted them. What is 0 is not printed.

    processed: runs that were started and have ended.
    succeeded: acknowledged without an error. failed: acknowledged or dead-lettered with one. retried: to be run again.
    released: given back without using an attempt (rejected, snoozed, unrouted, or the worker stopped).
    cancelled: removed because somebody cancelled them.
    dead: dead-lettered for whatever reason, the failed among them.
    dropped: outbox messages left out because their id was alive.
    refused: verdicts that came after the lease was lost.
    unknown: verdicts that were sent and not answered before the lease was over: most likely the server had taken them.
    abandoned: threads that did not end within the grace; their messages come back when the lease ends.
    unsettled: verdicts the server did not take in time; their messages come back when the lease ends.
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

    def in_words(self) -> str:
        """What of it is worth a line: the counts that are not zero."""
        counts = {name: count for name, count in msgspec.structs.asdict(self).items() if count}
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing was processed"


class Ledger:
    """The holdings of one worker, and its counts. Nobody else changes the state of a holding."""

    def __init__(self, tasks_limit: int, messages_limit: float, claim_bytes: float = math.inf) -> None:
        self.tasks_limit = tasks_limit
        self.most_unsettled = (1 + MOST_AHEAD) * tasks_limit
        """The number of unsettled verdicts at which executors wait for the settler before they start more."""
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
        self.kept = 0
        self.has_ever_kept = False
        """Whether an actor has left a message without a verdict, which takes up room for a time that nobody knows."""
        self.unsettled = 0
        """Verdicts that are on their way to the broker."""
        self.set_aside = 0
        """Verdicts that wait for room for their outbox; they are not among the unsettled."""
        self.size_aside = 0
        """Bytes of payload that do not count for `claim_bytes`, because their verdicts are set aside."""
        self.begun = 0
        """How many runs were begun."""
        self.finished = 0
        """How many of them have ended."""
        self.companions = 0
        """How many messages run in a batch, beside its first; none of a batch whose messages may be kept."""
        self._ended_without_run = 0
        """How many deliveries got a final verdict without a run."""
        self.succeeded = self.failed = self.retried = self.released = self.dead = self.cancelled = 0
        self.dropped = self.refused = self.unknown = self.abandoned = 0
        self.suspended_runs = 0
        """How many runs had to wait for something."""
        self.finished_when_woken = 0
        """How many runs had ended when the reader was last told that there is room."""
        self.on_dead: Callable[[Delivery, DeadLetter], None] = lambda *_: None
        """Told of each message that has become a dead letter."""
        self._refill_at = -1.0
        self._reader = trio.lowlevel.ParkingLot()
        self._executors = trio.lowlevel.ParkingLot()

    @property
    def running(self) -> int:
        """How many runs are under way."""
        return self.begun - self.finished

    @property
    def runs(self) -> int:
        """The same, with a batch as one."""
        return self.running - self.companions

    @property
    def places(self) -> int:
        """How many messages more may be run or kept."""
        return self.tasks_limit - self.runs - self.kept

    @property
    def started(self) -> int:
        """What counts for `messages_limit`."""
        return self.begun + self._ended_without_run

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held, running or waiting for its settlement."""
        return not (self.held or self.parked or self.running or self.unsettled or self.set_aside)

    @property
    def holds_anything(self) -> bool:
        """Whether there is a lease that will get a verdict."""
        return len(self.holdings) > self.kept

    @property
    def size_in_hand(self) -> int:
        """Bytes of payload that count for `claim_bytes`: without those that wait for room in another queue, which
        messages that are claimed must make.
        """
        return self.size - self.size_aside

    @property
    def size_left(self) -> float:
        """How many more bytes of payload may be claimed."""
        return max(0.0, self.claim_bytes - self.size_in_hand)

    @property
    def first_left(self) -> float:
        """How many bytes a message may have that is claimed alone: any number where half of the bound is free.

        Otherwise a message that is nearly as big as the bound would wait until all small ones have ended.
        """
        return math.inf if 2 * self.size_in_hand <= self.claim_bytes else self.size_left

    def lease(
        self, deliveries: Sequence[Delivery], runners: Sequence[ActorRunner | None], asked: float, lease_timeout: float
    ) -> list[Holding]:
        """Enter a batch as held, which was asked for at that moment. `runners`: for each delivery the one that takes
        it.
        """
        ends, now = asked + lease_timeout, trio.current_time()
        batch = list(map(Holding, deliveries, runners, repeat(ends), repeat(ends)))
        for holding in [each for each in batch if each.delivery.lost or each.delivery.ttl_left is not None]:
            if holding.delivery.ttl_left is not None:
                holding.expires_at = now + holding.delivery.ttl_left
            holding.startable_until = -math.inf if holding.delivery.lost else min(ends, holding.expires_at)
        self.holdings.update(zip(deliveries, batch, strict=True))
        self.size += sum([len(delivery.envelope.payload) for delivery in deliveries])
        self.held += len(batch)
        for runner, count in Counter(runners).items():
            if runner is not None:
                for limit in runner.limits:
                    limit.claimed += count
        if self._cancelled_before_arrival:
            for holding in batch:
                if holding.delivery.token in self._cancelled_before_arrival:
                    del self._cancelled_before_arrival[holding.delivery.token]
                    self.cancel(holding)
        return batch

    def cancelled_before_arrival(self, token: Token) -> None:
        """A message was cancelled whose delivery is not here: it has been settled, or is about to come.

        No more are remembered than a claim can bring.
        """
        self._cancelled_before_arrival[token] = None
        if len(self._cancelled_before_arrival) > (1 + MOST_AHEAD) * self.tasks_limit:
            del self._cancelled_before_arrival[next(iter(self._cancelled_before_arrival))]

    def cancel(self, holding: Holding) -> None:
        """Somebody cancelled the message: its run is being cancelled, or will not be started."""
        holding.is_cancelled = True
        holding.startable_until = -math.inf

    def park(self, holding: Holding, limit: Limit | None, since: float = math.inf) -> None:
        """Set a held one aside: for a limit, which keeps it with the moment since when, or for a former run."""
        holding.state = PARKED
        self.held -= 1
        self.parked += 1
        if limit is not None:
            holding.parked_by = limit
            limit.parked[holding] = since
        self.notify()

    def unpark(self, holding: Holding) -> None:
        """What it waited for has come: it is held again."""
        holding.state = HELD
        self.parked -= 1
        self.held += 1
        if holding.parked_by is not None:
            del holding.parked_by.parked[holding]
            holding.parked_by = None

    def gather(self, holdings: Sequence[Holding], gathering: Gathering) -> None:
        """Set held ones aside until a batch starts."""
        for holding in holdings:
            holding.state = PARKED
            holding.parked_by = gathering
        gathering.parked.update(dict.fromkeys(holdings, trio.current_time()))
        self.held -= len(holdings)
        self.parked += len(holdings)
        self.notify()

    def call_batch(self, batch: Batch, gathering: Gathering) -> None:
        """A batch is about to be started: it takes its place among what its limits are claimed for."""
        gathering.is_called = True
        for limit in batch.actor_runner.run_limits:
            limit.claimed += 1

    def drop_batch(self, batch: Batch) -> None:
        """Nothing was left for it."""
        for limit in batch.actor_runner.run_limits:
            limit.claimed -= 1

    def begin_batch(self, batch: Batch, gathering: Gathering) -> None:
        """Gathered ones have become the members of a batch, which is one run."""
        parked = gathering.parked
        for holding in batch.members:
            del parked[holding]
            holding.state = RUNNING
            holding.parked_by = None
            holding.batch = batch
        size = len(batch.members)
        self.parked -= size
        self.begun += size
        self.companions += _companions_in(batch)
        for limit in batch.actor_runner.run_limits:
            limit.busy += 1
        self.notify()

    def end_batch(self, batch: Batch, gathering: Gathering) -> None:
        """A batch has ended, whatever the fates of its messages."""
        for holding in batch.members:
            holding.state = ENDED
            holding.message = holding.batch = None
        size = len(batch.members)
        self.finished += size
        self.companions -= _companions_in(batch)
        gathering.claimed -= size
        for limit in batch.actor_runner.run_limits:
            limit.ended(trio.current_time() - batch.began)
            limit.claimed -= 1
        batch.context = None
        batch.message = None
        self.notify()

    def give_up_batch(self, batch: Batch, *, cancelled: bool) -> None:
        """All messages of a run were cancelled, or their leases lost."""
        if cancelled:
            batch.is_cancelled = True
        else:
            batch.is_ours = False

    def turn_away(self, holding: Holding, *, is_final: bool = False) -> None:
        """A held one will not be run. `is_final`: its verdict counts for `messages_limit` as a run does."""
        holding.state = ENDED
        self.held -= 1
        self._ended_without_run += is_final
        if holding.runner is not None:
            for limit in holding.runner.limits:
                limit.claimed -= 1
        self.notify()

    def begin(self, holding: Holding, runner: ActorRunner) -> None:
        """A held one has become a run."""
        holding.state = RUNNING
        self.held -= 1
        self.begun += 1
        if runner.limits:
            for limit in runner.limits:
                limit.busy += 1
        if self.held <= self._refill_at:
            self.notify()

    def suspended(self) -> None:
        """A run has to wait for something."""
        self.suspended_runs += 1

    def end(self, holding: Holding, runner: ActorRunner) -> None:
        """A run has ended, whatever its fate, or was given up before its actor was called. What it needed is let go."""
        holding.state = ENDED
        if holding.is_prepared:
            self.begun -= 1
        else:
            self.finished += 1
        if runner.limits:
            for limit in runner.limits:
                limit.ended(trio.current_time() - holding.began if limit.ahead else 0.0)
                limit.claimed -= 1
        if runner.needs_message:
            holding.message = None
        if holding.context is not None:
            holding.context = None
        if self.held <= self._refill_at:
            self.notify()

    def keep(self, holding: Holding) -> None:
        """Its actor, in the mode `manual`, returned without a verdict: the lease stays with us until one comes."""
        if holding.is_ours:
            holding.is_kept = self.has_ever_kept = True
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
        if holding.startable_until > -math.inf:
            holding.startable_until = min(ends, holding.expires_at)

    def notify(self) -> None:
        """Wake the reader if what it waits for has come about."""
        if self.held <= self._refill_at:
            self._refill_at = -1
            self.finished_when_woken = self.finished
            self._reader.unpark()

    @property
    def is_reader_waiting(self) -> bool:
        """Whether the reader waits for a change."""
        return len(self._reader) > 0

    async def wait_for_change(self, *, held: float = math.inf) -> None:
        """Wait until something has changed and at most `held` deliveries are held."""
        self._refill_at = held
        await self._reader.park()

    async def wait_to_settle(self) -> None:
        """Wait while there are `most_unsettled` verdicts: executors must not start more."""
        while self.unsettled >= self.most_unsettled:
            await self._executors.park()

    def handed_over(self, holding: Holding | None) -> None:
        """A verdict is on its way to the broker. None: on a delivery whose lease is not ours any more."""
        self.unsettled += 1
        if holding is not None:
            holding.has_verdict = True

    def all_handed_over(self, holdings: Sequence[Holding]) -> None:
        """The same for many, whose leases are ours."""
        self.unsettled += len(holdings)
        for holding in holdings:
            holding.has_verdict = True

    def put_aside(self, count: int, size: int = 0) -> None:
        """`count` more verdicts wait for room from now on; below 0: they are tried again. `size`: the bytes of those
        messages whose kind is not claimed meanwhile.
        """
        self.unsettled -= count
        self.set_aside += count
        self.size_aside += size
        self._executors.unpark_all()
        self.notify()

    def settled(self, settlements: Sequence[Settlement], verdicts: Sequence[Verdict]) -> None:
        """The broker has answered: these verdicts are no longer on their way."""
        holdings, size, acknowledged = self.holdings, 0, 0
        for settlement, verdict in zip(settlements, verdicts, strict=True):
            delivery = settlement.delivery
            holding = holdings.get(delivery)
            if (
                holding is not None
                and settlement.disposition is ON_PLAIN_RETURN
                and verdict is SETTLED
                and not holding.is_kept
            ):
                del holdings[delivery]  # the same as below, for the many
                size += len(delivery.envelope.payload)
                holding.is_ours = holding.is_cancelled = False
                acknowledged += 1
                continue
            if holding is not None:
                self._give_up(holding)
            self._answered(delivery, settlement.disposition, verdict, was_ours=holding is not None)
        self.size -= size
        self.succeeded += acknowledged
        self.unsettled -= len(settlements)
        self._executors.unpark_all()
        self.notify()

    def _answered(self, delivery: Delivery, disposition: Disposition, verdict: Verdict, *, was_ours: bool) -> None:
        """Count a verdict as the broker has answered it."""
        was_counted = not was_ours and delivery not in self._lost_with_verdict  # as refused, when it was believed lost
        self._lost_with_verdict.discard(delivery)
        self.dropped += verdict.dropped
        if verdict.outcome == "unknown":
            self.unknown += 1
            return
        if verdict.outcome == "refused":
            self.refused += not was_counted
            return
        self.refused -= was_counted
        match disposition:
            case Ack(None):
                self.succeeded += 1
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
                self.on_dead(delivery, disposition)

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
        holding.startable_until = -math.inf

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
            unsettled=self.unsettled + self.set_aside,
        )


def _companions_in(batch: Batch) -> int:
    return 0 if batch.actor_runner.mode == "manual" else len(batch.members) - 1
