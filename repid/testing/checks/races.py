"""Many at once: in any order of events, every message is accounted for."""

from __future__ import annotations

import random
from collections import Counter

import trio

from ...delivery import ACK, DeadLetter, Delivery, Disposition, Release, Retry, Token
from ...ports import Consumer
from ..expecting import expect
from ..judging import check
from ..lab import Lab, ids, message, messages
from .cancelling import cancelled

WORKERS = 9
STORM = 300
"""Messages in a storm."""


class _Storm:
    """Workers that receive and settle at random, and are cancelled at random, until everything has been settled."""

    def __init__(self, lab: Lab, chance: random.Random) -> None:
        self.lab = lab
        self.chance = chance
        self.acked: Counter[str] = Counter()
        self.dead: Counter[str] = Counter()
        self.sent: set[str] = set()

    async def publish(self, number: int) -> None:
        """Publish a third of the messages in batches of any size."""
        rest = messages(STORM // 3, f"{number} ", "qr"[number % 2])
        while rest:
            size = self.chance.randint(1, 20)
            batch, rest = rest[:size], rest[size:]
            await self.lab.publish(*batch)
            self.sent.update(envelope.id for envelope in batch)

    async def work(self, consumer: Consumer) -> None:
        """Receive and settle until nothing is left for this worker."""
        idle = 0
        while idle < 5:
            deliveries: list[Delivery] = []
            with trio.CancelScope() as scope:
                if self.chance.random() < 0.2:
                    scope.deadline = trio.current_time() + self.chance.random() / 500
                deliveries = await consumer.receive(self.chance.randint(1, 9), max_wait=0.01)
            idle = 0 if deliveries else idle + 1
            if deliveries:
                await self.settle(consumer, deliveries)

    async def settle(self, consumer: Consumer, deliveries: list[Delivery]) -> None:
        """Settle these in one call, and some of them again."""
        disposition = self._choose()
        again = [delivery for delivery in deliveries if self.chance.random() < 0.2]
        verdicts = await self.lab.settle_all(consumer, deliveries + again, disposition)
        expected = [True] * len(deliveries) + [False] * len(again)
        expect(f"which of the verdicts {disposition} are accepted", [v.accepted for v in verdicts], expected)
        if isinstance(disposition, DeadLetter):
            self.dead.update(ids(deliveries))
        elif disposition is ACK:
            self.acked.update(ids(deliveries))

    def _choose(self) -> Disposition:
        return self.chance.choice((ACK, ACK, ACK, Release(), Retry(0), Release(0.001), DeadLetter("failed")))


@check("queue_admin", "delays")
async def a_storm_loses_and_doubles_nothing(lab: Lab) -> None:
    """Publishers, workers, double verdicts and cancelled calls together: each message ends once, or is still there."""
    storm = _Storm(lab, random.Random(1))  # noqa: S311  the same storm every time
    async with (
        lab.consumer(None, "q", "r") as one,
        lab.consumer(None, "r") as two,
        lab.consumer() as three,
        trio.open_nursery() as nursery,
    ):
        for number in range(3):
            nursery.start_soon(storm.publish, number)
        for number in range(WORKERS):
            nursery.start_soon(storm.work, (one, two, three)[number % 3])
    places = await lab.places()
    expect("what is still leased", [id_ for id_, place in places.items() if place == "leased"], [])
    expect("what was acknowledged twice", [id_ for id_, times in storm.acked.items() if times > 1], [])
    expect("what is dead", {id_ for id_, place in places.items() if place == "dead"}, set(storm.dead))
    expect("what has ended and is still there", storm.acked.keys() & places.keys(), set())
    expect("all that was published", storm.acked.keys() | places.keys(), storm.sent)


@check("leases=timed")
async def a_lease_is_rescued_once(lab: Lab) -> None:
    """However many rescue at once, each lease that has ended is taken back by one of them."""
    rescued: list[int] = []

    async def rescue(consumer: Consumer) -> None:
        rescued.append(await consumer.rescue())

    async with lab.consumer() as one, lab.consumer() as two:
        await lab.publish(*messages(20))
        await lab.take(one, 20)
        await lab.outlive(one)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(rescue, one)
                nursery.start_soon(rescue, two)
        expect("how many were rescued in all", sum(rescued), 20)
        again = await lab.take(two, 20)
        expect("how often they were lost", {d.lost for d in again}, {1})


@check("queue_admin")
async def a_dead_message_is_revived_once(lab: Lab) -> None:
    """However many revive at once, each dead message is made ready by one of them."""
    revived: list[object] = []

    async def revive() -> None:
        revived.extend(await lab.broker.revive("q"))

    await lab.kill(*messages(20))
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(revive)
    expect("how many were revived in all", revived.count(None), 20)
    expect("the places", await lab.places(), {f"m{n}": "ready" for n in range(20)})


@check("queue_admin", "tracking")
async def cancelling_and_receiving_agree(lab: Lab) -> None:
    """A message that is cancelled while it is received was removed, or its run is asked to end; never both."""
    answers: dict[str, str] = {}
    deliveries: list[Delivery] = []

    async def cancel(number: int) -> None:
        answers[f"m{number}"] = await lab.broker.cancel(f"m{number}")

    async def receive(consumer: Consumer) -> None:
        deliveries.extend(await consumer.receive(3, max_wait=0))

    async with lab.consumer() as consumer:
        await lab.publish(*messages(40))
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(cancel, number)
                if number % 4 == 0:
                    nursery.start_soon(receive, consumer)
        requested = [id_ for id_, answer in answers.items() if answer == "requested"]
        expect("how many answers there are", Counter(answers.values()).total(), 40)
        expect("what was cancelled and is there", set((await lab.places()).keys()), set(ids(deliveries)))
        expect("whose runs are asked to end", sorted(requested), sorted(ids(deliveries)))
        tokens: list[Token] = []
        with trio.move_on_after(lab.time.patience):
            while len(tokens) < len(requested):
                tokens += cancelled(await consumer.events())
        expect("the tokens", set(tokens), {delivery.token for delivery in deliveries})


@check("filters_topics")
async def a_wake_up_is_not_spent_on_who_may_not_take_it(lab: Lab) -> None:
    """A message wakes one that waits and may have it, however many wait longer that may not."""
    got: list[str] = []
    served = trio.Event()

    async def receive(consumer: Consumer, at_most: dict[tuple[str, str], int] | None = None) -> None:
        got.extend(ids(await consumer.receive(5, at_most=at_most)))
        served.set()

    async with (
        lab.consumer(frozenset("a")) as a,
        lab.consumer(frozenset("b")) as b,
        lab.consumer(None, "r") as r,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(receive, a)
        nursery.start_soon(receive, r)
        nursery.start_soon(receive, b, {("q", "b"): 0})
        await lab.idle()
        nursery.start_soon(receive, b, {("q", "b"): 2})
        await lab.idle()
        await lab.publish(*(message(f"b{n}", topic="b") for n in range(3)))
        with trio.move_on_after(lab.time.patience):
            await served.wait()
        await lab.idle()
        expect("what was received", got, ["b0", "b1"])
        nursery.cancel_scope.cancel()
