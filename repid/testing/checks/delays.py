"""Delays, times to live, and how long no actor has taken a message."""

from __future__ import annotations

from ...delivery import ACK, DeadLetter, Disposition, Progress, Release, Retry
from ...envelope import Options
from ...ports import SETTLED, Counts
from ..expecting import expect, expect_between
from ..judging import check
from ..lab import Lab, ids, message


@check("queue_admin", "delays=exact")
async def a_delayed_message_is_scheduled_until_it_is_due(lab: Lab) -> None:
    """A message with a delay is scheduled and not handed out; when the delay is over it is ready."""
    await lab.publish(message("late", options=Options(delay=4 * lab.moment)), message("now", options=Options(delay=0)))
    expect("the counts", await lab.broker.counts("q"), Counts(ready=1, scheduled=1))
    async with lab.consumer() as consumer:
        expect("what is received at once", ids(await lab.drain(consumer)), ["now"])
        await lab.advance(2 * lab.moment)
        expect("what is received too early", ids(await lab.drain(consumer)), [])
        [scheduled] = await lab.broker.browse("q", "scheduled")
        expect_between("due_in", scheduled.due_in, 2 * lab.moment - lab.slack, 2 * lab.moment + 0.001)
        await lab.advance(3 * lab.moment)
        expect("the counts when it is due", await lab.broker.counts("q"), Counts(ready=1, leased=1))
        expect("what is received when it is due", ids(await lab.drain(consumer)), ["late"])


@check("queue_admin", "delays=exact")
async def delays_end_in_their_own_order(lab: Lab) -> None:
    """Messages that are scheduled become ready when each is due, in any order of publishing."""
    await lab.publish(*(message(str(n), options=Options(delay=n * lab.moment)) for n in (7, 1, 5, 3)))
    expect("the order as browsed", await lab.browsed("scheduled"), ["1", "3", "5", "7"])
    async with lab.consumer() as consumer:
        for number, step in ((1, 1.5), (3, 2), (5, 2), (7, 2)):
            await lab.advance(step * lab.moment)
            expect("what is received", ids(await lab.drain(consumer)), [str(number)])


