"""An engine loses its data while workers use it: what they have declared is there again, and they go on."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
import trio
from engines.postgres import Postgres
from engines.redis import Redis, embedded
from psycopg.sql import SQL, Identifier

from repid import (
    Connection,
    Job,
    PostgresServer,
    PublishUnknown,
    Queue,
    QueueNotDeclared,
    RedisServer,
    Repid,
    Router,
    Server,
)
from repid.brokers.postgres import driver as postgres_driver
from repid.brokers.redis import driver as redis_driver

from .broker_aids import message

pytestmark = pytest.mark.real_time

SOON = 10.0
"""Seconds; a schedule is declared as soon as the link is up again."""


@pytest.fixture(autouse=True)
def short_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_driver, "BEAT_TIME", 0.2)
    monkeypatch.setattr(postgres_driver, "BEAT", 0.2)


async def all_is_declared_again(server: Server, lose: Callable[[], object]) -> None:
    app, router = Repid(Connection(server)), Router(channel="small", max_size=7)
    ticks: list[str] = []

    @router.actor(every=0.1)
    async def tick() -> None:
        ticks.append("tick")

    @router.actor
    async def other() -> None:
        ticks.append("other")

    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        with trio.fail_after(SOON):
            while not ticks:
                await trio.sleep(0.05)
        lose()
        with trio.fail_after(SOON):
            while not server.data_losses:
                await trio.sleep(0.05)
            ticks.clear()
            while "tick" not in ticks:
                await trio.sleep(0.05)
            counts = await Queue("small").counts()
            assert counts.bounds is not None
            assert counts.bounds.max_size == 7
            await Job("other", queue="small").enqueue()
            while "other" not in ticks:
                await trio.sleep(0.05)
        worker.stop()
    assert server.data_losses == 1


async def test_all_keys_of_redis_are_removed(redis: Redis, prefix: str) -> None:
    await all_is_declared_again(RedisServer(redis.url, prefix=prefix), lambda: redis.execute("FLUSHDB"))


async def test_a_redis_that_saves_nothing_is_started_again() -> None:
    def start_again() -> None:
        assert redis.process is not None
        redis.process.stop(signal.SIGKILL)
        redis.process.start()

    with embedded() as redis:
        await all_is_declared_again(RedisServer(redis.url), start_again)


async def test_the_schema_in_postgresql_is_dropped(postgres: Postgres) -> None:
    with postgres.schema() as schema:
        drop = SQL("DROP SCHEMA {} CASCADE").format(Identifier(schema))
        await all_is_declared_again(PostgresServer(postgres.url, schema=schema), lambda: postgres.execute(drop))


async def test_a_redis_that_is_reached_again_has_lost_nothing(redis: Redis, prefix: str) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}):
            for kind in ("normal", "pubsub"):
                redis.execute("CLIENT", "KILL", "TYPE", kind)
            with trio.fail_after(SOON):
                for state in ("down", "up"):
                    while server.link.state != state:
                        await trio.sleep(0.001)
    async with server.connection():
        assert server.data_losses == 0


async def test_the_schema_in_postgresql_is_made_anew_in_one_step(postgres: Postgres) -> None:
    with postgres.schema() as schema:
        server = PostgresServer(postgres.url, schema=schema)
        script = await server.migration_sql()
        drop = SQL("DROP SCHEMA {} CASCADE;").format(Identifier(schema)).as_string()
        await all_is_declared_again(server, lambda: postgres.execute(f"BEGIN; {drop} {script}".encode()))


async def test_what_is_sent_after_that_goes_to_no_queue_with_the_number_of_its_own(postgres: Postgres) -> None:
    with postgres.schema() as schema:
        server, others = (PostgresServer(postgres.url, schema=schema) for _ in range(2))
        async with server.connection():
            await server.declare(["mine"])
            await server.publish([message("1", "mine")])
            postgres.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(schema)))
            async with others.connection():
                await others.declare(["theirs"])
                await others.publish([message("1", "theirs")])
                with pytest.raises(PublishUnknown):
                    await server.publish([message("2", "mine")])
                with trio.fail_after(SOON):
                    while server.link.state != "up":
                        await trio.sleep(0.02)
                [outcome] = await server.publish([message("2", "mine")])
                assert isinstance(outcome, QueueNotDeclared)
                assert (await others.counts("theirs")).ready == 1
