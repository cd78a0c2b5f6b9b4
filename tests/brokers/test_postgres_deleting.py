"""Deleting a queue on PostgreSQL while others publish to it and consume it."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
import trio
from engines.postgres import Postgres

from repid import BrokerRefused, NoAnswer, PostgresServer, QueueNotDeclared
from repid.delivery import Retry, Settlement

from .broker_aids import message, now_ready

pytestmark = pytest.mark.real_time


async def test_what_is_sent_to_a_queue_that_is_deleted_and_declared_again_and_again_is_stored_or_refused(
    postgres: Postgres, schema: str
) -> None:
    *senders, other = (PostgresServer(postgres.url, schema=schema) for _ in range(3))
    outcomes: list[BrokerRefused | None] = []

    async def publish(server: PostgresServer, name: str) -> None:
        for number in itertools.count():
            outcomes.extend(await server.publish([message(f"{name}{number}", topic=f"t{number % 5}")]))

    async with senders[0].connection(), senders[1].connection(), other.connection():
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(publish, senders[number % 2], f"{number} ")
            for _ in range(60):
                with suppress(BrokerRefused, NoAnswer):  # it waits for others only for a while
                    await other.delete("q")
                    await other.declare(["q"])
            nursery.cancel_scope.cancel()
        await other.delete("q")
    assert {type(outcome) for outcome in outcomes} <= {type(None), QueueNotDeclared}


async def test_nothing_stays_of_a_queue_that_is_deleted_while_it_is_in_use(postgres: Postgres, schema: str) -> None:
    server, other = (PostgresServer(postgres.url, schema=schema) for _ in range(2))
    numbers = itertools.count()

    async def publish() -> None:
        while True:
            await other.publish([message(str(next(numbers)), topic="t")])

    async def consume() -> None:
        while True:
            with suppress(QueueNotDeclared):
                async with other.consume({"q": None}) as consumer:
                    for _ in range(5):
                        deliveries = await now_ready(consumer, 2)
                        await consumer.settle([Settlement(one, Retry(0.0)) for one in deliveries])

    async with server.connection(), other.connection():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            nursery.start_soon(consume)
            for _ in range(30):
                await server.declare(["q"])
                await trio.sleep(0.005)
                with suppress(BrokerRefused, NoAnswer):  # it waits for others only for a while
                    await server.delete("q")
            nursery.cancel_scope.cancel()
        await server.delete("q")
    for table in ("message", "ready", "scheduled", "lease", "lane"):
        assert postgres.execute(f"SELECT count(*) FROM {schema}.{table}") == [(0,)], table
