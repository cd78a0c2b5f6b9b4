"""What the thread of a remote engine does with the leases that a worker names. Real time."""

from __future__ import annotations

import math
import socket
import threading
from urllib.parse import urlsplit

import psycopg
import pytest
import trio
from engines.postgres import Postgres, through_proxy
from engines.proxy import Proxy, proxy_to
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


async def wait_for_failures(caplog: pytest.LogCaptureFixture, count: int) -> None:
    """Wait until the thread has failed so often, each time within its bound."""
    told: list[str] = []
    with trio.fail_after(3):
        while len(told) < count:
            await trio.sleep(0.01)
            told = [text for text in caplog.messages if text.startswith("cannot extend 1 leases")]
    assert all(text.endswith("is blocked: the server did not answer within 0.2 s") for text in told)


async def fall_silent_at_each_answer(
    server: Server, proxy: Proxy, answers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread's connection says nothing any more after each number of answers; then it is not disturbed."""
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("1")])
        async with server.consume({"q": None}) as consumer:
            [delivery] = await consumer.receive(1)
            for number in range(answers):
                proxy.answers_left = number
                consumer.vouch(lambda: {delivery.token: 10.0})
                await wait_for_failures(caplog, number + 1)
                consumer.vouch(dict)
                await trio.sleep(LEASE / 4)
            proxy.answers_left = math.inf
            await consumer.extend([delivery])
            consumer.vouch(lambda: {delivery.token: 10.0})
            await trio.sleep(1.5 * LEASE)
            assert await consumer.rescue() == 0


async def test_the_thread_gives_a_silent_connection_to_postgresql_up_in_time(
    postgres: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with through_proxy(postgres) as (proxy, url):
        address = f"{url}?connect_timeout=2&sslmode=disable"
        server = PostgresServer(address, schema=schema, lease_timeout=LEASE)
        await fall_silent_at_each_answer(server, proxy, 2, caplog)


async def test_the_thread_gives_a_silent_connection_to_redis_up_in_time(
    redis: Redis, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts = urlsplit(redis.url)
    async with proxy_to(parts.hostname or "", parts.port or 6379) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}{parts.path}"
        await fall_silent_at_each_answer(RedisServer(url, prefix=prefix, lease_timeout=LEASE), proxy, 3, caplog)


def test_connections_that_were_given_up_with_their_event_loop_leave_room_for_others(
    postgres: Postgres, schema: str
) -> None:
    async def give_up(port: int) -> None:
        with trio.move_on_after(0.05):
            await PostgresServer(f"postgresql://x@127.0.0.1:{port}/x?connect_timeout=2").migration_sql()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        for _ in range(5):
            trio.run(give_up, silent.getsockname()[1])

    async def connect() -> None:
        with trio.fail_after(5):
            await PostgresServer(postgres.url, schema=schema).migration_sql()

    trio.run(connect)
