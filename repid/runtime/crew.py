"""The executors of one worker and the channel they read.

What travels through the channel are batches. An executor takes one and runs its deliveries one after another; as
soon as a run has to wait for something, the executor passes the rest of its batch on, which wakes or hires others.
So runs that never wait cost no switching between tasks, and runs that do wait spread over all executors.

What holds between any two steps:

* A held delivery is in the channel or in the batch of one executor; a parked one is kept by its limit, or is the
  `follower` of an earlier run. All of them are given up by `close`, which is synchronous: after it nothing is started.
* `suspended` has the runs that wait for something. All others end before another task could look. Only a run that is
  found there can be cut off; one that is cancelled or lost before is cut off when it begins to wait.
* `_idle` counts executors that wait in `take`. It is lowered by `give`, not by the executor that wakes: a second batch
  given in the same turn must wake or hire another one. An executor that is cancelled in `take`
  leaves it too high, which does no harm, since executors are cancelled only when the channel is closed or the worker is.
* The channel has no bound: the reader claims no more than the executors can take.
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
from .holding import Holding
from .ledger import Ledger
from .limits import Limit
from .progress import Reporter
from .roles import Role, Roles
from .settler import Settler
from .timer import Cause, RunningTask, Timer

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
        self.suspended: dict[Holding, RunningTask] = {}
        """Who runs what: only runs that wait for something, all others end before anybody could look."""
        self.executors: list[RunningTask] = []
        self.timer = Timer(self.suspended)
        self.on_room: Callable[[], None] = lambda: None
        """Called when a limit has room again."""
        self.runs_mostly_wait = False
        """Whether most runs have to wait for something."""
        self._send, self._receive = trio.open_memory_channel[list[Holding]](math.inf)  # the reader bounds it
        self._idle = 0
        self._hired = 0
        self._is_closed = False
        self._hire: Callable[[], None] = lambda: None
        self._impatience = trio.lowlevel.ParkingLot()
        self._warned: set[tuple[str, str | None]] = set()

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is started."""
        return self._is_closed

    def open(self, hire: Callable[[], None]) -> None:
        """Executors may be hired from now on."""
        self._hire = hire

    def give(self, batch: list[Holding]) -> None:
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

    def distribute(self, batch: list[Holding]) -> None:
        """Put a batch into the channel: in one piece for one executor, or where runs have to wait, spread over many."""
        pieces = min(len(batch), self._idle + self.ledger.tasks_limit - self._hired) if self.runs_mostly_wait else 1
        size = -(-len(batch) // max(pieces, 1))
        for end in range(len(batch), 0, -size):
            self.give(batch[max(0, end - size) : end])

    def share_rest(self, batch: list[Holding]) -> None:
        """Give the rest of a batch to two others, so that a whole batch of runs that wait starts in log(n) steps.

        If all are busy, it is for whoever is free first.
        """
        half = len(batch) // 2
        if half and (self._idle or self._hired < self.ledger.tasks_limit):
            self.give(batch[half:])
            self.give(batch[:half])
        elif batch:
            self.give(batch)

    def take_nowait(self) -> list[Holding]:
        """The next batch; an empty one if there is none. Raises `trio.EndOfChannel` once all is over."""
        try:
            return self._receive.receive_nowait()
        except trio.WouldBlock:
            return []

    async def take(self) -> list[Holding]:
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
        for former in self.suspended:
            self._let_follow(former)

    def release_slot(self, role: Role) -> None:
        """A delivery of an actor with limits is done with: the next one may start."""
        self._unpark_next(role)
        self.on_room()

    def park(self, limit: Limit, holding: Holding) -> None:
        """The limit is reached: keep the delivery until it is not, or release it if enough are kept."""
        role = holding.actor_role
        if len(limit.parked) < limit.most:
            self.ledger.park(holding, limit, trio.current_time() if limit is role.slots else math.inf)
            self._impatience.unpark()
        else:
            self.turn_away(holding, Crowded(random.random()))  # noqa: S311  jitter
        self._unpark_next(role)  # it may have been let go by a limit that is of use to others now

    async def give_back_parked(self) -> None:
        """Release what has waited for a thread or process for too long, until cancelled. It keeps its rank."""
        while True:
            waiting = [since for limit in self.roles.limits for since in limit.parked.values() if since < math.inf]
            if not waiting:
                await self._impatience.park()
                continue
            await trio.sleep_until(min(waiting) + LONGEST_PARKED)
            for limit in self.roles.limits:
                late = [each for each, since in limit.parked.items() if since + LONGEST_PARKED <= trio.current_time()]
                for holding in late:
                    limit.mean = None  # its runs take longer than was believed
                    if holding.parked_by is limit:  # and was not let go meanwhile
                        self._take_up(holding, Stopping())

    def follow(self, holding: Holding) -> bool:
        """Have a delivery wait whose message was lost and still runs here, until that run has ended.

        Returns False if no such run is under way.
        """
        envelope = holding.delivery.envelope
        for former in self.suspended:
            if former.delivery.envelope.id == envelope.id and former.delivery.envelope.queue == envelope.queue:
                self.lease_lost(former)  # the new lease proves that the former one has ended
                if former.follower is not None:
                    self.lease_lost(former.follower)
                    self._let_follow(former)
                self.ledger.park(holding, None)
                former.follower = holding
                return True
        return False

    def has_ended(self, holding: Holding) -> None:
        """A run that had to wait for something has ended."""
        del self.suspended[holding]
        self._let_follow(holding)

    def _let_follow(self, former: Holding) -> None:
        follower, former.follower = former.follower, None
        if follower is not None:
            self.ledger.unpark(follower)
            self.give([follower])

    def _take_up(self, holding: Holding, event: Event) -> None:
        """Settle a parked delivery without a run."""
        self.ledger.unpark(holding)
        if holding.is_ours:
            self.turn_away(holding, event)
        else:
            self.forget(holding)

    def forget(self, holding: Holding) -> None:
        """A held delivery is not ours any more."""
        self.ledger.turn_away(holding)
        self._free(holding)

    def _free(self, holding: Holding) -> None:
        if holding.role is not None and holding.role.limits and not self._is_closed:
            self.release_slot(holding.role)

    def turn_away(self, holding: Holding, event: Event) -> None:
        """Settle a held delivery without a run."""
        disposition = decide(Phase.HELD, event)
        self.ledger.turn_away(holding, is_final=isinstance(disposition, Cancel | DeadLetter))
        if isinstance(disposition, Disposition):
            delivery, role = holding.delivery, holding.role
            result = None if role is None else role.result(delivery.envelope, disposition)
            self.settler.put(Settlement(delivery, disposition, (), result))
        self._free(holding)

    def unrouted(self, holding: Holding) -> None:
        """No actor here takes it."""
        delivery = holding.delivery
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
        self.turn_away(holding, Unrouted(delivery.unrouted_age or 0.0, random.random()))  # noqa: S311  jitter

    def lease_lost(self, holding: Holding) -> None:
        """The lease is lost: if it runs, its actor is cancelled; if it is held, it will not be started."""
        if holding.is_ours:
            self.ledger.lost(holding)
            self._cut_off(holding, LeaseExpired)

    def leases_lost(self, tokens: Iterable[Token]) -> None:
        """The leases with these tokens have ended."""
        lost = set(tokens)
        for holding in [each for each in self.ledger.holdings.values() if each.delivery.token in lost]:
            self.lease_lost(holding)

    def cancel(self, tokens: Iterable[Token]) -> None:
        """Somebody cancelled the messages under these leases: what runs is cancelled, what is held is not started."""
        wanted = set(tokens)
        for holding in [each for each in self.ledger.holdings.values() if each.delivery.token in wanted]:
            wanted.discard(holding.delivery.token)
            self.ledger.cancel(holding)
            self._cut_off(holding, CancelRequested)
            if holding.is_kept:
                self.settle(holding.delivery, disposition_on(Phase.RUNNING, CancelRequested()), ())
            elif holding.parked_by is not None:
                self._take_up(holding, CancelRequested())
        for token in wanted:
            self.ledger.cancelled_before_arrival(token)

    def _cut_off(self, holding: Holding, cause: Cause) -> None:
        executor = self.suspended.get(holding)
        if executor is not None:
            executor.cut_off(holding, cause)

    def settle(self, delivery: Delivery, disposition: Disposition, outbox: tuple[Envelope, ...]) -> None:
        """Hand over a verdict that was given outside a run's end, by a verb of its message say."""
        holding = self.ledger.holdings.get(delivery)
        result = None
        if holding is not None:
            self.ledger.take_up(holding)
            if holding.role is not None:
                result = holding.role.result(delivery.envelope, disposition)
        self.settler.put(Settlement(delivery, disposition, outbox, result, survived=delivery.lost > 0))

    @property
    def kept(self) -> list[Delivery]:
        """What actors in the mode `manual` left without a verdict. May be asked from any thread."""
        return [holding.delivery for holding in list(self.ledger.holdings.values()) if holding.is_kept]

    def release_kept(self) -> None:
        """The worker ends: release what actors in the mode `manual` left without a verdict."""
        for delivery in self.kept:
            log.warning(
                "message %r was left without a verdict by its actor (confirmation_mode='manual'); it is released",
                delivery.envelope.id,
            )
            self.ledger.take_up(self.ledger.holdings[delivery])
            self.settler.put(Settlement(delivery, disposition_on(Phase.RUNNING, Stopping())))

    def _unpark_next(self, role: Role) -> None:
        for limit in role.limits:
            if limit.parked and not limit.is_full:
                self._unpark(limit)

    def _unpark(self, limit: Limit) -> None:
        holding: Holding = next(iter(limit.parked))
        self.ledger.unpark(holding)
        self.give([holding])

    def _release(self, batch: list[Holding]) -> None:
        for holding in reversed(batch):
            if holding.is_ours:
                self.turn_away(holding, Stopping())
            else:
                self.forget(holding)


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
        self._crew.settle(delivery, disposition, outbox)
        return self._settler.expect(delivery).wait

    def begin(self, delivery: Delivery) -> None:
        """A message with a ttl has been started."""
        self._reporter.note_start(delivery)

    def defer(self, delivery: Delivery, disposition: Disposition) -> Callable[[], Awaitable[None]]:
        """Keep the verdict until the run has ended. What is returned is a checkpoint."""
        holding = self._ledger.holdings.get(delivery)
        if holding is not None:  # else the message is not ours any more
            self._ledger.defer(holding, disposition)
        return trio.lowlevel.checkpoint

    def report(self, delivery: Delivery, progress: Progress) -> Callable[[], Awaitable[None]]:
        """Note how far a run has come; the broker is told now and then. What is returned is a checkpoint."""
        if delivery in self._ledger.holdings:
            self._reporter.note(delivery, progress)
        return trio.lowlevel.checkpoint
