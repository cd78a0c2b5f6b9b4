"""Which message is next: priorities, queues, topics."""

from __future__ import annotations

from math import inf

import msgspec
import trio

from ...envelope import Options, PrioritiesT
from ...ports import AtMost
from ..expecting import expect
from ..judging import check
from ..lab import Lab, ids, message

HIGH, MEDIUM, LOW = (Options(priority=priority) for priority in PrioritiesT)


@check("queue_admin", "priorities")
async def high_goes_before_medium_before_low(lab: Lab) -> None:
    """Among messages of like age priority decides (MEDIUM where none is given), and within one the order of sending."""
    batch = [
        message("l1", options=LOW),
        message("m1"),
        message("h1", options=HIGH),
        message("m2", options=MEDIUM),
        message("l2", options=LOW),
        message("h2", options=HIGH),
        message("m3"),
    ]
    await lab.publish(*batch)
    order = ["h1", "h2", "m1", "m2", "m3", "l1", "l2"]
    expect("the order in which they are browsed", await lab.browsed("ready"), order)
    async with lab.consumer() as consumer:
        expect("the order", ids(await lab.take(consumer, 3) + await lab.take(consumer, 4)), order)


@check("priorities")
async def priority_holds_over_separate_calls(lab: Lab) -> None:
    """An urgent message that comes a little later still goes first."""
    for id_, options in (("low", LOW), ("medium", MEDIUM), ("high", HIGH)):
        await lab.publish(message(id_, options=options))
        await lab.advance(lab.moment)
    async with lab.consumer() as consumer:
        expect("the order", ids(await lab.take(consumer, 3)), ["high", "medium", "low"])


@check("priorities=rank", "clock")
async def nothing_starves(lab: Lab) -> None:
    """A message is overtaken by more urgent ones only for a while: MEDIUM for a minute, LOW for ten."""
    await lab.publish(message("low", options=LOW))
    await lab.advance(530)
    await lab.publish(message("medium", options=MEDIUM))
    await lab.advance(50)
    await lab.publish(message("high", options=HIGH))
    await lab.advance(25)
    await lab.publish(message("last", options=HIGH))
    async with lab.consumer() as consumer:
        expect("the order", ids(await lab.take(consumer, 4)), ["high", "medium", "low", "last"])


@check("priorities=rank")
async def queues_share_one_order(lab: Lab) -> None:
    """A consumer of several queues is served by rank over all of them: none starves, none goes first by its name."""
    names = [f"queue{number}" for number in range(20)]
    await lab.broker.declare(names)
    sent: list[str] = []
    for number in range(3):
        turn = names[number * 7 :] + names[: number * 7]
        sent += [f"{name} {number}" for name in turn]
        await lab.publish(*(message(f"{name} {number}", name) for name in turn))
        await lab.advance(lab.moment)
    await lab.publish(message("urgent", names[11], options=HIGH))
    async with lab.consumer(None, *names) as consumer:
        expect("the order", ids(await lab.take(consumer, 25) + await lab.take(consumer, 36)), ["urgent", *sent])


@check()
async def a_busy_queue_does_not_hold_back_another(lab: Lab) -> None:
    """Thousands of messages in one queue do not delay what waits as long in another."""
    await lab.publish(*(message(f"busy{number}") for number in range(500)))
    await lab.advance(lab.moment)
    await lab.publish(message("other", "r"))
    await lab.advance(lab.moment)
    await lab.publish(*(message(f"later{number}") for number in range(500)))
    async with lab.consumer(None, "q", "r") as consumer:
        expect("the place of the other", ids(await lab.take(consumer, 501))[-1], "other")


@check()
async def a_consumer_without_topics_gets_everything(lab: Lab) -> None:
    """A consumer that names no topics gets every message of its queues, also those without a topic."""
    await lab.publish(message("a", topic="a"), message("none"), message("empty", topic=""))
    async with lab.consumer() as consumer:
        expect("what is received", ids(await lab.take(consumer, 3)), ["a", "none", "empty"])


