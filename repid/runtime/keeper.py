"""Leases: extends those of this worker, notices the ones it lost, and rescues those of workers that died.

What was claimed ahead, and has waited here for a whole round while all executors are busy, is given back instead: it
should have begun within a few round trips to the broker, so runs have suddenly become long.
"""

from __future__ import annotations

import trio

from ..errors import BrokerUnavailable
from ..logs import Log
from ..ports import LARGEST_CALL, Consumer
from .crew import Crew
from .outage import backoff, log_unavailable

log = Log("repid.worker")

EXTENSIONS_PER_LEASE = 4
LATE = 1.0
"""Seconds. A keeper that wakes later than this rescues nothing: whatever held it up may have kept others from
extending their leases too, so they get a full round to do so first."""


class Keeper:
    """Keeps the leases of one worker until their verdicts are settled.

    Two tasks: one calls the broker; the other believes leases lost when they end, even while the broker does not
    answer.
    """

    def __init__(self, consumer: Consumer, crew: Crew) -> None:
        self._consumer = consumer
        self._crew = crew
        self._ledger = crew.ledger
        self._interval = consumer.lease_timeout / EXTENSIONS_PER_LEASE

    async def keep(self) -> None:
        """Extend and rescue until cancelled."""
        while True:
            planned = trio.current_time() + self._interval
            await trio.sleep_until(planned)
            late = trio.current_time() - planned > LATE
            try:
                self._crew.give_back_held(planned + self._consumer.lease_timeout - self._interval)
                with trio.move_on_after(self._interval):
                    await self._extend()
                    if not late:
                        await self._consumer.rescue()
                        self._ledger.suspects = await self._consumer.suspects()
            except BrokerUnavailable as error:
                log_unavailable(error, "cannot extend %d leases", len(self._ledger.holdings))

    async def watch(self) -> None:
        """Believe leases lost at the moments when they end, until cancelled.

        While the event loop was blocked, nobody asked the broker, and its thread may have extended them. So then the
        other task asks first. What could not be extended in time must be believed lost: another worker may have it.
        """
        holdings = self._ledger.holdings
        while True:
            next_round = trio.current_time() + self._interval
            planned = min([next_round, *(each.lease_ends for each in holdings.values())])
            await trio.sleep_until(planned)
            if trio.current_time() - planned > self._interval:
                await trio.sleep(self._interval)
            now = trio.current_time()
            for holding in list(holdings.values()):
                if holding.lease_ends <= now:
                    self._crew.lease_lost(holding)

    async def _extend(self) -> None:
        holdings = self._ledger.holdings
        deliveries = list(holdings)
        for start in range(0, len(deliveries), LARGEST_CALL):
            part, asked = deliveries[start : start + LARGEST_CALL], trio.current_time()
            for delivery, is_ours in zip(part, await self._consumer.extend(part), strict=True):
                holding = holdings.get(delivery)
                if holding is None:  # settled meanwhile
                    continue
                if is_ours:
                    self._ledger.extended(holding, asked + self._consumer.lease_timeout)
                else:
                    self._crew.lease_lost(holding)


async def heed_events(consumer: Consumer, crew: Crew) -> None:
    """Cancel what somebody cancels and what is not leased to this worker any more, until cancelled."""
    delays = backoff()
    while True:
        try:
            events = await consumer.events()
            crew.cancel([event.token for event in events if event.kind == "cancel"])
            crew.leases_lost([event.token for event in events if event.kind == "lost"])
            delays = backoff()
        except BrokerUnavailable as error:
            delay = next(delays)
            log_unavailable(error, "cannot learn of lease events, again in %.1f s", delay)
            await consumer.wait_link(delay)
