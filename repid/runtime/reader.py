"""Broker → channel: leases no more than the executors can take, and a little ahead.

Theory. The reader is one task, and the only one that claims; there is at most one claim under way.

* It asks when half of what it may hold is used up: the free executors have the other half to do meanwhile. A server
  that may take a while is asked for `MOST_CLAIMED` at once: free executors start with the first of many sooner.
* What the broker gives is entered in the ledger and handed to the crew before anything else can happen (`_take_in`),
  so a cancellation cannot come between. With an engine in this process that is in the step of a publisher: an executor
  that is free starts in the next turn of the loop, beside the reader. A claim that is cancelled loses nothing (see
  `Consumer.receive`).
* The lease of what it gives began after the broker was asked. `_asked` is therefore the moment from which the ledger
  counts, and a claim waits for a part of a lease at most: a message that came at its end has most of its lease left.
* Once an actor has left a message without a verdict, nothing is claimed ahead: what is kept takes up room for a time
  that nobody knows.
* No claim can exceed `messages_limit`: the limit counts runs started, and what is held or parked may be started. Nor
  can a claim exceed `claim_bytes`, except for one message that is bigger than what is left while half of the bound is
  free.
* What is left of `claim_bytes` may be too little for the message whose turn it is. Then a claim waits for smaller ones
  and for room, whichever comes first: it is cancelled when the account changes, and made anew with what is left then.
* Limits of actors travel with a claim. When one of them has room again while a claim waits, the claim is told
  (`set_limits`); it is not cancelled for that.
* A drain makes the rest of a worker's life a burst. It cancels what the reader waits for, except while a message is
  served that must run alone: nothing is claimed beside that.
* In burst mode the reader ends when the broker has nothing and nothing was under way before it was asked: a run that
  ended meanwhile might have sent something. Nor may there be leases that have ended: where all workers end soon, nobody
  else would rescue what one of them left when it died.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import trio

from ..delivery import Delivery
from ..errors import BrokerUnavailable
from ..logs import Log
from ..ports import ANYTHING, LARGEST_CALL, AtMost, Consumer, Take
from .crew import Crew
from .limits import MOST_AHEAD
from .look_ahead import LookAhead
from .outage import Outage, backoff, log_unavailable
from .quarantine import Quarantine

log = Log("repid.worker")

WAITS_PER_LEASE = 8
"""The broker is asked anew after this part of a lease: by the moment of the asking we know when the lease ends at the
earliest, so waiting for a message must not take long."""

MOST_CLAIMED = 500
"""Messages that are asked for at once where the broker may take a while. For a thousand it takes ten milliseconds and
more; of fewer, the first run while the next are on their way. Of less than this, calls cost more than that saves.
"""

MOST_SET_ASIDE = 2 * (1 + MOST_AHEAD)
"""Times `tasks_limit`: when this many verdicts wait for room in the queue of their own message, nothing more is
claimed.

