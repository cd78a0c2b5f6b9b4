"""Who is woken by what happens in PostgreSQL, and that nobody else is. A sentence each."""

from __future__ import annotations

import psycopg
import pytest
import trio
from engines.postgres import Postgres

from repid import PostgresServer
from repid.brokers.postgres.news import CHECK, channel_of
from repid.ports import Consumer, LeaseEvent

from .broker_aids import message, now_ready

pytestmark = pytest.mark.real_time

SOON = CHECK / 2
"""Seconds. Whoever was not woken looks only after `CHECK`."""


def notifications(connection: psycopg.Connection) -> int:
    """How many came on a connection that listens."""
    return len(list(connection.notifies(timeout=0)))


async def until_somebody_waits(postgres: Postgres, schema: str, *, ready: bool) -> None:
    """Wait until a process has said that it waits; `ready`: whether for messages."""
    with trio.fail_after(SOON):
        while not postgres.execute(f"SELECT 1 FROM {schema}.sleeper WHERE wants_ready = %s", ready):
            await trio.sleep(0.01)


async def test_a_consumer_that_waits_hears_at_once_whenever_another_process_publishes(
    postgres: Postgres, schema: str
) -> None:
    one, other = (PostgresServer(postgres.url, schema=schema) for _ in range(2))
    async with one.connection(), other.connection():
        await one.declare(["q"])
        async with one.consume({"q": None}) as consumer:

            async def publish(number: int) -> None:
                await trio.sleep(
                    number / 10_000
                )  # before the consumer says that it waits, in that moment, and after it
                await other.publish([message(str(number))])

            for number in range(40):
                with trio.fail_after(SOON):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(publish, number)
                        [delivery] = await consumer.receive(1)
                assert delivery.envelope.id == str(number)


async def test_who_waits_for_events_alone_is_woken_by_a_cancellation_and_not_by_messages(
    postgres: Postgres, schema: str
) -> None:
    one, other = (PostgresServer(postgres.url, schema=schema) for _ in range(2))
    found: list[LeaseEvent] = []

    async def heed(consumer: Consumer) -> None:
        found.extend(await consumer.events())
        nursery.cancel_scope.cancel()

    async with one.connection(), other.connection():
        await one.declare(["q"])
        await one.publish([message("1")])
        async with one.consume({"q": None}) as consumer:
            [delivery] = await now_ready(consumer)
            with psycopg.connect(postgres.url, autocommit=True) as listener, trio.fail_after(SOON):
                listener.execute(f'LISTEN "{channel_of(schema)}"')
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(heed, consumer)
                    await until_somebody_waits(postgres, schema, ready=False)
                    await other.publish([message("2")])
                    await other.publish([message("3")])
                    assert notifications(listener) == 0
                    await other.cancel("1")
            assert [event.token for event in found] == [delivery.token]


async def test_who_begins_to_wait_for_messages_while_others_wait_for_events_hears_of_the_next_one(
    postgres: Postgres, schema: str
) -> None:
    one, other = (PostgresServer(postgres.url, schema=schema) for _ in range(2))
    async with one.connection(), other.connection():
        await one.declare(["q"])
        async with one.consume({"q": None}) as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(consumer.events)
            await until_somebody_waits(postgres, schema, ready=False)

            async def publish_when_it_waits() -> None:
                await until_somebody_waits(postgres, schema, ready=True)
                await other.publish([message("1")])

            with trio.fail_after(SOON):
                nursery.start_soon(publish_when_it_waits)
                [delivery] = await consumer.receive(1)
            assert delivery.envelope.id == "1"
            nursery.cancel_scope.cancel()


async def test_who_is_woken_by_a_message_looks_for_events_once(postgres: Postgres, schema: str) -> None:
    calls: list[str] = []
    one = PostgresServer(postgres.url, schema=schema, instruments=[lambda call: calls.append(call.name)])
    other = PostgresServer(postgres.url, schema=schema)
    async with one.connection(), other.connection():
        await one.declare(["q"])
        async with one.consume({"q": None}) as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(consumer.events)
            for number in range(3):
                async with trio.open_nursery() as receiving:
                    receiving.start_soon(consumer.receive, 1)
                    await until_somebody_waits(postgres, schema, ready=True)
                    await trio.sleep(0.1)  # what it looks at when it has said so
                    calls.clear()
                    await other.publish([message(str(number))])
                with trio.fail_after(SOON):
                    while "events" not in calls:
                        await trio.sleep(0.01)
                await trio.sleep(0.1)
                assert calls.count("events") == 1
            nursery.cancel_scope.cancel()


async def test_a_notification_for_others_wakes_nobody_else(postgres: Postgres, schema: str) -> None:
    calls: list[str] = []
    busy = PostgresServer(postgres.url, schema=schema, instruments=[lambda call: calls.append(call.name)])
    one, other = (PostgresServer(postgres.url, schema=schema) for _ in range(2))
    async with busy.connection(), one.connection(), other.connection():
        await one.declare(["q"])
        async with busy.consume({"q": None}) as first, one.consume({"q": None}) as second:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.events)
                await until_somebody_waits(postgres, schema, ready=False)
                await trio.sleep(0.1)  # what it looks at when it has said so
                before = list(calls)
                for number in range(5):
                    with trio.fail_after(SOON):
                        async with trio.open_nursery() as both:
                            both.start_soon(other.publish, [message(str(number))])
                            await second.receive(1)
                await trio.sleep(0.1)
                assert calls == before
                nursery.cancel_scope.cancel()
