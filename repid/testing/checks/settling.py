"""Settling: what each disposition does, with its outbox, and who may."""

from __future__ import annotations

import trio

from ...delivery import (
    ACK,
    Ack,
    Cancel,
    DeadLetter,
    Delivery,
    Disposition,
    Failure,
    NewResult,
    Release,
    Retry,
    Settlement,
)
from ...envelope import Options, PrioritiesT
from ...ports import REFUSED, SETTLED, Consumer, Counts, Verdict
from ..expecting import expect
from ..judging import check
from ..lab import Lab, ids, message, messages

FAILURE = Failure("ValueError", "ü is wrong", "Traceback:\n  line 1")
DISPOSITIONS: tuple[tuple[Disposition, str | None], ...] = (
    (ACK, None),
    (Ack(FAILURE), None),
    (Cancel(), None),
    (Retry(0, FAILURE), "ready"),
    (Retry(1e6), "scheduled"),
    (Release(), "ready"),
    (Release(1e6), "scheduled"),
    (Release(unrouted=True), "ready"),
    (DeadLetter("failed", FAILURE), "dead"),
)
"""Every disposition, and where a message is after it."""


@check("queue_admin", "delays")
async def each_disposition_puts_the_message_in_its_place(lab: Lab) -> None:
    """Ack and Cancel remove a message, Retry and Release make it ready or scheduled, DeadLetter keeps it as dead."""
    async with lab.consumer() as consumer:
        await lab.publish(*messages(len(DISPOSITIONS)))
        deliveries = await lab.take(consumer, len(DISPOSITIONS))
        settlements = [Settlement(d, how) for d, (how, _) in zip(deliveries, DISPOSITIONS, strict=True)]
        expect("the verdicts", await consumer.settle(settlements), [SETTLED] * len(DISPOSITIONS))
    places = {f"m{n}": place for n, (_, place) in enumerate(DISPOSITIONS) if place is not None}
    expect("the places", await lab.places(), places)
    expect("the counts", await lab.broker.counts("q"), Counts(ready=3, scheduled=2, dead=1))


@check()
async def settling_nothing_is_nothing(lab: Lab) -> None:
    """An empty batch has no verdicts."""
    async with lab.consumer() as consumer:
        expect("the verdicts", await consumer.settle([]), [])
        expect("the answers to extend", await consumer.extend([]), [])


@check("queue_admin", "delays=exact")
async def a_retry_uses_an_attempt_and_a_release_does_not(lab: Lab) -> None:
    """`attempt` counts from 1 and grows with Retry alone; `lost` grows with neither."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery, attempt = await lab.take_one(consumer), 1
        for disposition in (Release(), Retry(0), Release(lab.moment), Release(), Retry(lab.moment), Retry(0)):
            expect("the verdict", await lab.settle(consumer, delivery, disposition), SETTLED)
            await lab.advance(2 * lab.moment)
            delivery = await lab.take_one(consumer)
            attempt += isinstance(disposition, Retry)
            expect(f"attempt and lost after {disposition}", (delivery.attempt, delivery.lost), (attempt, 0))
            [browsed] = await lab.broker.browse("q", "leased")
            expect("attempt and lost as browsed", (browsed.attempt, browsed.lost), (attempt, 0))


@check("queue_admin", "priorities")
async def an_envelope_comes_back_unchanged(lab: Lab) -> None:
    """Retrying, releasing and reviving change nothing in the envelope."""
    envelope = message("1", topic="t", payload=b"\x00\xff", options=Options(retries=3, priority=PrioritiesT.LOW))
    async with lab.consumer() as consumer:
        await lab.publish(envelope)
        for disposition in (Release(), Retry(0), DeadLetter("failed", FAILURE)):
            await lab.settle(consumer, await lab.take_one(consumer), disposition)
        expect("the answers to revive", await lab.broker.revive("q"), [None])
        expect("the envelope", (await lab.take_one(consumer)).envelope, envelope)


@check("queue_admin")
async def a_dead_letter_keeps_its_reason_and_failure(lab: Lab) -> None:
    """What is dead is browsed with reason, failure, attempt and lost as they were."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        await lab.settle(consumer, await lab.take_one(consumer), Retry(0, Failure("Earlier", "")))
        await lab.settle(consumer, await lab.take_one(consumer), DeadLetter("failed", FAILURE))
        await lab.publish(message("2"))
        await lab.settle(consumer, await lab.take_one(consumer), DeadLetter("unrouted"))
    found = {dead.envelope.id: dead for dead in await lab.broker.browse("q", "dead")}
    one, two = found["1"], found["2"]
    expect("of the failed one", (one.reason, one.failure, one.attempt, one.lost), ("failed", FAILURE, 2, 0))
    expect("of the unrouted one", (two.reason, two.failure, two.attempt, two.lost), ("unrouted", None, 1, 0))


