"""Declaring and publishing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from ...delivery import ACK, DeadLetter, Release
from ...envelope import Envelope, Options, PrioritiesT
from ...errors import DuplicateId, QueueNotDeclared
from ...ports import Counts
from ..expecting import expect
from ..judging import check
from ..lab import Lab, ids, message, messages

PUBLISHERS = 50
ODD_IDS = ("0", "ü", "a b", "a/b", "a:b*{c}", "'; --", 'q"', "%s", "漢字🚀", "\u200b", "x" * 500, "A", "a")
FULL = Options(
    priority=PrioritiesT.HIGH,
    retries=0,
    timeout=float("inf"),
    ttl=1e6,
    delay=0.0,
    store_result=False,
    result_id="the result",
    result_ttl=0.1 + 0.2,
)


@check()
async def declaring_is_idempotent(lab: Lab) -> None:
    """Declaring a queue creates it empty; declaring it again, also twice in one call, changes nothing."""
    await lab.broker.declare(["new", "new"])
    await lab.counted("the counts of a new queue", "new", Counts())
    await lab.publish(message("1", "new"))
    await lab.broker.declare(["new", "q"])
    await lab.broker.declare([])
    await lab.counted("the counts after declaring it again", "new", Counts(ready=1))
    async with lab.consumer(None, "new") as consumer:
        expect("what is received of it", ids(await lab.drain(consumer)), ["1"])


@check("queue_admin")
async def an_undeclared_queue_is_refused(lab: Lab) -> None:
    """Every call with a queue that is not declared raises `QueueNotDeclared`; only deleting it does nothing."""
    broker = lab.broker

    async def consume() -> None:
        async with broker.consume({"q": None, "none": None}):
            pass

    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "counts": lambda: broker.counts("none"),
        "paused_of": lambda: broker.paused_of(["q", "none"]),
        "browse": lambda: broker.browse("none", "ready"),
        "flush": lambda: broker.flush("none"),
        "revive": lambda: broker.revive("none"),
        "delete_messages": lambda: broker.delete_messages("none"),
        "delete_messages by key": lambda: broker.delete_messages("none", ["1"]),
        "pause": lambda: broker.pause("none"),
        "resume": lambda: broker.resume("none"),
        "consume": consume,
    }
    for name, call in calls.items():
        try:
            answer = await call()
        except QueueNotDeclared as error:
            expect(f"the queue that {name} names in its error", error.queue, "none")
        else:
            expect(f"what {name} says of an undeclared queue", answer, QueueNotDeclared)
    await broker.delete("none")


@check("queue_admin")
async def publishing_nothing_is_nothing(lab: Lab) -> None:
    """An empty batch has no outcomes and changes nothing."""
    expect("the outcomes", await lab.broker.publish([]), [])
    expect("the places", await lab.places(), {})


@check("queue_admin", "ttl", "priorities")
async def an_envelope_arrives_as_it_was_sent(lab: Lab) -> None:
    """Every field of an envelope is delivered and browsed as it was sent; what was not given stays so."""
    parameters = {"text": "ü", "number": 1, "float": 0.1, "none": None, "list": [True, {"deep": []}]}
    full = Envelope("full", "q", b"\x00\xff", "text/plain", {"topic": "t", "ü \n": "漢字\t🚀"}, "r", FULL, parameters)
    bare = Envelope("bare", "q", b"")
    await lab.publish(full, bare)
    browsed = {found.envelope.id: found.envelope for found in await lab.broker.browse("q", "ready")}
    expect("what is browsed", browsed, {"full": full, "bare": bare})
    async with lab.consumer() as consumer:
        received = {delivery.envelope.id: delivery.envelope for delivery in await lab.take(consumer, 2)}
    expect("what is delivered", received, {"full": full, "bare": bare})
    expect("the options not given", received["bare"].options, Options())
    expect("the result's time to live", received["full"].options.result_ttl, 0.1 + 0.2)


@check()
async def payloads_of_any_size_arrive(lab: Lab) -> None:
    """No bytes, every byte, and a megabyte arrive unchanged."""
    payloads = {"empty": b"", "every": bytes(range(256)), "large": bytes(range(256)) * 4096}
    await lab.publish(*(message(id_, payload=payload) for id_, payload in payloads.items()))
    async with lab.consumer() as consumer:
        received = {delivery.envelope.id: delivery.envelope.payload for delivery in await lab.take(consumer, 3)}
    expect(
        "the sizes",
        {id_: len(payload) for id_, payload in received.items()},
        {"empty": 0, "every": 256, "large": 2**20},
    )
    expect("whether the payloads are the same", received == payloads, expected=True)


@check("queue_admin")
async def ids_and_names_may_be_odd(lab: Lab) -> None:
    """Ids, queues and topics are any text, and differ where one letter does."""
    queue = "a queue: with/odd*{name} ü"
    await lab.broker.declare([queue])
    await lab.publish(*(message(id_, queue, topic=id_) for id_ in ODD_IDS))
    async with lab.consumer(None, queue) as consumer:
        deliveries = await lab.take(consumer, len(ODD_IDS))
        expect("the ids", sorted(ids(deliveries)), sorted(ODD_IDS))
        expect("the topics", sorted(d.envelope.topic or "" for d in deliveries), sorted(ODD_IDS))
        for delivery in deliveries:
            expect("whether it could be settled", (await lab.settle(consumer, delivery, ACK)).accepted, expected=True)
    expect("what is left", await lab.places(queue), {})


@check()
async def a_batch_keeps_its_order(lab: Lab) -> None:
    """The messages of one batch are delivered in its order, and later batches after it."""
    first, second = messages(300, "a"), messages(300, "b")
    await lab.publish(*first)
    await lab.advance(lab.moment)
    await lab.publish(*second)
    async with lab.consumer() as consumer:
        received = ids(await lab.take(consumer, 600))
    expect("the order", received, [envelope.id for envelope in first + second])


@check("queue_admin", "unique_ids")
async def a_refused_message_does_not_harm_its_neighbours(lab: Lab) -> None:
    """Each message of a batch has its own outcome, in order: accepted, a duplicate, or to no declared queue."""
    batch = [message("1"), message("1"), message("2", "none"), message("3"), message("1", "r"), message("4", "r")]
    outcomes = await lab.broker.publish(batch)
    none = type(None)
    kinds = [none, DuplicateId, QueueNotDeclared, none, DuplicateId, none]
    expect("the outcomes", [type(outcome) for outcome in outcomes], kinds)
    expect("the places", await lab.places(), {"1": "ready", "3": "ready", "4": "ready"})
    async with lab.consumer() as consumer:
        expect("what arrived in q", ids(await lab.drain(consumer)), ["1", "3"])


@check("queue_admin", "delays", "unique_ids")
async def a_live_id_is_refused_in_every_queue(lab: Lab) -> None:
    """A second message with the id of one that is ready, scheduled or leased is refused, in any queue."""
    async with lab.consumer() as consumer:
        await lab.publish(message("leased"))
        await lab.take(consumer, 1)
        await lab.publish(message("ready"), message("scheduled", options=Options(delay=1e6)))
        again = [message(id_, queue) for id_ in ("ready", "scheduled", "leased") for queue in ("q", "r")]
        outcomes = await lab.broker.publish(again)
        expect("the outcomes", [type(outcome) for outcome in outcomes], [DuplicateId] * 6)
        expect("the ids in the errors", [getattr(o, "id", None) for o in outcomes], [e.id for e in again])
    places = {"ready": "ready", "scheduled": "scheduled", "leased": "leased"}
    expect("the places", await lab.places(), places)


@check("queue_admin", "delays", "unique_ids=live")
async def an_id_is_free_again_when_its_message_is_not_live(lab: Lab) -> None:
    """The ids of what is dead, acknowledged, flushed or deleted may be used again."""
    async with lab.consumer(None, "q", "r") as consumer:
        await lab.publish(message("dead"), message("acked"))
        dead, acked = await lab.take(consumer, 2)
        await lab.settle(consumer, dead, DeadLetter("nacked"))
        await lab.settle(consumer, acked, ACK)
        await lab.publish(message("flushed"), message("flushed later", options=Options(delay=1e6)))
        await lab.broker.flush("q")
        await lab.publish(message("deleted", "r"), message("deleted leased", "r"))
        await lab.take(consumer, 1)
        await lab.broker.delete("r")
    again = ["dead", "acked", "flushed", "flushed later", "deleted", "deleted leased"]
    await lab.publish(*(message(id_) for id_ in again))
    expect("what is ready", await lab.browsed("ready"), again)


@check("delays=exact", "unique_ids")
async def an_id_stays_taken_while_its_message_comes_back(lab: Lab) -> None:
    """A message that was released or retried is as live as before."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        for disposition in (Release(), Release(lab.moment * 1000)):
            await lab.settle(consumer, await lab.take_one(consumer), disposition)
            [outcome] = await lab.broker.publish([message("1", "r")])
            expect(f"the outcome after {disposition}", type(outcome), DuplicateId)