@check("filters_topics")
async def a_consumer_gets_its_topics_and_not_those_of_others(lab: Lab) -> None:
    """A consumer is never given what another open consumer takes and it does not."""
    await lab.publish(message("a1", topic="a"), message("b1", topic="b"), message("ab", topic="ab"))
    async with lab.consumer(frozenset({"a", "ab"})) as one, lab.consumer(frozenset({"b", "ab"})) as two:
        expect("what the one gets", ids(await lab.drain(one)), ["a1", "ab"])
        expect("what the other gets", ids(await lab.drain(two)), ["b1"])
        await lab.publish(message("b2", topic="b"), message("a2", topic="a"))
        expect("what the one gets later", ids(await lab.drain(one)), ["a2"])
        expect("what the other gets later", ids(await lab.drain(two)), ["b2"])


@check("filters_topics")
async def strays_go_to_whoever_is_there(lab: Lab) -> None:
    """A message that no open consumer takes is handed out, so that a worker finds that it has no actor."""
    await lab.publish(message("c", topic="c"), message("none"), message("b", topic="b"))
    async with lab.consumer(frozenset({"a"})) as one:
        async with lab.consumer(frozenset({"b"})):
            expect("what the one gets while the other is there", ids(await lab.drain(one)), ["c", "none"])
        expect("what the one gets when the other has gone", ids(await lab.drain(one)), ["b"])


@check("filters_topics")
async def there_are_no_strays_where_somebody_takes_everything(lab: Lab) -> None:
    """A consumer of all topics takes strays from those who name theirs."""
    await lab.publish(message("c", topic="c"), message("none"))
    async with lab.consumer(frozenset({"a"})) as one, lab.consumer() as everything:
        expect("what the one gets", ids(await lab.drain(one)), [])
        expect("what the other gets", ids(await lab.drain(everything)), ["c", "none"])


@check("filters_topics")
async def topics_belong_to_one_queue(lab: Lab) -> None:
    """A consumer may take other topics of each queue."""
    batch = [message(f"{topic} of {queue}", queue, topic=topic) for queue in ("q", "r") for topic in ("a", "b")]
    await lab.publish(*batch)
    async with (
        lab.broker.consume({"q": frozenset({"a"}), "r": frozenset({"b"})}) as one,
        lab.broker.consume({"q": frozenset({"b"}), "r": frozenset({"a"})}) as two,
    ):
        expect("what the one gets", ids(await lab.drain(one)), ["a of q", "b of r"])
        expect("what the other gets", ids(await lab.drain(two)), ["b of q", "a of r"])


@check("filters_topics")
async def closing_a_consumer_wakes_those_who_may_have_its_topics(lab: Lab) -> None:
    """When a consumer leaves, what it alone took reaches one that waits."""
    opened, leave = trio.Event(), trio.Event()

    async def stay() -> None:
        async with lab.consumer(frozenset({"b"})):
            opened.set()
            await leave.wait()

    async def close() -> None:
        leave.set()

    async with lab.consumer(frozenset({"a"})) as one, trio.open_nursery() as nursery:
        nursery.start_soon(stay)
        await opened.wait()
        await lab.publish(message("b", topic="b"))
        expect("what the one that waits gets", await lab.woken(one, close), ["b"])


@check("priorities=rank", "filters_topics")
async def at_most_limits_a_topic_of_a_queue(lab: Lab) -> None:
    """`at_most` limits one (queue, topic) in a batch, over all priorities; 0 leaves it out; others are not held up."""
    batch = [message(f"{topic}{n}", topic=topic) for n in range(3) for topic in "ab"]
    await lab.publish(*batch, message("high", topic="a", options=HIGH), message("a of r", "r", topic="a"))
    async with lab.consumer(None, "q", "r") as consumer:
        some = await consumer.receive(20, at_most={("q", "a"): 2, ("q", "unknown"): 0}, max_wait=0)
        expect("what is received of two at most", ids(some), ["high", "a0", "b0", "b1", "b2", "a of r"])
        expect("what is received of none", await consumer.receive(20, at_most={("q", "a"): 0}, max_wait=0), [])
        rest = await consumer.receive(20, at_most={("r", "a"): 0, ("q", "a"): 5}, max_wait=0)
        expect("what is received in the end", ids(rest), ["a1", "a2"])