@check()
async def verdicts_come_in_the_order_of_the_settlements(lab: Lab) -> None:
    """A stale settlement in the middle of a batch is refused, and the others are carried out."""
    async with lab.consumer() as consumer:
        await lab.publish(*messages(4))
        deliveries = await lab.take(consumer, 4)
        await lab.settle(consumer, deliveries[1], DeadLetter("nacked"))
        verdicts = await lab.settle_all(consumer, deliveries, ACK)
        expect("the verdicts", verdicts, [SETTLED, REFUSED, SETTLED, SETTLED])
    await lab.placed("the places", {"m1": "dead"})


@check()
async def a_delivery_is_settled_once(lab: Lab) -> None:
    """A second verdict on one delivery is refused, in the same batch or later, and changes nothing."""
    async with lab.consumer() as consumer:
        await lab.publish(*messages(2))
        one, two = await lab.take(consumer, 2)
        outbox = (message("out"),)
        batch = [Settlement(one, DeadLetter("nacked")), Settlement(two, ACK), Settlement(one, ACK, outbox)]
        expect("the verdicts", await consumer.settle(batch), [SETTLED, SETTLED, REFUSED])
        for disposition, _ in DISPOSITIONS:
            expect(f"{disposition} after the verdict", await lab.settle(consumer, one, disposition), REFUSED)
            expect(f"{disposition} after an ack", await lab.settle(consumer, two, disposition), REFUSED)
    await lab.placed("the places", {"m0": "dead"})


@check("queue_admin", "results", "not unique_ids=window")
async def a_stale_lease_settles_nothing(lab: Lab) -> None:
    """A verdict on a lease that ended, while the message is leased anew, is refused: outbox and result included."""
    async with lab.consumer() as consumer, lab.consumer() as other:
        await lab.publish(message("1"))
        stale = await lab.take_one(consumer)
        await lab.settle(consumer, stale, Release())
        present = await lab.take_one(other)
        await _refuses_everything(lab, consumer, stale)
        await _refuses_everything(lab, other, stale)
        expect("attempt and lost", (present.attempt, present.lost), (1, 0))
        expect("the places", await lab.places(), {"1": "leased"})
        expect("whether the lease is there", await other.extend([present]), [True])
        expect("the right verdict", await lab.settle(other, present, Retry(0)), SETTLED)
        expect("the attempt after it", (await lab.take_one(other)).attempt, 2)


@check("queue_admin", "results", "delays", "not unique_ids=window")
async def a_stale_verdict_on_what_is_ready_is_refused(lab: Lab) -> None:
    """The same while the message is ready again, scheduled, dead, or another one with its id is there."""
    async with lab.consumer() as consumer:
        for disposition, place in ((Release(), "ready"), (Release(1e6), "scheduled"), (DeadLetter("nacked"), "dead")):
            await lab.publish(message(place))
            stale = await lab.take_one(consumer)
            await lab.settle(consumer, stale, disposition)
            await _refuses_everything(lab, consumer, stale)
            expect("the places", await lab.places(), {place: place})
            await lab.broker.delete("q")
            await lab.broker.declare(["q"])
        await lab.publish(message("again"))
        stale = await lab.take_one(consumer)
        await lab.settle(consumer, stale, ACK)
        await lab.publish(message("again"))
        await _refuses_everything(lab, consumer, stale)
        expect("the places of a namesake", await lab.places(), {"again": "ready"})


async def _refuses_everything(lab: Lab, consumer: Consumer, stale: Delivery) -> None:
    for disposition, _ in DISPOSITIONS:
        result = NewResult(id="stale result", state="success")
        verdict = await lab.settle(consumer, stale, disposition, message("stale outbox"), result=result)
        expect(f"the verdict of a stale {disposition}", verdict, REFUSED)
        expect("the result of a refused settlement", await lab.broker.fetch_results(["stale result"]), [None])
    expect("whether the stale lease is extended", await consumer.extend([stale]), [False])
    outbox = [place for id_, place in (await lab.places()).items() if id_ == "stale outbox"]
    expect("the outbox of refused settlements", outbox, [])


