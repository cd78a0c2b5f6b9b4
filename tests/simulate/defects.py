"""Defects put into repid on purpose, one at a time: each a function that patches what it breaks.

The first half is in the runtime, the other in the engine (those of the conformance suite that a fleet can notice).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from repid.brokers.consumer import Consumer
from repid.brokers.door import Server
from repid.brokers.memory.driver import MemoryDriver
from repid.delivery import ACK, DeadLetter, Failure, Phase, Raised, Release, Retry, Settlement, Stopping, fate
from repid.errors import BrokerUnavailable, DuplicateId
from repid.ports import SETTLED
from repid.runtime.crew import Crew
from repid.runtime.executor import Executor
from repid.runtime.keeper import Keeper
from repid.runtime.ledger import Ledger
from repid.runtime.limits import Limit
from repid.runtime.roles import Role
from repid.runtime.settler import Settler

Patch = pytest.MonkeyPatch
Defect = Callable[[Patch], None]

# In the runtime


def settles_before_the_end(patch: Patch) -> None:
    call: Any = Executor._call

    def too_early(self: Executor, run: Any, role: Role) -> Any:
        self._settler.put(Settlement(run.delivery, ACK))
        return call(self, run, role)

    patch.setattr(Executor, "_call", too_early)


def forgets_the_held_batch_on_stop(patch: Patch) -> None:
    patch.setattr(Crew, "_release", lambda self, batch: None)


def runs_a_delivery_twice(patch: Patch) -> None:
    receive = Consumer.receive

    async def doubled(self: Consumer, *given: Any, **options: Any) -> Any:
        deliveries = await receive(self, *given, **options)
        return [*deliveries, *(replace_delivery(one) for one in deliveries[:1])]

    patch.setattr(Consumer, "receive", doubled)


def replace_delivery(delivery: Any) -> Any:
    """Another delivery under the same lease."""
    return replace(delivery)


def extends_no_lease(patch: Patch) -> None:
    async def nothing(_: Keeper) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Keeper, "_extend", nothing)


def ignores_concurrency(patch: Patch) -> None:
    patch.setattr(Limit, "is_full", False)
    patch.setattr(Limit, "room", lambda self, trip: 100)


def retries_nothing(patch: Patch) -> None:
    def buried(event: Raised, _: Any) -> DeadLetter:
        return DeadLetter("failed", event.failure)

    patch.setitem(fate.FATES, (Phase.RUNNING, Raised), buried)


def drops_verdicts_that_were_not_answered(patch: Patch) -> None:
    async def once(self: Settler, batch: list[Settlement]) -> list[Any]:
        try:
            return await self._consumer.settle(batch)
        except BrokerUnavailable:
            return [SETTLED] * len(batch)

    patch.setattr(Settler, "_settle", once)


def leaves_before_its_last_verdicts(patch: Patch) -> None:
    close = Settler.close

    async def hasty(self: Settler, bound: float) -> None:
        self._scope.cancel()
        await close(self, bound)

    patch.setattr(Settler, "close", hasty)


def stores_no_results(patch: Patch) -> None:
    patch.setattr(Role, "result", lambda *_: None)


def counts_what_was_not_settled(patch: Patch) -> None:
    settled = Ledger.settled

    def twice(self: Ledger, delivery: Any, disposition: Any, verdict: Any) -> None:
        self.succeeded += 1
        settled(self, delivery, disposition, verdict)

    patch.setattr(Ledger, "settled", twice)


def charges_an_interrupted_run(patch: Patch) -> None:
    def charged(_: Any, __: Any) -> DeadLetter:
        return DeadLetter("failed", Failure("Interrupted", ""))

    patch.setitem(fate.FATES, (Phase.RUNNING, Stopping), charged)


def takes_an_unanswered_publish_for_done(patch: Patch) -> None:
    publish = Server.publish

    async def sure(self: Server, envelopes: Any) -> Any:
        try:
            return await publish(self, envelopes)
        except BrokerUnavailable:
            return [None] * len(envelopes)

    patch.setattr(Server, "publish", sure)


def forgets_consumers_when_the_link_breaks(patch: Patch) -> None:
    async def forget(_: Server) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Server, "_subscribe_again", forget)


def loses_what_a_claim_brought(patch: Patch) -> None:
    receive = Consumer.receive

    async def leaky(self: Consumer, *given: Any, **options: Any) -> Any:
        return (await receive(self, *given, **options))[:1]

    patch.setattr(Consumer, "receive", leaky)


# In the engine


def changed(name: str, change: Callable[[MemoryDriver, Any, Any], Any]) -> Defect:
    """The driver's call, with `change(driver, call, arguments)` in its place."""

    def defect(patch: Patch) -> None:
        call: Any = getattr(MemoryDriver, name)

        async def broken(self: MemoryDriver, *arguments: Any) -> Any:
            return await change(self, call, arguments)

        patch.setattr(MemoryDriver, name, broken)

    return defect


