"""Bounded queues: what counts, what is refused, who waits, and what is dropped."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ...delivery import ACK, UNBOUNDED, Bounds, DeadLetter, NewResult, Release, Retry, Settlement
from ...envelope import Envelope, Options
from ...errors import BrokerRefused, DuplicateId, QueueFull
from ...ports import SETTLED, Broker, Counts
from ..expecting import expect
from ..judging import check
from ..lab import Lab, ids, message, messages
from .schedules import every, tick

LATE = Options(delay=1e6)
THREE = Bounds(max_size=3, when_full="raise")
WAITING = Bounds(max_size=3)


def _kinds(outcomes: Sequence[BrokerRefused | None]) -> list[type[BrokerRefused] | None]:
    return [None if outcome is None else type(outcome) for outcome in outcomes]


async def _try(lab: Lab, *envelopes: Envelope) -> list[type[BrokerRefused] | None]:
    return _kinds(await lab.broker.publish(envelopes))


async def _bound(lab: Lab, bounds: Bounds, queue: str = "q") -> None:
    await lab.broker.set_bounds({queue: bounds})


@check("not bounds")
async def bounds_are_refused(lab: Lab) -> None:
    """A server that cannot bound queues refuses bounds, and takes any number of messages."""
    await lab.refused("set_bounds", lambda: _bound(lab, THREE))
    await lab.publish(*messages(10))


@check("bounds", "delays", "queue_admin")
async def what_waits_counts_and_what_is_leased_does_not(lab: Lab) -> None:
    """A bounded queue has room for `max_size` ready and scheduled messages; a claim makes room, a flush and a
    cancellation too.
    """
    await _bound(lab, THREE)
    late = message("late", options=LATE)
    expect("the outcomes", await _try(lab, late, *messages(3)), [None, None, None, QueueFull])
    expect("the outcome of one more", await _try(lab, message("more", options=LATE)), [QueueFull])
    await lab.counted("the counts", "q", Counts(ready=2, scheduled=1, bounds=THREE))
    async with lab.consumer() as consumer:
        deliveries = await lab.take(consumer, 2)
        expect("the outcomes after a claim", await _try(lab, *messages(3, "n")), [None, None, QueueFull])
        await lab.settle_all(consumer, deliveries, ACK)
        expect("the outcome after an acknowledgement", await _try(lab, message("more")), [QueueFull])
    await lab.broker.flush("q")
    expect("the outcomes after a flush", await _try(lab, *messages(4)), [None, None, None, QueueFull])


@check("bounds", "tracking")
async def a_cancelled_message_makes_room(lab: Lab) -> None:
    """A waiting message that is cancelled counts no more."""
    await _bound(lab, THREE)
    await lab.publish(*messages(3))
    await lab.broker.cancel("m1")
    expect("the outcomes", await _try(lab, *messages(2, "n")), [None, QueueFull])


@check("bounds", "unique_ids=live", "queue_admin")
async def refused_messages_keep_their_order(lab: Lab) -> None:
    """When one message of a call has no room, none behind it has; other queues and repeated ids do not suffer from
    that. Each is refused for its own size, with an error of its own, which may be raised besides the others.
    """
    await _bound(lab, Bounds(max_size=3, max_bytes=10, when_full="raise"))
    sizes = {"a": 4, "b": 4, "too big": 4, "small": 1}
    batch = [message("other", "r"), *(message(id_, payload=b"x" * size) for id_, size in sizes.items())]
    outcomes = await lab.broker.publish([*batch, message("huge", payload=b"x" * 11)])
    expect("the outcomes", _kinds(outcomes), [None, None, None, QueueFull, QueueFull, QueueFull])
    full = [each for each in outcomes if isinstance(each, QueueFull)]
    expect("whether each can fit", [each.can_fit for each in full], [True, True, False])
    expect("how many errors there are", len({id(each) for each in full}), 3)
    expect("those of a repetition", await _try(lab, *batch[:3]), [DuplicateId] * 3)
    expect("that of a small one", await _try(lab, message("small")), [None])
    expect("what waits", await lab.browsed("ready"), ["a", "b", "small"])


@check("bounds", "unique_ids=live", "queue_admin")
async def a_repeated_id_takes_no_room(lab: Lab) -> None:
    """A message that is refused for its id is not counted, whether the live one is of the same call or of another."""
    await _bound(lab, Bounds(max_size=3, max_bytes=10, when_full="raise"))
    a, b = message("a", payload=b"x" * 4), message("b", payload=b"x" * 4)
    expect("the outcomes", await _try(lab, a, a, message("r", "r"), message("r"), b), [None, DuplicateId] * 2 + [None])
    last = message("c", payload=b"x" * 2)
    expect("those of a repetition", await _try(lab, b, a, last, last), [DuplicateId, DuplicateId, None, DuplicateId])
    expect("what waits", await lab.browsed("ready"), ["a", "b", "c"])


@check("bounds", "queue_admin")
async def bytes_of_payload_are_bounded(lab: Lab) -> None:
    """`max_bytes` of payload may wait. A message that is bigger than that is refused, whatever is to be done with
    others.
    """
    for when_full in ("raise", "wait", "drop_oldest"):
        await _bound(lab, Bounds(max_bytes=10, when_full=when_full))
        big, small = message("big", payload=b"x" * 11), message(when_full, payload=b"x" * 10)
        outcomes = await lab.broker.publish([big, small])
        expect(f"the outcomes ({when_full})", _kinds(outcomes), [QueueFull, None])
        expect("whether it can fit", [each.can_fit for each in outcomes if isinstance(each, QueueFull)], [False])
        expect("what waits", await lab.browsed("ready"), [when_full])
        if when_full == "raise":
            outcomes = await lab.broker.publish([message("more", payload=b"x")])
            expect("the outcome beside ten bytes", _kinds(outcomes), [QueueFull])
        async with lab.consumer() as consumer:
            await lab.settle(consumer, await lab.take_one(consumer), ACK)


@check("bounds", "queue_admin")
async def bounds_stay_with_the_queue(lab: Lab) -> None:
    """A declaration without bounds keeps them, another bound takes their place, and they can be removed."""
    await _bound(lab, THREE)
    await lab.publish(*messages(3))
    await lab.broker.declare(["q", "new"])
    await lab.counted("the counts", "q", Counts(ready=3, bounds=THREE))
    expect("the outcome", await _try(lab, message("n")), [QueueFull])
    await _bound(lab, Bounds(max_size=2, when_full="raise"))
    expect("the outcome with a narrower bound", await _try(lab, message("n")), [QueueFull])
    expect("what waits still", len(await lab.browsed("ready")), 3)
    await _bound(lab, Bounds(max_size=4, when_full="raise"))
    expect("the outcome with a wider one", await _try(lab, message("n")), [None])
    await _bound(lab, UNBOUNDED)
    expect("the outcomes without one", await _try(lab, *messages(10, "u")), [None] * 10)
    await lab.counted("the counts without one", "q", Counts(ready=14))
    await _bound(lab, THREE, "declared with it")
    await lab.counted("the counts of a new queue", "declared with it", Counts(bounds=THREE))
    await lab.broker.delete("declared with it")
    await lab.broker.declare(["declared with it"])
    await lab.counted("the counts of one that was deleted", "declared with it", Counts())


@check("bounds", "another", "shared", "queue_admin")
async def all_clients_keep_a_bound(lab: Lab) -> None:
    """A bound that one client has set is kept by another one, at once; so is its end."""
    async with lab.another() as other:
        expect("the outcome before", _kinds(await other.publish([message("before")])), [None])
        await _bound(lab, THREE)
        expect("the outcomes", _kinds(await other.publish(messages(3))), [None, None, QueueFull])
        await other.set_bounds({"q": UNBOUNDED})
        expect("the outcomes without it", await _try(lab, *messages(3, "n")), [None] * 3)


@check("bounds", "queue_admin")
async def senders_wait_for_room_in_their_order(lab: Lab) -> None:
    """Where senders wait for room, what they send comes in pieces, in order, first come first served, and
    none is lost.
    """
    await _bound(lab, WAITING)
    outcomes: list[BrokerRefused | None] = []

    async def send(*envelopes: Envelope) -> None:
        outcomes.extend(await lab.broker.publish(envelopes))

    async with trio.open_nursery() as nursery, lab.consumer() as consumer:
        nursery.start_soon(send, *messages(5, "a"))
        await lab.idle()
        nursery.start_soon(send, message("b"))
        await lab.idle()
        nursery.start_soon(send, *messages(3, "c"))
        await lab.idle()
        expect("what waits", await lab.browsed("ready"), ["a0", "a1", "a2"])
        received = await lab.take(consumer, 9)
    expect("what was received", ids(received), ["a0", "a1", "a2", "a3", "a4", "b", "c0", "c1", "c2"])
    expect("the outcomes", outcomes, [None] * 9)


@check("bounds", "queue_admin")
async def a_sender_that_leaves_has_sent_nothing(lab: Lab) -> None:
    """A message that waits for room is not published when its sender is cancelled, and the next one has its turn."""
    await _bound(lab, WAITING)
    await lab.publish(*messages(3))
    with trio.move_on_after(lab.moment) as scope:
        await lab.broker.publish([message("late")])
    expect("whether it waited", scope.cancelled_caught, expected=True)
    with trio.move_on_after(lab.moment):
        await lab.broker.publish([message("pieces0"), message("pieces1")])
    async with trio.open_nursery() as nursery, lab.consumer() as consumer:
        nursery.start_soon(lab.publish, message("next"))
        await lab.idle()
        expect("what is received", ids(await lab.take(consumer, 4)), ["m0", "m1", "m2", "next"])
    expect("what is left", await lab.places(), dict.fromkeys(["m0", "m1", "m2", "next"], "leased"))


@check("bounds", "another", "shared")
async def a_sender_learns_of_room_that_another_client_makes(lab: Lab) -> None:
    """A sender that waits for room goes on soon after another client has made some."""
    await _bound(lab, WAITING)
    await lab.publish(*messages(3))

    async def make_room(other: Broker) -> None:
        await lab.idle()
        async with other.consume({"q": None}) as consumer:
            await lab.take(consumer, 2)

    async with lab.another() as other, trio.open_nursery() as nursery:
        nursery.start_soon(make_room, other)
        with trio.fail_after(lab.time.patience):
            await lab.publish(message("late"), message("later"))


@check("bounds", "queue_admin", "tracking", "results")
async def the_oldest_are_dropped(lab: Lab) -> None:
    """Where the oldest are dropped, new messages come in. What is dropped is counted, and ends for those who follow it,
    also what is dropped as it comes.
    """
    await _bound(lab, Bounds(max_size=3, when_full="drop_oldest"))
    wanted = Options(store_result=True)
    await lab.publish(message("m0", options=wanted), *messages(2, "n"))
    seen = await lab.broker.watch("m0", "m0")
    await lab.publish(message("o"), message("p"))
    with trio.fail_after(lab.time.patience):
        seen = await lab.broker.watch("m0", "m0", seen)
    expect("how the first one ended", (seen.state, seen.result and seen.result.state), ("gone", "dropped"))
    expect("what waits", await lab.browsed("ready"), ["n1", "o", "p"])
    expect(
        "the results", [each and each.state for each in await lab.broker.fetch_results(["m0", "n0"])], ["dropped", None]
    )
    await lab.publish(*messages(5, "q"))
    expect("what waits after more than fit", await lab.browsed("ready"), ["q2", "q3", "q4"])
    counts = await lab.broker.counts("q")
    expect("how many were dropped", (counts.ready, counts.dropped), (3, 7))
    await lab.publish(*(message(f"s{n}", options=wanted) for n in range(4)))
    at_once = await lab.broker.fetch_results(["s0", "s1"])
    expect(
        "the results of what was dropped as it came, and was not",
        [one and one.state for one in at_once],
        ["dropped", None],
    )


@check("bounds", "queue_admin")
async def what_comes_back_with_an_outbox_counts_when_the_oldest_are_dropped(lab: Lab) -> None:
    """A retry and its outbox, which goes to the same queue, come into it in one step: the oldest make room for both."""
    await _bound(lab, Bounds(max_size=2, when_full="drop_oldest"))
    async with lab.consumer() as consumer:
        await lab.publish(message("m0"), message("m1"))
        delivery = await lab.take_one(consumer)
        expect("the verdict", await lab.settle(consumer, delivery, Retry(0.0), message("new")), SETTLED)
        expect("what waits", await lab.browsed("ready"), ["m0", "new"])
        counts = await lab.broker.counts("q")
        expect("how many were dropped", (counts.ready, counts.dropped), (2, 1))


@check("bounds", "queue_admin", "delays")
async def ready_messages_are_dropped_before_scheduled_ones(lab: Lab) -> None:
    """What is scheduled is dropped when nothing is ready, what is due first before the others; what is leased stays."""
    await _bound(lab, Bounds(max_size=2, when_full="drop_oldest"))
    async with lab.consumer() as consumer:
        await lab.publish(message("leased"))
        delivery = await lab.take_one(consumer)
        await lab.publish(message("late", options=LATE), message("ready"), message("soon", options=Options(delay=1e5)))
        await lab.placed("what is there", {"leased": "leased", "late": "scheduled", "soon": "scheduled"})
        await lab.publish(message("later", options=Options(delay=2e6)))
        await lab.placed("what is there then", {"leased": "leased", "late": "scheduled", "later": "scheduled"})
        expect("the verdict", await lab.settle(consumer, delivery, ACK), SETTLED)


@check("bounds", "queue_admin", "delays")
async def what_comes_back_is_never_refused(lab: Lab) -> None:
    """Retries, releases, lost leases and revived messages come back into a full queue; new ones wait until it
    is not.
    """
    await _bound(lab, THREE)
    await lab.kill(message("dead"))
    async with lab.consumer() as consumer:
        await lab.publish(*messages(3))
        first, second, third = await lab.take(consumer, 3)
        await lab.publish(*messages(3, "n"))
        await lab.settle(consumer, first, Retry(1e6))
        await lab.settle(consumer, second, Release())
        await lab.outlive(consumer)
        expect("how many were rescued", await consumer.rescue(), 1)
        expect("the revival", await lab.broker.revive("q"), [None])
        await lab.counted("the counts", "q", Counts(ready=6, scheduled=1, bounds=THREE))
        expect("the third one", third.envelope.id, "m2")
        expect("the outcome of a new one", await _try(lab, message("new")), [QueueFull])
        await lab.settle_all(consumer, await lab.drain(consumer), ACK)
    expect("the outcomes when there is room", await _try(lab, *messages(3, "new")), [None, None, QueueFull])


@check("bounds", "queue_admin", "outbox=atomic", "results")
async def a_full_queue_refuses_a_whole_outbox(lab: Lab) -> None:
    """A settlement whose outbox has no room does nothing at all, and can be made again while the lease lasts."""
    await _bound(lab, THREE, "r")
    await lab.publish(*messages(2, "r", "r"))
    async with lab.consumer() as consumer:
        await lab.publish(message("1"), message("2"))
        first, second = await lab.take(consumer, 2)
        outbox = (message("free", "s"), *messages(2, "o", "r"))
        result = NewResult(id="1", state="success")
        verdict = await lab.settle(consumer, first, ACK, *outbox, result=result)
        expect("the verdict", verdict.outcome, "full")
        expect("the full queue", verdict.full and (verdict.full.queue, verdict.full.can_fit), ("r", True))
        await lab.placed("what is there", {"1": "leased", "2": "leased", "r0": "ready", "r1": "ready"})
        expect("the result", await lab.broker.fetch_results(["1"]), [None])
        await lab.broker.flush("r")
        expect("the verdict then", await lab.settle(consumer, first, ACK, *outbox, result=result), SETTLED)
        await lab.placed("what is there then", {"2": "leased", "o0": "ready", "o1": "ready"})
        verdict = await lab.settle(consumer, second, ACK, *messages(4, "p", "r"))
        expect("whether four fit", verdict.full and verdict.full.can_fit, expected=False)
        expect("the verdict without", await lab.settle(consumer, second, DeadLetter("failed")), SETTLED)


@check("bounds", "queue_admin", "outbox=atomic")
async def an_outbox_may_drop_the_oldest(lab: Lab) -> None:
    """Where the oldest are dropped, an outbox comes in. What each of several in one call drops is counted once."""
    bounds = Bounds(max_size=2, when_full="drop_oldest")
    await _bound(lab, bounds, "r")
    await lab.publish(*messages(2, "r", "r"))
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        expect("the verdict", await lab.settle(consumer, delivery, ACK, message("o", "r")), SETTLED)
        await lab.placed("what is there", {"r1": "ready", "o": "ready"})
        await lab.publish(*messages(3))
        batch = [
            Settlement(each, ACK, (message(f"p{number}", "r"),))
            for number, each in enumerate(await lab.take(consumer, 3))
        ]
        expect("the verdicts of three at once", await consumer.settle(batch), [SETTLED] * 3)
    await lab.placed("what is there then", {"p1": "ready", "p2": "ready"})
    await lab.counted("the counts", "r", Counts(ready=2, bounds=bounds, dropped=4))


@check("bounds", "queue_admin", "schedules")
async def a_tick_is_never_refused(lab: Lab) -> None:
    """A schedule sends into a full queue."""
    await _bound(lab, THREE)
    await lab.publish(*messages(3))
    await lab.broker.put_schedule(every(), 1000.0)
    expect("the outcome of the tick", await tick(lab, 1000.0, "ticked"), "fired")
    await lab.counted("the counts", "q", Counts(ready=4, bounds=THREE))
