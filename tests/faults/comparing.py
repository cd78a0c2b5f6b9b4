"""The same random calls on the broker in memory and on SQLite, with clocks that only go when told to: same answers."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

import trio
import trio.testing

from repid import Envelope, Failure, InMemoryServer, PrioritiesT, RepidError, SQLiteServer
from repid.brokers.sqlite.clock import MICRO, Clock
from repid.delivery import (
    ACK,
    Cancel,
    DeadLetter,
    Delivery,
    Disposition,
    NewResult,
    Progress,
    Release,
    Retry,
    Settlement,
)
from repid.envelope import Options
from repid.ports import Broker, BrowsedMessage, Category, Consumer

CALLS = 120
QUEUES = ("q", "r")
IDS = [str(number) for number in range(12)]
_MOMENT = 10
CATEGORIES: tuple[Category, ...] = ("ready", "scheduled", "leased", "dead")


class StandingClock(Clock):
    """It goes by order only, but for the moment that every transaction takes: two never begin in one microsecond."""

    def __init__(self) -> None:
        super().__init__()
        self.now = super().wall()

    def wall(self) -> int:
        self.now += _MOMENT
        return self.now

    def boot(self) -> int:
        return self.now


class Side:
    """One of the brokers, its consumers, and every delivery it has handed out, in order."""

    def __init__(self, server: Broker) -> None:
        self.server = server
        self.consumers: list[Consumer] = []
        self.deliveries: list[Delivery] = []

    async def open(self, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(self.server.connection())
        await self.server.declare(QUEUES)
        for queues in ({"q": None, "r": None}, {"q": frozenset({"a"})}):
            self.consumers.append(await stack.enter_async_context(self.server.consume(queues)))


Call: TypeAlias = Callable[[Side], Awaitable[object]]
"""What is asked of one side; the answer holds nothing that may differ between the brokers."""


def compare(seed: int, path: Path) -> list[str]:
    """Make the calls of this seed; what the brokers do not agree on."""
    return trio.run(_compare, seed, path, clock=trio.testing.MockClock())


async def _compare(seed: int, path: Path) -> list[str]:
    chooser = random.Random(seed)
    standing = StandingClock()
    sides = [Side(InMemoryServer()), Side(SQLiteServer(path, clock=standing, synchronous="NORMAL"))]
    virtual = trio.lowlevel.current_clock()
    assert isinstance(virtual, trio.testing.MockClock)
    async with AsyncExitStack() as stack:
        for side in sides:
            await side.open(stack)
        for number in range(CALLS):
            seconds = chooser.choice([0, 0, 0.5, 3, 61])
            virtual.jump(seconds)
            standing.now += round(seconds * MICRO)
            name, call = _choose(chooser, len(sides[0].deliveries))
            memory, sqlite = [await _answer(call, side) for side in sides]
            if memory != sqlite:
                return [f"seed {seed}, call {number}, {name}: memory says {memory}, SQLite says {sqlite}"]
    return []


async def _answer(call: Call, side: Side) -> object:
    try:
        answer = await call(side)
        if type(answer).__name__ == "Counts":
            return answer
        return answer, [await side.server.counts(queue) for queue in QUEUES]
    except RepidError as error:
        return type(error).__name__


def _choose(chooser: random.Random, handed_out: int) -> tuple[str, Call]:
    makers = [_publish, _publish, _publish, _receive, _receive, _look, _look, _manage, _tend]
    if handed_out:
        makers += [_settle, _settle, _settle, _extend]
    return chooser.choice(makers)(chooser, handed_out)


def _publish(chooser: random.Random, _: int) -> tuple[str, Call]:
    envelopes = [_envelope(chooser) for _ in range(chooser.randrange(1, 4))]

    async def publish(side: Side) -> object:
        return [type(outcome).__name__ for outcome in await side.server.publish(envelopes)]

    return f"publish {envelopes}", publish


def _envelope(chooser: random.Random) -> Envelope:
    topic = chooser.choice([None, "a", "b"])
    options = Options(
        delay=chooser.choice([None, None, 0.0, 2.0]),
        ttl=chooser.choice([None, None, None, 4.0]),
        priority=chooser.choice([None, *PrioritiesT]),
        store_result=chooser.choice([None, False]),
    )
    headers = {} if topic is None else {"topic": topic}
    return Envelope(chooser.choice(IDS), chooser.choice([*QUEUES, "none"]), b"x", headers=headers, options=options)


def _receive(chooser: random.Random, _: int) -> tuple[str, Call]:
    which, limit = chooser.randrange(2), chooser.randrange(1, 5)

    async def receive(side: Side) -> object:
        found = await side.consumers[which].receive(limit, max_wait=0)
        side.deliveries += found
        return [(delivery.envelope, delivery.attempt, delivery.lost) for delivery in found]

    return f"consumer {which} receives {limit}", receive


def _settle(chooser: random.Random, handed_out: int) -> tuple[str, Call]:
    which = [chooser.randrange(handed_out) for _ in range(chooser.randrange(1, 3))]
    failure = Failure("E", "text")
    dispositions: list[Disposition] = [
        ACK,
        ACK,
        Retry(0.0, failure),
        Retry(3.0),
        Release(),
        Release(2.0, unrouted=True),
        Cancel(),
        DeadLetter("failed", failure),
    ]
    disposition = chooser.choice(dispositions)
    outbox = (_envelope(chooser),) if chooser.random() < 0.2 else ()
    result = NewResult(id=chooser.choice(IDS), state="success", payload=b"1") if chooser.random() < 0.3 else None

    async def settle(side: Side) -> object:
        settlements = [Settlement(side.deliveries[number], disposition, outbox, result) for number in which]
        return await side.consumers[0].settle(settlements)

    return f"settle {which} with {disposition}, {outbox}, {result}", settle


def _extend(chooser: random.Random, handed_out: int) -> tuple[str, Call]:
    which = chooser.randrange(handed_out)

    async def extend(side: Side) -> object:
        delivery = side.deliveries[which]
        await side.consumers[0].report([(delivery, Progress(done=1.0))])
        return await side.consumers[0].extend([delivery])

    return f"report and extend {which}", extend


def _look(chooser: random.Random, _: int) -> tuple[str, Call]:
    queue, category, id_ = chooser.choice(QUEUES), chooser.choice(CATEGORIES), chooser.choice(IDS)

    async def look(side: Side) -> object:
        found = await side.server.browse(queue, category)
        if category in {"leased", "scheduled"}:  # what ends or is due at one time is in no order
            found.sort(key=lambda shown: (_rounded(shown.due_in) or 0.0, shown.envelope.id))
        if category == "dead":  # and so are those that a rescue has buried
            found = [m for _, group in groupby(found, _may_be_rescued) for m in sorted(group, key=_id_of)]
        snapshot = await side.server.watch(id_, id_)
        [result] = await side.server.fetch_results([id_])
        return (
            [(m.envelope, m.attempt, m.lost, m.reason, m.failure, _rounded(m.due_in)) for m in found],
            (snapshot.state, snapshot.attempt, snapshot.progress, snapshot.cancelling),
            None if result is None else (result.state, result.payload, result.failure),
        )

    return f"look at {category} of {queue}, and at {id_}", look


def _may_be_rescued(shown: BrowsedMessage) -> bool:
    return shown.lost > 0 and shown.reason in {"expired", "poison"}


def _id_of(shown: BrowsedMessage) -> str:
    return shown.envelope.id


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _manage(chooser: random.Random, _: int) -> tuple[str, Call]:
    queue, id_ = chooser.choice(QUEUES), chooser.choice(IDS)
    name = chooser.choice(["pause", "resume", "resume", "cancel", "cancel", "revive", "flush", "delete"])

    async def manage(side: Side) -> object:
        match name:
            case "cancel":
                return await side.server.cancel(id_)
            case "revive":
                return [type(outcome).__name__ for outcome in await side.server.revive(queue)]
            case "delete":
                await side.server.delete(queue)
                await side.server.declare([queue])
                return None
            case _:
                return await getattr(side.server, name)(queue)

    return f"{name} {queue} or {id_}", manage


def _tend(_: random.Random, __: int) -> tuple[str, Call]:
    async def rescue(side: Side) -> object:
        return await side.consumers[0].rescue()

    return "rescue", rescue
