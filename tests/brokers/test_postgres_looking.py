"""What is looked at in PostgreSQL, and when: messages that move from one table to another, and what fell due."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
import pytest
import trio
from engines.postgres import Postgres

from repid import PostgresServer, Repid, Router
from repid.delivery import DeadLetter, Failure, Settlement

from .broker_aids import message, now_ready

pytestmark = pytest.mark.real_time

T = TypeVar("T")

LEASE = """
WITH gone AS (DELETE FROM {s}.ready RETURNING lane, rank, seq)
INSERT INTO {s}.lease (lane, rank, seq, token, until, consumer, leased_at)
SELECT lane, rank, seq, 1, {s}.clock() + 60000000, 1, {s}.clock() FROM gone
"""
REVIVE = """
WITH gone AS (DELETE FROM {s}.dead RETURNING lane, id, payload, enqueued_at)
INSERT INTO {s}.message (seq, lane, rank, id, payload, enqueued_at)
SELECT 1000000000, lane, 1, id, payload, enqueued_at FROM gone
"""
MAKE_READY = "INSERT INTO {s}.ready (lane, rank, seq) SELECT lane, rank, seq FROM {s}.message"
"""What others do, in their own transactions."""


class Mover:
    """Another session, that has locked a table."""

    def __init__(self, connection: psycopg.Connection, schema: str, table: str) -> None:
        self._connection = connection
        self._schema = schema
        self._is_waited_for = f"SELECT 1 FROM pg_locks WHERE NOT granted AND relation = '{{s}}.{table}'::regclass"
        self.execute(f"LOCK TABLE {{s}}.{table} IN ACCESS EXCLUSIVE MODE")

    def execute(self, sql: str) -> list[tuple[object, ...]]:
        cursor = self._connection.execute(sql.replace("{s}", f'"{self._schema}"').encode())
        return cursor.fetchall() if cursor.description else []

    async def while_it_waits(self, ask: Callable[[], Awaitable[T]], *moves: str) -> T:
        """What a call gives that comes to the locked table, waits there, and goes on when these moves are committed."""
        found: list[T] = []

        async def look() -> None:
            found.append(await ask())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            with trio.fail_after(3):
                while not self.execute(self._is_waited_for):
                    await trio.sleep(0.01)
            for move in moves:
                self.execute(move)
            self._connection.commit()
        return found[0]


@contextmanager
def locked(postgres: Postgres, schema: str, table: str) -> Iterator[Mover]:
    with psycopg.connect(postgres.url) as connection:
        yield Mover(connection, schema, table)


async def test_a_message_that_is_leased_meanwhile_is_found_once(postgres: Postgres, schema: str) -> None:
    async with PostgresServer(postgres.url, schema=schema).connection() as server:
        await server.declare(["q"])
        await server.publish([message("1")])
        with locked(postgres, schema, "lease") as mover:
            [found] = await mover.while_it_waits(lambda: server.find(["1"]), LEASE)
        assert [one.category for one in found] == ["ready"]
        [found] = await server.find(["1"])
        assert [one.category for one in found] == ["leased"]


async def test_a_dead_message_that_is_revived_meanwhile_is_not_taken_for_gone(postgres: Postgres, schema: str) -> None:
    async with PostgresServer(postgres.url, schema=schema).connection() as server:
        await server.declare(["q"])
        await server.publish([message("1")])
        async with server.consume({"q": None}) as consumer:
            [delivery] = await now_ready(consumer)
            await consumer.settle([Settlement(delivery, DeadLetter("failed", Failure("E", "")))])
        assert (await server.watch("1", "1")).state == "dead"
        with locked(postgres, schema, "dead") as mover:
            seen = await mover.while_it_waits(lambda: server.watch("1", "1"), REVIVE, MAKE_READY)
        assert seen.state == "ready"


async def test_only_claims_and_views_wait_until_all_that_fell_due_is_ready(postgres: Postgres, schema: str) -> None:
    """It may be much: a link that comes up again, and a transaction that sends something, have no time for that."""

    def scheduled() -> object:
        [(count,)] = postgres.execute(f"SELECT count(*) FROM {schema}.scheduled")
        return count

    async with PostgresServer(postgres.url, schema=schema).connection() as server:
        await server.declare(["q"])
        await server.publish([message("1", delay=0.05)])
        await trio.sleep(0.1)
        with psycopg.connect(postgres.url) as connection:
            await server.publish_in(connection, [message("2")])
        await server.declare(["q", "other"])
        await server.pause("other")
        async with server.consume({"q": None}) as consumer:
            assert scheduled() == 1
            assert len(await now_ready(consumer)) == 2
            assert scheduled() == 0


async def test_a_worker_gets_its_first_message_before_all_dead_letters_could_be_counted(
    postgres: Postgres, schema: str
) -> None:
    app, router, server = (
        Repid(title="t", version="1"),
        Router(channel="q"),
        PostgresServer(postgres.url, schema=schema),
    )
    ran = trio.Event()

    @router.actor
    async def note() -> None:
        ran.set()

    app.servers.register_server("default", server, is_default=True)
    app.include_router(router)
    async with app.magic():
        await server.declare(["q"])
        await app.enqueue(note)
        with locked(postgres, schema, "dead"), trio.fail_after(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(app.run_worker)
                await ran.wait()
                nursery.cancel_scope.cancel()