@check("queue_admin", "delays=exact")
async def a_verdict_may_delay(lab: Lab) -> None:
    """Retry and Release with a delay make a message scheduled, and ready when that is over."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        for disposition, attempt in ((Retry(3 * lab.moment), 2), (Release(3 * lab.moment), 2)):
            delivery = await lab.take_one(consumer)
            expect("the verdict", await lab.settle(consumer, delivery, disposition), SETTLED)
            [scheduled] = await lab.broker.browse("q", "scheduled")
            expect_between("due_in", scheduled.due_in, 3 * lab.moment - lab.slack, 3 * lab.moment + 0.001)
            expect("the attempt as browsed", scheduled.attempt, attempt)
            await lab.advance(2 * lab.moment)
            expect("what is received too early", await lab.drain(consumer), [])
            await lab.advance(2 * lab.moment)
            expect("the counts when it is due", await lab.broker.counts("q"), Counts(ready=1))


@check("queue_admin", "ttl", "not unique_ids=window")
async def a_message_past_its_ttl_is_dead(lab: Lab) -> None:
    """A message whose ttl has passed is dead as expired and never handed over; its id is free."""
    options = Options(ttl=3 * lab.moment)
    await lab.publish(message("1", options=options), message("2"), message("3", options=Options(ttl=1e6)))
    await lab.advance(2 * lab.moment)
    expect("the places before", await lab.places(), dict.fromkeys("123", "ready"))
    await lab.advance(2 * lab.moment)
    async with lab.consumer() as consumer:
        expect("what is received", ids(await lab.drain(consumer)), ["2", "3"])
        await lab.expired("1")
        await lab.publish(message("1"))
        expect("what is received of its namesake", ids(await lab.drain(consumer)), ["1"])


@check("queue_admin", "ttl", "not unique_ids=window")
async def an_expired_message_is_not_ready(lab: Lab) -> None:
    """Counting and browsing after the end of a ttl show the message as dead or not at all, never as ready."""
    await lab.publish(message("1", options=Options(ttl=lab.moment)))
    await lab.advance(2 * lab.moment)
    expect("what is ready", await lab.browsed("ready"), [])
    expect("the count of what is ready", (await lab.broker.counts("q")).ready, 0)
    expect("the outcome of using its id", await lab.broker.publish([message("1")]), [None])


@check("ttl")
async def ttl_left_is_told_with_the_delivery(lab: Lab) -> None:
    """A delivery says how long its message has left to live; None where it has no ttl."""
    await lab.publish(message("1", options=Options(ttl=10 * lab.moment)), message("2"))
    await lab.advance(4 * lab.moment)
    async with lab.consumer() as consumer:
        with_ttl, without = await lab.take(consumer, 2)
        expect_between("ttl_left", with_ttl.ttl_left, 6 * lab.moment - lab.slack, 6 * lab.moment + 0.001)
        expect("ttl_left of a message without ttl", without.ttl_left, None)


@check("queue_admin", "delays=exact", "ttl")
async def a_delayed_message_can_expire(lab: Lab) -> None:
    """A delay does not do away with a ttl that is longer."""
    await lab.publish(message("1", options=Options(delay=2 * lab.moment, ttl=6 * lab.moment)))
    await lab.advance(3 * lab.moment)
    expect("the places when it is due", await lab.places(), {"1": "ready"})
    await lab.advance(6 * lab.moment)
    async with lab.consumer() as consumer:
        expect("what is received", ids(await lab.drain(consumer)), [])
    await lab.expired("1")


@check("queue_admin", "delays=exact", "ttl")
async def coming_back_does_not_renew_a_ttl(lab: Lab) -> None:
    """A message that was not started and whose ttl passes while it is leased is dead when it comes back; one with time
    left keeps the rest.
    """
    dispositions: tuple[Disposition, ...] = (Release(), Release(unrouted=True), Release(2 * lab.moment))
    async with lab.consumer() as consumer:
        options = Options(ttl=5 * lab.moment)
        await lab.publish(*(message(f"{when}{n}", options=options) for n in range(3) for when in ("early", "late")))
        deliveries = await lab.take(consumer, 6)
        await lab.advance(4 * lab.moment)
        for delivery, disposition in zip(deliveries[::2], dispositions, strict=True):
            expect("the verdict", await lab.settle(consumer, delivery, disposition), SETTLED)
        await lab.advance(3 * lab.moment)
        for delivery, disposition in zip(deliveries[1::2], dispositions, strict=True):
            expect("the verdict", await lab.settle(consumer, delivery, disposition), SETTLED)
        await lab.advance(3 * lab.moment)
        expect("what is received", ids(await lab.drain(consumer)), [])
    await lab.expired(*ids(deliveries))


@check("delays=exact", "ttl")
async def a_start_ends_the_ttl(lab: Lab) -> None:
    """A message that was started in time never expires: not when it comes back, not when its lease is lost."""
    dispositions: tuple[Disposition, ...] = (
        Retry(0),
        Retry(lab.moment),
        Release(started=True),
        Release(lab.moment, started=True),
    )
    async with lab.consumer() as consumer:
        options = Options(ttl=5 * lab.moment)
        await lab.publish(*(message(f"{when}{n}", options=options) for n in range(4) for when in ("early", "late")))
        deliveries = await lab.take(consumer, 8)
        for delivery, disposition in zip(deliveries[::2], dispositions, strict=True):
            expect("the verdict", await lab.settle(consumer, delivery, disposition), SETTLED)
        await lab.advance(6 * lab.moment)
        for delivery, disposition in zip(deliveries[1::2], dispositions, strict=True):
            expect("the verdict", await lab.settle(consumer, delivery, disposition), SETTLED)
        await lab.advance(2 * lab.moment)
        again = await lab.take(consumer, 8)
        expect("what comes back", sorted(ids(again)), sorted(ids(deliveries)))
        expect("what is left of their ttl", {delivery.ttl_left for delivery in again}, {None})


@check("queue_admin", "tracking", "leases=timed", "ttl")
async def a_start_that_was_reported_ends_the_ttl_of_a_lost_lease(lab: Lab) -> None:
    """A worker that dies leaves a message that had begun as one without ttl; one it only held expires."""
    async with lab.consumer() as consumer:
        options = Options(ttl=lab.time.bearable(consumer.lease_timeout))
        await lab.publish(*(message(id_, options=options) for id_ in ("begun", "noted", "held")))
        begun, noted, _ = await lab.take(consumer, 3)
        await consumer.report([(begun, None), (noted, Progress(1.0))])
        await lab.outlive(consumer)
        expect("how many are rescued", await consumer.rescue(), 3)
        expect("what comes back", sorted(ids(await lab.take(consumer, 2))), ["begun", "noted"])
    await lab.expired("held")


@check("queue_admin", "ttl")
async def a_ttl_does_not_end_a_run(lab: Lab) -> None:
    """A message that expires while it is leased stays leased, and its verdict is accepted."""
    async with lab.consumer() as consumer:
        await lab.publish(message("acked", options=Options(ttl=lab.moment)))
        await lab.publish(message("nacked", options=Options(ttl=lab.moment)))
        acked, nacked = await lab.take(consumer, 2)
        await lab.advance(2 * lab.moment)
        expect("the places", await lab.places(), {"acked": "leased", "nacked": "leased"})
        expect("whether they are extended", await consumer.extend([acked, nacked]), [True, True])
        expect("the verdict of the one", await lab.settle(consumer, acked, ACK), SETTLED)
        expect("the verdict of the other", await lab.settle(consumer, nacked, DeadLetter("nacked")), SETTLED)
    [dead] = await lab.broker.browse("q", "dead")
    expect("why it is dead", dead.reason, "nacked")


@check("delays=exact")
async def the_age_of_an_unrouted_message_counts_from_the_first_pass(lab: Lab) -> None:
    """`unrouted_age` is the time since the first release as unrouted, and None before it."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        expect("the age at first", delivery.unrouted_age, None)
        await lab.settle(consumer, delivery, Release())
        delivery = await lab.take_one(consumer)
        expect("the age after an ordinary release", delivery.unrouted_age, None)
        for passes, disposition in enumerate((Release(lab.moment, unrouted=True), Release(unrouted=True), Release())):
            await lab.settle(consumer, delivery, disposition)
            await lab.advance(2 * lab.moment)
            delivery = await lab.take_one(consumer)
            age = 2 * lab.moment * (passes + 1)
            expect_between("the age", delivery.unrouted_age, age - 0.001, age + lab.slack)
            expect("the attempt", delivery.attempt, 1)


