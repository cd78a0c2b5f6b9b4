"""The executors of one worker and the channel they read.

What travels through the channel are batches. An executor takes one and runs its deliveries one after another; as
soon as a run has to wait for something, the executor passes the rest of its batch on, which wakes or hires others.
So runs that never wait cost no switching between tasks, and runs that do wait spread over all executors.

What holds between any two steps:

* A held delivery is in the channel or in the batch of one executor; a parked one is kept by its limit, or is the
  `follower` of an earlier run. All of them are given up by `close`, which is synchronous: after it nothing is started.
* What is for a batch actor is parked by its `Gathering` from the beginning. When a batch is due, an empty `Batch` goes
  through the channel, or waits for a limit as a delivery does. The executor that begins with it fills it with what has
  gathered by then. Until then it holds nothing, so it may be dropped.
* `suspended` has the runs that wait for something. All others end before another task could look. Only a run that is
  found there can be cut off; one that is cancelled or lost before is cut off when it begins to wait.
* `_idle` counts executors that wait in `take`. It is lowered by `give`, not by the executor that wakes: a second batch
  given in the same turn must wake or hire another one. An executor that is cancelled in `take` leaves it too high,
  which does no harm, since executors are cancelled only when the channel is closed or the worker is.
* The channel has no bound: the reader claims no more than the executors can take.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from contextvars import Context

import trio

from ..delivery import (
    Cancel,
    CancelRequested,
    Crowded,
    DeadLetter,
    Delivery,
    Disposition,
    Event,
    Expired,
    LeaseExpired,
    Phase,
    Release,
    Settlement,
    Stopping,
    Token,
    Unrouted,
    decide,
    disposition_on,
    is_survived,
    is_suspect,
)
from ..envelope import Envelope
from ..errors import did_you_mean
from ..logs import Log
from ..process import inherits
from .actor_runners import ActorRunner, ActorRunners
from .holding import Batch, Holding, about, members_of
from .ledger import Ledger
from .limits import Gathering, Limit
from .sending import Sending
from .settler import Settler
from .timer import Cause, RunningTask, Timer

log = Log("repid.worker")

LONGEST_PARKED = 1.0
"""Seconds for which a delivery waits for a thread or process before it is released."""

CROWDED_GRACE = 1.0
"""Seconds within which the broker has settled a release, as a rule, from when its delay counts."""


class Crew:
    """Hands deliveries to executors, and hires these as they are needed, up to `tasks_limit`."""

    def __init__(
        self, runners: ActorRunners, ledger: Ledger, settler: Settler, sending: Sending, context: Context
    ) -> None:
        self.runners = runners
        self.ledger = ledger
        self.settler = settler
        self.sending = sending
        sending.count_busy = self._count_busy
        self.context = context
        self.clock = trio.lowlevel.current_clock()
        """Of the trio run of this worker; other threads may read it."""
        self.suspended: dict[Holding, RunningTask] = {}
        """Who runs what: only runs that wait for something, all others end before anybody could look."""
        self.executors: list[RunningTask] = []
        self.timer = Timer(self.suspended)
        self.on_room: Callable[[], None] = lambda: None
        """Called when a limit has room again; the reader sets it."""
        self.on_late: Callable[[], None] = lambda: None
        """Called when runs take so long that what was claimed ahead is given back; the reader sets it."""
        self.log_level: int | None = None
        """The level at which each run is logged; None: none is."""
        self.crowded_until = -math.inf
        """When all that was turned away because too much waited here already should be ready again."""
        self.runs_mostly_wait = False
        """Whether most runs have to wait for something, as the reader has learned."""
        self._send, self._receive = trio.open_memory_channel[list[Holding]](math.inf)  # the reader bounds it
        self._idle = 0
        self._hired = 0
        self.is_of_parent = False
        """Whether this is the copy in a child that was forked in this trio run, which has no right to any of it."""
        inherits(self, Crew._note_fork)
        self._is_closed = False
        self._hire: Callable[[], None] = lambda: None
        self._impatience = trio.lowlevel.ParkingLot()
        self._next_batch = trio.CancelScope()
        """Its deadline is when the next batch is due that has not filled by then."""
        self._warned: set[tuple[str, str | None]] = set()

    def _note_fork(self) -> None:
        self.is_of_parent = True

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
        """Put a batch into the channel: in one piece for one executor, or where runs have to wait, spread over many.
        What is for batch actors waits for their next batches instead.
        """
        if self.runners.batching:
            for runner in self.runners.batching:
                self.gather(runner, [holding for holding in reversed(batch) if holding.runner is runner])
            batch = [holding for holding in batch if holding.runner is None or holding.runner.gathering is None]
            if not batch:
                return
        pieces = min(len(batch), self._idle + self.ledger.tasks_limit - self._hired) if self.runs_mostly_wait else 1
        size = -(-len(batch) // max(pieces, 1))
        for end in range(len(batch), 0, -size):
            self.give(batch[max(0, end - size) : end])

    def gather(self, runner: ActorRunner, holdings: list[Holding]) -> None:
        """Have held ones wait for the next batch of their actor, and start it if it is due."""
        gathering = runner.gathering
        if gathering is None or not holdings:
            return
        if self._is_closed:
            self._release(holdings[::-1])
            return
        room = int(max(0, gathering.most - len(gathering.parked)))
        self.ledger.gather(holdings[:room], gathering)
        if is_suspect(holdings[0].delivery.lost):
            gathering.is_flushed = True  # it came alone, and runs alone: nothing is claimed before it has ended
        for holding in holdings[room:]:
            self.turn_away(holding, Crowded(random.random()))  # noqa: S311  jitter
        self.start_if_due(runner)

    def start_if_due(self, runner: ActorRunner) -> None:
        """Call an executor for a batch of this actor if there is one to be started, or see to it that it is started in
        time.
        """
        gathering = runner.gathering
        if gathering is None:
            return
        if gathering.due <= trio.current_time():
            batch = Batch.of(runner)
            self.ledger.call_batch(batch, gathering)
            self.give([batch])
        else:
            self._next_batch.deadline = min(self._next_batch.deadline, gathering.due)

    def start_gathered(self) -> None:
        """Wait for no more: nothing can come."""
        for runner in self.runners.batching:
            if runner.gathering is not None and runner.gathering.parked:
                runner.gathering.is_flushed = True
                self.start_if_due(runner)

    async def start_due_batches(self) -> None:
        """Start batches that have waited for long enough, until cancelled."""
        while True:
            due = min(runner.gathering.due for runner in self.runners.batching if runner.gathering is not None)
            with trio.CancelScope(deadline=due) as self._next_batch:
                await trio.sleep_forever()
            for runner in self.runners.batching:
                self.start_if_due(runner)

    @property
    def only_gathers(self) -> bool:
        """Whether there is something in hand, and all of it waits for batches to fill."""
        ledger = self.ledger
        return 0 < ledger.parked == self.runners.gathered and not (ledger.held or ledger.running or ledger.unsettled)

    def share_rest(self, batch: list[Holding]) -> None:
        """Give the rest of a batch to two others, so that a whole batch of runs that wait starts in log(n) steps.

        If all are busy, the first one that is free takes it.
        """
        half = len(batch) // 2
        if half and (self._idle or self._hired < self.ledger.tasks_limit):
            self.give(batch[half:])
            self.give(batch[:half])
        elif batch:
            self.give(batch)

    def _count_busy(self) -> int:
        """How many runs are under way, except those whose verdict waits for room: a verb waits for that."""
        aside = {settlement.delivery for settlement in self.settler.set_aside.all}
        return sum(any(delivery not in aside for delivery, _ in executor.present) for executor in self.executors)

    def take_nowait(self) -> list[Holding]:
        """The next batch; an empty one if there is none. Raises `trio.EndOfChannel` once all is over."""
        try:
            return self._receive.receive_nowait()
        except trio.WouldBlock:
            return []

    async def take(self) -> list[Holding]:
        """Wait for the next batch. Raises `trio.EndOfChannel` when the crew was closed and nothing is left."""
        self._idle += 1  # undone by `give`: a task that waits here gets what is given next
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
        for limit in self.runners.limits:
            while limit.parked:
                self._unpark(limit)
        for runner in self.runners.batching:
            while runner.gathering is not None and runner.gathering.parked:
                self._unpark(runner.gathering)
        for former in self.suspended:
            for member in members_of(former):
                self._let_follow(member)

    def release_slot(self, runner: ActorRunner) -> None:
        """A delivery of an actor with limits is done with: the next one may start."""
        self._unpark_next(runner)
        self.on_room()

    def park(self, limit: Limit, holding: Holding) -> None:
        """The limit is reached: keep the delivery until it is not, or release it if enough are kept."""
        runner = holding.actor_runner
        if len(limit.parked) < limit.most or sum(not isinstance(each, Batch) for each in limit.parked) < limit.most:
            self.ledger.park(holding, limit, trio.current_time() if limit is runner.slots else math.inf)
            self._impatience.unpark()
        else:
            self.turn_away(holding, Crowded(random.random()))  # noqa: S311  jitter
        self._unpark_next(runner)  # it may have been let go by a limit that is of use to others now

    def park_batch(self, limit: Limit, batch: Batch) -> None:
        """The limit is reached: the batch that was to be started waits for its turn, and more gathers meanwhile."""
        limit.parked[batch] = math.inf
        self._unpark_next(batch.actor_runner)

    def give_back_held(self, ending: float) -> None:
        """Release what was claimed ahead and has a lease that ends by this moment, if no executor is free: its turn
        should have come long ago, and other workers may be free. It keeps its rank.
        """
        if self._is_closed or self.ledger.runs < self.ledger.tasks_limit:
            return
        for batch in list(iter(self.take_nowait, [])):
            late: list[Holding] = []
            others: list[Holding] = []
            for holding in batch:
                if holding.lease_ends <= ending and not isinstance(holding, Batch):
                    late.append(holding)
                else:
                    others.append(holding)
            if others:
                self.give(others)
            if late:
                self.on_late()
                self._release(late)

    async def give_back_parked(self) -> None:
        """Release what has waited for a thread or process for too long, until cancelled. It keeps its rank."""
        while True:
            waiting = [since for limit in self.runners.limits for since in limit.parked.values() if since < math.inf]
            if not waiting:
                await self._impatience.park()
                continue
            await trio.sleep_until(min(waiting) + LONGEST_PARKED)
            for limit in self.runners.limits:
                late = [each for each, since in limit.parked.items() if since + LONGEST_PARKED <= trio.current_time()]
                for holding in late:
                    limit.mean = None  # its runs take longer than was believed
                    if holding.parked_by is limit:  # and was not let go meanwhile
                        self._turn_away_parked(holding, Stopping())

    def may_start(self, holding: Holding, now: float) -> bool:
        """Whether a held or gathered one may be run, where `startable_until` does not say so. Else deals with it."""
        if holding.lease_ends <= now or not holding.is_ours:  # lost, whether the keeper has seen it or not
            self._take_out(holding)
            self.lease_lost(holding)
            self.forget(holding)
        elif holding.is_cancelled:
            self._take_out(holding)
            self.turn_away(holding, CancelRequested())
        elif holding.expires_at <= now:
            self._take_out(holding)
            self.turn_away(holding, Expired())
        else:
            return not (holding.delivery.lost and self._follow(holding))
        return False

    def _take_out(self, holding: Holding) -> None:
        if holding.parked_by is not None:
            self.ledger.unpark(holding)

    def give_back_gathered(self, gathering: Gathering) -> None:
        """Release what has gathered for a batch that cannot start now."""
        for holding in list(gathering.parked):
            self._turn_away_parked(holding, Stopping())

    def _follow(self, holding: Holding) -> bool:
        """Have a delivery wait whose message was lost and still runs here, until that run has ended.

        Returns False if no such run is under way.
        """
        queue, id_ = holding.delivery.envelope.queue, holding.delivery.envelope.id
        envelopes = ((run.delivery.envelope, run) for each in self.suspended for run in members_of(each))
        former = next((run for other, run in envelopes if other.id == id_ and other.queue == queue), None)
        if former is None:
            return False
        self.lease_lost(former)  # the new lease proves that the former one has ended
        if former.follower is not None:
            self.lease_lost(former.follower)
            self._let_follow(former)
        self._take_out(holding)
        self.ledger.park(holding, None)
        former.follower = holding
        return True

    def has_ended(self, holding: Holding) -> None:
        """A run that had to wait for something has ended."""
        del self.suspended[holding]
        for member in members_of(holding):
            self._let_follow(member)

    def _let_follow(self, former: Holding) -> None:
        """Let the delivery go that waited for this run, if there is one."""
        follower, former.follower = former.follower, None
        if follower is not None:
            self.ledger.unpark(follower)
            self.distribute([follower])

    def _turn_away_parked(self, holding: Holding, event: Event) -> None:
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
        if holding.runner is not None and holding.runner.limits and not self._is_closed:
            self.release_slot(holding.runner)

    def turn_away(self, holding: Holding, event: Event) -> None:
        """Settle a held delivery without a run."""
        disposition = decide(Phase.HELD, event)
        self.ledger.turn_away(holding, is_final=isinstance(disposition, Cancel | DeadLetter))
        if isinstance(event, Crowded) and isinstance(disposition, Release):
            self.crowded_until = trio.current_time() + disposition.delay + CROWDED_GRACE
        if isinstance(disposition, Disposition):
            delivery, runner = holding.delivery, holding.runner
            result = None if runner is None else runner.result(delivery.envelope, disposition)
            self.settler.put(Settlement(delivery, disposition, (), result), holding)
        self._free(holding)

    def unrouted(self, holding: Holding) -> None:
        """No actor here takes it."""
        delivery = holding.delivery
        envelope = delivery.envelope
        if len(self._warned) < 1000 and (envelope.queue, envelope.topic) not in self._warned:
            self._warned.add((envelope.queue, envelope.topic))
            if envelope.topic is None:
                has = 'no topic, and no actor here takes that (headers={"topic": ...} names the actor it is for)'
            else:
                hint = did_you_mean(envelope.topic, self.runners.names(envelope.queue))
                has = f"the topic {envelope.topic!r}, which no actor here takes{hint}"
            log.about(about(delivery)).warning(
                "message %r on channel %r has %s; it is released for others, and becomes a dead letter if nobody "
                "takes it",
                envelope.id,
                envelope.queue,
                has,
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
                self._turn_away_parked(holding, CancelRequested())
        for token in wanted:
            self.ledger.cancelled_before_arrival(token)

    def _cut_off(self, holding: Holding, cause: Cause) -> None:
        """Cancel its run, if it has one that waits; a batch only if none of its messages is worth going on for."""
        run: Holding = holding
        if holding.batch is not None:
            run = holding.batch
            if holding.batch.is_worth_while:
                return
            self.ledger.give_up_batch(holding.batch, cancelled=cause is CancelRequested)
        executor = self.suspended.get(run)
        if executor is not None:
            executor.cut_off(run, cause)

    def settle(self, delivery: Delivery, disposition: Disposition, outbox: tuple[Envelope, ...]) -> None:
        """Hand over a verdict that was given outside a run's end, by a verb of its message say."""
        holding = self.ledger.holdings.get(delivery)
        result = None
        if holding is not None:
            self.ledger.take_up(holding)
            if holding.runner is not None:
                result = holding.runner.result(delivery.envelope, disposition)
        self.settler.put(Settlement(delivery, disposition, outbox, result, is_survived(delivery.lost)), holding)

    @property
    def kept(self) -> list[Delivery]:
        """What actors in the mode `manual` left without a verdict. May be asked from any thread."""
        return [holding.delivery for holding in list(self.ledger.holdings.values()) if holding.is_kept]

    def release_kept(self) -> None:
        """The worker ends: release what actors in the mode `manual` left without a verdict."""
        for holding in [each for each in self.ledger.holdings.values() if each.is_kept]:
            delivery = holding.delivery
            log.about(about(delivery)).warning(
                "message %r was left without a verdict by its actor (confirmation_mode='manual'); it is released",
                delivery.envelope.id,
            )
            self.ledger.take_up(holding)
            self.settler.put(Settlement(delivery, disposition_on(Phase.RUNNING, Stopping())), holding)

    def _unpark_next(self, runner: ActorRunner) -> None:
        """Where a limit of this runner has room, let the one go that has waited longest for it."""
        for limit in runner.run_limits:
            if limit.parked and not limit.is_full:
                self._unpark(limit)

    def _unpark(self, limit: Limit) -> None:
        holding: Holding = next(iter(limit.parked))
        if isinstance(holding, Batch):
            del limit.parked[holding]
        else:
            self.ledger.unpark(holding)
        self.give([holding])

    def _release(self, batch: list[Holding]) -> None:
        for holding in reversed(batch):
            if isinstance(holding, Batch):
                continue  # it is empty: what gathers for it is released where that is parked
            if holding.is_ours:
                self.turn_away(holding, Stopping())
            else:
                self.forget(holding)
