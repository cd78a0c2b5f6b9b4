"""Receiving: limits, waiting, and several consumers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ...delivery import ACK, DeadLetter, Delivery, Release, Retry
from ...envelope import Options
from ...ports import Consumer, Counts
from ..expecting import expect, expect_between
from ..judging import check
from ..lab import Lab, ids, message, messages


@check()
async def receive_keeps_to_its_limit(lab: Lab) -> None:
    """`receive` gives at least one message and at most `limit`; what it gave is leased, the rest is not."""
    await lab.publish(*messages(5))
    async with lab.consumer() as consumer:
        received = await consumer.receive(2)
        expect("whether 1 or 2 were received", 1 <= len(received) <= 2, expected=True)
        counts = Counts(ready=5 - len(received), leased=len(received))
        await lab.counted("the counts", "q", counts)
        received += await lab.take(consumer, 5 - len(received))
        expect("the ids", ids(received), [f"m{n}" for n in range(5)])
        expect("the attempts", {(d.attempt, d.lost) for d in received}, {(1, 0)})
        expect("how many tokens differ", len({d.token for d in received}), 5)


@check()
async def receive_does_not_wait_longer_than_it_may(lab: Lab) -> None:
    """`max_wait=0` asks without waiting; a longer one gives an empty list when it is over, not before."""
    async with lab.consumer() as consumer:
        with trio.fail_after(lab.time.patience):
            expect("what is received of nothing", await consumer.receive(1, max_wait=0), [])
            before = trio.current_time()
            expect("what is received of nothing", await consumer.receive(1, max_wait=0.05), [])
        expect_between("the wait", trio.current_time() - before, 0.045, lab.time.patience)
        await lab.publish(message("1"))
        expect("what is received without waiting", ids(await consumer.receive(5, max_wait=0)), ["1"])


@check()
async def receive_gives_to_take_what_it_returns(lab: Lab) -> None:
    """`take` is called once with what `receive` returns, whether it had to wait or not; never with nothing."""
    taken: list[list[str]] = []

    def take(deliveries: list[Delivery]) -> None:
        taken.append(ids(deliveries))

    async with lab.consumer() as consumer:
        expect("what is received of nothing", await consumer.receive(1, max_wait=0, take=take), [])
        await lab.publish(message("1"))
        received = [ids(await consumer.receive(5, max_wait=0, take=take))]

        async def wait() -> None:
            received.append(ids(await consumer.receive(5, take=take)))

        with trio.fail_after(lab.time.patience):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.05)
                await lab.publish(message("2"))
    expect("what was received", received, [["1"], ["2"]])
    expect("what was taken", taken, received)


@check()
async def a_message_goes_to_one_consumer_only(lab: Lab) -> None:
    """However many consumers and tasks receive at once, each message is leased to one of them."""
    received: list[str] = []

    async def receive(consumer: Consumer) -> None:
        while deliveries := await consumer.receive(7, max_wait=0):
            received.extend(ids(deliveries))
            verdicts = await lab.settle_all(consumer, deliveries, ACK)
            expect("whether all verdicts were accepted", all(v.accepted for v in verdicts), expected=True)

    await lab.publish(*messages(200))
    async with lab.consumer() as one, lab.consumer() as two, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(receive, one)
            nursery.start_soon(receive, two)
    expect("how many were received", len(received), 200)
    expect("how many of them differ", len(set(received)), 200)
    await lab.placed("what is left", {})


@check("queue_admin")
async def a_waiting_receive_is_woken_by_what_makes_something_ready(lab: Lab) -> None:
    """Publishing, releasing, retrying, an outbox, a rescue and a revival wake a `receive` that waits."""
    async with lab.consumer(None, "r") as other, lab.consumer() as consumer:
        for name, cause in (await _causes(lab, consumer, other)).items():
            woken = await lab.woken(consumer, cause)
            expect(f"what a waiting receive got after: {name}", woken, [name])
            await lab.broker.delete("q")
            await lab.broker.declare(["q"])


async def _causes(lab: Lab, consumer: Consumer, other: Consumer) -> dict[str, Callable[[], Awaitable[object]]]:
    async def leased(name: str, taker: Consumer, queue: str = "q") -> Delivery:
        await lab.publish(message(name, queue))
        return await lab.take_one(taker)

    async def release() -> None:
        await lab.settle(consumer, releasing, Release())

    async def publish() -> None:
        await lab.publish(message("publish"))

    async def outbox() -> None:
        await lab.settle(other, await leased("cause", other, "r"), ACK, message("outbox"))

    releasing = await leased("release", consumer)
    return {"release": release, "publish": publish, "outbox": outbox}


@check("queue_admin", "leases=timed")
async def a_waiting_receive_is_woken_by_a_message_that_comes_back(lab: Lab) -> None:
    """A retry, a rescue and a revival wake a `receive` that waits."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        expect("after a retry", await lab.woken(consumer, lambda: lab.settle(consumer, delivery, Retry(0))), ["1"])
        await lab.outlive(consumer)
        expect("after a rescue", await lab.woken(consumer, consumer.rescue), ["1"])
        await lab.broker.delete("q")
        await lab.broker.declare(["q"])
        await lab.kill(message("2"))
        expect("after a revival", await lab.woken(consumer, lambda: lab.broker.revive("q")), ["2"])


@check("delays=exact")
async def a_waiting_receive_is_woken_when_a_message_is_due(lab: Lab) -> None:
    """A `receive` that waits gets a scheduled message when it is due, whenever it was published."""
    async with lab.consumer() as consumer:
        await lab.publish(message("before", options=Options(delay=2 * lab.moment)))
        woken = await lab.woken(consumer, lambda: lab.advance(3 * lab.moment))
        expect("what was scheduled before", woken, ["before"])

        async def publish() -> None:
            await lab.publish(message("late", options=Options(delay=1e6)))
            await lab.publish(message("meanwhile", options=Options(delay=2 * lab.moment)))
            await lab.advance(3 * lab.moment)

        expect("what was scheduled meanwhile", await lab.woken(consumer, publish), ["meanwhile"])


