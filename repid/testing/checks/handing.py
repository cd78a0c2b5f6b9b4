"""The main promises, proved by publishing, receiving and settling alone: for every server, however little it claims."""

from __future__ import annotations

from collections import Counter
from functools import partial

import trio

from ...delivery import ACK, MOST_LOST, DeadLetter, Delivery, Disposition, Release, Retry, Settlement
from ...envelope import Envelope
from ...errors import PublishUnknown, QueueNotDeclared
from ...ports import REFUSED, SETTLED, Consumer
from ..expecting import expect
from ..interrupting import interrupt, interruptions
from ..judging import check
from ..lab import Lab, ids, message, messages
from .settling import DISPOSITIONS

SENDERS = 5
TAKERS = 6
EACH = 20


@check()
async def what_is_sent_arrives(lab: Lab) -> None:
    """Id, queue, payload, content type, headers and the address for replies arrive as they were sent."""
    full = Envelope("full", "q", bytes(range(256)), "text/plain", {"topic": "t", "ü": "漢字"}, "answers")
    bare = Envelope("bare", "q", b"")
    await lab.publish(full, bare)
    async with lab.consumer() as consumer:
        received = {delivery.envelope.id: delivery for delivery in await lab.take(consumer, 2)}
        expect("what is delivered", {id_: d.envelope for id_, d in received.items()}, {"full": full, "bare": bare})
        expect("attempt and lost", {(d.attempt, d.lost) for d in received.values()}, {(1, 0)})
        await lab.settle(consumer, received["full"], Retry(0))
        expect("what comes back", (await lab.take_one(consumer)).envelope, full)


@check()
async def only_declared_queues_are_published_to_and_consumed(lab: Lab) -> None:
    """A message to an undeclared queue is refused, its neighbours are not; a consumer of one is not opened."""
    outcomes = await lab.broker.publish([message("1"), message("2", "none"), message("3")])
    kinds = [None if outcome is None else type(outcome) for outcome in outcomes]
    expect("the outcomes", kinds, [None, QueueNotDeclared, None])
    try:
        async with lab.consumer(None, "q", "none"):
            expect("what consuming an undeclared queue does", "it is opened", QueueNotDeclared)
    except QueueNotDeclared as error:
        expect("the queue that is named", error.queue, "none")
    async with lab.consumer() as consumer:
        expect("what is received", ids(await lab.drain(consumer)), ["1", "3"])


@check()
async def what_was_accepted_is_handed_out_once(lab: Lab) -> None:
    """Every accepted message is handed out, once; what was acknowledged never comes back, however much time passes."""
    await lab.publish(*messages(30))
    for envelope in messages(5, "single"):
        await lab.publish(envelope)
    async with lab.consumer() as consumer, lab.consumer() as other:
        received = await lab.drain(consumer)
        expect("how often each was handed out", set(Counter(ids(received)).values()), {1})
        expect("how many were handed out", len(received), 35)
        expect("what another gets meanwhile", ids(await lab.drain(other)), [])
        expect("the verdicts", await lab.settle_all(consumer, received, ACK), [SETTLED] * 35)
        await lab.advance(lab.moment)
        expect("how many are rescued", await other.rescue(), 0)
        expect("what comes back", ids(await lab.drain(other)), [])


@check()
async def the_order_of_sending_is_the_order_of_receiving(lab: Lab) -> None:
    """Within one queue and over several calls, messages that ask for nothing special are handed out as they came."""
    for batch in ("a", "b", "c"):
        await lab.publish(*messages(4, batch))
    async with lab.consumer() as consumer:
        received = ids(await lab.take(consumer, 5) + await lab.take(consumer, 7))
        expect("the order", received, [f"{batch}{n}" for batch in "abc" for n in range(4)])


