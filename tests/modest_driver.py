"""A driver from scratch: a dict, a list and nothing of repid's but the port. `docs/writing-a-broker.md` explains it."""

from __future__ import annotations

from bisect import insort
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count

import trio

from repid import BrokerRefused, Envelope, QueueNotDeclared
from repid.delivery import DeadLetter, Delivery, Release, Retry, Settlement, is_poison
from repid.ports import REFUSED, SETTLED, AtMost, Capabilities, Claimed, News, Topics, Verdict


class Stored:
    """One message: where it stands in line, and the lease it is under, if any."""

    def __init__(self, number: int, envelope: Envelope) -> None:
        self.number = number
        self.envelope = envelope
        self.attempt = 1
        self.lost = 0
        self.unrouted_since: float | None = None
        self.lease_ends = 0.0

    def __lt__(self, other: Stored) -> bool:
        return self.number < other.number


class ModestDriver:
    """Messages in a list, leases in a dict. It claims little: no roles, no delays, no priorities, no unique ids."""

    capabilities = Capabilities(leases="timed", outbox="publish_first", wakes="push", calls="remote")

    def __init__(self, lease_timeout: float = 60.0) -> None:
        self.lease_timeout = lease_timeout
        self.queues: set[str] = set()
        self.ready: list[Stored] = []
        self.leased: dict[int, Stored] = {}
        self.dead: list[Stored] = []
        self._numbers = count(1)
        self._consumers: dict[str, frozenset[str]] = {}
        self._has_news = trio.Event()

    @asynccontextmanager
    async def link(self, watched: Collection[str]) -> AsyncIterator[None]:
        """Nothing is kept open; the consumers of the link before this one do not exist any more."""
        assert not watched, "without the role nothing is watched"
        self._consumers.clear()
        yield

    async def declare(self, queues: Sequence[str]) -> None:
        """Create the queues that do not exist yet."""
        self.queues.update(queues)

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish all; for each None, or why it was refused."""
        return [self._add(envelope) for envelope in envelopes]

    async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
        """Note what the consumer reads. Topics are not looked at: `filters_topics` is not claimed."""
        for queue in queues:
            if queue not in self.queues:
                raise QueueNotDeclared(queue)
        self._consumers[consumer] = frozenset(queues)

    async def unsubscribe(self, consumer: str) -> None:
        """It takes nothing any more; its leases stay."""
        self._consumers.pop(consumer, None)

    async def claim(self, consumer: str, limit: int, at_most: AtMost) -> Claimed:
        """Lease the first ones that this consumer reads."""
        queues = self._consumers[consumer]
        found = [stored for stored in self.ready if stored.envelope.queue in queues][:limit]
        return Claimed([self._lease(stored) for stored in found])

    async def settle(self, consumer: str, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Carry out each disposition whose token is that of a lease."""
        return [self._settle(settlement) for settlement in settlements]

    async def extend(self, consumer: str, deliveries: Sequence[Delivery]) -> list[bool]:
        """Start the lease of each anew; False: it is lost."""
        for delivery in deliveries:
            if delivery.token in self.leased:
                self.leased[delivery.token].lease_ends = trio.current_time() + self.lease_timeout
        return [delivery.token in self.leased for delivery in deliveries]

    async def rescue(self) -> int:
        """Put back what was leased too long; a message that was lost too often is dead."""
        now = trio.current_time()
        ended = [token for token, stored in self.leased.items() if stored.lease_ends <= now]
        for token in ended:
            stored = self.leased.pop(token)
            stored.lost += 1
            if is_poison(stored.lost):
                self.dead.append(stored)
            else:
                self._put([stored])
        return len(ended)

    async def news(self, wait: float) -> News | None:
        """Wait until something is ready."""
        with trio.move_on_after(wait):
            await self._has_news.wait()
            self._has_news = trio.Event()
            return News(events=False, ids=())
        return None

    def _add(self, envelope: Envelope) -> BrokerRefused | None:
        if envelope.queue not in self.queues:
            return QueueNotDeclared(envelope.queue)
        self._put([Stored(next(self._numbers), envelope)])
        return None

    def _put(self, messages: Iterable[Stored]) -> None:
        for stored in messages:
            insort(self.ready, stored)  # what comes back has its former place
        self._has_news.set()

    def _lease(self, stored: Stored) -> Delivery:
        now, token = trio.current_time(), next(self._numbers)  # never used again: a stale token finds nothing
        self.ready.remove(stored)
        self.leased[token] = stored
        stored.lease_ends = now + self.lease_timeout
        since = stored.unrouted_since
        return Delivery(stored.envelope, stored.attempt, stored.lost, token, None if since is None else now - since)

    def _settle(self, settlement: Settlement) -> Verdict:
        stored = self.leased.get(settlement.delivery.token)
        if stored is None:
            return REFUSED  # before the outbox: a refused settlement does nothing
        self.queues.update(envelope.queue for envelope in settlement.outbox)
        for envelope in settlement.outbox:
            self._add(envelope)
        del self.leased[settlement.delivery.token]
        stored.lost = 0 if settlement.survived else stored.lost
        match settlement.disposition:
            case Retry():
                stored.attempt += 1
                self._put([stored])
            case Release(unrouted=unrouted):
                if unrouted and stored.unrouted_since is None:
                    stored.unrouted_since = trio.current_time()
                self._put([stored])
            case DeadLetter():
                self.dead.append(stored)
            case _:  # Ack, Cancel: it is gone
                pass
        return SETTLED
