"""Leases: how they end, are extended and rescued."""

from __future__ import annotations

import os

from ...delivery import ACK, MOST_LOST, SUSPECT_FROM, Release, Retry, Settlement
from ...envelope import Options
from ...ports import REFUSED, SETTLED, AtMost, Consumer, Counts
from ..expecting import expect
from ..judging import check
from ..lab import Lab, ids, message, messages
from .settling import DISPOSITIONS


@check("leases=timed")
async def a_live_lease_is_not_rescued(lab: Lab) -> None:
    """Before its time-out a lease stays with its consumer: `rescue` and `receive` do not touch it."""
    async with lab.consumer() as consumer, lab.consumer() as other:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        await lab.advance(lab.time.bearable(consumer.lease_timeout) * 0.7)
        expect("how many are rescued", (await other.rescue(), await consumer.rescue()), (0, 0))
        expect("what another receives", await lab.drain(other), [])
        expect("the verdict", await lab.settle(consumer, delivery, ACK), SETTLED)


@check("leases=timed")
async def an_expired_lease_is_rescued_by_anybody(lab: Lab) -> None:
    """`rescue` makes the messages of expired leases ready again, of any consumer: `lost` grows, `attempt` does not."""
    async with lab.consumer() as gone, lab.consumer(None, "q", "r") as other:
        await lab.publish(message("1"), message("2"))
        one, two = await lab.take(gone, 2)
        await lab.settle(gone, one, Retry(0))
        one = await lab.take_one(gone)
        await lab.publish(message("3", "r"))
        await lab.take(other, 1)
        await lab.outlive(gone)
        expect("what is received before the rescue", await lab.drain(other), [])
        expect("how many are rescued", await other.rescue(), 3)
        expect("how many are rescued again", await other.rescue(), 0)
        await lab.placed("the places", dict.fromkeys("123", "ready"))
        again = {d.envelope.id: (d.attempt, d.lost) for d in await lab.take(other, 3)}
        expect("attempt and lost", again, {"1": (2, 1), "2": (1, 1), "3": (1, 1)})
        expect("whether the old leases are extended", await gone.extend([one, two]), [False, False])


@check("leases=timed", "not unique_ids=window")
async def a_rescued_lease_settles_nothing(lab: Lab) -> None:
    """A verdict that comes after a rescue is refused in every case, also when the message is leased anew."""
    async with lab.consumer() as consumer, lab.consumer() as other:
        await lab.publish(message("1"))
        stale = await lab.take_one(consumer)
        await lab.outlive(consumer)
        expect("how many are rescued", await other.rescue(), 1)
        for disposition, _ in DISPOSITIONS:
            verdict = await lab.settle(consumer, stale, disposition, message("outbox"))
            expect(f"the verdict of {disposition}", verdict, REFUSED)
        await lab.placed("the places", {"1": "ready"})
        present = await lab.take_one(other)
        for disposition, _ in DISPOSITIONS:
            verdict = await lab.settle(consumer, stale, disposition, message("outbox"))
            expect(f"the verdict of {disposition} on a new lease", verdict, REFUSED)
        await lab.placed("the places", {"1": "leased"})
        expect("the right verdict", await lab.settle(other, present, ACK), SETTLED)


@check("leases=timed")
async def an_extended_lease_starts_anew(lab: Lab) -> None:
    """A lease that is extended in time lives as long again, as often as one likes; the others end."""
    async with lab.consumer() as consumer:
        await lab.publish(*messages(3))
        deliveries = await lab.take(consumer, 3)
        for _ in range(4):
            await lab.advance(lab.time.bearable(consumer.lease_timeout) * 0.7)
            expect("the answers to extend", await consumer.extend(deliveries[::2]), [True, True])
        expect("how many are rescued", await consumer.rescue(), 1)
        await lab.placed("the places", {"m0": "leased", "m1": "ready", "m2": "leased"})
        expect("all answers in order", await consumer.extend(deliveries), [True, False, True])
        await lab.outlive(consumer)
        expect("how many are rescued in the end", await consumer.rescue(), 2)


