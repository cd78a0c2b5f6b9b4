"""Cancelling calls at every await: all or nothing, and every message accounted for."""

from __future__ import annotations

from functools import partial

import trio

from ...delivery import ACK, NewResult, Settlement
from ...envelope import Options
from ...errors import PublishUnknown
from ...ports import Counts, Schedule
from ..expecting import expect
from ..interrupting import interrupt, interruptions
from ..judging import check
from ..lab import Lab, ids, message
from .cancelling import cancelled


@check("queue_admin", "delays")
async def a_cancelled_publish_published_nothing(lab: Lab) -> None:
    """Cancelled at any await, `publish` has published all and returns, or none; or it raises `PublishUnknown`."""
    for number, when in enumerate(interruptions()):
        batch = [message(f"{number}{n}", options=Options(delay=1e6) if n == "c" else Options()) for n in "abc"]
        places = {f"{number}a": "ready", f"{number}b": "ready", f"{number}c": "scheduled"}
        try:
            result = await interrupt(partial(lab.broker.publish, batch), when)
        except PublishUnknown as error:
            expect("the ids that are named as unknown", set(error.ids) <= places.keys(), expected=True)
            expect("all or nothing", await lab.places() in ({}, places), expected=True)
        else:
            expected = {} if result.was_cancelled else places
            expect(f"the places after cancelling {when}", await lab.places(), expected)
        await lab.broker.flush("q")


@check("queue_admin")
async def cancelling_one_publisher_does_not_harm_another(lab: Lab) -> None:
    """Of publishers whose calls are coalesced, a cancelled one has published nothing and the others everything."""
    for number, when in enumerate(interruptions()):
        outcomes: list[object] = []

        async def publish(name: str, outcomes: list[object] = outcomes) -> None:
            outcomes += await lab.broker.publish([message(f"{name}{n}") for n in range(2)])

        expected = {f"{number}{name}{n}": "ready" for name in "ac" for n in range(2)}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, f"{number}a")
            mine = [message(f"{number}b{n}") for n in range(2)]
            try:
                result = await interrupt(partial(lab.broker.publish, mine), when)
            except PublishUnknown:
                return
            nursery.start_soon(publish, f"{number}c")
        if not result.was_cancelled:
            expected |= {f"{number}b{n}": "ready" for n in range(2)}
        expect("the outcomes of the others", outcomes, [None] * 4)
        expect(f"the places after cancelling {when}", await lab.places(), expected)
        await lab.broker.flush("q")


@check()
async def a_cancelled_receive_loses_nothing(lab: Lab) -> None:
    """Cancelled at any await, `receive` has leased nothing: the next one gets every message, unharmed and once."""
    async with lab.consumer() as consumer:
        for number, when in enumerate(interruptions()):
            sent = [f"{number}{n}" for n in "abc"]
            await lab.publish(*(message(id_) for id_ in sent))
            result = await interrupt(partial(consumer.receive, 2), when)
            deliveries = [delivery for value in result.value for delivery in value]
            with trio.move_on_after(lab.time.patience):
                deliveries += await lab.take(consumer, 3 - len(deliveries))
            expect(f"what is received after cancelling {when}", sorted(ids(deliveries)), sent)
            expect("attempt and lost", {(d.attempt, d.lost) for d in deliveries}, {(1, 0)})
            verdicts = await lab.settle_all(consumer, deliveries, ACK)
            expect("whether the verdicts are accepted", [v.accepted for v in verdicts], [True] * 3)
    await lab.placed("the places in the end", {})


@check("queue_admin")
async def a_cancelled_receive_and_a_closed_consumer_lose_nothing(lab: Lab) -> None:
    """If the consumer is closed after a cancelled `receive`, everything it did not hand over is ready, at once."""
    for number, when in enumerate(interruptions()):
        sent = [f"{number}{n}" for n in "abc"]
        await lab.publish(*(message(id_) for id_ in sent))
        async with lab.consumer() as consumer:
            result = await interrupt(partial(consumer.receive, 2), when)
        got = [id_ for value in result.value for id_ in ids(value)]
        places = {id_: "leased" if id_ in got else "ready" for id_ in sent}
        expect(f"the places after cancelling {when} and closing", await lab.places(), places)
        async with lab.consumer() as other:
            deliveries = await lab.take(other, 3 - len(got))
            expect("attempt and lost", {(d.attempt, d.lost) for d in deliveries} - {(1, 0)}, set())
        await lab.broker.delete("q")
        await lab.broker.declare(["q"])


@check()
async def cancelling_a_waiting_receive_loses_nothing(lab: Lab) -> None:
    """A `receive` that waits and is cancelled while a message comes got it, or left it for the next."""
    async with lab.consumer() as consumer:
        for number, when in enumerate(interruptions()):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lab.publish, message(str(number)))
                result = await interrupt(partial(consumer.receive, 1), when)
            deliveries = [delivery for value in result.value for delivery in value]
            if not deliveries:
                deliveries = await lab.take(consumer, 1)
            expect(f"what was received after cancelling {when}", ids(deliveries), [str(number)])
            await lab.counted("the counts", "q", Counts(leased=1))
            await lab.settle_all(consumer, deliveries, ACK)


