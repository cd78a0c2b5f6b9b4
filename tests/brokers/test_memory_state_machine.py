"""Any sequence of calls, in any order, also cancelled halfway: the broker does what the model says.

A sequence is data, carried out inside one trio run on a virtual clock, so a failing one shrinks. Times are
multiples of a half, which floats add exactly. After each step every place of every queue is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import chain

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from repid.brokers import InMemoryServer
from repid.brokers.consumer import Consumer
from repid.delivery import ACK, DeadLetter, Delivery, Disposition, Release, Retry, Settlement
from repid.envelope import Envelope, Options, PrioritiesT
from repid.errors import QueueNotDeclared, UsageError
from repid.ports import Category, Topics

from .memory_aids import driver_of
from .memory_model import Model

QUEUES = ("q", "r")
PLACES: tuple[Category, ...] = ("ready", "scheduled", "leased", "dead")
CONSUMERS: list[Mapping[str, Topics]] = [
    {"q": frozenset("a"), "r": None},
    {"q": frozenset("ab")},
    {"q": frozenset(), "r": frozenset("b")},
    {"q": None},
]


@dataclass(frozen=True)
class Publish:
    envelopes: list[Envelope]


@dataclass(frozen=True)
class Receive:
    consumer: int
    limit: int
    at_most: dict[tuple[str, str], int]


@dataclass(frozen=True)
class Settle:
    """Verdicts on deliveries, chosen among all there have been, late ones included."""

    verdicts: list[tuple[int, Disposition, tuple[Envelope, ...]]]


@dataclass(frozen=True)
class Extend:
    which: list[int]


@dataclass(frozen=True)
class Call:
    name: str
    queue: str


@dataclass(frozen=True)
class Toggle:
    consumer: int


@dataclass(frozen=True)
class Sleep:
    seconds: float


Simple = Publish | Settle | Extend | Call | Toggle | Sleep


@dataclass(frozen=True)
class Cancelled:
    """A call that is cancelled after so many turns of the scheduler."""

    call: Publish | Receive
    turns: int


@dataclass(frozen=True)
class Waiting:
    """Consumers that wait while something happens; the first is cancelled after so many turns, if any."""

    receives: list[Receive]
    during: Simple
    turns: int | None


Step = Simple | Receive | Cancelled | Waiting

halves = st.integers(0, 20).map(lambda n: n / 2)
envelopes = st.builds(
    lambda id_, queue, topic, **options: Envelope(
        str(id_), queue, b"", headers={"topic": topic} if topic else {}, options=Options(**options)
    ),
    st.integers(0, 8),
    st.sampled_from(QUEUES),
    st.sampled_from([None, "a", "a", "b", "c"]),
    priority=st.sampled_from([None, None, *PrioritiesT]),
    delay=st.none() | st.none() | halves,
    ttl=st.none() | st.none() | halves,
)
dispositions = st.one_of(
    st.just(ACK),
    st.builds(Retry, halves),
    st.builds(Release, halves, st.booleans(), st.booleans()),
    st.builds(DeadLetter, st.sampled_from(["failed", "nacked"])),
)
recent = st.integers(-6, -1)
consumers = st.integers(0, len(CONSUMERS) - 1)
limits = st.dictionaries(st.tuples(st.sampled_from(QUEUES), st.sampled_from("ab")), st.integers(0, 2), max_size=2)
publishes = st.builds(Publish, st.lists(envelopes, min_size=1, max_size=5))
receives = st.builds(Receive, consumers, st.integers(1, 6), st.just({}) | st.just({}) | limits)
outboxes = st.lists(envelopes, max_size=2).map(tuple)
settles = st.builds(Settle, st.lists(st.tuples(recent, dispositions, outboxes), min_size=1, max_size=4))
simple = st.one_of(
    publishes,
    settles,
    st.builds(Extend, st.lists(recent, max_size=3)),
    st.builds(Call, st.sampled_from(["rescue", "flush", "delete", "declare", "revive"]), st.sampled_from(QUEUES)),
    st.builds(Toggle, consumers),
    st.builds(Sleep, st.sampled_from([0.5, 2.0, 5.0, 20.0, 60.0])),
)
steps = st.one_of(
    simple,
    publishes,
    publishes,
    settles,
    receives,
    receives,
    st.builds(Cancelled, publishes | receives, st.integers(0, 4)),
    st.builds(Waiting, st.lists(receives, min_size=1, max_size=3), simple, st.none() | st.integers(0, 4)),
)
sequences = st.lists(st.lists(steps, min_size=2), max_size=10).map(lambda parts: list(chain(*parts)))
"""Lists of lists, because hypothesis makes lists of five on average, and takes out whole parts as it shrinks."""


@dataclass
class Machine:
    """A broker and the model, side by side."""

    server: InMemoryServer
    model: Model = field(default_factory=Model)
    open: dict[int, tuple[AsyncExitStack, Consumer]] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)

    async def consumer(self, index: int) -> Consumer | None:
        """The open consumer; opened if it is not, None if it takes from a queue that is not declared."""
        if index not in self.open:
            stack = AsyncExitStack()
            try:
                consumer = await stack.enter_async_context(self.server.consume(CONSUMERS[index]))
            except QueueNotDeclared:
                assert not self.model.queues >= CONSUMERS[index].keys()
                return None
            assert self.model.queues >= CONSUMERS[index].keys()
            self.open[index] = stack, consumer
            self.model.consumers[index] = CONSUMERS[index]
        return self.open[index][1]

    def leased(self, receive: Receive, got: list[Delivery], when: float) -> None:
        """What came must be what the model would have given at that moment."""
        expected = self.model.claimable(receive.consumer, receive.limit, receive.at_most, when)
        assert [d.envelope.id for d in got] == [m.envelope.id for m in expected]
        for message, delivery in zip(expected, got, strict=True):
            self.model.lease(message, delivery)
        self.deliveries += got

    async def simple(self, step: Simple) -> None:
        self.model.advance(trio.current_time())
        match step:
            case Publish(envelopes):
                self.published(envelopes, await self.server.publish(envelopes))
            case Settle(verdicts):
                await self.settle(verdicts)
            case Extend(which):
                deliveries = [self.deliveries[n] for n in which if -n <= len(self.deliveries)]
                if consumer := await self.consumer(1):
                    assert await consumer.extend(deliveries) == self.model.extend(deliveries)
            case Call(name, queue):
                await self.call(name, queue)
            case Toggle(index):
                await self.toggle(index)
            case Sleep(seconds):
                await trio.sleep(seconds)

    def published(self, envelopes: list[Envelope], answers: Sequence[object]) -> None:
        assert [type(answer).__name__ for answer in answers] == self.model.publish(envelopes)

    async def settle(self, verdicts: list[tuple[int, Disposition, tuple[Envelope, ...]]]) -> None:
        settlements = [Settlement(self.deliveries[n], d, o) for n, d, o in verdicts if -n <= len(self.deliveries)]
        consumer = next(iter(self.open.values()))[1] if self.open else None
        if consumer is not None:
            answers = await consumer.settle(settlements)
            assert [(answer.accepted, answer.dropped) for answer in answers] == self.model.settle(settlements)

    async def toggle(self, index: int) -> None:
        if index in self.open:
            stack, _ = self.open.pop(index)
            del self.model.consumers[index]
            await stack.aclose()
        else:
            await self.consumer(index)

    async def call(self, name: str, queue: str) -> None:
        if name == "rescue":
            if consumer := await self.consumer(1):
                assert await consumer.rescue() == self.model.rescue()
        elif name == "declare":
            await self.server.declare([queue])
            self.model.queues.add(queue)
        elif name == "delete":
            await self.server.delete(queue)
            self.model.delete(queue)
        elif queue in self.model.queues and name == "flush":
            assert await self.server.flush(queue) == self.model.flush(queue)
        elif queue in self.model.queues:
            dead = await self.server.browse(queue, "dead")
            answers = await self.server.revive(queue, [found.key for found in dead])
            expected = self.model.revive(queue, [found.envelope.id for found in dead])
            assert [type(answer).__name__ for answer in answers] == expected

    async def receive(self, step: Receive) -> None:
        if consumer := await self.consumer(step.consumer):
            got = await consumer.receive(step.limit, at_most=step.at_most, max_wait=0)
            self.leased(step, got, trio.current_time())

    async def cancelled(self, step: Cancelled) -> None:
        """Either it was cancelled and nothing happened (which `compare` sees), or all of it did and we know."""
        consumer = await self.consumer(step.call.consumer) if isinstance(step.call, Receive) else None
        if isinstance(step.call, Receive) and consumer is None:
            return

        async def run() -> None:
            with scope:
                if isinstance(step.call, Publish):
                    answers = await self.server.publish(step.call.envelopes)
                    self.published(step.call.envelopes, answers)
                elif consumer is not None:
                    got = await consumer.receive(step.call.limit, at_most=step.call.at_most)
                    self.leased(step.call, got, trio.current_time())

        self.model.advance(trio.current_time())
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await turns(step.turns)
            scope.cancel()

    async def waiting(self, step: Waiting) -> None:
        """All wait; something happens; whoever got something got the right thing, and nobody waits in vain."""
        ready = [(receive, await self.consumer(receive.consumer)) for receive in step.receives]
        pending: list[Receive] = []
        finished: list[tuple[Receive, list[Delivery], float]] = []

        async def wait(receive: Receive, consumer: Consumer, scope: trio.CancelScope) -> None:
            pending.append(receive)
            try:
                with scope:
                    got = await consumer.receive(receive.limit, at_most=receive.at_most)
                    finished.append((receive, got, trio.current_time()))
            except UsageError:
                assert receive.consumer not in self.open
            pending.remove(receive)

        def take_over() -> None:
            for receive, got, when in sorted(finished, key=lambda one: one[1][0].token):  # as they were leased
                self.leased(receive, got, when)
            finished.clear()

        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope() for _ in ready]
            for (receive, consumer), scope in zip(ready, scopes, strict=True):
                if consumer is not None:
                    nursery.start_soon(wait, receive, consumer, scope)
                    await trio.testing.wait_all_tasks_blocked()
                    take_over()
            if step.turns is not None:
                nursery.start_soon(cancel_after, scopes[0], step.turns)
            await self.simple(step.during)
            await trio.testing.wait_all_tasks_blocked()
            take_over()
            for receive in pending:
                assert receive.consumer in self.open  # closing it ends its waiting
                assert not self.model.claimable(receive.consumer, receive.limit, receive.at_most, trio.current_time())
            nursery.cancel_scope.cancel()

    async def compare(self) -> None:
        """Every message is in exactly the place where the model has it, in the same order."""
        self.model.advance(trio.current_time())
        for queue in self.model.queues:
            places = {place: self.model.find(queue, place) for place in PLACES}
            counts = await self.server.counts(queue)
            assert [counts.ready, counts.scheduled, counts.leased, counts.dead] == list(map(len, places.values()))
            for place, expected in places.items():
                found = await self.server.browse(queue, place)
                said = [(f.envelope.id, f.attempt, f.lost, f.reason) for f in found]
                wanted = [(m.envelope.id, m.attempt, m.lost, m.reason) for m in expected]
                assert said == wanted or (place == "dead" and sorted(map(str, said)) == sorted(map(str, wanted)))
        assert len({m.envelope.id for m in self.model.messages if m.place != "dead"}) == len(
            driver_of(self.server).store._ids
        )


async def turns(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


async def cancel_after(scope: trio.CancelScope, count: int) -> None:
    await turns(count)
    scope.cancel()


async def carry_out(sequence: list[Step]) -> None:
    server = InMemoryServer()
    async with server.connection(), AsyncExitStack() as stack:
        machine = Machine(server)
        for queue in QUEUES:
            await machine.call("declare", queue)
        for step in sequence:
            match step:
                case Receive():
                    await machine.receive(step)
                case Cancelled():
                    await machine.cancelled(step)
                case Waiting():
                    await machine.waiting(step)
                case _:
                    await machine.simple(step)
            await machine.compare()
        for consumer_stack, _ in machine.open.values():
            stack.push_async_exit(consumer_stack)


@settings(max_examples=100, deadline=None)
@given(sequences)
def test_the_broker_does_what_the_model_says(sequence: list[Step]) -> None:
    trio.run(carry_out, sequence, clock=trio.testing.MockClock(autojump_threshold=0))
