"""Defects put into repid on purpose, one at a time: each a function that patches what it breaks.

The first half is in the runtime, the other in the engine (those of the conformance suite that a fleet can notice).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from repid.brokers.consumer import Consumer
from repid.brokers.door import Server
from repid.brokers.memory.driver import MemoryDriver
from repid.brokers.memory.record import Subscription
from repid.delivery import (
    ACK,
    Ack,
    DeadLetter,
    Delivery,
    Failure,
    Phase,
    Raised,
    Release,
    Retry,
    Settlement,
    Stopping,
    fate,
)
from repid.envelope import NO_OPTIONS, Envelope
from repid.errors import BrokerUnavailable, DuplicateId, PublishUnknown
from repid.inject import Message
from repid.ports import ANYTHING, SETTLED, Claimed, Take, Verdict, WaitForChange
from repid.runtime import worker
from repid.runtime.actor_runners import ActorRunner
from repid.runtime.crew import Crew
from repid.runtime.executor import Executor
from repid.runtime.keeper import Keeper
from repid.runtime.ledger import Ledger
from repid.runtime.limits import Limit
from repid.runtime.settler import Settler
from repid.runtime.timer import Timer

Patch = pytest.MonkeyPatch
Defect = Callable[[Patch], None]

# In the runtime


def _change_what_is_received(patch: Patch, change: Callable[[list[Delivery]], list[Delivery]]) -> None:
    receive = Consumer.receive

    async def changed(self: Consumer, *given: Any, take: Take | None = None, **options: Any) -> list[Delivery]:
        deliveries: list[Delivery] = []

        def change_and_take(received: list[Delivery]) -> None:
            deliveries.extend(change(received))
            if take is not None:
                take(deliveries)

        await receive(self, *given, take=change_and_take, **options)
        return deliveries

    patch.setattr(Consumer, "receive", changed)


def settles_before_the_end(patch: Patch) -> None:
    call: Any = Executor._call

    def too_early(self: Executor, run: Any, *given: Any) -> Any:
        self._settler.put(Settlement(run.delivery, ACK), run)
        return call(self, run, *given)

    patch.setattr(Executor, "_call", too_early)


def forgets_the_held_batch_on_stop(patch: Patch) -> None:
    patch.setattr(Crew, "_release", lambda self, batch: None)


def runs_a_delivery_twice(patch: Patch) -> None:
    def doubled(deliveries: list[Delivery]) -> list[Delivery]:
        return [*deliveries, *(replace(one) for one in deliveries[:1])]  # another delivery under the same lease

    _change_what_is_received(patch, doubled)


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


def settles_nothing_after_a_stop(patch: Patch) -> None:
    close = Crew.close

    def hasty(self: Crew) -> None:
        close(self)
        self.settler._scope.cancel()

    patch.setattr(Crew, "close", hasty)


def stores_no_results(patch: Patch) -> None:
    patch.setattr(ActorRunner, "result", lambda *_: None)


def counts_what_was_not_settled(patch: Patch) -> None:
    settled = Ledger.settled

    def twice(self: Ledger, settlements: Any, verdicts: Any) -> None:
        self.succeeded += len(settlements)
        settled(self, settlements, verdicts)

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
        except PublishUnknown:
            return [None] * len(envelopes)

    patch.setattr(Server, "publish", sure)


def forgets_consumers_when_the_link_breaks(patch: Patch) -> None:
    async def forget(_: Server) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Server, "_subscribe_again", forget)


def loses_what_a_claim_brought(patch: Patch) -> None:
    _change_what_is_received(patch, lambda deliveries: deliveries[:1])


def ignores_messages_limit(patch: Patch) -> None:
    make = Ledger.__init__

    def boundless(self: Ledger, tasks_limit: int, messages_limit: float, claim_bytes: float) -> None:
        make(self, tasks_limit, messages_limit + 1, claim_bytes)

    patch.setattr(Ledger, "__init__", boundless)


def keeps_what_it_has_settled(patch: Patch) -> None:
    """So that it goes on extending leases that are over."""
    settled = Ledger.settled

    def kept(self: Ledger, settlements: Any, verdicts: Any) -> None:
        holdings = [self.holdings.get(settlement.delivery) for settlement in settlements]
        settled(self, settlements, verdicts)
        for holding in holdings:
            if holding is not None:
                self.holdings[holding.delivery] = holding
                holding.is_ours = True

    patch.setattr(Ledger, "settled", kept)


def takes_unknown_for_refused(patch: Patch) -> None:
    patch.setattr(Consumer, "_answered", lambda self, settlement, verdict: verdict)


def goes_on_after_a_lost_lease(patch: Patch) -> None:
    patch.setattr(Crew, "lease_lost", lambda self, holding: self.ledger.lost(holding) if holding.is_ours else None)


def believes_in_leases_that_were_not_extended(patch: Patch) -> None:
    async def nothing(_: Keeper) -> None:
        await trio.sleep_forever()

    patch.setattr(Keeper, "watch", nothing)


def rescues_nobody_at_all(patch: Patch) -> None:
    async def nothing(_: Consumer) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    patch.setattr(Consumer, "rescue", nothing)


def ignores_timeouts(patch: Patch) -> None:
    patch.setattr(ActorRunner, "timeout", lambda self, envelope: float("inf"))


def rearms_a_used_scope(patch: Patch) -> None:
    """Deadlines are set on the first scope of the timer, which is over once a timeout has passed."""
    watch = Timer.watch
    first: weakref.WeakKeyDictionary[Timer, Any] = weakref.WeakKeyDictionary()

    def rearm(self: Timer, deadline: float) -> None:
        present = self._scope
        self._scope = first.setdefault(self, present)
        watch(self, deadline)
        self._scope = present

    patch.setattr(Timer, "watch", rearm)


def ignores_cancellations(patch: Patch) -> None:
    patch.setattr(Crew, "cancel", lambda self, tokens: None)


def drops_the_outbox(patch: Patch) -> None:
    patch.setattr(Message, "_close", lambda self, disposition: ())


def sends_the_outbox_of_a_failure(patch: Patch) -> None:
    def all_of_it(self: Message, _: Any) -> Any:
        return () if self._outbox is None else self._outbox._close()

    patch.setattr(Message, "_close", all_of_it)


def runs_what_may_not_be_acknowledged(patch: Patch) -> None:
    async def hopeful(self: Executor, run: Any) -> bool:
        run.acked_first = True
        self._settler.put(Settlement(run.delivery, ACK))
        await trio.lowlevel.checkpoint()
        return True

    patch.setattr(Executor, "_ack_first", hopeful)


def publishes_again_under_another_id(patch: Patch) -> None:
    publish = Server.publish

    async def twice(self: Server, envelopes: Any) -> Any:
        try:
            return await publish(self, envelopes)
        except PublishUnknown:
            await trio.sleep(3.0)  # until the link is up again
            return await publish(self, [replace(one, id=f"{one.id}-again") for one in envelopes])

    patch.setattr(Server, "publish", twice)


def snoozes_at_the_cost_of_an_attempt(patch: Patch) -> None:
    put = Settler.put

    def charged(self: Settler, settlement: Settlement, *holding: Any) -> None:
        disposition = settlement.disposition
        if isinstance(disposition, Release) and disposition.delay == 0.7:
            settlement = replace(settlement, disposition=Retry(0.7))
        put(self, settlement, *holding)

    patch.setattr(Settler, "put", charged)


def hears_of_a_reply_and_loses_it(patch: Patch) -> None:
    put = Settler.put

    def without(self: Settler, settlement: Settlement, *holding: Any) -> None:
        put(self, replace(settlement, outbox=()), *holding)

    patch.setattr(Settler, "put", without)


def stops_without_a_word(patch: Patch) -> None:
    """An interrupted run is dropped rather than released."""

    def dropped(_: Any, __: Any) -> None:
        return None

    patch.setitem(fate.FATES, (Phase.RUNNING, Stopping), dropped)


def never_ticks(patch: Patch) -> None:
    async def nothing(*_: Any) -> None:
        await trio.sleep_forever()

    patch.setattr(worker, "run_schedules", nothing)


def hears_of_no_new_schedule(patch: Patch) -> None:
    @contextmanager
    def deaf(_: Server) -> Iterator[WaitForChange]:
        async def rest(until: float) -> bool:
            await trio.sleep_until(until)
            return False

        yield rest

    patch.setattr(Server, "schedule_changes", deaf)


def takes_full_for_settled(patch: Patch) -> None:
    settle = Consumer.settle

    async def settled(self: Consumer, settlements: Sequence[Settlement]) -> list[Verdict]:
        return [SETTLED if verdict.full else verdict for verdict in await settle(self, settlements)]

    patch.setattr(Consumer, "settle", settled)


# In the engine


Change = Callable[[MemoryDriver, Any, Any], Any]


def changed(name: str, change: Change) -> Defect:
    """The driver's call, with `change(driver, call, arguments)` in its place."""

    def defect(patch: Patch) -> None:
        call: Any = getattr(MemoryDriver, name)

        async def broken(self: MemoryDriver, *arguments: Any, **options: Any) -> Any:
            return await change(self, partial(call, **options), arguments)

        patch.setattr(MemoryDriver, name, broken)

    return defect


