"""What is promised when the link breaks: before the engine did the work, after it, and while everybody waits."""

from __future__ import annotations

from collections import Counter

import trio

from ...delivery import ACK
from ...errors import BrokerUnavailable, DuplicateId, PublishUnknown
from ...ports import REFUSED, SETTLED, UNKNOWN, Consumer, LeaseEvent, Verdict
from ..cutting import Way
from ..expecting import expect
from ..judging import check
from ..lab import Lab, ids, message, messages

WAYS: tuple[Way, ...] = ("before", "after")


async def _is_up(lab: Lab) -> bool:
    """Whether calls are answered again."""
    try:
        await lab.broker.declare(["q"])
    except BrokerUnavailable:
        return False
    return True


async def _wait_up(lab: Lab) -> None:
    await lab.soon("the link is open again", lambda: _is_up(lab))


async def _publish_unanswered(lab: Lab, way: Way, *ids_: str) -> None:
    lab.cut.at("publish", way)
    try:
        outcomes = await lab.broker.publish([message(id_) for id_ in ids_])
    except PublishUnknown as error:
        expect("the ids that are named", error.ids, ids_)
    else:
        expect(f"what a publish says that was cut off {way} the work", outcomes, PublishUnknown)
    await _wait_up(lab)


@check("cut")
async def an_unanswered_publish_is_unknown(lab: Lab) -> None:
    """A publish without an answer raises `PublishUnknown` with its ids; sent again, nothing of it is missing."""
    for way in WAYS:
        await _publish_unanswered(lab, way, f"{way}1", f"{way}2")
        await lab.broker.publish([message(f"{way}1"), message(f"{way}2")])
    async with lab.consumer() as consumer:
        received = set(ids(await lab.drain(consumer)))
        expect("what is received", received, {f"{way}{n}" for way in WAYS for n in (1, 2)})


@check("cut", "unique_ids")
async def an_unanswered_publish_can_be_repeated(lab: Lab) -> None:
    """Where ids are unique, sending again under the same ids doubles nothing; the outcome tells what was there."""
    for way in WAYS:
        await _publish_unanswered(lab, way, way)
        [outcome] = await lab.broker.publish([message(way)])
        expect(
            f"the second outcome, cut off {way} the work", type(outcome), DuplicateId if way == "after" else type(None)
        )
    async with lab.consumer() as consumer:
        expect("what is received", Counter(ids(await lab.drain(consumer))), Counter(WAYS))


@check("cut")
async def a_settlement_whose_answer_was_lost_is_unknown(lab: Lab) -> None:
    """Asked again, it is settled, or unknown where it was carried out before: never refused. Others still are."""
    unsent = UNKNOWN if lab.ends_with_link else SETTLED  # a lease that ended with the link may have been settled
    verdicts: tuple[tuple[Way, Verdict], ...] = (("before", unsent), ("after", UNKNOWN))
    async with lab.consumer() as consumer:
        await lab.publish(message("stale"))
        stale = await lab.take_one(consumer)
        expect("the verdict", await lab.settle(consumer, stale, ACK), SETTLED)
        for way, verdict in verdicts:
            await lab.publish(message(way))
            delivery = await lab.take_one(consumer)
            lab.cut.at("settle", way)
            try:
                answer: object = await lab.settle(consumer, delivery, ACK)
            except BrokerUnavailable:
                await _wait_up(lab)
            else:
                expect(f"what a settlement says that was cut off {way} the work", answer, BrokerUnavailable)
            expect(f"the second verdict, cut off {way} the work", await lab.settle(consumer, delivery, ACK), verdict)
            expect("the third verdict", await lab.settle(consumer, delivery, ACK), REFUSED)
            again = await lab.drain(consumer)
            expect("what comes back", ids(again), ["before"] if lab.ends_with_link and way == "before" else [])
            await lab.settle_all(consumer, again, ACK)
        expect("the verdict on what was settled and answered", await lab.settle(consumer, stale, ACK), REFUSED)


@check("cut")
async def a_consumer_survives_a_broken_link(lab: Lab) -> None:
    """A `receive` that waits goes on waiting while the engine is away, and gets what comes afterwards; leases go on."""
    received: list[str] = []
    async with lab.consumer() as consumer, trio.open_nursery() as nursery:
        await lab.publish(message("leased"))
        leased = await lab.take_one(consumer)
        links = lab.cut.links

        async def receive(consumer: Consumer) -> None:
            received.extend(ids(await consumer.receive(1)))

        async def is_served() -> bool:
            return bool(received)

        nursery.start_soon(receive, consumer)
        await lab.idle()
        lab.cut.go_down()
        await lab.idle()
        expect("whether it is up while the engine is away", await _is_up(lab), expected=False)
        lab.cut.come_back()
        await _wait_up(lab)
        expect("whether the link was opened anew", lab.cut.links > links, expected=True)
        await lab.publish(message("1"))
        await lab.soon("what was published afterwards is received", is_served)
        expect("what is received", received, ["leased"] if lab.ends_with_link else ["1"])
        verdict = await lab.settle(consumer, leased, ACK)
        expect("the verdict on what was leased before", verdict, REFUSED if lab.ends_with_link else SETTLED)