@check("queue_admin")
async def an_outbox_is_published_with_every_disposition(lab: Lab) -> None:
    """With every disposition the outbox is published, and in order."""
    async with lab.consumer() as consumer:
        for number, (disposition, _) in enumerate(DISPOSITIONS):
            await lab.publish(message(f"m{number}"))
            delivery = await lab.take_one(consumer)
            outbox = [message(f"{name}{number}", "r") for name in "ba"]
            expect("the verdict", await lab.settle(consumer, delivery, disposition, *outbox), SETTLED)
            expect(f"the outbox of {disposition}", await lab.browsed("ready", "r"), [e.id for e in outbox])
            for queue in ("q", "r"):
                await lab.broker.delete(queue)
                await lab.broker.declare([queue])


@check("queue_admin", "delays", "priorities")
async def an_outbox_declares_its_queues(lab: Lab) -> None:
    """Outbox messages to undeclared queues declare them, and keep their options."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        later = message("later", "new", options=Options(delay=1e6, priority=PrioritiesT.HIGH))
        delivery = await lab.take_one(consumer)
        expect("the verdict", await lab.settle(consumer, delivery, ACK, message("now", "new"), later), SETTLED)
    expect("the places", await lab.places("q", "new"), {"now": "ready", "later": "scheduled"})
    [browsed] = await lab.broker.browse("new", "scheduled")
    expect("the envelope", browsed.envelope, later)


@check("queue_admin", "unique_ids", "not unique_ids=window")
async def a_duplicate_in_an_outbox_is_dropped_and_counted(lab: Lab) -> None:
    """Outbox messages whose id is alive are left out; the rest of the outbox and the verdict are carried out."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"), message("alive"))
        delivery = await lab.take_one(consumer)
        outbox = [message("alive"), message("out"), message("out", "r"), message("also", "r")]
        verdict = await lab.settle(consumer, delivery, ACK, *outbox)
        expect("the verdict", verdict, Verdict("settled", 2))
    expect("the places", await lab.places(), {"alive": "ready", "out": "ready", "also": "ready"})
    expect("what is in r", await lab.browsed("ready", "r"), ["also"])


@check("unique_ids=live")
async def an_outbox_may_send_the_settled_message_anew(lab: Lab) -> None:
    """The disposition comes before its outbox: an acknowledged id is free in it, a retried one is alive."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        verdict = await lab.settle(consumer, await lab.take_one(consumer), ACK, message("1"))
        expect("the verdict on an ack", verdict, SETTLED)
        delivery = await lab.take_one(consumer)
        expect("the attempt of the new one", delivery.attempt, 1)
        verdict = await lab.settle(consumer, delivery, Retry(0), message("1", "r"))
        expect("the verdict on a retry", verdict, Verdict("settled", 1))
        expect("what is ready", ids(await lab.drain(consumer)), ["1"])


@check("queue_admin", "unique_ids=live")
async def an_outbox_cannot_use_an_id_that_is_settled_behind_it(lab: Lab) -> None:
    """Of several settlements in one call each is carried out whole before the next: an id that the next one frees is
    alive.
    """
    async with lab.consumer() as consumer:
        await lab.publish(message("1"), message("2"))
        first, second = await lab.take(consumer, 2)
        verdicts = await consumer.settle([Settlement(first, ACK, (message("2", "r"),)), Settlement(second, ACK)])
        expect("the verdicts", verdicts, [Verdict("settled", 1), SETTLED])
    expect("what is in r", await lab.browsed("ready", "r"), [])


@check("queue_admin")
async def concurrent_settlers_do_not_disturb_each_other(lab: Lab) -> None:
    """Of many that settle one delivery at once one is accepted; those that settle their own all are."""
    accepted: list[str] = []

    async def settle(delivery: Delivery, name: str) -> None:
        if (await lab.settle(consumer, delivery, ACK, message(f"out {name}", "r"))).accepted:
            accepted.append(name)

    async with lab.consumer() as consumer:
        await lab.publish(message("shared"), *messages(20))
        shared, *own = await lab.take(consumer, 21)
        async with trio.open_nursery() as nursery:
            for number, delivery in enumerate(own):
                nursery.start_soon(settle, delivery, f"own{number}")
                nursery.start_soon(settle, shared, f"shared{number}")
    expect("whose own was accepted", sum(name.startswith("own") for name in accepted), 20)
    expect("how many were accepted of the shared one", sum(name.startswith("shared") for name in accepted), 1)
    expect("the places", await lab.places(), {f"out {name}": "ready" for name in accepted})
