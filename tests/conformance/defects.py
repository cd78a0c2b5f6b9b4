"""Memory brokers that are broken on purpose, in one respect each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import trio

from repid import InMemoryServer, ports
from repid.delivery import ACK, Delivery, NewResult, Release, Retry, Settlement
from repid.envelope import NO_OPTIONS, Envelope
from repid.errors import BrokerRefused, DuplicateId
from repid.ports import SETTLED, BrowsedMessage, Category, Counts, TickOutcome, Topics, Verdict


class BrokenConsumer:
    """A consumer that does what it should, but for what a subclass breaks."""

    def __init__(self, sound: ports.Consumer, server: BrokenServer) -> None:
        self.sound = sound
        self.server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sound, name)

    async def receive(
        self, limit: int, *, at_most: Mapping[tuple[str, str], int] | None = None, max_wait: float = float("inf")
    ) -> list[Delivery]:
        deliveries = await self.sound.receive(limit, at_most=at_most, max_wait=max_wait)
        for delivery in deliveries:
            self.server.leased[delivery.envelope.id] = delivery
        return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        return await self.sound.settle(settlements)


class BrokenServer(InMemoryServer):
    """A memory broker that does what it should, but for what a subclass breaks. `leased`: the last lease of each id."""

    Consumer: type[BrokenConsumer] = BrokenConsumer

    def __init__(self) -> None:
        super().__init__()
        self.leased: dict[str, Delivery] = {}

    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncGenerator[Any, None]:
        async with super().consume(queues) as sound:
            yield self.Consumer(sound, self)


def change(settlement: Settlement, **changes: object) -> Settlement:
    return msgspec.structs.replace(settlement, **changes)


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
            for envelope, outcome in zip(envelopes, outcomes)
        ]


class PublishesOneByOne(BrokenServer):
    """So that a cancelled call has published some."""

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        return [
            outcome for envelope in envelopes for outcome in await super(PublishesOneByOne, self).publish([envelope])
        ]


class Disguising(BrokenServer):
    """Stores envelopes otherwise than they were, and gives them back as they were."""

    class Consumer(BrokenConsumer):
        async def receive(self, limit: int, **wishes: Any) -> list[Delivery]:
            server = cast("Disguising", self.server)
            deliveries = await super().receive(limit, **wishes)
            return [msgspec.structs.replace(d, envelope=server.originals[d.envelope.id]) for d in deliveries]

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

    async def browse(self, queue: str, category: Category, *, limit: int = 100) -> list[BrowsedMessage]:
        found = await super().browse(queue, category, limit=limit)
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


# Settling


class IgnoresTheFence(BrokenServer):
    """Whoever had a message may settle it, whoever has it now."""

    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            leased = self.server.leased
            return await self.sound.settle([change(s, delivery=leased[s.delivery.envelope.id]) for s in settlements])


class LosesTheOutbox(BrokenServer):
    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            return await self.sound.settle([change(settlement, outbox=()) for settlement in settlements])


class PublishesARefusedOutbox(BrokenServer):
    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            verdicts = await self.sound.settle(settlements)
            for settlement, verdict in zip(settlements, verdicts, strict=True):
                if not verdict.accepted:
                    await self.server.publish(settlement.outbox)
            return verdicts


class StoresARefusedResult(BrokenServer):
    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            results = [settlement.result for settlement in settlements if settlement.result]
            verdicts = await self.sound.settle(settlements)
            await self.server.store_results(results)
            return verdicts


class LosesResults(BrokenServer):
    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            return await self.sound.settle([change(settlement, result=None) for settlement in settlements])


class SettlesInTwoSteps(BrokenServer):
    """The outbox first, then the verdict: cancelled in between, the outbox is out and the message still leased."""

    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            held = await self.sound.extend([settlement.delivery for settlement in settlements])
            for settlement, ours in zip(settlements, held, strict=True):
                await self.server.declare([envelope.queue for envelope in settlement.outbox if ours])
                await self.server.publish(settlement.outbox if ours else ())
            return await self.sound.settle([change(settlement, outbox=()) for settlement in settlements])


class ChargesReleases(BrokenServer):
    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            return await self.sound.settle(
                [
                    change(s, disposition=Retry(s.disposition.delay)) if isinstance(s.disposition, Release) else s
                    for s in settlements
                ]
            )


class RetriesForFree(BrokenServer):
    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            return await self.sound.settle(
                [
                    change(s, disposition=Release(s.disposition.delay)) if isinstance(s.disposition, Retry) else s
                    for s in settlements
                ]
            )


# Tending


class CountsLeasedAsReady(BrokenServer):
    async def counts(self, queue: str) -> Counts:
        counts = await super().counts(queue)
        return msgspec.structs.replace(counts, ready=counts.ready + counts.leased, leased=0)


class FlushesLeases(BrokenServer):
    async def flush(self, queue: str) -> int:
        counts = await self.counts(queue)
        await self.delete(queue)
        await self.declare([queue])
        return counts.ready + counts.scheduled


class IgnoresBrowseLimits(BrokenServer):
    async def browse(self, queue: str, category: Category, *, limit: int = 100) -> list[BrowsedMessage]:
        return await super().browse(queue, category, limit=100_000)


class PausesInNameOnly(BrokenServer):
    def __init__(self) -> None:
        super().__init__()
        self.paused: set[str] = set()

    async def pause(self, queue: str) -> None:
        await self.counts(queue)
        self.paused.add(queue)

    async def resume(self, queue: str) -> None:
        await self.counts(queue)
        self.paused.discard(queue)

    async def counts(self, queue: str) -> Counts:
        return msgspec.structs.replace(await super().counts(queue), paused=queue in self.paused)


# Cancelling, results, schedules


class ForgetsToTellTheRun(BrokenServer):
    class Consumer(BrokenConsumer):
        async def cancellations(self) -> list[int]:
            return await trio.sleep_forever()


class RetriesTheCancelled(BrokenServer):
    """A request to cancel a run is answered and forgotten."""

    async def cancel(self, id_: str) -> Any:
        if id_ in self.leased:
            await trio.lowlevel.checkpoint()
            return "requested"
        return await super().cancel(id_)


class KeepsResultsForEver(BrokenServer):
    async def store_results(self, results: Sequence[NewResult]) -> None:
        await super().store_results([msgspec.structs.replace(result, ttl=1e9) for result in results])


class KeepsNoProgress(BrokenServer):
    class Consumer(BrokenConsumer):
        async def report(self, progress: object) -> None:
            await trio.lowlevel.checkpoint()


class TicksTwice(BrokenServer):
    """Looks, and only then acts: two that look at once both act."""

    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        found = [stored for stored in await self.schedules() if stored.schedule.name == name and not stored.paused]
        if not found or found[0].next_at != expected_next:
            return "lost"
        await trio.lowlevel.checkpoint()
        await self.put_schedule(found[0].schedule, expected_next)
        return await super().tick(name, expected_next, next_at, envelope)


class NeverSkips(BrokenServer):
    async def put_schedule(self, schedule: Any, next_at: float) -> None:
        await super().put_schedule(msgspec.structs.replace(schedule, overlap="allow"), next_at)