@check("queue_admin")
async def extend_tells_what_is_lost(lab: Lab) -> None:
    """What was settled, released or deleted meanwhile is not ours any more."""
    async with lab.consumer(None, "q", "r") as consumer:
        await lab.publish(*messages(3), message("deleted", "r"))
        deliveries = await lab.take(consumer, 4)
        await lab.settle(consumer, deliveries[0], ACK)
        await lab.settle(consumer, deliveries[1], Release())
        await lab.broker.delete("r")
        expect("the answers", await consumer.extend(deliveries), [False, False, True, False])
        again = await lab.take_one(consumer)
        expect("the answers for old and new", await consumer.extend([deliveries[1], again]), [False, True])


@check("leases=timed")
async def extend_after_the_end_means_what_it_says(lab: Lab) -> None:
    """Of a lease that ended and was not rescued, the answer may be either, but it holds."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        await lab.outlive(consumer)
        [ours] = await consumer.extend([delivery])
        expect("how many are rescued", await consumer.rescue(), 0 if ours else 1)
        verdict = await lab.settle(consumer, delivery, ACK)
        expect("whether the verdict is accepted", verdict.accepted, ours)


@check("leases=timed")
async def a_late_verdict_counts_until_somebody_rescues(lab: Lab) -> None:
    """A lease ends with a rescue, not with the clock: until then its verdict is accepted."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        await lab.outlive(consumer)
        await lab.counted("the counts", "q", Counts(leased=1))
        expect("the verdict", await lab.settle(consumer, delivery, ACK), SETTLED)
        expect("how many are rescued", await consumer.rescue(), 0)


async def _lose(lab: Lab, consumer: Consumer, times: int) -> None:
    for lost in range(times):
        [delivery] = await lab.take(consumer, 1)
        expect("attempt and lost", (delivery.attempt, delivery.lost), (2, lost))
        await lab.outlive(consumer)
        expect("how many are rescued", await consumer.rescue(), 1)


@check("queue_admin", "leases=timed")
async def a_message_lost_ten_times_is_poison(lab: Lab) -> None:
    """The tenth lease without a verdict makes a message dead as poison; its attempt is not used. Revived it is new."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        await lab.settle(consumer, await lab.take_one(consumer), Retry(0))
        await _lose(lab, consumer, MOST_LOST)
        expect("what is received", await lab.drain(consumer), [])
        [dead] = await lab.broker.browse("q", "dead")
        expect("of the dead one", (dead.reason, dead.attempt, dead.lost), ("poison", 2, MOST_LOST))
        await lab.broker.revive("q")
        revived = await lab.take_one(consumer)
        expect("of the revived one", (revived.attempt, revived.lost), (1, 0))


@check("queue_admin", "results", "leases=timed", "outbox=atomic")
async def a_poisonous_message_tells_what_is_known(lab: Lab) -> None:
    """Its failure, and its result, say how often it was lost and by whom at last."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        for _ in range(MOST_LOST):
            await lab.take(consumer, 1)
            await lab.outlive(consumer)
            await consumer.rescue()
        [dead] = await lab.broker.browse("q", "dead")
        text = "" if dead.failure is None else dead.failure.text
        expect("whether it says how often", str(MOST_LOST) in text, expected=True)
        expect("whether it names the process", str(os.getpid()) in text, expected=True)
        [result] = await lab.broker.fetch_results(["1"])
        expect("the failure in the result", result and result.failure, dead.failure)


async def _suspect(lab: Lab, consumer: Consumer, *ids_: str) -> None:
    """Publish these, and lose them as often as it takes."""
    await lab.publish(*(message(id_) for id_ in ids_))
    for _ in range(SUSPECT_FROM):
        await lab.take(consumer, len(ids_))
        await lab.outlive(consumer)
        await consumer.rescue()


