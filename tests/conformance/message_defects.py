"""Memory brokers broken on purpose, in one respect each: in publishing, receiving and leasing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import trio
from broken import BrokenConsumer, BrokenServer

from repid.delivery import ACK, Delivery, NewResult, Release, Settlement
from repid.envelope import NO_OPTIONS, Envelope
from repid.errors import BrokerRefused, DuplicateId
from repid.ports import SETTLED, BrowsedMessage, Category, Topics, Verdict

# Publishing


class AcceptsBeforeItStores(BrokenServer):
    def __init__(self) -> None:
        super().__init__()
        self.pending: Sequence[Envelope] = ()

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        pending, self.pending = self.pending, envelopes
        await super().publish(pending)
        return [None] * len(envelopes)


class AcceptsDuplicates(BrokenServer):
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        outcomes = await super().publish(envelopes)
        return [None if isinstance(outcome, DuplicateId) else outcome for outcome in outcomes]


class LetsADuplicateSpoilTheBatch(BrokenServer):
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        for n, envelope in enumerate(envelopes):
            [outcome] = await super().publish([envelope])
            if isinstance(outcome, DuplicateId):
                return [None] * n + [outcome] * (len(envelopes) - n)
        return [None] * len(envelopes)


class FreesAnIdAtItsLease(BrokenServer):
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        outcomes = await super().publish(envelopes)
        return [
            None if outcome and envelope.id in self.leased else outcome
            for envelope, outcome in zip(envelopes, outcomes, strict=True)
        ]


class PublishesOneByOne(BrokenServer):
    """So that a cancelled call has published some."""

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        outcomes: list[BrokerRefused | None] = []
        for envelope in envelopes:
            outcomes += await super().publish([envelope])
            await trio.lowlevel.checkpoint()
        return outcomes


class PublishesBackwards(BrokenServer):
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        return (await super().publish(envelopes[::-1]))[::-1]


class KeepsOldResults(BrokenServer):
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        old = await self.fetch_results([envelope.result_id for envelope in envelopes])
        outcomes = await super().publish(envelopes)
        await self.store_results([NewResult(id=found.id, state=found.state) for found in old if found])
        return outcomes


class Disguising(BrokenServer):
    """Stores envelopes otherwise than they were, and gives them back as they were."""

    class Consumer(BrokenConsumer):
        async def receive(self, limit: int, **wishes: Any) -> list[Delivery]:
            server = cast("Disguising", self.server)
            deliveries = await super().receive(limit, **wishes)
            return [
                msgspec.structs.replace(d, envelope=server.originals.get(d.envelope.id, d.envelope)) for d in deliveries
            ]

    ignored = ""

    def __init__(self) -> None:
        super().__init__()
        self.originals: dict[str, Envelope] = {}

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        outcomes = await super().publish([self.disguise(envelope) for envelope in envelopes])
        for envelope, outcome in zip(envelopes, outcomes, strict=True):
            if outcome is None:
                self.originals[envelope.id] = envelope
        return outcomes

    async def browse(
        self, queue: str, category: Category, *, limit: int = 100, after: str | None = None
    ) -> list[BrowsedMessage]:
        found = await super().browse(queue, category, limit=limit, after=after)
        return [msgspec.structs.replace(b, envelope=self.originals.get(b.envelope.id, b.envelope)) for b in found]

    def disguise(self, envelope: Envelope) -> Envelope:
        options = msgspec.structs.replace(envelope.options, **{self.ignored: None})
        return msgspec.structs.replace(envelope, options=options)


class IgnoresTtl(Disguising):
    ignored = "ttl"


class IgnoresPriority(Disguising):
    ignored = "priority"


class IgnoresDelay(Disguising):
    ignored = "delay"


class ForgetsOptions(BrokenServer):
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        return await super().publish([msgspec.structs.replace(e, options=NO_OPTIONS) for e in envelopes])


# Receiving and leases


class LosesACancelledClaim(BrokenServer):
    class Consumer(BrokenConsumer):
        async def receive(self, limit: int, **wishes: Any) -> list[Delivery]:
            deliveries = await super().receive(limit, **wishes)
            await trio.lowlevel.checkpoint()
            return deliveries


class ForgetsALease(BrokenServer):
    """What is handed over is gone at once, so a worker that dies takes it along."""

    class Consumer(BrokenConsumer):
        async def receive(self, limit: int, **wishes: Any) -> list[Delivery]:
            deliveries = await super().receive(limit, **wishes)
            await self.sound.settle([Settlement(delivery, ACK) for delivery in deliveries])
            return deliveries

        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            return [SETTLED] * len(settlements)


class WaitsForPublishersOnly(BrokenServer):
    """A `receive` that waits is not woken when something is due."""

    class Consumer(BrokenConsumer):
        async def receive(self, limit: int, *, max_wait: float = float("inf"), **wishes: Any) -> list[Delivery]:
            server = cast("WaitsForPublishersOnly", self.server)
            deliveries = await super().receive(limit, max_wait=0, **wishes)
            with trio.move_on_after(max_wait):
                while not deliveries and max_wait > 0:
                    await server.published.wait()
                    deliveries = await super().receive(limit, max_wait=0, **wishes)
            return deliveries

    def __init__(self) -> None:
        super().__init__()
        self.published = trio.Event()

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        outcomes = await super().publish(envelopes)
        self.published.set()
        self.published = trio.Event()
        return outcomes


class RescuesLiveLeases(BrokenServer):
    class Consumer(BrokenConsumer):
        async def rescue(self) -> int:
            settlements = [Settlement(delivery, Release()) for delivery in self.server.leased.values()]
            return sum(verdict.accepted for verdict in await self.sound.settle(settlements))


class RescuesNobody(BrokenServer):
    class Consumer(BrokenConsumer):
        async def rescue(self) -> int:
            await trio.lowlevel.checkpoint()
            return 0


class LiesAboutExtending(BrokenServer):
    class Consumer(BrokenConsumer):
        async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
            await self.sound.extend(deliveries)
            return [True] * len(deliveries)


class ExtendsNothing(BrokenServer):
    class Consumer(BrokenConsumer):
        async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
            await trio.lowlevel.checkpoint()
            return [self.server.leased[delivery.envelope.id].token == delivery.token for delivery in deliveries]


class HandsBackWhatWasReceived(BrokenServer):
    """When a consumer is closed, also what it handed over is released."""

    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncGenerator[Any, None]:
        async with super().consume(queues) as consumer:
            yield consumer
            await consumer.settle([Settlement(delivery, Release()) for delivery in self.leased.values()])


class IgnoresTopics(BrokenServer):
    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncGenerator[Any, None]:
        async with super().consume(dict.fromkeys(queues)) as consumer:
            yield consumer


class IgnoresAtMost(BrokenServer):
    class Consumer(BrokenConsumer):
        async def receive(self, limit: int, *, at_most: object = None, **wishes: Any) -> list[Delivery]:
            return await super().receive(limit, **wishes)


class ForgetsBetweenConnections(BrokenServer):
    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Any, None]:
        async with super().connection():
            yield self
            await self.delete("q")
            await self.declare(["q"])


class KnowsOnlyTrio(BrokenServer):
    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Any, None]:
        await trio.lowlevel.checkpoint()
        async with super().connection():
            yield self
