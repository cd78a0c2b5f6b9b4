"""The PostgreSQL broker on real servers, with a clock that can be moved, held to everything the port promises."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from engines.postgres import Postgres

from repid import Envelope, Server
from repid.brokers.postgres import PostgresServer
from repid.delivery import MOST_LOST
from repid.ports import AtMost, Broker
from repid.testing import CHECKS, Check, Cut, check_broker

FOLLOWS_THE_WALL_CLOCK = "a_step_of_the_wall_clock_ends_no_lease"
"""PostgreSQL has no other clock, so this one promise is not kept: `docs/postgres.md` says so."""

KEPT = [check for check in CHECKS if str(check) != FOLLOWS_THE_WALL_CLOCK]


class ServersClock:
    """The clock of one schema, moved by order."""

    def __init__(self, postgres: Postgres, schema: str) -> None:
        self._connection = psycopg.connect(postgres.url, autocommit=True)
        self._postgres = postgres
        self._schema = schema
        self._moved = 0

    def close(self) -> None:
        self._connection.close()

    def advance(self, seconds: float) -> None:
        self._moved += round(seconds * 1_000_000)
        self._postgres.move_clock(self._connection, self._schema, self._moved)

    step_wall = advance


@pytest.fixture
def clock(postgres: Postgres, schema: str) -> Iterator[ServersClock]:
    clock = ServersClock(postgres, schema)
    yield clock
    clock.close()


@pytest.mark.parametrize("check", KEPT, ids=str)
async def test_the_postgres_broker(check: Check, postgres: Postgres, schema: str, clock: ServersClock) -> None:
    def make(_: Any = None) -> PostgresServer:
        return PostgresServer(postgres.url, schema=schema)

    @asynccontextmanager
    async def open_broker() -> AsyncGenerator[Broker, None]:
        yield make()

    report = await check_broker(open_broker, only=[check], clock=clock, another=make)
    assert all(reason.startswith(("needs not ", "needs cut", "needs dead_ttl")) for reason in report.skipped.values())


async def test_the_postgres_broker_with_a_time_for_dead_letters(
    postgres: Postgres, schema: str, clock: ServersClock
) -> None:
    @asynccontextmanager
    async def open_broker() -> AsyncGenerator[Broker, None]:
        yield PostgresServer(postgres.url, schema=schema, dead_ttl=600)

    checks = [check for check in CHECKS if "dead_ttl" in check.needs]
    report = await check_broker(open_broker, only=checks, clock=clock)
    assert report.passed == tuple(check.name for check in checks) != ()


@pytest.mark.parametrize("check", [check for check in CHECKS if "cut" in check.needs], ids=str)
async def test_the_postgres_engine_behind_a_link_that_breaks(
    check: Check, postgres: Postgres, schema: str, clock: ServersClock
) -> None:
    cut = Cut()

    @asynccontextmanager
    async def open_cut() -> AsyncGenerator[Broker, None]:
        yield Server(cut(PostgresServer(postgres.url, schema=schema)._driver))

    report = await check_broker(open_cut, only=[check], clock=clock, cut=cut)
    assert set(report.skipped.values()) <= {"needs leases=connection"}


async def test_what_is_told_of_a_poisonous_message_has_its_times_in_seconds(
    postgres: Postgres, schema: str, clock: ServersClock
) -> None:
    server = PostgresServer(postgres.url, schema=schema, lease_timeout=10)
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            await server.publish([Envelope("killer", "q", b"")])
            for _ in range(MOST_LOST):
                assert len(await consumer.receive(1, at_most=AtMost(alone=True), max_wait=5)) == 1
                clock.advance(20)
                assert await consumer.rescue() == 1
        [dead] = await server.browse("q", "dead")
    assert dead.failure is not None
    assert re.search(r"within 16\d\.\d s: .*, 2\d\.\d s before it was given up", dead.failure.text)
