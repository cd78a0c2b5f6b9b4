"""Cancelling messages, watching them, and progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import trio

from ...delivery import ACK, Cancel, DeadLetter, Delivery, Disposition, NewResult, Progress, Release, Retry, Token
from ...envelope import Options
from ...ports import REFUSED, SETTLED, Consumer, Counts, LeaseEvent, Snapshot
from ..expecting import Difference, expect
from ..judging import check
from ..lab import Lab, ids, message
from .results import state_of

HALF = Progress(1.0, 2.0, "ü half")
WHOLE = Progress(1, 2.5)


async def requests(lab: Lab, consumer: Consumer, wait: float | None = None) -> list[Token]:
    """The tokens of what is to be cancelled, as `events` soon gives them; nothing if it still waits then."""
    with trio.move_on_after(lab.time.patience if wait is None else wait):
        return cancelled(await consumer.events())
    return []


def cancelled(events: Iterable[LeaseEvent]) -> list[Token]:
    """The tokens of what is to be cancelled."""
    return [event.token for event in events if event.kind == "cancel"]


@check("queue_admin", "tracking", "delays=exact", "ttl", "not unique_ids=window")
async def a_waiting_message_is_cancelled_by_removing_it(lab: Lab) -> None:
    """Cancelling what is ready or scheduled removes it at once; its id is free; no consumer ever gets it."""
    options = Options(delay=2 * lab.moment, ttl=4 * lab.moment)
    await lab.publish(message("ready"), message("late", options=options), message("stays"))
    answers = [await lab.broker.cancel(id_) for id_ in ("ready", "late", "ready", "unknown")]
    expect("the answers", answers, ["cancelled", "cancelled", "unknown", "unknown"])
    expect("the places", await lab.places(), {"stays": "ready"})
    expect("the counts", await lab.broker.counts("q"), Counts(ready=1))
    await lab.publish(message("late", "r"))
    await lab.advance(8 * lab.moment)
    async with lab.consumer(None, "q", "r") as consumer:
        expect("what is received", sorted(ids(await lab.drain(consumer))), ["late", "stays"])


@check("queue_admin", "tracking", "results")
async def what_is_not_live_cannot_be_cancelled(lab: Lab) -> None:
    """Of a dead or an acknowledged message `cancel` says "unknown", and changes nothing."""
    await lab.kill(message("dead"))
    async with lab.consumer() as consumer:
        await lab.publish(message("acked"))
        await lab.settle(consumer, await lab.take_one(consumer), ACK, result=NewResult(id="acked", state="success"))
    expect("the answers", [await lab.broker.cancel(id_) for id_ in ("dead", "acked")], ["unknown", "unknown"])
    expect("the places", await lab.places(), {"dead": "dead"})
    expect("the results", [await state_of(lab.broker, id_) for id_ in ("dead", "acked")], [None, "success"])


@check("queue_admin", "tracking")
async def cancelling_a_run_reaches_the_consumer_that_has_it(lab: Lab) -> None:
    """The consumer whose lease it is, and no other, is told the token, once; also if it asks only later."""
    async with lab.consumer() as consumer, lab.consumer() as other:
        await lab.publish(message("1"), message("2"), message("3"))
        one, two = await lab.take(consumer, 2)
        [three] = await lab.take(other, 1)
        expect("the answers", [await lab.broker.cancel(id_) for id_ in "12"], ["requested", "requested"])
        tokens = await requests(lab, consumer)
        if len(tokens) < 2:
            tokens += await requests(lab, consumer)
        expect("the tokens", (len(tokens), set(tokens)), (2, {one.token, two.token}))
        expect("what is told again", await requests(lab, consumer, 0.05), [])
        expect("what another consumer is told", await requests(lab, other, 0.05), [])
        await lab.broker.cancel("3")
        expect("what the other is told of its own", await requests(lab, other), [three.token])
        expect("the places", await lab.places(), dict.fromkeys("123", "leased"))
        expect("whether the leases are there", await consumer.extend([one, two]), [True, True])


@check("tracking")
async def events_wakes_who_waits(lab: Lab) -> None:
    """A consumer that waits in `events` is told soon, and may go on receiving meanwhile."""
    told: list[Token] = []

    async def listen(consumer: Consumer) -> None:
        while True:
            told.extend(cancelled(await consumer.events()))

    async def all_told() -> bool:
        return len(told) >= 3

    async with lab.consumer() as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(listen, consumer)
        await lab.idle()
        expect("what is told at first", told, [])
        tokens = []
        for number in range(3):
            await lab.publish(message(str(number)))
            tokens.append((await lab.take_one(consumer)).token)
            await lab.broker.cancel(str(number))
        await lab.soon("three cancellations", all_told)
        await lab.idle()
        expect("what is told", (len(told), set(told)), (3, set(tokens)))
        nursery.cancel_scope.cancel()


@check("queue_admin", "tracking", "results", "delays=exact", "not unique_ids=window")
async def a_cancelled_message_is_never_made_ready_again(lab: Lab) -> None:
    """Retry or Release after a request to cancel removes the message as cancelled; the verdict is accepted."""
    dispositions: tuple[Disposition, ...] = (Retry(0), Retry(1e6), Release(), Release(1e6), Release(unrouted=True))
    async with lab.consumer() as consumer:
        for number, disposition in enumerate(dispositions):
            await lab.publish(message(str(number)))
            delivery = await lab.take_one(consumer)
            expect("the answer", await lab.broker.cancel(str(number)), "requested")
            expect("the answer to asking again", await lab.broker.cancel(str(number)), "requested")
            expect(f"the verdict of {disposition}", await lab.settle(consumer, delivery, disposition), SETTLED)
            expect("the places", await lab.places(), {})
            expect("the result", await state_of(lab.broker, str(number)), "cancelled")
            expect("a second verdict", await lab.settle(consumer, delivery, ACK), REFUSED)
            await lab.publish(message(str(number)))
            await lab.broker.flush("q")


@check("queue_admin", "tracking", "results", "leases=timed")
async def a_cancelled_message_is_not_rescued(lab: Lab) -> None:
    """If the worker that was asked to cancel dies, the message is removed as cancelled, not made ready."""
    async with lab.consumer() as gone, lab.consumer() as other:
        await lab.publish(message("1"), message("2"))
        await lab.take(gone, 2)
        expect("the answer", await lab.broker.cancel("1"), "requested")
        await lab.outlive(other)
        await other.rescue()
        expect("the places", await lab.places(), {"2": "ready"})
        expect("the result", await state_of(lab.broker, "1"), "cancelled")


@check("queue_admin", "tracking", "not unique_ids=window")
async def a_run_may_end_before_it_is_cancelled(lab: Lab) -> None:
    """Ack and DeadLetter after a request to cancel do what they say; a namesake sent later is not cancelled."""
    async with lab.consumer() as consumer:
        await lab.publish(message("acked"), message("dead"))
        acked, dead = await lab.take(consumer, 2)
        for id_ in ("acked", "dead"):
            await lab.broker.cancel(id_)
        expect("the verdict of an ack", await lab.settle(consumer, acked, ACK), SETTLED)
        expect("the verdict of a dead letter", await lab.settle(consumer, dead, DeadLetter("failed")), SETTLED)
        expect("the places", await lab.places(), {"dead": "dead"})
        await lab.publish(message("acked"))
        again = await lab.take_one(consumer)
        expect("the verdict of a namesake", await lab.settle(consumer, again, Retry(0)), SETTLED)
        expect("the places of a namesake", await lab.places(), {"acked": "ready", "dead": "dead"})


async def _see(lab: Lab, id_: str, seen: Snapshot | None, cause: Callable[[], Awaitable[object]] | None) -> Snapshot:
    """What `watch` shows after `cause`, and not before if something was seen."""
    snapshots: list[Snapshot] = []
    changed = trio.Event()

    async def watch() -> None:
        snapshots.append(await lab.broker.watch(id_, id_, seen))
        changed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        if cause is not None:
            await lab.idle()
            expect("what is seen before anything happens", snapshots, [])
            await cause()
        with trio.move_on_after(lab.time.patience):
            await changed.wait()
        nursery.cancel_scope.cancel()
    if not snapshots:
        raise Difference("what is seen", "a change", "nothing")
    return snapshots[0]


@check("queue_admin", "tracking")
async def who_watches_a_dead_message_sees_it_removed(lab: Lab) -> None:
    """A dead message that is removed is gone, also for a task that watches it."""
    await lab.kill(message("1"))
    dead = await lab.broker.watch("1", "1")
    expect("the state before", dead.state, "dead")
    gone = await _see(lab, "1", dead, lambda: lab.broker.delete_messages("q"))
    expect("the state after", (gone.state, gone.result), ("gone", None))


@check("tracking", "results", "delays=exact")
async def watch_shows_each_state(lab: Lab) -> None:
    """`watch` waits until a message stands otherwise than it was seen: scheduled, ready, leased, retried, gone."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1", options=Options(delay=lab.moment)))
        seen = await _see(lab, "1", None, None)
        expect("at first", (seen.state, seen.result, seen.cancelling), ("scheduled", None, False))
        seen = await _see(lab, "1", seen, lambda: lab.advance(2 * lab.moment))
        expect("when it is due", seen.state, "ready")
        held: list[Delivery] = []

        async def take() -> None:
            held[:] = await lab.take(consumer, 1)

        seen = await _see(lab, "1", seen, take)
        expect("when it is leased", (seen.state, seen.attempt), ("leased", 1))
        seen = await _see(lab, "1", seen, lambda: lab.settle(consumer, held[0], Retry(0)))
        expect("when it is retried", seen.state, "ready")
        seen = await _see(lab, "1", seen, take)
        expect("when it is leased again", (seen.state, seen.attempt), ("leased", 2))
        result = NewResult(id="1", state="success", payload=b"1")
        seen = await _see(lab, "1", seen, lambda: lab.settle(consumer, held[0], ACK, result=result))
        stored = None if seen.result is None else (seen.result.state, seen.result.payload)
        expect("when it is gone", (seen.state, stored), ("gone", ("success", b"1")))


