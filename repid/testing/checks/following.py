"""Following many messages until each has ended, with one watch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from ...delivery import ACK, DeadLetter, NewResult, Progress, Retry, Settlement
from ...envelope import Options
from ...errors import NotConnected
from ...ports import Broker, Followed
from ..expecting import expect
from ..judging import check
from ..lab import Lab, message, messages

MANY = 1500
"""More messages than a server looks at in one request."""

CANCELLATIONS = 8
"""How many moments of a call there are at which it is cancelled."""

ROUNDS = 12
"""How many times at each: which of two tasks goes first is chance, and with one order in four nothing is cut."""


def pairs(*ids: str) -> list[tuple[str, str]]:
    """Messages as they are followed, each with a result under its own id."""
    return [(id_, id_) for id_ in ids]


async def ends(lab: Lab, following: Followed, count: int) -> dict[str, tuple[str, str | None]]:
    """The next `count` that end: the state and the result of each. Fewer, if no more end soon."""
    told: dict[str, tuple[str, str | None]] = {}
    with trio.move_on_after(lab.time.patience):
        while len(told) < count:
            for (id_, _), snapshot in await following.ended():
                expect(f"whether {id_} was told before", id_ in told, expected=False)
                told[id_] = (snapshot.state, None if snapshot.result is None else snapshot.result.state)
    return told


@asynccontextmanager
async def waits(lab: Lab, following: Followed, count: int) -> AsyncGenerator[dict[str, tuple[str, str | None]], None]:
    """A task waits for the next `count` ends since before the block; it is over when the task was told of all
    of them.
    """
    told: dict[str, tuple[str, str | None]] = {}

    async def wait() -> None:
        told.update(await ends(lab, following, count))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await lab.idle()
        yield told


async def nothing_ends(lab: Lab, following: Followed, cause: Callable[[], Awaitable[object]]) -> None:
    """Expect that a task which waits for ends is told nothing of what `cause` does."""
    told: list[object] = []

    async def wait() -> None:
        told.append(await following.ended())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await lab.idle()
        await cause()
        await lab.idle()
        expect("what is told", told, [])
        nursery.cancel_scope.cancel()


@check("tracking", "results")
async def each_end_is_told_once_and_with_its_result(lab: Lab) -> None:
    """What was acknowledged is gone and has its result, what died is dead; nobody else's end is told, and
    none again.
    """
    async with lab.consumer() as consumer:
        with lab.broker.follow() as following:
            await lab.publish(message("before"), message("foreign"))
            following.add(pairs("before", "dead", "after"))
            await lab.publish(message("dead"), message("after"))
            held = {delivery.envelope.id: delivery for delivery in await lab.take(consumer, 4)}
            for id_ in ("foreign", "before", "after"):
                result = NewResult(id=id_, state="success")
                await lab.settle(consumer, held[id_], ACK, result=result)
            await lab.settle(consumer, held["dead"], DeadLetter("failed"))
            expected = {"before": ("gone", "success"), "after": ("gone", "success"), "dead": ("dead", None)}
            expect("what ended", await ends(lab, following, 3), expected)
            await nothing_ends(lab, following, lambda: lab.publish(message("before")))


@check("tracking")
async def what_goes_on_is_no_end(lab: Lab) -> None:
    """A lease, progress, a request to cancel and a retry are not told; the end after them is."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        with lab.broker.follow() as following:
            following.add(pairs("1"))

            async def go_on() -> None:
                first = await lab.take_one(consumer)
                await consumer.report([(first, Progress(1.0, 2.0))])
                await lab.settle(consumer, first, Retry(0))
                await lab.take_one(consumer)
                await lab.broker.cancel("1")

            await nothing_ends(lab, following, go_on)
            await lab.publish(message("2"))
            following.add(pairs("2"))
            await lab.settle(consumer, await lab.take_one(consumer), ACK)
            expect("what ended", await ends(lab, following, 1), {"2": ("gone", None)})