@check("delays=exact")
async def a_waiting_receive_is_woken_when_a_delay_is_over(lab: Lab) -> None:
    """The same for what was released or retried with a delay, also if something is due sooner than was known."""
    async with lab.consumer() as consumer:
        await lab.publish(message("released"), message("retried"))
        released, retried = await lab.take(consumer, 2)

        async def cause() -> None:
            await lab.settle(consumer, released, Release(6 * lab.moment))
            await lab.idle()
            await lab.settle(consumer, retried, Retry(2 * lab.moment))
            await lab.advance(3 * lab.moment)

        expect("what was due first", await lab.woken(consumer, cause), ["retried"])
        woken = await lab.woken(consumer, lambda: lab.advance(4 * lab.moment))
        expect("what was due next", woken, ["released"])


@check()
async def every_waiting_receive_gets_its_message(lab: Lab) -> None:
    """Of several that wait, as many are served as there are messages; the others go on waiting."""
    served: list[str] = []

    async def receive(consumer: Consumer) -> None:
        served.extend(ids(await consumer.receive(1)))

    async def enough() -> bool:
        return len(served) >= 4

    async with lab.consumer() as one, lab.consumer() as two, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(receive, one)
            nursery.start_soon(receive, two)
        await lab.idle()
        await lab.publish(*messages(2, "a"))
        for envelope in messages(2, "b"):
            await lab.publish(envelope)
        await lab.soon("four messages for six who wait", enough)
        await lab.idle()
        expect("what was received", sorted(served), ["a0", "a1", "b0", "b1"])
        nursery.cancel_scope.cancel()


@check()
async def who_stops_waiting_takes_nothing_along(lab: Lab) -> None:
    """When one of two that wait is cancelled as a message comes, the other gets it."""
    served: list[str] = []

    async def receive(consumer: Consumer, scope: trio.CancelScope) -> None:
        with scope:
            served.extend(ids(await consumer.receive(1)))

    async def enough() -> bool:
        return len(served) == number + 1

    for number in range(6):
        async with lab.consumer() as consumer, lab.consumer() as other, trio.open_nursery() as nursery:
            scopes = [trio.CancelScope(), trio.CancelScope()]
            for who, scope in zip((consumer, other), scopes, strict=True):
                nursery.start_soon(receive, who, scope)
                await lab.idle()
            nursery.start_soon(lab.publish, message(str(number)))
            for _ in range(number):
                await trio.lowlevel.checkpoint()
            scopes[0].cancel()
            await lab.soon("the message reaches one of the two", enough)
            nursery.cancel_scope.cancel()
    expect("what was received", served, [str(number) for number in range(6)])


@check("another", "shared")
async def a_client_that_has_stopped_waiting_is_not_woken_in_place_of_another(lab: Lab) -> None:
    """A message reaches the client that waits for it, also if one that began to wait earlier now waits for lease events
    only.
    """
    async with (
        lab.another() as other,
        lab.consumer() as here,
        other.consume({"q": None}) as there,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(here.events)
        scope = trio.CancelScope()

        async def receive() -> None:
            with scope:
                await here.receive(1)

        async def publish() -> None:
            scope.cancel()
            await lab.idle()
            await lab.publish(message("1"))

        nursery.start_soon(receive)
        await lab.idle()
        expect("what the one that waits received", await lab.woken(there, publish), ["1"])
        nursery.cancel_scope.cancel()


@check("leases=timed")
async def a_closed_consumer_keeps_only_what_it_handed_over(lab: Lab) -> None:
    """Leaving a consumer's block releases what was not handed over; what was handed over stays leased until it is
    rescued.
    """
    await lab.publish(*messages(3))
    async with lab.consumer() as consumer:
        expect("what was received", ids(await lab.take(consumer, 1)), ["m0"])
    await lab.placed("the places", {"m0": "leased", "m1": "ready", "m2": "ready"})
    async with lab.consumer() as other:
        expect("what another gets", ids(await lab.drain(other)), ["m1", "m2"])
        await lab.outlive(other)
        expect("how many were rescued", await other.rescue(), 3)
        again = await lab.take(other, 3)
        expect("the ids", sorted(ids(again)), ["m0", "m1", "m2"])
        expect("attempt and lost", {(d.attempt, d.lost) for d in again}, {(1, 1)})


@check("queue_admin")
async def a_consumer_sees_its_own_queues_only(lab: Lab) -> None:
    """A consumer gets messages of each of its queues and of no other."""
    await lab.broker.declare(["s"])
    await lab.publish(message("q1"), message("r1", "r"), message("s1", "s"))
    async with lab.consumer(None, "q", "s") as consumer:
        expect("what is received", ids(await lab.drain(consumer)), ["q1", "s1"])
        await lab.publish(message("r2", "r"))
        expect("what is received later", ids(await lab.drain(consumer)), [])
        dead = await lab.broker.browse("q", "leased")
        expect("what is leased", [found.envelope.queue for found in dead], ["q"])


@check("leases=timed")
async def a_dead_letter_is_never_received(lab: Lab) -> None:
    """A dead message is not handed out, rescued or not."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        await lab.settle(consumer, await lab.take_one(consumer), DeadLetter("failed"))
        await lab.outlive(consumer)
        expect("how many are rescued", await consumer.rescue(), 0)
        expect("what is received", await lab.drain(consumer), [])
    await lab.placed("the places", {"1": "dead"})