@check("tracking")
async def watch_shows_progress_and_cancelling(lab: Lab) -> None:
    """Reported progress and a request to cancel are changes; so is death."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        seen = await _see(lab, "1", None, None)
        expect("progress at first", seen.progress, None)
        seen = await _see(lab, "1", seen, lambda: consumer.report([(delivery, HALF)]))
        expect("progress", (seen.state, seen.progress), ("leased", HALF))
        seen = await _see(lab, "1", seen, lambda: consumer.report([(delivery, WHOLE)]))
        expect("progress in whole and other numbers", repr(seen.progress), repr(WHOLE))
        seen = await _see(lab, "1", seen, lambda: lab.broker.cancel("1"))
        expect("after a request to cancel", (seen.state, seen.cancelling), ("leased", True))
        seen = await _see(lab, "1", seen, lambda: lab.settle(consumer, delivery, Cancel()))
        expect("when it is gone", (seen.state, seen.result and seen.result.state), ("gone", "cancelled"))
        await lab.publish(message("2"))
        seen = await _see(lab, "2", None, None)
        delivery = await lab.take_one(consumer)
        seen = await _see(lab, "2", None, None)
        seen = await _see(lab, "2", seen, lambda: lab.settle(consumer, delivery, DeadLetter("failed")))
        expect("when it is dead", seen.state, "dead")


@check("tracking", "results")
async def watching_what_is_not_there_says_gone(lab: Lab) -> None:
    """Of an unknown id `watch` says "gone", with a result if there is one, and waits for it to appear."""
    seen = await _see(lab, "1", None, None)
    expect("of an unknown id", (seen.state, seen.result), ("gone", None))
    seen = await _see(lab, "1", seen, lambda: lab.publish(message("1")))
    expect("when it is published", seen.state, "ready")
    await lab.broker.store_results([NewResult(id="other id", state="success")])
    snapshot = await lab.broker.watch("unknown", "other id")
    expect("the result under its own id", snapshot.result and snapshot.result.id, "other id")


@check("tracking", "not unique_ids=window")
async def watch_shows_the_last_of_several_dead(lab: Lab) -> None:
    """Of several dead messages with one id the one that died last is shown, and a live one before all of them."""
    async with lab.consumer() as consumer:
        for attempts in (1, 3, 2):
            await lab.publish(message("1"))
            for _ in range(attempts - 1):
                await lab.settle(consumer, await lab.take_one(consumer), Retry(0))
            await lab.settle(consumer, await lab.take_one(consumer), DeadLetter("failed"))
        seen = await lab.broker.watch("1", "1")
        expect("of the dead", (seen.state, seen.attempt), ("dead", 2))
        await lab.publish(message("1"))
        expect("of the living", (await lab.broker.watch("1", "1", seen)).state, "ready")


@check("tracking", "results", "leases=timed", "ttl")
async def watch_shows_what_happens_by_itself(lab: Lab) -> None:
    """A result that is stored, the end of a ttl and a rescue are changes, although no call touched the message."""
    seen = await lab.broker.watch("1", "1")
    seen = await _see(lab, "1", seen, lambda: lab.broker.store_results([NewResult(id="1", state="success")]))
    expect("when a result is stored", (seen.state, seen.result and seen.result.state), ("gone", "success"))
    await lab.publish(message("2", options=Options(ttl=2 * lab.moment)))
    seen = await lab.broker.watch("2", "2")
    seen = await _see(lab, "2", seen, lambda: lab.advance(3 * lab.moment))
    expect("when a ttl is over", (seen.state, seen.result and seen.result.state), ("dead", "expired"))
    async with lab.consumer() as consumer:
        await lab.publish(message("3"))
        await lab.take(consumer, 1)
        seen = await lab.broker.watch("3", "3")
        await lab.outlive(consumer)
        seen = await _see(lab, "3", seen, consumer.rescue)
        expect("when it is rescued", (seen.state, seen.attempt), ("ready", 1))


@check("tracking")
async def watching_one_message_does_not_see_another(lab: Lab) -> None:
    """What happens to other messages does not wake a task that watches this one."""
    await lab.publish(message("1"))
    seen = await lab.broker.watch("1", "1")

    async def cause() -> None:
        await lab.publish(message("2"))
        await lab.broker.cancel("2")
        await lab.idle()
        await lab.broker.cancel("1")

    seen = await _see(lab, "1", seen, cause)
    expect("what is seen", (seen.state, seen.result and seen.result.state), ("gone", "cancelled"))


@check("tracking")
async def a_stale_report_is_passed_over(lab: Lab) -> None:
    """Progress of a lease that is not ours any more is not noted, and does no harm."""
    async with lab.consumer() as consumer, lab.consumer() as other:
        await lab.publish(message("1"))
        stale = await lab.take_one(consumer)
        await lab.settle(consumer, stale, Release())
        present = await lab.take_one(other)
        await other.report([])
        await consumer.report([(stale, HALF)])
        expect("the progress", (await lab.broker.watch("1", "1")).progress, None)
        later = Progress(2.0, None)
        await other.report([(present, HALF), (present, later)])
        expect("the progress of the present run", (await lab.broker.watch("1", "1")).progress, later)
        expect("the verdict", await lab.settle(other, present, ACK), SETTLED)
        await other.report([(present, HALF)])
        expect("the state", (await lab.broker.watch("1", "1")).state, "gone")