@check("queue_admin", "leases=timed", "isolates")
async def what_was_lost_twice_is_handed_out_alone(lab: Lab) -> None:
    """First, one at a time, and only to a consumer that says it holds nothing else."""
    async with lab.consumer() as consumer:
        await _suspect(lab, consumer, "1", "2")
        await lab.publish(message("3"), message("4"))
        expect("how many suspects there are", await consumer.suspects(), 2)
        expect("the counts", await lab.broker.counts("q"), Counts(ready=4))
        expect("what is browsed", await lab.browsed("ready"), ["1", "2", "3", "4"])
        beside = await consumer.receive(9, at_most=AtMost(alone=False), max_wait=0)
        expect("what is received beside others", ids(beside), ["3", "4"])
        expect("what waits", await consumer.receive(9, at_most=AtMost(alone=False), max_wait=0.01), [])
        alone = [ids(await consumer.receive(9, max_wait=0)) for _ in range(3)]
        expect("what is received alone", alone, [["1"], ["2"], []])
        expect("how many suspects there are now", await consumer.suspects(), 0)


@check("queue_admin", "tracking", "leases=timed", "isolates")
async def a_suspect_is_cancelled_flushed_and_paused_like_any_message(lab: Lab) -> None:
    """It is ready, and in its queue."""
    async with lab.consumer() as consumer:
        await _suspect(lab, consumer, "1", "2")
        await lab.broker.pause("q")
        expect("what is received of a paused queue", (await consumer.suspects(), await lab.drain(consumer)), (0, []))
        await lab.broker.resume("q")
        expect("what cancelling says", await lab.broker.cancel("1"), "cancelled")
        expect("how many are flushed", await lab.broker.flush("q"), 1)
        expect("the counts", await lab.broker.counts("q"), Counts())


@check("leases=timed")
async def a_waiting_receive_gets_a_suspect(lab: Lab) -> None:
    """As soon as it is one, if it may be alone."""
    async with lab.consumer() as consumer, lab.consumer() as other:
        await _suspect(lab, consumer, "1")
        await lab.take(consumer, 1)
        await lab.outlive(consumer)
        expect("what the one that waits gets", await lab.woken(other, consumer.rescue), ["1"])


@check("leases=timed", "delays=exact", "not unique_ids=window", "isolates")
async def a_run_that_was_survived_clears_what_was_lost(lab: Lab) -> None:
    """With Retry and Release, now or later; without `survived` the message stays a suspect."""
    async with lab.consumer() as consumer:
        for survived, lost in ((False, SUSPECT_FROM), (True, 0)):
            for disposition in (Retry(0), Release(), Retry(lab.moment), Release(lab.moment)):
                await _suspect(lab, consumer, "1")
                delivery = await lab.take_one(consumer)
                verdicts = await consumer.settle([Settlement(delivery, disposition, survived=survived)])
                expect("the verdict", verdicts, [SETTLED])
                await lab.advance(2 * lab.moment)
                expect(f"the suspects after {disposition}", await consumer.suspects(), 0 if survived else 1)
                again = await lab.take_one(consumer)
                expect(f"lost after {disposition}, survived: {survived}", again.lost, lost)
                await lab.settle(consumer, again, ACK)


@check("queue_admin", "leases=timed", "ttl")
async def a_rescue_looks_at_the_time_to_live(lab: Lab) -> None:
    """What expired while it was leased, and is lost, is dead."""
    async with lab.consumer() as consumer:
        ttl = lab.time.bearable(consumer.lease_timeout) / 2
        await lab.publish(message("1", options=Options(ttl=ttl)))
        await lab.take(consumer, 1)
        await lab.outlive(consumer)
        await consumer.rescue()
        expect("what is received", ids(await lab.drain(consumer)), [])
        await lab.expired("1")


@check("queue_admin", "leases=timed")
async def the_lease_timeout_is_a_time(lab: Lab) -> None:
    """A consumer says how long its leases last."""
    async with lab.consumer() as consumer:
        expect("whether it is above 0", consumer.lease_timeout > 0, expected=True)
        await lab.publish(message("1"))
        await lab.take(consumer, 1)
        [leased] = await lab.broker.browse("q", "leased")
        due = -1.0 if leased.due_in is None else leased.due_in
        slack = min(lab.slack, consumer.lease_timeout / 2)
        low, high = consumer.lease_timeout - slack, consumer.lease_timeout
        expect(f"whether the lease ends in {low} to {high} s", low <= due <= high + 0.001, expected=True)