def other_settlements(change: Callable[[Settlement], Settlement]) -> Defect:
    async def settle(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
        consumer, settlements = arguments
        return await call(driver, consumer, [change(one) for one in settlements])

    return changed("settle", settle)


async def _accepts_duplicates(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    answers = await call(driver, *arguments)
    return [None if isinstance(answer, DuplicateId) else answer for answer in answers]


async def _ignores_the_fence(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    await call(driver, *arguments)
    return [SETTLED] * len(arguments[1])


async def _lies_about_extending(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    await call(driver, *arguments)
    return [True] * len(arguments[1])


async def _rescues_nobody(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    return 0


async def _rescues_live_leases(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    driver.store.lease_timeout = 1.0
    return await call(driver, *arguments)


async def _accepts_before_it_stores(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    return [None] * len(arguments[0])


async def _publishes_without_options(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    plain = [replace(one, options=replace(one.options, delay=None)) for one in arguments[0]]
    return await call(driver, plain)


async def _cancels_in_name_only(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    return ["cancelled"] * len(arguments[0])


RUNTIME: list[Defect] = [
    settles_before_the_end,
    forgets_the_held_batch_on_stop,
    runs_a_delivery_twice,
    extends_no_lease,
    ignores_concurrency,
    retries_nothing,
    drops_verdicts_that_were_not_answered,
    leaves_before_its_last_verdicts,
    stores_no_results,
    counts_what_was_not_settled,
    charges_an_interrupted_run,
    takes_an_unanswered_publish_for_done,
    forgets_consumers_when_the_link_breaks,
    loses_what_a_claim_brought,
]

ENGINE: dict[str, Defect] = {
    "accepts_duplicates": changed("publish", _accepts_duplicates),
    "accepts_before_it_stores": changed("publish", _accepts_before_it_stores),
    "ignores_delays": changed("publish", _publishes_without_options),
    "ignores_the_fence": changed("settle", _ignores_the_fence),
    "lies_about_extending": changed("extend", _lies_about_extending),
    "rescues_nobody": changed("rescue", _rescues_nobody),
    "rescues_live_leases": changed("rescue", _rescues_live_leases),
    "cancels_in_name_only": changed("cancel", _cancels_in_name_only),
    "loses_the_outbox": other_settlements(lambda one: replace(one, outbox=())),
    "loses_results": other_settlements(lambda one: replace(one, result=None)),
    "retries_for_free": other_settlements(
        lambda one: (
            replace(one, disposition=Release(one.disposition.delay)) if isinstance(one.disposition, Retry) else one
        )
    ),
    "charges_releases": other_settlements(
        lambda one: (
            replace(one, disposition=Retry(one.disposition.delay)) if isinstance(one.disposition, Release) else one
        )
    ),
}

DEFECTS: dict[str, Defect] = {**{defect.__name__: defect for defect in RUNTIME}, **ENGINE}
