"""What the thread of a remote engine does with the leases that a worker names. Real time."""

from __future__ import annotations

import threading

import psycopg
import pytest
import trio
from engines.postgres import Postgres
from engines.redis import Redis

from repid import PostgresServer, RedisServer, Server

from .broker_aids import message

pytestmark = pytest.mark.real_time

LEASE = 0.8


def threads() -> int:
    return sum(thread.name == "repid leases" for thread in threading.enumerate())


async def name_two_of_three(server: Server) -> None:
    """One for long, one for no time at all. The loop is not blocked here; it just extends nothing."""
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message(str(number)) for number in range(3)])
        async with server.consume({"q": None}) as consumer:
            long, short, silent = await consumer.receive(3)
            assert threads() == 0
            consumer.vouch(lambda: {long.token: 10.0, short.token: 0.001})
            await trio.sleep(LEASE / 2)
            for leased in await server.browse("q", "leased"):
                assert leased.due_at is not None
                assert leased.leased_at is not None
                assert leased.due_at - leased.leased_at >= LEASE - 0.01
            await trio.sleep(LEASE)
            assert threads() == 1
            assert await consumer.rescue() == 2
            await trio.sleep(LEASE / 2)  # it goes on to name what is lost
            assert await consumer.extend([long, short, silent]) == [True, False, False]
    with trio.fail_after(5):
        while threads():
            await trio.sleep(0.01)


async def test_in_postgresql_it_extends_what_is_named_and_shortens_or_revives_nothing(
    postgres: Postgres, schema: str
) -> None:
    await name_two_of_three(PostgresServer(postgres.url, schema=schema, lease_timeout=LEASE))


async def test_in_redis_it_extends_what_is_named_and_shortens_or_revives_nothing(redis: Redis, prefix: str) -> None:
    await name_two_of_three(RedisServer(redis.url, prefix=prefix, lease_timeout=LEASE))


async def test_a_lease_that_postgresql_refuses_to_extend_is_named_in_the_log(
    postgres: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = PostgresServer(postgres.url, schema=schema, lease_timeout=LEASE)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("1")])
        async with server.consume({"q": None}) as consumer:
            [delivery] = await consumer.receive(1)
            with psycopg.connect(postgres.url, autocommit=True) as connection:
                connection.execute(f'ALTER TABLE "{schema}".lease RENAME TO elsewhere'.encode())
                consumer.vouch(lambda: {delivery.token: 10.0})
                with trio.fail_after(10):
                    while not (told := [text for text in caplog.messages if text.startswith("cannot extend 1 leases")]):
                        await trio.sleep(0.01)
                connection.execute(f'ALTER TABLE "{schema}".elsewhere RENAME TO lease'.encode())
    assert f'while the event loop is blocked: relation "{schema}.lease" does not exist' in told[0]