@check("filters_topics")
async def at_most_limits_a_group_of_topics_together(lab: Lab) -> None:
    """A group's limit counts over its topics, by rank; None is a whole queue; limits of topics hold as well."""
    await lab.publish(*(message(f"{topic}{n}", topic=topic) for n in range(3) for topic in "abc"))
    await lab.publish(*(message(f"r{n}", "r", topic=str(n)) for n in range(3)))
    group = frozenset({("q", "a"), ("q", "b")})
    async with lab.consumer(None, "q", "r") as consumer:
        limits = AtMost(groups=[(group, 3), (frozenset({("r", None)}), 1)])
        some = await consumer.receive(20, at_most=limits, max_wait=0)
        expect("what is received of three together", ids(some), ["a0", "b0", "c0", "a1", "c1", "c2", "r0"])
        none = AtMost(groups=[(group, 0), (frozenset({("r", None)}), 0)])
        expect("what is received of none", await consumer.receive(20, at_most=none, max_wait=0), [])
        both = AtMost(topics={("q", "b"): 1}, groups=[(group, 5), (frozenset({("r", None)}), 9)])
        rest = await consumer.receive(20, at_most=both, max_wait=0)
        expect("what is received of five, but of one topic one", ids(rest), ["b1", "a2", "r1", "r2"])


@check("filters_topics")
async def at_most_limits_the_bytes_of_a_batch(lab: Lab) -> None:
    """A batch ends before the message that makes it too big; the first may be bigger, up to a bound of its own."""
    sizes = {"1": 10, "2": 10, "3": 11, "4": 100, "5": 1}
    envelopes = [msgspec.structs.replace(message(id_), payload=b"x" * size) for id_, size in sizes.items()]
    async with lab.consumer() as consumer:
        await lab.publish(*envelopes)
        for first, expected in ((inf, ["1", "2"]), (10, []), (11, ["3"]), (99, []), (inf, ["4"]), (1, ["5"])):
            got = await consumer.receive(20, at_most=AtMost(size=20, first=first), max_wait=0)
            expect(f"what is received of 20 bytes, the first of {first} at most", ids(got), expected)


@check("priorities", "filters_topics")
async def what_is_too_big_for_now_is_waited_for(lab: Lab) -> None:
    """A `receive` that waits is not given what is too big for it, and gets what comes later and fits."""
    big = msgspec.structs.replace(message("big", topic="a", options=LOW), payload=b"x" * 100)
    async with lab.consumer() as consumer:
        await lab.publish(big)
        limits = AtMost(size=50, first=50)
        expect("what is received", await consumer.receive(5, at_most=limits, max_wait=0.01), [])
        await lab.publish(message("small", topic="b"))
        expect("what is received then", ids(await consumer.receive(5, at_most=limits)), ["small"])
        expect("what is received without a limit", ids(await lab.drain(consumer)), ["big"])


@check("filters_topics")
async def set_limits_reaches_one_who_waits(lab: Lab) -> None:
    """A `receive` that waits is given what wider limits allow, without being asked anew."""
    got: list[str] = []
    async with lab.consumer() as consumer, trio.open_nursery() as nursery:
        await lab.publish(message("a0", topic="a"))

        async def wait() -> None:
            got.extend(ids(await consumer.receive(5, at_most={("q", "a"): 0})))

        async def is_served() -> bool:
            return bool(got)

        nursery.start_soon(wait)
        await lab.idle()
        expect("what is received at first", got, [])
        consumer.set_limits({("q", "a"): 1})
        await lab.soon("what wider limits allow", is_served)
        expect("what is received", got, ["a0"])


@check("filters_topics")
async def at_most_holds_for_one_who_waits(lab: Lab) -> None:
    """A waiting `receive` is not given what its `at_most` excludes."""
    async with lab.consumer() as consumer:
        await lab.publish(message("a0", topic="a"))
        deliveries = await consumer.receive(5, at_most={("q", "a"): 0}, max_wait=0.01)
        expect("what is received", deliveries, [])
        expect("what is received without a limit", ids(await lab.drain(consumer)), ["a0"])
