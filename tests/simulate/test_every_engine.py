"""Any sequence of calls of the port: each engine of `ENGINES` does what a short model says.

An engine is added to `ENGINES`: what starts it, opens a server of its own for each sequence, and moves that server's clock.
Times are chosen so that no two moments that matter are closer than ten seconds, so clocks may run meanwhile, and a
busy machine may be slow.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from port_model import LEASE, Model

from repid import InMemoryServer, Server, SQLiteServer
from repid.brokers.consumer import Consumer
from repid.brokers.sqlite.clock import MICRO, Clock
from repid.delivery import (
    ACK,
    UNBOUNDED,
    Bounds,
    Cancel,
    DeadLetter,
    Delivery,
    NewResult,
    Release,
    Retry,
    Settlement,
)
from repid.envelope import Envelope, Options
from repid.errors import DuplicateId, QueueFull

QUEUES = ("q", "r")

EXAMPLES = int(os.environ.get("REPID_EXAMPLES", "20"))
"""How many sequences each engine is given."""

Advance: TypeAlias = Callable[[float], None]
Open: TypeAlias = Callable[[trio.testing.MockClock], AbstractAsyncContextManager[tuple[Server, Advance]]]
Start: TypeAlias = Callable[[], AbstractContextManager[Open]]


class MovedClock(Clock):
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.micros = 1_800_000_000 * MICRO

    def wall(self) -> int:
        return self.micros

    def boot(self) -> int:
        return self.micros

    def advance(self, seconds: float) -> None:
        self.micros += round(seconds * MICRO)


@contextmanager
def memory() -> Iterator[Open]:
    @asynccontextmanager
    async def open_anew(clock: trio.testing.MockClock) -> AsyncIterator[tuple[Server, Advance]]:
        yield InMemoryServer(lease_timeout=LEASE), clock.jump

    yield open_anew


@contextmanager
def sqlite() -> Iterator[Open]:
    @asynccontextmanager
    async def open_anew(_: trio.testing.MockClock) -> AsyncIterator[tuple[Server, Advance]]:
        with tempfile.TemporaryDirectory() as folder:
            clock = MovedClock()
            yield SQLiteServer(Path(folder) / "repid.db", clock=clock, lease_timeout=LEASE), clock.advance

    yield open_anew


@contextmanager
def redis() -> Iterator[Open]:
    from engines.redis import EMBEDDED, ServersClock, running

    from repid.brokers.redis import RedisServer, wire

    with running(EMBEDDED) as process:

        @asynccontextmanager
        async def open_anew(_: trio.testing.MockClock) -> AsyncIterator[tuple[Server, Advance]]:
            clock = ServersClock()
            with process.prefix() as prefix, pytest.MonkeyPatch.context() as patch:
                patch.setattr(wire, "script", clock.script)
                yield RedisServer(process.url, prefix=prefix, lease_timeout=LEASE), clock.advance

        yield open_anew


@contextmanager
def postgres() -> Iterator[Open]:
    """Consumers are known by their heartbeats, which trio's clock does not let them send here: each move is like one."""
    import psycopg
    from engines.fixtures import POSTGRES
    from engines.postgres import running
    from psycopg.sql import SQL, Identifier

    from repid.brokers.postgres import PostgresServer

    with running(POSTGRES[0]) as process, process.schema() as schema:

        @asynccontextmanager
        async def open_anew(_: trio.testing.MockClock) -> AsyncIterator[tuple[Server, Advance]]:
            passed = 0

            def advance(seconds: float) -> None:
                nonlocal passed
                step = round(seconds * MICRO)
                passed += step
                with psycopg.connect(process.url) as connection:
                    process.move_clock(connection, schema, passed)
                    beat = SQL("UPDATE {}.consumer SET until = until + %s").format(Identifier(schema))
                    connection.execute(beat, [step])

            if process.execute("SELECT to_regclass(%s)", f"{schema}.meta") != [(None,)]:
                process.empty(schema)
            yield PostgresServer(process.url, schema=schema, lease_timeout=LEASE), advance

        yield open_anew


ENGINES: list[Start] = [memory, sqlite, redis, postgres]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda start: start.__name__)
def engine(request: pytest.FixtureRequest) -> Iterator[Open]:
    start: Start = request.param
    with start() as opened:
        yield opened


ids = st.integers(0, 5).map(str)
queues = st.sampled_from(QUEUES)
options = st.builds(
    Options,
    delay=st.sampled_from([None, None, 50.0]),
    ttl=st.sampled_from([None, None, 100.0]),
    store_result=st.sampled_from([None, True, False]),
)
envelopes = st.lists(st.builds(lambda id_, queue, options: Envelope(id_, queue, b"x", options=options), ids, queues, options), min_size=1, max_size=4)  # fmt: skip
dispositions = st.one_of(
    st.just(ACK),
    st.just(Cancel()),
    st.builds(Retry, st.sampled_from([0.0, 50.0])),
    st.builds(Release, st.sampled_from([0.0, 50.0]), st.just(value=False), st.booleans()),
    st.just(DeadLetter("failed")),
)
bounds = st.sampled_from(
    [
        UNBOUNDED,
        Bounds(max_size=1, when_full="raise"),
        Bounds(max_size=3, when_full="raise"),
        Bounds(max_size=2, when_full="drop_oldest"),
    ]
)
recent = st.integers(1, 5)
verdicts = st.lists(st.tuples(recent, dispositions, st.booleans(), st.one_of(st.just([]), envelopes)), max_size=4)
steps = st.one_of(
    st.tuples(st.just("publish"), envelopes),
    st.tuples(st.just("publish"), envelopes),
    st.tuples(st.just("claim"), st.integers(1, 8)),
    st.tuples(st.just("claim"), st.integers(1, 8)),
    st.tuples(st.just("settle"), verdicts),
    st.tuples(st.just("extend"), st.lists(recent, max_size=3)),
    st.tuples(st.just("wait"), st.sampled_from([70.0, 310.0, 700.0])),
    st.tuples(st.just("rescue"), st.none()),
    st.tuples(st.just("cancel"), ids),
    st.tuples(st.just("bound"), st.tuples(queues, bounds)),
    st.tuples(st.sampled_from(["pause", "resume", "flush", "revive", "delete_dead"]), queues),
)