@check()
async def a_retry_counts_and_a_release_does_not(lab: Lab) -> None:
    """`attempt` grows with a retry alone, `lost` with neither; a dead letter is not handed out."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery, attempt = await lab.take_one(consumer), 1
        for disposition in (Release(), Retry(0), Release(unrouted=True), Retry(0)):
            expect("the verdict", await lab.settle(consumer, delivery, disposition), SETTLED)
            delivery = await lab.take_one(consumer)
            attempt += isinstance(disposition, Retry)
            expect(f"attempt and lost after {disposition}", (delivery.attempt, delivery.lost), (attempt, 0))
        expect("whether the first pass is remembered", delivery.unrouted_age is not None, expected=True)
        expect("the verdict", await lab.settle(consumer, delivery, DeadLetter("failed")), SETTLED)
        expect("what is received of the dead", ids(await lab.drain(consumer)), [])


@check()
async def a_stale_verdict_is_refused(lab: Lab) -> None:
    """A second verdict, and one on a lease that has ended, are refused in every case, and publish no outbox."""
    async with lab.consumer(None, "q", "r") as consumer:
        await lab.publish(message("acked"), message("released"))
        acked, released = await lab.take(consumer, 2)
        batch = [Settlement(acked, ACK), Settlement(released, Release()), Settlement(acked, Release())]
        expect("the verdicts", await consumer.settle(batch), [SETTLED, SETTLED, REFUSED])
        again = await lab.take_one(consumer)
        for stale in (acked, released):
            expect("whether a stale lease is extended", await consumer.extend([stale]), [False])
            for disposition, _ in DISPOSITIONS:
                verdict = await lab.settle(consumer, stale, disposition, message("stale", "r"))
                expect(f"a stale {disposition} on {stale.envelope.id!r}", verdict, REFUSED)
        expect("what is received afterwards", ids(await lab.drain(consumer)), [])
        expect("whether the lease is still there", await consumer.extend([again]), [True])
        expect("the right verdict", await lab.settle(consumer, again, ACK), SETTLED)


@check()
async def an_outbox_goes_with_its_settlement(lab: Lab) -> None:
    """The outbox of a settlement is published in order, to queues that are declared if they are missing, with every
    disposition.
    """
    async with lab.consumer() as consumer, lab.consumer(None, "r") as others:
        dispositions: tuple[Disposition, ...] = (ACK, Retry(0), Release(), DeadLetter("failed"))
        for number, disposition in enumerate(dispositions):
            await lab.publish(message(f"m{number}"))
            delivery = await lab.take_one(consumer)
            outbox = [message(f"{name}{number}", "r") for name in "ba"]
            expect("the verdict", await lab.settle(consumer, delivery, disposition, *outbox), SETTLED)
            sent = await lab.take(others, 2)
            expect(f"the outbox of {disposition}", ids(sent), ids_of(outbox))
            await lab.settle_all(others, sent, ACK)
            await lab.settle_all(consumer, await lab.drain(consumer), ACK)
        await lab.publish(message("last"))
        await lab.settle(consumer, await lab.take_one(consumer), ACK, message("first of all", "new"))
    async with lab.consumer(None, "new") as new:
        expect("what is in the new queue", ids(await lab.drain(new)), ["first of all"])


def ids_of(envelopes: list[Envelope]) -> list[str]:
    """The ids of what was sent."""
    return [envelope.id for envelope in envelopes]


@check("leases=timed")
async def a_lost_lease_is_handed_out_again(lab: Lab) -> None:
    """A lease that was not settled or extended can be rescued by any consumer; `lost` is one higher, and the old lease
    settles nothing.
    """
    async with lab.consumer() as gone, lab.consumer() as other:
        await lab.publish(message("lost"), message("kept"))
        lost, kept = await lab.take(gone, 2)
        lease = lab.time.bearable(gone.lease_timeout)
        await lab.advance(lease * 0.7)
        expect("whether a lease is extended", await gone.extend([kept]), [True])
        expect("how many are rescued too early", await other.rescue(), 0)
        await lab.advance(lease * 0.7)
        expect("how many are rescued", await other.rescue(), 1)
        again = await lab.take_one(other)
        expect("what came back", (again.envelope.id, again.attempt, again.lost), ("lost", 1, 1))
        expect("which are ours", await gone.extend([lost, kept]), [False, True])
        expect("the verdict on the old lease", await lab.settle(gone, lost, ACK), REFUSED)
        expect("the verdict on the new one", await lab.settle(other, again, ACK), SETTLED)
        expect("the verdict on the extended one", await lab.settle(gone, kept, ACK), SETTLED)


@check("leases=timed")
async def closing_a_consumer_releases_nothing_that_was_handed_over(lab: Lab) -> None:
    """Its leases outlast it: no other consumer gets the messages before their time, and its verdicts are accepted."""
    await lab.publish(*messages(3))
    async with lab.consumer() as consumer:
        one, two = await lab.take(consumer, 2)
    async with lab.consumer() as other:
        expect("what another gets", ids(await lab.drain(other)), ["m2"])
        expect("the verdict of the closed one", await lab.settle(consumer, one, ACK), SETTLED)
        await lab.outlive(other)
        expect("how many are rescued", await other.rescue(), 2)
        again = {delivery.envelope.id: delivery.lost for delivery in await lab.take(other, 2)}
        expect("what comes back", again, {"m1": 1, "m2": 1})
        expect("the verdict on a rescued lease", await lab.settle(consumer, two, ACK), REFUSED)


@check("leases=timed")
async def a_message_is_not_lost_for_ever(lab: Lab) -> None:
    """After the tenth lease without a verdict a message is not handed out any more."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        for lost in range(MOST_LOST):
            expect("how often it was lost", (await lab.take_one(consumer)).lost, lost)
            await lab.outlive(consumer)
            expect("how many are rescued", await consumer.rescue(), 1)
        expect("what is received", ids(await lab.drain(consumer)), [])