Others are not counted. Of their kind nothing is claimed meanwhile, so no more of one kind wait than were in hand, which
is half as many held or running, and half as many unsettled. Claiming goes on for the other kinds, which make the room.
"""

TOLD_AFTER = 10.0
"""Seconds for which nothing has run when a worker names the actors that keep it from that."""

MOST_NAMED = 20


class Reader:
    """Claims for the crew: for executors that are free, and ahead of them as `look_ahead` says.

    `is_local`: the server answers any call at once.
    """

    def __init__(self, consumer: Consumer, crew: Crew, *, burst: bool, is_local: bool = False) -> None:
        self._most_claimed = LARGEST_CALL if is_local else MOST_CLAIMED
        self._consumer = consumer
        self._crew = crew
        self._ledger = crew.ledger
        self._burst = burst
        self._max_wait = consumer.lease_timeout / WAITS_PER_LEASE
        self.look_ahead = LookAhead(MOST_AHEAD * crew.ledger.tasks_limit)
        self._finished_at_room = 0
        """How many runs had ended when the broker was last asked for more than it had."""
        self._asked = 0.0  # when the broker was asked last: what it gives was not leased before
        self._until_drained = trio.CancelScope()
        self._is_with_suspects = False
        self._is_narrow = False  # whether something was left out, since a limit was reached
        receive_suspect = partial(self._receive, 1, 0.0, None, alone=True)
        self._quarantine = Quarantine(consumer, crew.ledger, receive_suspect, self._take_in)
        crew.on_room = crew.settler.set_aside.on_room = self._widen
        crew.on_late = self.look_ahead.forget
        crew.sending.can_start = self._can_start

    async def read(self, done: Callable[[], None]) -> None:
        """Read until `messages_limit` is reached or, in burst mode, nothing is left; then call `done`."""
        with self._until_drained:
            await self._read()
        if self._until_drained.cancelled_caught:
            await self._read()
        done()

    def drain(self) -> None:
        """Be in burst mode from now on."""
        self._burst = True
        if not self._is_with_suspects:
            self._until_drained.cancel()

    async def _read(self) -> None:
        ledger = self._ledger
        while ledger.started < ledger.messages_limit:
            limit, refill_at = self._room()
            if refill_at == math.inf or (limit <= 0 and self._crew.only_gathers):
                self._crew.start_gathered()  # nothing more can come to them
            if ledger.suspects and limit > 0 and await self._serve_suspects(limit):
                continue
            if limit <= 0 or ledger.held > refill_at:
                if self._burst and ledger.is_idle:  # leases that may never get a verdict take all the room
                    break
                await ledger.wait_for_change(held=refill_at)
                continue
            if ledger.first_left < math.inf and not self._burst:  # the next one may be too big until there is more room
                await self._claim_or_wait_for_change(limit)
                continue
            was_idle, only_gathers = ledger.is_idle, self._burst and self._crew.only_gathers
            if await self._claim(limit, 0.0 if self._burst else self._max_wait):
                continue
            if only_gathers:
                self._crew.start_gathered()
            if self._burst and was_idle and not await self._quarantine.find() and not await self._rescue():
                still_away = self._crew.crowded_until - trio.current_time()
                if still_away <= 0:
                    break  # had anything been under way, it might have sent something meanwhile
                await self._claim(limit, still_away)
            has_come_to_gather = self._crew.only_gathers and not only_gathers  # the other runs ended while it was asked
            if self._burst and not ledger.is_idle and not has_come_to_gather:
                await self._claim_or_wait_for_change(limit)

    async def tell_of_kept(self) -> None:
        """Name the actors whose messages, left without a verdict, keep all others from running; once, until something
        changes. Goes on until cancelled.
        """
        ledger, is_told = self._ledger, False
        while True:
            finished = ledger.finished
            await trio.sleep(TOLD_AFTER)
            is_full = self._room()[0] <= 0
            if not ledger.kept or not ledger.is_idle or not (is_full or ledger.first_left < math.inf):
                is_told = False
            elif ledger.finished == finished and not is_told:
                is_told = True
                kept = [holding for holding in ledger.holdings.values() if holding.is_kept]
                names = list(dict.fromkeys(repr(holding.fields["actor"]) for holding in kept))
                log.warning(
                    "%d messages were left without a verdict by their actors (%s, confirmation_mode='manual'): "
                    "until one of them gets a verdict the worker runs %s",
                    len(kept),
                    ", ".join(names[:MOST_NAMED]),
                    "nothing more" if is_full else f"no message of more than {ledger.size_left:g} bytes",
                )

    async def _serve_suspects(self, limit: int) -> bool:
        """Let those messages have their turn that may only be claimed alone. False: others have theirs."""
        self._is_with_suspects = True
        try:
            if not self._ledger.holds_anything:
                others_came = self._quarantine.is_others_turn and await self._claim(limit, 0.0)
                return others_came or await self._quarantine.serve()
            if self._quarantine.is_others_turn:
                return False
            await self._quarantine.drain()
            return True
        finally:
            self._is_with_suspects = False

    def _room(self) -> tuple[int, float]:
        """How many may be claimed now, and how few must be held for it to be worth asking."""
        ledger = self._ledger
        ahead = 0 if ledger.has_ever_kept else self.look_ahead.size
        share = max(0, ledger.tasks_limit - ledger.runs - ledger.kept + ahead)
        allowed = ledger.messages_limit - ledger.started - ledger.held - ledger.parked
        set_aside = self._crew.settler.set_aside.without_source
        if allowed <= 0 or ledger.size_left <= 0 or set_aside >= MOST_SET_ASIDE * ledger.tasks_limit:
            return 0, math.inf  # any change may be the one that matters
        return int(min(share - ledger.held, allowed, self._most_claimed)), share // 2

    async def _claim(self, limit: int, max_wait: float) -> bool:
        """Ask the broker; what it gives is the crew's before anything else can happen. False: it gave nothing."""
        ledger, look_ahead = self._ledger, self.look_ahead

        def take(deliveries: list[Delivery]) -> None:
            """Learn, from the moment there was room to the moment it is filled, and hand them to the crew."""
            ended = ledger.finished - max(self._finished_at_room, ledger.finished_when_woken)
            is_full = len(deliveries) == limit
            look_ahead.learn(asked=self._asked, now=trio.current_time(), is_full=is_full, ended=ended)
            look_ahead.note_runs(ledger.finished, ledger.suspended_runs)
            self._crew.runs_mostly_wait = look_ahead.runs_mostly_wait
            self._finished_at_room = ledger.finished
            self._take_in(deliveries)

        batch = await self._receive(limit, max_wait, take)
        if not batch:
            self._finished_at_room = ledger.finished
            return False
        if len(batch) < limit:
            # No more is there for now: let these start before it is asked again. Of the tasks that are due at once trio
            # runs any one first, so only the second of these checkpoints comes after them.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        return True

    async def _claim_or_wait_for_change(self, limit: int) -> None:
        """Whichever comes first, messages or a change of the account: it may mean that all is over, or make room for a
        message that is ready and too big until then.
        """

        async def claim() -> None:
            await self._claim(limit, self._max_wait)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim)
            await self._ledger.wait_for_change()
            nursery.cancel_scope.cancel()

    async def _rescue(self) -> bool:
        """Take back leases that have ended, since this worker may be gone before its keeper does so. Returns whether
        there were any: their messages are ready now.
        """
        try:
            return await self._consumer.rescue() > 0
        except BrokerUnavailable:
            return False

    def _take_in(self, deliveries: list[Delivery]) -> None:
        """Hand them to the crew, in the crew's context: this may be the step of a publisher, whose context an executor
        that is hired now would keep.
        """
        self._crew.context.copy().run(self._hand_over, deliveries)

    def _hand_over(self, deliveries: list[Delivery]) -> None:
        crew = self._crew
        runners = crew.runners.runners_for(deliveries)
        batch = self._ledger.lease(deliveries, runners, self._asked, self._consumer.lease_timeout)
        batch.reverse()
        crew.distribute(batch)

    async def _receive(self, limit: int, max_wait: float, take: Take | None, *, alone: bool = False) -> list[Delivery]:
        outage = Outage(burst=self._burst)
        for delay in backoff():
            at_most = ANYTHING if alone else self._limits()
            self._asked = trio.current_time()
            self._is_narrow = 0 in at_most.topics.values() or any(room == 0 for _, room in at_most.groups)
            try:
                return await self._consumer.receive(limit, at_most=at_most, max_wait=max_wait, take=take)
            except BrokerUnavailable as error:
                if not self._ledger.running:  # what runs may still end, and tell so
                    outage.check(error)
                log_unavailable(error, "cannot receive, again in %.1f s", delay)
            finally:
                self._is_narrow = False
            await self._consumer.wait_link(delay)
        raise AssertionError  # backoff has no end

    def _limits(self) -> AtMost:
        sources = self._crew.settler.set_aside.sources
        ledger = self._ledger
        return self._crew.runners.at_most(self.look_ahead.trip, ledger.size_left, ledger.first_left, sources)

    def _widen(self) -> None:
        """A limit has room again: what is asked of the broker just now may be too narrow."""
        if self._is_narrow:
            self._consumer.set_limits(self._limits())

    def _can_start(self, queue: str) -> bool:
        """Whether a message of this queue would be claimed, and its run started, if it were ready now. Also if that
        cannot be said yet: while verdicts are on their way, or what is held is about to start.
        """
        ledger = self._ledger
        is_full = ledger.runs >= ledger.tasks_limit
        if ledger.unsettled or (ledger.held and not is_full):
            return True
        if ledger.is_reader_waiting or is_full:
            return False
        return self._crew.runners.can_start(queue, self._crew.settler.set_aside.sources)