ANSWERS = {type(None): "accepted", DuplicateId: "duplicate", QueueFull: "full"}


class Machine:
    """A server and the model, side by side. `deliveries`: all there have been."""

    def __init__(self, server: Server, consumer: Consumer, advance: Advance) -> None:
        self.server = server
        self.consumer = consumer
        self.move = advance
        self.model = Model()
        self.deliveries: list[Delivery] = []

    def chosen(self, which: Sequence[int]) -> list[Delivery]:
        return [self.deliveries[-n] for n in which if n <= len(self.deliveries)]

    async def take(self, name: str, given: Any) -> None:
        await getattr(self, name)(given)
        for queue in QUEUES:
            counts = await self.server.counts(queue)
            assert (counts.ready, counts.scheduled, counts.leased, counts.dead) == self.model.counts(queue)
            assert counts.dropped == self.model.dropped[queue]
        wanted = [str(n) for n in range(6)]
        results = await self.server.fetch_results(wanted)
        assert [found and found.state for found in results] == [self.model.results.get(id_) for id_ in wanted]

    async def publish(self, envelopes: list[Envelope]) -> None:
        answers = await self.server.publish(envelopes)
        assert [ANSWERS[type(answer)] for answer in answers] == self.model.publish(envelopes)

    async def claim(self, limit: int) -> None:
        """As many as there may be, and none but those. What was lost twice comes alone, or not yet."""
        got = await self.consumer.receive(limit, max_wait=0)
        claimable = self.model.claimable(QUEUES)
        innocent = [message.envelope.id for message in claimable if message.lost < 2]
        assert {delivery.envelope.id for delivery in got} <= {message.envelope.id for message in claimable}
        if any(delivery.lost >= 2 for delivery in got) or len(innocent) < len(claimable):
            assert len(got) == 1
        else:
            assert len(got) == min(limit, len(innocent))
        for delivery in got:
            self.model.lease(delivery)
        self.deliveries += got

    async def settle(self, verdicts: list[tuple[int, Any, bool, list[Envelope]]]) -> None:
        settlements = []
        for n, disposition, has_result, outbox in verdicts:
            for delivery in self.chosen([n]):
                result = (
                    NewResult(id=delivery.envelope.result_id, state="success", payload=b"1") if has_result else None
                )
                settlements.append(Settlement(delivery, disposition, tuple(outbox), result))
        answers = await self.consumer.settle(settlements)
        assert [answer.outcome for answer in answers] == self.model.settle(settlements)
        full = [one.delivery for one, answer in zip(settlements, answers, strict=True) if answer.outcome == "full"]
        await self._extend(full)  # some engines have done that, as part of their answer

    async def extend(self, which: list[int]) -> None:
        await self._extend(self.chosen(which))

    async def _extend(self, deliveries: list[Delivery]) -> None:
        assert await self.consumer.extend(deliveries) == self.model.extend(deliveries)

    async def wait(self, seconds: float) -> None:
        self.move(seconds)
        self.model.advance(seconds)

    async def rescue(self, _: None) -> None:
        assert await self.consumer.rescue() == self.model.rescue()

    async def cancel(self, id_: str) -> None:
        assert await self.server.cancel(id_) == self.model.cancel(id_)

    async def bound(self, given: tuple[str, Bounds]) -> None:
        queue, bounds = given
        await self.server.set_bounds({queue: bounds})
        self.model.bounds[queue] = bounds

    async def pause(self, queue: str) -> None:
        await self.server.pause(queue)
        self.model.paused.add(queue)

    async def resume(self, queue: str) -> None:
        await self.server.resume(queue)
        self.model.paused.discard(queue)

    async def flush(self, queue: str) -> None:
        assert await self.server.flush(queue) == self.model.flush(queue)

    async def revive(self, queue: str) -> None:
        answers = await self.server.revive(queue)
        assert sum(answer is None for answer in answers) == self.model.revive(queue)

    async def delete_dead(self, queue: str) -> None:
        assert await self.server.delete_messages(queue) == self.model.delete_dead(queue)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(sequence=st.lists(steps, min_size=5, max_size=25))
def test_an_engine_does_what_the_model_says(engine: Open, sequence: list[tuple[str, Any]]) -> None:
    clock = trio.testing.MockClock()

    async def carry_out() -> None:
        async with engine(clock) as (server, advance), server.connection():
            await server.declare(QUEUES)
            async with server.consume(dict.fromkeys(QUEUES)) as consumer:
                machine = Machine(server, consumer, advance)
                for step in sequence:
                    await machine.take(*step)

    trio.run(carry_out, clock=clock)
