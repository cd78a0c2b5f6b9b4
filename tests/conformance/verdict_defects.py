"""Memory brokers broken on purpose, in one respect each: in settling, tending, cancelling and ticking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import trio
from broken import BrokenConsumer, BrokenServer, change

from repid import ports
from repid.delivery import Delivery, NewResult, Progress, Release, Retry, Settlement
from repid.envelope import Envelope
from repid.ports import BrowsedMessage, Category, Counts, LeaseEvent, TickOutcome, Verdict

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
                await trio.lowlevel.checkpoint()
            return await self.sound.settle([change(settlement, outbox=()) for settlement in settlements])


class FreesIdsTooEarly(BrokenServer):
    """The verdicts of a call first, then their outboxes."""

    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            order = sorted(range(len(settlements)), key=lambda index: len(settlements[index].outbox))
            verdicts = await self.sound.settle([settlements[index] for index in order])
            return [verdicts[order.index(index)] for index in range(len(settlements))]


class MixesUpVerdicts(BrokenServer):
    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            return sorted(await self.sound.settle(settlements), key=lambda verdict: verdict.accepted)


class ChargesReleases(BrokenServer):
    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            return await self.sound.settle(
                [
                    change(s, disposition=Retry(s.disposition.delay)) if isinstance(s.disposition, Release) else s
                    for s in settlements
                ]
            )


class KeepsTheTtlOfWhatWasStarted(BrokenServer):
    class Consumer(BrokenConsumer):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            return await self.sound.settle(
                [
                    change(s, disposition=_forget_start(s.disposition)) if isinstance(s.disposition, Release) else s
                    for s in settlements
                ]
            )

        async def report(self, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:
            await self.sound.report([(delivery, how_far) for delivery, how_far in progress if how_far is not None])


def _forget_start(release: Release) -> Release:
    return Release(release.delay, release.unrouted)


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


class DeletesWhatIsAlive(BrokenServer):
    async def delete_messages(self, queue: str, keys: Iterable[str] | None = None) -> int:
        removed = await super().delete_messages(queue, keys)
        return removed + await self.flush(queue)


class IgnoresBrowseLimits(BrokenServer):
    async def browse(
        self, queue: str, category: Category, *, limit: int = 100, after: str | None = None
    ) -> list[BrowsedMessage]:
        return await super().browse(queue, category, limit=100_000, after=after)


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
        async def events(self) -> list[LeaseEvent]:
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


class WatchesImpatiently(BrokenServer):
    async def watch(
        self, id_: str, result_id: str, seen: ports.Snapshot | None = None, *, queue: str | None = None
    ) -> ports.Snapshot:
        return await super().watch(id_, result_id)


class ForgetsThatReadersGo(BrokenServer):
    def __init__(self) -> None:
        super().__init__()
        self.known: list[Mapping[str, ports.Topics]] = []

    async def readers(self) -> list[Mapping[str, ports.Topics]]:
        self.known = max(await super().readers(), self.known, key=len)
        return self.known


class TellsQueuesAlone(BrokenServer):
    """A reader is told with its queues, and with all of their topics."""

    async def readers(self) -> list[Mapping[str, ports.Topics]]:
        return [dict.fromkeys(reader) for reader in await super().readers()]


class TellsReadersThatAreAlikeOnce(BrokenServer):
    async def readers(self) -> list[Mapping[str, ports.Topics]]:
        found = await super().readers()
        return [reader for place, reader in enumerate(found) if reader not in found[:place]]


class TicksTwice(BrokenServer):
    """Looks, and only then acts: two that look at once both act."""

    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        found = [stored for stored in await self.schedules() if stored.schedule.name == name and not stored.paused]
        if not found or found[0].next_at != expected_next:
            return "lost"
        await self.put_schedule(found[0].schedule, next_at)
        await self.publish([] if envelope is None else [envelope])
        return "fired"


class ReplacesBlindly(BrokenServer):
    async def replace_schedule(self, old: ports.StoredSchedule | None, new: ports.StoredSchedule) -> bool:
        found = await self.schedules([new.schedule.name])
        return await super().replace_schedule(found[0] if found else None, new)


class NeverSkips(BrokenServer):
    async def put_schedule(self, schedule: Any, next_at: float) -> None:
        await super().put_schedule(msgspec.structs.replace(schedule, overlap="allow"), next_at)