@check()
async def whatever_makes_a_message_ready_wakes_who_waits(lab: Lab) -> None:
    """Publishing, a release, a retry and an outbox wake a `receive` that waits, also that of another consumer."""
    async with lab.consumer() as consumer, lab.consumer() as waiting:

        async def leased(id_: str) -> Delivery:
            await lab.publish(message(id_))
            return await lab.take_one(consumer)

        woken = await lab.woken(waiting, lambda: lab.publish(message("published")))
        expect("what is received after publishing", woken, ["published"])
        for name, disposition in (("released", Release()), ("retried", Retry(0))):
            delivery = await leased(name)
            woken = await lab.woken(waiting, partial(lab.settle, consumer, delivery, disposition))
            expect(f"what is received after {disposition}", woken, [name])
        delivery = await leased("cause")
        woken = await lab.woken(waiting, lambda: lab.settle(consumer, delivery, ACK, message("outbox")))
        expect("what is received after an outbox", woken, ["outbox"])


@check()
async def concurrent_consumers_never_share_a_message(lab: Lab) -> None:
    """Many publish, receive, give back and acknowledge at once: no message is lost, none is with two at a time."""
    held: set[str] = set()
    acked: Counter[str] = Counter()

    async def publish(sender: int) -> None:
        for number in range(EACH):
            await lab.publish(message(f"{sender}/{number}"))

    async def take(consumer: Consumer) -> None:
        while len(acked) < SENDERS * EACH:
            for delivery in await consumer.receive(3, max_wait=lab.moment / 10):
                id_ = delivery.envelope.id
                expect(f"whether {id_} is with this consumer", id_ in held, expected=False)
                held.add(id_)
                await trio.lowlevel.checkpoint()
                held.discard(id_)
                is_done = delivery.attempt > 1 or not id_.endswith("3")
                expect("the verdict", await lab.settle(consumer, delivery, ACK if is_done else Retry(0)), SETTLED)
                acked[id_] += is_done

    async with lab.consumer() as one, lab.consumer() as two:
        with trio.move_on_after(10 * lab.time.patience):
            async with trio.open_nursery() as nursery:
                for sender in range(SENDERS):
                    nursery.start_soon(publish, sender)
                for consumer in (one, two) * (TAKERS // 2):
                    nursery.start_soon(take, consumer)
        expect("how many were acknowledged", len(acked), SENDERS * EACH)
        expect("how often each was", set(acked.values()), {1})
        expect("what is left", ids(await lab.drain(one)), [])


@check()
async def a_cancelled_publish_is_all_or_nothing(lab: Lab) -> None:
    """Cancelled at any await, `publish` has published all and returns, or none; `PublishUnknown` says that either may
    be.
    """
    async with lab.consumer() as consumer:
        for number, when in enumerate(interruptions()):
            batch = [message(f"{number}{n}") for n in "abc"]
            allowed = [[], ids_of(batch)]
            try:
                result = await interrupt(partial(lab.broker.publish, batch), when)
            except PublishUnknown as error:
                expect("the ids that are named", list(error.ids), ids_of(batch))
            else:
                allowed = allowed[:1] if result.was_cancelled else allowed[1:]
            received = await lab.drain(consumer)
            expect(f"whether {ids(received)} may be after cancelling {when}", ids(received) in allowed, expected=True)
            await lab.settle_all(consumer, received, ACK)