@check("cut", "readers")
async def a_consumer_that_is_closed_while_the_link_is_down_reads_no_more(lab: Lab) -> None:
    """A consumer that is closed while the link is down is none of the queue's readers when it is up again."""
    async with lab.consumer():
        async with lab.consumer():
            lab.cut.go_down()
            expect("whether it is up while the engine is away", await _is_up(lab), expected=False)
        lab.cut.come_back()
        await _wait_up(lab)
        expect("the readers", await lab.broker.readers(), [{"q": None}])


@check("cut")
async def while_the_engine_is_away_calls_fail_at_once(lab: Lab) -> None:
    """When the link is known to be down, a call raises `BrokerUnavailable` and is not sent: no publish is unknown."""
    lab.cut.go_down()
    expect("whether it is up", await _is_up(lab), expected=False)
    try:
        outcomes: object = await lab.broker.publish(messages(2))
    except PublishUnknown as error:
        outcomes = error
    except BrokerUnavailable:
        outcomes = None
    expect("what a publish says", outcomes, None)
    lab.cut.come_back()
    await _wait_up(lab)
    async with lab.consumer() as consumer:
        expect("what was published", ids(await lab.drain(consumer)), [])


@check("cut", "leases=timed")
async def a_claim_whose_answer_was_lost_loses_nothing(lab: Lab) -> None:
    """What was leased and not answered comes back when its lease has ended."""
    async with lab.consumer() as consumer:
        await lab.publish(*messages(2))
        lab.cut.at("claim", "after")
        try:
            answer: object = ids(await consumer.receive(1, max_wait=0))
        except BrokerUnavailable:
            await _wait_up(lab)
        else:
            expect("what a receive says that was cut off after the work", answer, BrokerUnavailable)
        await lab.outlive(consumer)
        await consumer.rescue()
        received = {delivery.envelope.id: delivery.lost for delivery in await lab.take(consumer, 2)}
        expect("what is received, and how often it was lost", received, {"m0": 1, "m1": 0})


@check("cut", "tracking", "leases=timed")
async def a_cancellation_whose_answer_was_lost_is_told(lab: Lab) -> None:
    """`events` tells of a cancellation although the first answer was lost on its way; then once, not again."""
    told: list[LeaseEvent] = []
    async with lab.consumer() as consumer, trio.open_nursery() as nursery:

        async def listen() -> None:
            while True:
                try:
                    told.extend(await consumer.events())
                except BrokerUnavailable:
                    await trio.sleep(lab.time.cushion or 0.001)

        await lab.publish(*messages(2))
        one, two = await lab.take(consumer, 2)
        nursery.start_soon(listen)
        await lab.idle()
        lab.cut.at("events", "after")
        await lab.broker.cancel(one.envelope.id)
        await lab.soon("the cancellation is told", lambda: _has(told, 1))
        await lab.broker.cancel(two.envelope.id)
        await lab.soon("the other one is told", lambda: _has(told, 2))
        await lab.idle()
        expect("what is told", told, [LeaseEvent(one.token, "cancel"), LeaseEvent(two.token, "cancel")])
        nursery.cancel_scope.cancel()


async def _has(told: list[LeaseEvent], count: int) -> bool:
    return len(told) >= count


@check("cut", "leases=connection")
async def leases_that_end_with_the_link_are_told(lab: Lab) -> None:
    """When the link breaks, `events` tells each lease that was lost, once; the messages are handed out again."""
    async with lab.consumer() as consumer:
        await lab.publish(*messages(3))
        settled, *lost = await lab.take(consumer, 3)
        await lab.settle(consumer, settled, ACK)
        lab.cut.go_down()
        await _is_up(lab)
        lab.cut.come_back()
        await _wait_up(lab)
        events = []
        with trio.move_on_after(lab.time.patience):
            events = await consumer.events()
        told = sorted((event.kind, str(event.token)) for event in events)
        expect("what is told", told, sorted(("lost", str(delivery.token)) for delivery in lost))
        expect("what comes back", sorted(ids(await lab.take(consumer, 2))), sorted(ids(lost)))


@check("cut")
async def a_link_that_breaks_at_the_end_harms_nothing(lab: Lab) -> None:
    """The connection can be left while the engine is away, or goes away just then, and opened again afterwards."""
    await lab.publish(message("1"))
    lab.cut.go_down()
    await lab.close()
    expect("whether it is connected", lab.broker.is_connected, expected=False)
    try:
        async with lab.broker.connection():
            expect("what opening it does while the engine is away", "it opens", BrokerUnavailable)
    except BrokerUnavailable:
        lab.cut.come_back()
    lab.cut.fails_at_close = True
    await lab.reopen()
    await lab.close()
    lab.cut.fails_at_close = False
    await lab.reopen()
    async with lab.consumer() as consumer:
        expect("what is received", ids(await lab.drain(consumer)), ["1"])
