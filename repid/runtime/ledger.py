"""The account of one worker: where each of its deliveries is, and what became of those it no longer has."""

from __future__ import annotations

import math

import msgspec
import trio

from ..delivery import Ack, Cancel, DeadLetter, Delivery, Disposition, Release, Retry, Token
from ..ports import Verdict


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
    """Counts, and the leases with their deadlines. All changes are synchronous.

    A delivery is *held* (in the channel), *parked* (a limit keeps it waiting), *running*, or none of these; its
    lease is ours from `lease` to `settled`, `lost` or `abandon`.
    """

    def __init__(self, tasks_limit: int, messages_limit: float, claim_bytes: float = math.inf) -> None:
        self.tasks_limit = tasks_limit
        self.messages_limit = messages_limit
        self.claim_bytes = claim_bytes
        self.size = 0
        """Bytes of payload of every delivery whose lease is ours."""
        self.suspects = 0
        """How many messages are believed to wait until this worker holds nothing (see `quarantine`)."""
        self.leases: dict[Delivery, float] = {}
        """Every delivery whose lease is ours, with the moment after which we must believe it lost."""
        self.kept: set[Delivery] = set()
        """Those whose actor returned without a verdict, in the mode `manual`."""
        self.cancelled_leases: set[Delivery] = set()
        """Those whose message somebody cancelled; their runs are being cancelled, or will not be started."""
        self._foretold: dict[Token, None] = {}
        """Tokens of cancelled messages whose deliveries are still on their way from the broker."""
        self._expiries: dict[Delivery, float] = {}
        self.held = 0
        self.parked = 0
        self.running = 0
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
        return len(self.leases) > len(self.kept)

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

    def lease(self, deliveries: list[Delivery], asked: float, lease_timeout: float) -> None:
        """Enter a batch as held, which was asked for at that moment."""
        self.leases.update(dict.fromkeys(deliveries, asked + lease_timeout))
        self._expiries.update({d: trio.current_time() + d.ttl_left for d in deliveries if d.ttl_left is not None})
        self.held += len(deliveries)
        self.size += sum(len(delivery.envelope.payload) for delivery in deliveries)
        if self._foretold:
            cancelled = [delivery for delivery in deliveries if delivery.token in self._foretold]
            self.cancelled_leases.update(cancelled)
            for delivery in cancelled:
                del self._foretold[delivery.token]

    def foretell(self, token: Token) -> None:
        """A message was cancelled whose delivery is not here: it has been settled, or is about to come.

        No more are remembered than can be on their way.
        """
        self._foretold[token] = None
        if len(self._foretold) > 2 * self.tasks_limit:
            del self._foretold[next(iter(self._foretold))]

    def has_expired(self, delivery: Delivery) -> bool:
        """Whether the ttl of a held delivery has passed. Asked once, just before the start."""
        return self._expiries.pop(delivery, math.inf) <= trio.current_time()

    def decided(self) -> None:
        """A held delivery has got a verdict that is final without a run: it counts for `messages_limit` as a run does."""
        self.started += 1

    def unstarted(self, deliveries: int = 1) -> None:
        """So many left `held` without a run."""
        self.held -= deliveries
        self.notify()

    def begun(self) -> None:
        """One of the held has become a run."""
        self.held -= 1
        self.running += 1
        self.started += 1
        if self.held <= self._refill_at or self.started >= self.messages_limit:
            self.notify()

    def withdrawn(self) -> None:
        """A run was given up before its actor was called."""
        self.running -= 1
        self.started -= 1
        self.notify()

    def ended(self) -> None:
        """A run has ended, whatever its fate."""
        self.running -= 1
        self.finished += 1
        self.notify()

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

    def settled(self, delivery: Delivery, disposition: Disposition, verdict: Verdict) -> None:
        """The broker has answered."""
        ours = self._forget(delivery)
        self.kept.discard(delivery)
        self.cancelled_leases.discard(delivery)
        self._expiries.pop(delivery, None)
        self.dropped += verdict.dropped
        if not verdict.accepted:
            if verdict.outcome == "unknown":
                self.unknown += 1
            else:
                self.refused += ours
            return
        if not ours:
            self.refused -= 1  # it was believed lost, and counted so
        match disposition:
            case Ack(failure=None):
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

    def answered(self, count: int) -> None:
        """So many verdicts are no longer on their way."""
        self.unsettled -= count
        self._executors.unpark_all()
        self.notify()

    def lost(self, delivery: Delivery) -> None:
        """Its lease is no longer ours; nothing may be settled."""
        self._forget(delivery)
        self.kept.discard(delivery)
        self.cancelled_leases.discard(delivery)
        self._expiries.pop(delivery, None)
        self.refused += 1
        self.notify()

    def abandon(self, delivery: Delivery) -> None:
        """Leave it to its lease: its thread goes on and nobody can stop it."""
        self._forget(delivery)
        self.abandoned += 1

    def _forget(self, delivery: Delivery) -> bool:
        """Its lease is not ours any more; whether it was."""
        if self.leases.pop(delivery, None) is None:
            return False
        self.size -= len(delivery.envelope.payload)
        return True

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
