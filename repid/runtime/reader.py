"""Broker → channel: leases no more than the executors can take, and a little ahead."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from ..delivery import Delivery
from ..errors import BrokerUnavailable
from ..logs import Log
from ..ports import ANYTHING, AtMost, Consumer
from .backoff import backoff
from .crew import Crew
from .limits import TRIPS_AHEAD
from .quarantine import Quarantine

log = Log("repid.worker")

WAITS_PER_LEASE = 8
"""The broker is asked anew after this part of a lease: by the moment of the asking we know when the lease ends at the
earliest, so waiting for a message must not take long."""

LONGEST_TRIP = 1.0
"""Seconds. What took longer was no round trip, but waiting for messages."""

MEMORY = 1.0
"""Seconds after which half of a look-ahead is forgotten. Runs that are alike end in waves, with pauses in between."""


class Reader:
    """Claims for the crew.

    It claims for executors that are free, and ahead what ends during a few round trips to the broker: so runs that are
    short never wait for the broker, and long ones hoard nothing that another worker could run. It asks again when half
    of what it may hold is used up. Two round trips of look-ahead would do then if runs ended evenly; but runs that
    started together end together, more of them from trip to trip. No claim can exceed `messages_limit`: it counts runs
    started, and what is held might be started. Nor can it exceed `claim_bytes`, but for one message that is bigger than
    what is left while half of it is free.
    """

    def __init__(self, consumer: Consumer, crew: Crew, *, burst: bool) -> None:
        self._consumer = consumer
        self._crew = crew
        self._ledger = crew.ledger
        self._burst = burst
        self._max_wait = consumer.lease_timeout / WAITS_PER_LEASE
        self._ahead = 0
        self._learned = 0.0
        self._asked = 0.0  # when the broker was asked last: what it gives was not leased before
        self._finished = self._waited = 0
        self._trip = LONGEST_TRIP
        self._is_narrow = False  # whether something was left out, since a limit was reached
        self._quarantine = Quarantine(consumer, crew.ledger, self._receive_suspect, self._take_in)
        crew.on_leave = self._widen

    async def read(self, done: Callable[[], None]) -> None:
        """Read until `messages_limit` is reached or, in burst mode, nothing is left; then call `done`."""
        ledger = self._ledger
        while ledger.started < ledger.messages_limit:
            limit, refill_at = self._room()
            if ledger.suspects and limit > 0 and await self._serve_suspects(limit):
                continue
            if limit <= 0 or ledger.held > refill_at:
                if self._burst and ledger.is_idle:  # leases that may never get a verdict take all the room
                    break
                await ledger.wait_for_change(held=refill_at)
                continue
            was_idle = ledger.is_idle
            if await self._claim(limit, 0.0 if self._burst else self._max_wait):
                continue
            if self._burst and was_idle and not await self._quarantine.find():
                break  # had anything been under way, it might have sent something meanwhile
            if self._burst and not ledger.is_idle:
                await self._claim_or_wait_for_change(limit)
        done()

    async def _serve_suspects(self, limit: int) -> bool:
        """Let those messages have their turn that may only be claimed alone. False: others have theirs."""
        if self._ledger.holds_anything:
            if self._quarantine.is_others_turn:
                return False
            await self._quarantine.drain()
            return True
        if self._quarantine.is_others_turn and await self._claim(limit, 0.0):
            return True
        return await self._quarantine.serve()

    def _room(self) -> tuple[int, float]:
        """How many may be claimed now, and how few must be held for it to be worth asking."""
        ledger = self._ledger
        share = max(0, ledger.tasks_limit - ledger.running - len(ledger.kept) + self._ahead)
        allowed = ledger.messages_limit - ledger.started - ledger.held - ledger.parked
        if allowed <= 0 or ledger.size_left <= 0:
            return 0, math.inf  # any change may be the one that matters
        return int(min(share - ledger.held, allowed)), share // 2

    async def _claim(self, limit: int, max_wait: float) -> bool:
        """Ask the broker; what it gives is the crew's before anything else can happen. False: it gave nothing."""
        is_tight = self._ledger.first_left < math.inf
        batch = await self._receive(limit, 0.0 if is_tight else max_wait)
        if not batch:
            self._ledger.noticed = self._ledger.finished
            if is_tight:  # what comes next may be too big for now: wait for room, not for messages
                with trio.move_on_after(self._max_wait):
                    await self._ledger.wait_for_change()
            return is_tight
        self._trip = min(self._trip * 1.1, trio.current_time() - self._asked)  # some of them wait for messages
        is_full = len(batch) == limit
        self._look_ahead(has_all_asked_for=is_full)
        self._take_in(batch)
        if not is_full:
            await trio.lowlevel.checkpoint()  # there is no more for now: let these start before it is asked again
        return True

    async def _claim_or_wait_for_change(self, limit: int) -> None:
        """For burst mode: whichever comes first, messages or a change of the account, which may mean that all is over."""

        async def claim() -> None:
            await self._claim(limit, self._max_wait)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim)
            await self._ledger.wait_for_change()
            nursery.cancel_scope.cancel()

    def _look_ahead(self, *, has_all_asked_for: bool) -> None:
        """Learn from the round trip that has just ended: from the moment there was room to the moment it is filled.

        Where the broker had not enough, or took long, what ended meanwhile only shows how long we waited for messages.
        """
        ledger = self._ledger
        now = trio.current_time()
        was_a_trip = has_all_asked_for and now - self._asked < LONGEST_TRIP
        ended = ledger.finished - ledger.noticed if was_a_trip else 0
        remembered = self._ahead * 0.5 ** ((now - self._learned) / MEMORY) if self._ahead else 0
        self._ahead, self._learned = min(max(TRIPS_AHEAD * ended, int(remembered)), ledger.tasks_limit), now
        self._crew.spread = 2 * (ledger.waited - self._waited) > ledger.finished - self._finished
        self._finished = ledger.noticed = ledger.finished
        self._waited = ledger.waited

    def _take_in(self, batch: list[Delivery]) -> None:
        ledger, crew = self._ledger, self._crew
        ledger.lease(batch, self._asked, self._consumer.lease_timeout)
        if crew.roles.limits:
            for delivery in batch:
                role = crew.roles.find[delivery.envelope.queue](delivery.envelope)
                for limit in () if role is None else role.limits:
                    limit.claimed += 1
        batch.reverse()
        crew.give_all(batch)

    async def _receive_suspect(self) -> list[Delivery]:
        return await self._receive(1, 0.0, alone=True)

    async def _receive(self, limit: int, max_wait: float, *, alone: bool = False) -> list[Delivery]:
        for delay in backoff():
            at_most = ANYTHING if alone else self._limits()
            self._asked = trio.current_time()
            self._is_narrow = 0 in at_most.topics.values() or any(room == 0 for _, room in at_most.groups)
            try:
                return await self._consumer.receive(limit, at_most=at_most, max_wait=max_wait)
            except BrokerUnavailable as error:
                log.warning("cannot receive, again in %.1f s: %s", delay, error)
            finally:
                self._is_narrow = False
            await trio.sleep(delay)
        raise AssertionError  # backoff has no end

    def _limits(self) -> AtMost:
        return self._crew.roles.at_most(self._trip, self._ledger.size_left, self._ledger.first_left)

    def _widen(self) -> None:
        """A limit has room again: what is asked of the broker just now may be too narrow."""
        if self._is_narrow:
            self._consumer.set_limits(self._limits())