def other_envelopes(change: Callable[[Envelope], Envelope]) -> Defect:
    async def publish(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
        return await call(driver, [change(one) for one in arguments[0]])

    return changed("publish", publish)


def without_option(name: str) -> Defect:
    return other_envelopes(lambda one: replace(one, options=replace(one.options, **{name: None})))


def other_settlements(change: Callable[[Settlement], Settlement]) -> Defect:
    async def settle(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
        consumer, settlements = arguments
        return await call(driver, consumer, [change(one) for one in settlements])

    return changed("settle", settle)


def other_disposition(kind: type, change: Callable[[Any], Any]) -> Defect:
    return other_settlements(
        lambda one: replace(one, disposition=change(one.disposition)) if isinstance(one.disposition, kind) else one
    )


def together(*defects: Defect) -> Defect:
    def all_of_them(patch: Patch) -> None:
        for defect in defects:
            defect(patch)

    return all_of_them


def other_claims(change: Callable[[Claimed], Claimed]) -> Defect:
    async def claim(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
        return change(await call(driver, *arguments))

    return changed("claim", claim)


def answering(name: str, answer: Callable[[Any], Any], *, asks: bool = True) -> Defect:
    """The call is carried out, or not even that, and answered in this way whatever came of it."""

    async def change(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
        if asks:
            await call(driver, *arguments)
        return answer(arguments)

    return changed(name, change)


async def _accepts_duplicates(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    answers = await call(driver, *arguments)
    return [None if isinstance(answer, DuplicateId) else answer for answer in answers]


async def _lets_a_duplicate_spoil_the_batch(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    answers: list[Any] = []
    for envelope in arguments[0]:
        answers += [answers[-1]] if answers and answers[-1] else await call(driver, [envelope])
    return answers


async def _frees_an_id_at_its_lease(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    leased = {record.envelope.id for each in driver.store.channels.values() for record in each.leases.values()}
    answers = await call(driver, *arguments)
    return [None if one.id in leased else answer for one, answer in zip(arguments[0], answers, strict=True)]


async def _publishes_backwards(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    return (await call(driver, arguments[0][::-1]))[::-1]


async def _rescues_live_leases(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    driver.store.lease_timeout = 1.0
    return await call(driver, *arguments)


async def _forgets_a_lease(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    claimed = await call(driver, *arguments)
    await driver.settle("", [Settlement(delivery, ACK) for delivery in claimed.deliveries])
    return claimed


async def _hands_out_twice(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    claimed = await call(driver, *arguments)
    if claimed.deliveries:
        driver.latest = claimed.deliveries[-1]  # type: ignore[attr-defined]
    elif arguments[1] and hasattr(driver, "latest"):
        return replace(claimed, deliveries=[driver.latest])
    return claimed


async def _hands_back_what_was_received(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    subscription = driver._subscriptions.get(arguments[0])
    for channel in driver.store.channels.values():
        for token, record in list(channel.leases.items()):
            if record.place.subscription is subscription:  # type: ignore[union-attr]
                await driver.settle("", [Settlement(Delivery(record.envelope, 1, 0, token), Release())])
    return await call(driver, *arguments)


async def _ignores_topics(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    consumer, queues = arguments
    return await call(driver, consumer, dict.fromkeys(queues))


async def _ignores_limits(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    consumer, limit, _ = arguments
    return await call(driver, consumer, limit, ANYTHING)


async def _retries_without_the_fence(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    verdicts = await call(driver, *arguments)
    for settlement, verdict in zip(arguments[1], verdicts, strict=True):
        id_ = settlement.delivery.envelope.id
        for channel in driver.store.channels.values():
            for token, record in list(channel.leases.items()):
                if not verdict.accepted and record.envelope.id == id_ and isinstance(settlement.disposition, Retry):
                    await driver.settle("", [Settlement(Delivery(record.envelope, 1, 0, token), Retry(0.0))])
    return verdicts


async def _publishes_a_refused_outbox(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    verdicts = await call(driver, *arguments)
    for settlement, verdict in zip(arguments[1], verdicts, strict=True):
        if not verdict.accepted:
            await driver.publish(settlement.outbox)
    return verdicts


async def _stores_a_refused_result(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    verdicts = await call(driver, *arguments)
    await driver.store_results([one.result for one in arguments[1] if one.result is not None])
    return verdicts


async def _mixes_up_verdicts(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    return (await call(driver, *arguments))[::-1]


async def _flushes_leases(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    removed = await call(driver, *arguments)
    channel = driver.store.channels[arguments[0]]
    leased = [Delivery(record.envelope, 1, 0, token) for token, record in channel.leases.items()]
    await driver.settle("", [Settlement(delivery, ACK) for delivery in leased])
    return removed


async def _deletes_what_is_alive(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    deleted = await call(driver, *arguments)
    await driver.flush(arguments[0])
    return deleted


async def _forgets_to_tell_the_run(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    answers = await call(driver, *arguments)
    for subscription in driver._subscriptions.values():
        subscription.requests.clear()
    return answers


async def _ticks_twice(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    _name, _expected_next, _next_at, envelope = arguments
    outcome = await call(driver, *arguments)
    if outcome == "lost" and envelope is not None:
        await driver.publish([envelope])
        return "fired"
    return outcome


async def _replaces_blindly(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    [changes] = arguments
    there = {stored.schedule.name: stored for stored in await driver.schedules(None)}
    return await call(driver, [(there.get(new.schedule.name), new) for _, new in changes])


async def _never_skips(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    stored = await driver.schedules([arguments[0]])
    if stored:
        allowing = replace(stored[0], schedule=replace(stored[0].schedule, overlap="allow"))
        await driver.replace_schedules([(stored[0], allowing)])
    return await call(driver, *arguments)


async def _counts_no_loss(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    rescued = await call(driver, *arguments)
    for record in driver.store._ids.values():
        if record.extras is not None:
            record.extras.lost = 0
    return rescued


async def _forgets_its_consumers(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    answer = await call(driver, *arguments)
    for consumer in list(driver._subscriptions)[:1]:
        driver._subscriptions[consumer] = Subscription({})
    return answer


async def _settles_without_a_full_outbox(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    consumer, settlements = arguments
    verdicts = await call(driver, *arguments)
    for place, verdict in enumerate(verdicts):
        if verdict.full is not None:
            verdicts[place : place + 1] = await call(driver, consumer, [replace(settlements[place], outbox=())])
    return verdicts


async def _counts_no_drops(driver: MemoryDriver, call: Any, arguments: Any) -> Any:
    answers = await call(driver, *arguments)
    for channel in driver.store.channels.values():
        channel.dropped = 0
    return answers


RUNTIME: list[Defect] = [
    settles_before_the_end,
    forgets_the_held_batch_on_stop,
    runs_a_delivery_twice,
    extends_no_lease,
    ignores_concurrency,
    retries_nothing,
    drops_verdicts_that_were_not_answered,
    settles_nothing_after_a_stop,
    stores_no_results,
    counts_what_was_not_settled,
    charges_an_interrupted_run,
    takes_an_unanswered_publish_for_done,
    forgets_consumers_when_the_link_breaks,
    loses_what_a_claim_brought,
    ignores_messages_limit,
    keeps_what_it_has_settled,
    takes_unknown_for_refused,
    goes_on_after_a_lost_lease,
    believes_in_leases_that_were_not_extended,
    rescues_nobody_at_all,
    ignores_timeouts,
    rearms_a_used_scope,
    ignores_cancellations,
    drops_the_outbox,
    sends_the_outbox_of_a_failure,
    runs_what_may_not_be_acknowledged,
    publishes_again_under_another_id,
    snoozes_at_the_cost_of_an_attempt,
    hears_of_a_reply_and_loses_it,
    stops_without_a_word,
    never_ticks,
    hears_of_no_new_schedule,
    takes_full_for_settled,
]

ENGINE: dict[str, Defect] = {
    "accepts_duplicates": changed("publish", _accepts_duplicates),
    "accepts_before_it_stores": answering("publish", lambda given: [None] * len(given[0]), asks=False),
    "lets_a_duplicate_spoil_the_batch": changed("publish", _lets_a_duplicate_spoil_the_batch),
    "frees_an_id_at_its_lease": changed("publish", _frees_an_id_at_its_lease),
    "publishes_backwards": changed("publish", _publishes_backwards),
    "ignores_delays": without_option("delay"),
    "ignores_ttls": without_option("ttl"),
    "ignores_priorities": without_option("priority"),
    "forgets_options": other_envelopes(lambda one: replace(one, options=NO_OPTIONS)),
    "forgets_a_lease": changed("claim", _forgets_a_lease),
    "forgets_a_message": other_claims(lambda claimed: replace(claimed, deliveries=claimed.deliveries[:-1])),
    "hands_out_twice": changed("claim", _hands_out_twice),
    "hands_back_what_was_received": changed("unsubscribe", _hands_back_what_was_received),
    "ignores_topics": changed("subscribe", _ignores_topics),
    "ignores_limits_of_actors": changed("claim", _ignores_limits),
    "forgets_its_consumers": changed("subscribe", _forgets_its_consumers),
    "ignores_the_fence": answering("settle", lambda given: [SETTLED] * len(given[1])),
    "retries_without_the_fence": changed("settle", _retries_without_the_fence),
    "mixes_up_verdicts": changed("settle", _mixes_up_verdicts),
    "publishes_a_refused_outbox": changed("settle", _publishes_a_refused_outbox),
    "stores_a_refused_result": changed("settle", _stores_a_refused_result),
    "loses_the_outbox": other_settlements(lambda one: replace(one, outbox=())),
    "loses_results": other_settlements(lambda one: replace(one, result=None)),
    "retries_for_free": other_disposition(Retry, lambda retry: Release(retry.delay)),
    "charges_releases": other_disposition(Release, lambda release: Retry(release.delay)),
    "keeps_the_ttl_of_what_was_started": together(
        answering("report", lambda _: None, asks=False),
        other_disposition(Release, lambda release: replace(release, started=False)),
    ),
    "acknowledges_nothing": other_disposition(Ack, lambda _: Release()),
    "lies_about_extending": answering("extend", lambda given: [True] * len(given[1])),
    "extends_nothing": answering("extend", lambda given: [True] * len(given[1]), asks=False),
    "rescues_nobody": answering("rescue", lambda _: 0, asks=False),
    "rescues_live_leases": changed("rescue", _rescues_live_leases),
    "counts_no_loss": changed("rescue", _counts_no_loss),
    "cancels_in_name_only": answering("cancel", lambda given: ["cancelled"] * len(given[0]), asks=False),
    "forgets_to_tell_the_run": changed("cancel", _forgets_to_tell_the_run),
    "pauses_in_name_only": answering("pause", lambda _: None, asks=False),
    "flushes_leases": changed("flush", _flushes_leases),
    "deletes_what_is_alive": changed("delete_messages", _deletes_what_is_alive),
    "ticks_twice": changed("tick", _ticks_twice),
    "replaces_blindly": changed("replace_schedules", _replaces_blindly),
    "never_skips": changed("tick", _never_skips),
    "ignores_bounds": answering("set_bounds", lambda _: None, asks=False),
    "settles_without_a_full_outbox": changed("settle", _settles_without_a_full_outbox),
    "counts_no_drops": changed("publish", _counts_no_drops),
}

DEFECTS: dict[str, Defect] = {**{defect.__name__: defect for defect in RUNTIME}, **ENGINE}
