"""The executors of one worker and the channel they read.

What travels through the channel are batches. An executor takes one and runs its deliveries one after another; as
soon as a run has to wait for something, the executor passes the rest of its batch on, which wakes or hires others.
So runs that never wait cost no switching between tasks, and runs that do wait spread over all executors.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any, TypeVar, cast

import trio

from ..delivery import (
    Cancel,
    CancelRequested,
    Crowded,
    DeadLetter,
    Delivery,
    Disposition,
    Event,
    LeaseExpired,
    Phase,
    Progress,
    Settlement,
    Stopping,
    Token,
    Unrouted,
    decide,
    disposition_on,
)
from ..envelope import Envelope
from ..errors import UsageError, did_you_mean
from ..logs import Log
from ..producer import Publish
from .ledger import Ledger
from .limits import Limit
from .progress import Reporter
from .roles import Role, Roles
from .settler import Settler
from .timer import Holder, Timer

T = TypeVar("T")

log = Log("repid.worker")

LONGEST_PARKED = 1.0
"""Seconds for which a delivery waits for a thread or process before it is released."""


class Crew:
    """Hands deliveries to executors, and hires these as they are needed, up to `tasks_limit`."""

    def __init__(self, roles: Roles, ledger: Ledger, settler: Settler, context: Context) -> None:
        self.roles = roles
        self.ledger = ledger
        self.settler = settler
        self.context = context
        self.clock = trio.lowlevel.current_clock()
        """Of the trio run of this worker; other threads may read it."""
        self.running: dict[Delivery, Holder] = {}
        """Who runs what: only runs that are waiting for something, all others end before anybody could look."""
        self.deferred: dict[Delivery, Disposition] = {}
        """Verdicts that let a message be run again, given while its run goes on: the broker is told when that has ended."""
        self.executors: list[Holder] = []
        self.timer = Timer(self.running)
        self.on_leave: Callable[[], None] = lambda: None
        """Called when a limit has room again."""
        self.runs_mostly_wait = False
        """Whether most runs have to wait for something."""
        self._send, self._receive = trio.open_memory_channel[list[Delivery]](math.inf)  # the reader bounds it
        self._idle = 0
        self._hired = 0
        self._is_closed = False
        self._hire: Callable[[], None] = lambda: None
        self._followers: dict[Delivery, Delivery] = {}
        """By the former delivery of a message, which still runs: the latter, which waits for the end of that run."""
        self._impatience = trio.lowlevel.ParkingLot()
        self._warned: set[tuple[str, str | None]] = set()

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is started."""
        return self._is_closed

    def open(self, hire: Callable[[], None]) -> None:
        """Executors may be hired from now on."""
        self._hire = hire

    def give(self, batch: list[Delivery]) -> None:
        """Put a batch into the channel; its last delivery is run first. Once closed, it is released instead."""
        try:
            self._send.send_nowait(batch)
        except trio.ClosedResourceError:
            self._release(batch)
            return
        if self._idle:
            self._idle -= 1
        elif self._hired < self.ledger.tasks_limit:
            self._hired += 1
            self._hire()

    def give_all(self, batch: list[Delivery]) -> None:
        """Put a batch into the channel: in one piece for one executor, or where runs have to wait, spread over many."""
        pieces = min(len(batch), self._idle + self.ledger.tasks_limit - self._hired) if self.runs_mostly_wait else 1
        size = -(-len(batch) // max(pieces, 1))
        for end in range(len(batch), 0, -size):
            self.give(batch[max(0, end - size) : end])

    def pass_on(self, batch: list[Delivery]) -> None:
        """Give the rest of a batch to two others, so that a whole batch of runs that wait starts in log(n) steps.

        If all are busy, it is for whoever is free first.
        """
        half = len(batch) // 2
        if half and (self._idle or self._hired < self.ledger.tasks_limit):
            self.give(batch[half:])
            self.give(batch[:half])
        elif batch:
            self.give(batch)

    def take_nowait(self) -> list[Delivery]:
        """The next batch; an empty one if there is none. Raises `trio.EndOfChannel` once all is over."""
        try:
            return self._receive.receive_nowait()
        except trio.WouldBlock:
            return []

    async def take(self) -> list[Delivery]:
        """Wait for the next batch. Raises `trio.EndOfChannel` when the crew was closed and nothing is left."""
        self._idle += 1  # undone by whoever gives: a task that waits here gets what is given next
        return await self._receive.receive()

    def close(self) -> None:
        """No more starts: what is held or parked is released, and executors end after their present run.

        May be called again, and from within a run.
        """
        self._is_closed = True
        self._send.close()
        for executor in self.executors:
            self._release(executor.hand_back())
        while True:
            try:
                self._release(self._receive.receive_nowait())
            except (trio.EndOfChannel, trio.WouldBlock):
                break
        for limit in self.roles.limits:
            while limit.parked:
                self._unpark(limit)
        for follower in list(self._followers.values()):
            self._follow(follower)
        self._followers.clear()

    def leave(self, role: Role) -> None:
        """A delivery of an actor with limits is done with: the next one may start."""
        for limit in role.limits:
            limit.claimed -= 1
            if limit.parked and not limit.is_full:
                self._unpark(limit)
        self.on_leave()

    def park(self, limit: Limit, role: Role, delivery: Delivery) -> None:
        """The limit is reached: keep the delivery until it is not, or release it if enough are kept."""
        if len(limit.parked) < limit.most:
            self._set_aside()
            limit.parked[delivery] = trio.current_time() if limit is role.slots else math.inf
            self._impatience.unpark()
        else:
            self._give_back(role, delivery, Crowded(random.random()))  # noqa: S311  jitter
        for other in role.limits:  # it may have been let go by one of them that is of use to others now
            if other.parked and not other.is_full:
                self._unpark(other)

    async def give_back_parked(self) -> None:
        """Release what has waited for a thread or process for too long, until cancelled. It keeps its rank."""
        while True:
            waiting = [since for limit in self.roles.limits for since in limit.parked.values() if since < math.inf]
            if not waiting:
                await self._impatience.park()
                continue
            await trio.sleep_until(min(waiting) + LONGEST_PARKED)
            for limit in self.roles.limits:
                late = [d for d, since in limit.parked.items() if since + LONGEST_PARKED <= trio.current_time()]
                for delivery in late:
                    limit.mean = None  # its runs take longer than was believed
                    if delivery in limit.parked:  # and was not let go meanwhile
                        self._take_up(limit, delivery, Stopping())

    def follow(self, delivery: Delivery) -> bool:
        """Have a delivery wait whose message was lost and still runs here, until that run has ended. False: it does not."""
        envelope = delivery.envelope
        for former in self.running:
            if former.envelope.id == envelope.id and former.envelope.queue == envelope.queue:
                if former in self.ledger.leases:  # this lease proves that the former one has ended
                    self.lose(former)
                stale = self._followers.pop(former, None)
                if stale is not None:
                    self.lose(stale)
                    self._follow(stale)
                self._set_aside()
                self._followers[former] = delivery
                return True
        return False

    def has_ended(self, delivery: Delivery) -> None:
        """A run that had to wait for something has ended."""
        del self.running[delivery]
        if self._followers and delivery in self._followers:
            self._follow(self._followers.pop(delivery))

    def _follow(self, delivery: Delivery) -> None:
        self.ledger.parked -= 1
        self.ledger.held += 1
        self.give([delivery])

    def _set_aside(self) -> None:
        self.ledger.held -= 1
        self.ledger.parked += 1
        self.ledger.notify()

    def _take_up(self, limit: Limit, delivery: Delivery, event: Event) -> None:
        """Settle a parked delivery without a run."""
        del limit.parked[delivery]
        self.ledger.parked -= 1
        self.ledger.held += 1
        role = self.roles.find[delivery.envelope.queue](delivery.envelope)
        if delivery not in self.ledger.leases:
            self.drop(role)
        elif role is not None:
            self._give_back(role, delivery, event)

    def _give_back(self, role: Role, delivery: Delivery, event: Event) -> None:
        self.turn_away(delivery, event, role)
        self.leave(role)

    def drop(self, role: Role | None) -> None:
        """A held delivery of this role is not ours any more."""
        self.ledger.unstarted()
        if role is not None and role.limits:
            self.leave(role)

    def turn_away(self, delivery: Delivery, event: Event, role: Role | None = None) -> None:
        """Settle a held delivery without a run; `role`: whose it is, if that is known and its result may be wanted."""
        disposition = decide(Phase.HELD, event)
        if isinstance(disposition, Cancel | DeadLetter):
            self.ledger.decided()
        self.ledger.unstarted()
        if isinstance(disposition, Disposition):
            result = None if role is None else role.result(delivery.envelope, disposition)
            self.settler.put(Settlement(delivery, disposition, (), result))

    def unrouted(self, delivery: Delivery) -> None:
        """No actor here takes it."""
        envelope = delivery.envelope
        if len(self._warned) < 1000 and (envelope.queue, envelope.topic) not in self._warned:
            self._warned.add((envelope.queue, envelope.topic))
            names = self.roles.names(envelope.queue)
            log.warning(
                "message %r on channel %r has the topic %r, which no actor here takes%s; it is released for others, "
                "and becomes a dead letter if nobody takes it",
                envelope.id,
                envelope.queue,
                envelope.topic,
                did_you_mean(envelope.topic or "", names),
            )
        self.turn_away(delivery, Unrouted(delivery.unrouted_age or 0.0, random.random()))  # noqa: S311  jitter

    def lose(self, delivery: Delivery) -> None:
        """Its lease is lost: if it runs, its actor is cancelled; if it is held, it will not be started."""
        self.ledger.lost(delivery)
        executor = self.running.get(delivery)
        if executor is not None:
            executor.cut_off(delivery, LeaseExpired)

    def lose_all(self, tokens: Iterable[Token]) -> None:
        """The leases with these tokens have ended."""
        lost = set(tokens)
        for delivery in [delivery for delivery in self.ledger.leases if delivery.token in lost]:
            self.lose(delivery)

    def cancel(self, tokens: Iterable[Token]) -> None:
        """Somebody cancelled the messages under these leases: what runs is cancelled, what is held is not started."""
        wanted = set(tokens)
        for delivery in [delivery for delivery in self.ledger.leases if delivery.token in wanted]:
            wanted.discard(delivery.token)
            self.ledger.cancelled_leases.add(delivery)
            executor = self.running.get(delivery)
            if executor is not None:
                executor.cut_off(delivery, CancelRequested)
            elif delivery in self.ledger.kept:
                self.ledger.kept.discard(delivery)
                self.settle(delivery, disposition_on(Phase.RUNNING, CancelRequested()), ())
            for limit in self.roles.limits:
                if delivery in limit.parked:
                    self._take_up(limit, delivery, CancelRequested())
        for token in wanted:
            self.ledger.foretell(token)

    def settle(self, delivery: Delivery, disposition: Disposition, outbox: tuple[Envelope, ...]) -> None:
        """Hand over a verdict that was given outside a run's end, by a verb of its message say."""
        role = self.roles.find[delivery.envelope.queue](delivery.envelope)
        result = None if role is None else role.result(delivery.envelope, disposition)
        self.settler.put(Settlement(delivery, disposition, outbox, result, survived=delivery.lost > 0))

    def release_kept(self) -> None:
        """The worker ends: release what actors in the mode `manual` left without a verdict."""
        for delivery in list(self.ledger.kept):
            log.warning(
                "message %r was left without a verdict by its actor (confirmation_mode='manual'); it is released",
                delivery.envelope.id,
            )
            self.settler.put(Settlement(delivery, disposition_on(Phase.RUNNING, Stopping())))
        self.ledger.kept.clear()

    def _unpark(self, limit: Limit) -> None:
        delivery = next(iter(limit.parked))
        del limit.parked[delivery]
        self.ledger.parked -= 1
        self.ledger.held += 1
        self.give([delivery])

    def _release(self, batch: list[Delivery]) -> None:
        for delivery in reversed(batch):
            if delivery in self.ledger.leases:
                self.turn_away(delivery, Stopping())
            else:
                self.ledger.unstarted()


class Desk:
    """Where the verbs of this worker's messages go.

    All that it knows belongs to the thread of the worker's trio run. Other code of that thread, as asyncio's tasks
    where trio is a guest, may call it between two steps of trio; other threads go through `in_trio` or `wait_for`.
    """

    def __init__(
        self,
        crew: Crew,
        reporter: Reporter,
        publisher: Callable[[str | None], Publish],
        holder: Callable[[Publish], Publish],
    ) -> None:
        self._crew = crew
        self._ledger = crew.ledger
        self._settler = crew.settler
        self._reporter = reporter
        self.publisher = publisher
        self.holder = holder
        self._thread = threading.get_ident()
        self._token = trio.lowlevel.current_trio_token()

    def in_trio(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a sync function in the thread of the trio run, and wait for it where this is another one."""
        if threading.get_ident() == self._thread:
            return function(*arguments)
        try:
            return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)
        except trio.RunFinishedError:
            raise UsageError("the worker that ran this actor has ended, and its event loop with it") from None

    def wait_for(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make an async call in the trio run, and wait for it in this thread.

        In the thread of the run itself nobody can wait: there the call comes back, for the caller to await.
        """
        if threading.get_ident() == self._thread:
            return cast("T", call())
        try:
            return trio.from_thread.run(call, trio_token=self._token)
        except trio.RunFinishedError:
            raise UsageError("the worker that ran this actor has ended, and its event loop with it") from None

    def hand_over(
        self, delivery: Delivery, disposition: Disposition, outbox: tuple[Envelope, ...]
    ) -> Callable[[], Awaitable[None]]:
        """Take the verdict at once; what is returned waits for the broker's answer."""
        if self._settler.has_ended:
            raise UsageError(
                f"the worker that had leased message {delivery.envelope.id!r} has ended: no verdict can be given any more"
            )
        self._ledger.kept.discard(delivery)
        self._crew.settle(delivery, disposition, outbox)
        return self._settler.expect(delivery).wait

    def begin(self, delivery: Delivery) -> None:
        """A message with a ttl has been started."""
        self._reporter.note_start(delivery)

    def defer(self, delivery: Delivery, disposition: Disposition) -> Callable[[], Awaitable[None]]:
        """Keep the verdict until the run has ended. What is returned is a checkpoint."""
        self._crew.deferred[delivery] = disposition
        return trio.lowlevel.checkpoint

    def report(self, delivery: Delivery, progress: Progress) -> Callable[[], Awaitable[None]]:
        """Note how far a run has come; the broker is told now and then. What is returned is a checkpoint."""
        if delivery in self._ledger.leases:
            self._reporter.note(delivery, progress)
        return trio.lowlevel.checkpoint