@check("tracking")
async def any_number_that_ends_at_once_is_told(lab: Lab) -> None:
    """More messages than one request is about are all told, whether they end before or while a task waits."""
    many = messages(MANY)
    await lab.publish(*many)
    with lab.broker.follow() as following:
        following.add((each.id, each.id) for each in many)
        async with lab.consumer() as consumer:
            first = await lab.take(consumer, MANY // 2)
            await lab.settle_all(consumer, first, ACK)
            told = await ends(lab, following, MANY // 2)
            expect("the number of those that ended first", len(told), MANY // 2)
            rest = await lab.take(consumer, MANY - MANY // 2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lab.settle_all, consumer, rest, ACK)
                told |= await ends(lab, following, MANY - MANY // 2)
    expect("what ended", set(told), {each.id for each in many})


@check("tracking")
async def who_waits_is_told_of_what_another_task_adds(lab: Lab) -> None:
    """`add` reaches a task that waits already, also for messages that have ended or were never published."""
    await lab.publish(message("waits"))
    with lab.broker.follow() as following:
        following.add(pairs("waits"))
        async with waits(lab, following, 2) as told:
            expect("what ended at first", told, {})
            following.add(pairs("never published"))
            await lab.publish(message("cancelled"))
            await lab.broker.cancel("cancelled")
            following.add(pairs("cancelled"))
    expect(
        "what ended",
        {id_: state for id_, (state, _) in told.items()},
        dict.fromkeys(("never published", "cancelled"), "gone"),
    )


@check("tracking")
async def a_task_that_follows_can_be_woken(lab: Lab) -> None:
    """`wake` ends the wait of `ended`, or the next one if no task waits, with nothing told; the wait after it
    goes on.
    """
    await lab.publish(message("1"))
    with lab.broker.follow() as following:
        following.add(pairs("1"))
        for is_early in (True, False):
            answers: list[object] = []

            async def wait(into: list[object]) -> None:
                with trio.move_on_after(lab.time.patience):
                    into.append(await following.ended())

            if is_early:
                following.wake()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, answers)
                await lab.idle()
                if not is_early:
                    expect("what is told before", answers, [])
                    following.wake()
            expect("the answer to who is woken", answers, [[]])
        await nothing_ends(lab, following, trio.lowlevel.checkpoint)


@check("tracking")
async def cancelling_who_follows_loses_no_end(lab: Lab) -> None:
    """An end that came while `ended` was cancelled, at any of its steps, is told by the next call."""
    for number in range(ROUNDS * CANCELLATIONS):
        id_, step = str(number), number % CANCELLATIONS
        await lab.publish(message(id_))
        with lab.broker.follow() as following:
            following.add(pairs(id_))
            await nothing_ends(lab, following, trio.lowlevel.checkpoint)
            await lab.broker.cancel(id_)
            told: list[str] = []

            async def wait(into: list[str]) -> None:
                into.extend(ids[0] for ids, _ in await following.ended())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, told)
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            if not told:
                told = list(await ends(lab, following, 1))
            expect(f"what ended, if it is cancelled after {step} steps", told, [id_])


@check("tracking", "ttl", "results")
async def an_end_that_comes_by_itself_is_told(lab: Lab) -> None:
    """A message whose ttl is over has ended, although no call touched it."""
    await lab.publish(message("1", options=Options(ttl=2 * lab.moment)), message("2"))
    with lab.broker.follow() as following:
        following.add(pairs("1", "2"))
        async with waits(lab, following, 1) as told:
            expect("what ended at first", told, {})
            await lab.advance(3 * lab.moment)
        expect("what ended", told, {"1": ("dead", "expired")})


@check("tracking", "another", "shared")
async def an_end_that_another_client_makes_is_told(lab: Lab) -> None:
    """A task that follows is told soon of what another client of the same storage has settled."""
    await lab.publish(message("1"), message("2"))
    async with lab.another() as other:
        with lab.broker.follow() as following:
            following.add(pairs("1", "2"))
            async with waits(lab, following, 1) as told, other.consume({"q": None}) as consumer:
                [delivery] = await consumer.receive(1)
                await consumer.settle([Settlement(delivery, ACK)])
    expect("what ended", told, {"1": ("gone", None)})


async def _follow(broker: Broker) -> object:
    with broker.follow() as following:
        return following


@check("not tracking")
async def following_many_is_refused(lab: Lab) -> None:
    """Without the role "tracking" nobody can be followed."""
    await lab.refused("follow", partial(_follow, lab.broker))


@check("tracking")
async def following_ends_with_the_connection(lab: Lab) -> None:
    """Outside `connection()` both `follow` and `ended` raise `NotConnected`, also for a task that waits already."""
    raised: list[type[BaseException]] = []

    async def wait(following: Followed) -> None:
        try:
            await following.ended()
        except NotConnected:
            raised.append(NotConnected)

    await lab.publish(message("1"))
    with lab.broker.follow() as following:
        following.add(pairs("1"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, following)
            await lab.idle()
            await lab.close()
            with trio.move_on_after(lab.time.patience):
                await wait(following)
            await lab.idle()
            nursery.cancel_scope.cancel()
    expect("what those are told who wait, and who ask later", raised, [NotConnected] * 2)
    try:
        answer = await _follow(lab.broker)
    except NotConnected:
        return
    expect("what follow does", answer, NotConnected)