@check("delays=exact", "wall_clock")
async def a_step_of_the_wall_clock_loses_and_doubles_nothing(lab: Lab) -> None:
    """Where the wall clock is stepped back or forward, delayed messages may come early or late, but each comes once."""
    async with lab.consumer() as consumer:
        for number, step in enumerate((-3600.0, 3600.0)):
            await lab.publish(message(f"late{number}", options=Options(delay=10)), message(f"now{number}"))
            lab.time.step_wall(step)
            await lab.publish(message(f"after{number}"))
            received = ids(await lab.drain(consumer))
            await lab.advance(20)
            received += ids(await lab.drain(consumer))
            await lab.advance(4000)
            received += ids(await lab.drain(consumer))
            sent = [f"{name}{number}" for name in ("after", "late", "now")]
            expect(f"what was received around a step of {step} s", sorted(received), sent)
            await lab.advance(4000)
            expect("what is received afterwards", await lab.drain(consumer), [])


@check("leases=timed", "wall_clock")
async def a_step_of_the_wall_clock_ends_no_lease(lab: Lab) -> None:
    """Leases do not follow the wall clock: a step neither ends nor prolongs them."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        lab.time.step_wall(10 * consumer.lease_timeout)
        expect("how many are rescued after a step forward", await consumer.rescue(), 0)
        expect("whether it is extended", await consumer.extend([delivery]), [True])
        lab.time.step_wall(-100 * consumer.lease_timeout)
        expect("how many are rescued after a step back", await consumer.rescue(), 0)
        await lab.outlive(consumer)
        expect("how many are rescued at the end of the lease", await consumer.rescue(), 1)