@check("queue_admin", "results", "not unique_ids=window", "outbox=atomic")
async def a_cancelled_settle_did_all_or_nothing(lab: Lab) -> None:
    """Cancelled at any await, each settlement was carried out with its outbox and result, or not at all."""
    async with lab.consumer() as consumer:
        for number, when in enumerate(interruptions()):
            names = [f"{number}{n}" for n in "ab"]
            await lab.publish(*(message(id_) for id_ in names))
            deliveries = await lab.take(consumer, 2)
            batch = [
                Settlement(d, ACK, (message(f"out {d.envelope.id}"),), NewResult(id=d.envelope.id, state="success"))
                for d in deliveries
            ]
            result = await interrupt(partial(consumer.settle, batch), when)
            places = await lab.places()
            stored = [result is not None for result in await lab.broker.fetch_results(names)]
            done = [id_ not in places for id_ in names]
            expect(f"results after cancelling {when}", stored, done)
            expect("outboxes", [f"out {id_}" in places for id_ in names], done)
            if not result.was_cancelled:
                expect("what was settled by a call that returned", done, [True, True])
            verdicts = await consumer.settle(batch)
            expect("what is accepted the second time", [v.accepted for v in verdicts], [not d for d in done])
            expect("the places in the end", await lab.places(), {f"out {id_}": "ready" for id_ in names})
            await lab.broker.flush("q")


@check("queue_admin")
async def a_cancelled_settle_loses_no_message(lab: Lab) -> None:
    """The same without outbox: a message is acknowledged or still leased, and its verdict can be given again."""
    async with lab.consumer() as consumer:
        for number, when in enumerate(interruptions()):
            await lab.publish(message(f"{number}"))
            [delivery] = await lab.take(consumer, 1)
            batch = [Settlement(delivery, ACK)]
            result = await interrupt(partial(consumer.settle, batch), when)
            places = await lab.places()
            allowed = [{}, {f"{number}": "leased"}] if result.was_cancelled else [{}]
            expect(f"whether {places} may be after cancelling {when}", places in allowed, expected=True)
            [verdict] = await consumer.settle(batch)
            expect("whether it is accepted now", verdict.accepted, bool(places))
            expect("the places in the end", await lab.places(), {})


@check("queue_admin", "not unique_ids=window")
async def a_cancelled_upkeep_is_all_or_nothing(lab: Lab) -> None:
    """Cancelled at any await, `extend` harms no lease, `rescue` and `revive` leave each message in one place."""
    async with lab.consumer() as consumer:
        await lab.kill(message("1"))
        for when in interruptions():
            await interrupt(partial(lab.broker.revive, "q"), when)
            places = await lab.places()
            expect(f"whether {places} may be", places in ({"1": "ready"}, {"1": "dead"}), expected=True)
            if places == {"1": "dead"}:
                await lab.broker.revive("q")
            [delivery] = await lab.take(consumer, 1)
            await interrupt(partial(consumer.extend, [delivery]), when)
            await interrupt(consumer.rescue, when)
            expect("whether the lease is there", await consumer.extend([delivery]), [True])
            await lab.settle(consumer, delivery, ACK)
            await lab.kill(message("1"))
            expect("what is dead", await lab.browsed("dead"), ["1"])


@check("queue_admin", "schedules")
async def a_cancelled_tick_fired_or_did_not(lab: Lab) -> None:
    """Cancelled at any await, a tick has moved the schedule and published its message, or neither."""
    await lab.broker.put_schedule(Schedule(name="s", envelope=message("s"), every=1, overlap="allow"), 0.5)
    at, sent = 0.5, 0
    for number, when in enumerate(interruptions()):
        envelope = message(f"tick{number}")
        await interrupt(partial(lab.broker.tick, "s", at, at + 1, envelope), when)
        [stored] = await lab.broker.schedules()
        sent += envelope.id in await lab.places()
        expect(f"how often it has fired after cancelling {when}", stored.fired, sent)
        expect("when it is next", stored.next_at, 0.5 + sent)
        at = stored.next_at


@check("tracking")
async def a_cancelled_wait_for_events_loses_none(lab: Lab) -> None:
    """Cancelled at any await, `events` has given its events or gives them the next time."""
    async with lab.consumer() as consumer:
        for number, when in enumerate(interruptions()):
            await lab.publish(message(f"{number}"))
            delivery = await lab.take_one(consumer)
            await lab.broker.cancel(f"{number}")
            result = await interrupt(consumer.events, when)
            tokens = [token for value in result.value for token in cancelled(value)]
            if not tokens:
                with trio.move_on_after(lab.time.patience):
                    tokens = cancelled(await consumer.events())
            expect(f"the cancellations after cancelling {when}", tokens, [delivery.token])
            await lab.settle(consumer, delivery, ACK)
