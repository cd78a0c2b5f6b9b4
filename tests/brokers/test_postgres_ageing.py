"""PostgreSQL while somebody holds an old snapshot: nothing that was deleted can be vacuumed, and claims do not walk over it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
import trio
from engines.postgres import Postgres

from repid import PostgresServer
from repid.brokers.postgres.binding import Step
from repid.brokers.postgres.claiming import LOOK, PROMOTE
from repid.brokers.postgres.server import SESSION

from .broker_aids import ids, message, now_ready

pytestmark = pytest.mark.real_time

GONE = """
INSERT INTO {s}.scheduled (lane, rank, seq, due, expires_at) SELECT 1, n, n, n, n FROM generate_series(1, 20000) AS n;
INSERT INTO {s}.ready (lane, rank, seq, expires_at) SELECT 1, n, n, n FROM generate_series(1, 20000) AS n;
DELETE FROM {s}.scheduled WHERE seq <= 20000;
DELETE FROM {s}.ready WHERE seq <= 20000;
"""
"""What fell due, and what had a ttl, and is gone."""


@pytest.fixture
def snapshot(postgres: Postgres, schema: str) -> Iterator[None]:
    """A session that does not end."""
    with psycopg.connect(postgres.url) as old:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("SELECT count(*) FROM pg_class")
        yield


def pages_read(connection: psycopg.Connection, schema: str, step: Step) -> int:
    """How many pages the server looks at for the statement."""
    statement, arguments = step
    sql = re.sub(r"\$\d", lambda found: str(arguments[int(found[0][1:]) - 1]), statement.text.replace("{s}", schema))
    [[[found]]] = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}".encode()).fetchall()
    plan = found["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.usefixtures("snapshot")
async def test_claims_do_not_walk_over_what_fell_due_or_had_a_ttl_before(postgres: Postgres, schema: str) -> None:
    driver = (server := PostgresServer(postgres.url, schema=schema))._postgres
    async with server.connection():
        await server.declare(["q"])
        postgres.execute(GONE.replace("{s}", schema))
        await server.publish([message("1"), message("2")])
        async with server.consume({"q": None}) as consumer:
            assert len(await consumer.receive(1)) == 1
        fronts = driver._fronts
        settings = " ".join(f"-c {setting}" for setting in SESSION)
        with psycopg.connect(postgres.url, autocommit=True, options=settings) as connection:
            for step, from_the_start in ((fronts.promote, PROMOTE), (fronts.look, LOOK)):
                few, many = (pages_read(connection, schema, each) for each in (step, from_the_start))
                assert many > 100
                assert few < many / 5


async def test_what_is_committed_when_it_has_been_due_for_long_is_claimed_at_once(
    postgres: Postgres, schema: str
) -> None:
    async with PostgresServer(postgres.url, schema=schema).connection() as server:
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            with psycopg.connect(postgres.url) as connection:
                await server.publish_in(connection, [message("late", delay=0.01)])
                await trio.sleep(0.5)
                await server.publish([message("1"), message("2")])
                assert len(await consumer.receive(1)) == 1
            assert len(await consumer.receive(1)) == 1
            assert ids(await now_ready(consumer)) == ["late"]