@check("queue_admin", "unique_ids")
async def concurrent_publishers_do_not_disturb_each_other(lab: Lab) -> None:
    """Of many that publish at once, of those with the same id one is accepted; all else that they send is accepted."""
    outcomes: Counter[tuple[str, str]] = Counter()

    async def publish(number: int) -> None:
        batch = [message(f"own{number}"), message(f"shared{number % 5}"), message(f"also own{number}", "r")]
        for envelope, outcome in zip(batch, await lab.broker.publish(batch), strict=True):
            outcomes[envelope.id, "accepted" if outcome is None else type(outcome).__name__] += 1

    async with trio.open_nursery() as nursery:
        for number in range(PUBLISHERS):
            nursery.start_soon(publish, number)
    own = {(f"{kind}{n}", "accepted"): 1 for kind in ("own", "also own") for n in range(PUBLISHERS)}
    shared = {(f"shared{n}", "accepted"): 1 for n in range(5)}
    refused = {(f"shared{n}", "DuplicateId"): PUBLISHERS // 5 - 1 for n in range(5)}
    expect("the outcomes", dict(sorted(outcomes.items())), dict(sorted({**own, **shared, **refused}.items())))
    expect("the places", await lab.places(), dict.fromkeys((id_ for id_, _ in own | shared), "ready"))


@check("queue_admin")
async def what_publish_accepted_is_there_when_it_returns(lab: Lab) -> None:
    """Right after `publish` its messages are counted, browsed and received."""
    async with lab.consumer() as consumer:
        for number in range(20):
            await lab.publish(message(str(number)))
            expect("the counts", await lab.broker.counts("q"), Counts(ready=1))
            expect("what is browsed", await lab.browsed("ready"), [str(number)])
            deliveries = await consumer.receive(1, max_wait=0)
            expect("what is received", ids(deliveries), [str(number)])
            await lab.settle_all(consumer, deliveries, ACK)


@check("queue_admin")
async def a_large_batch_is_one_call(lab: Lab) -> None:
    """Thousands of messages are published, received and settled in a few calls."""
    await lab.publish(*messages(3000))
    expect("the counts", await lab.broker.counts("q"), Counts(ready=3000))
    async with lab.consumer() as consumer:
        deliveries = await lab.take(consumer, 3000)
        expect("how many differ", len(set(ids(deliveries))), 3000)
        verdicts = await lab.settle_all(consumer, deliveries, ACK)
        expect("how many were settled", sum(verdict.accepted for verdict in verdicts), 3000)
    expect("the counts in the end", await lab.broker.counts("q"), Counts())
