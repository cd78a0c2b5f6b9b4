"""Enqueueing in the caller's own transaction: what is sent lives and dies with the caller's data."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from types import NoneType
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import trio
from engines.postgres import Postgres, through_proxy
from psycopg.adapt import AdaptersMap, Loader
from psycopg.sql import SQL, Identifier

from repid import (
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    Connection,
    DuplicateId,
    InMemoryServer,
    Job,
    NotSupported,
    PostgresServer,
    PublishUnknown,
    Queue,
    QueueFull,
    Repid,
    Router,
    UsageError,
)
from repid.brokers.postgres import borrowing, driver
from repid.delivery import ACK, Settlement

from .broker_aids import message

pytestmark = pytest.mark.real_time

router = Router()


@router.actor
async def greet(name: str) -> None:
    pass


@pytest.fixture
def app(postgres: Postgres, schema: str) -> Repid:
    app = Repid(Connection(PostgresServer(postgres.url, schema=schema)))
    app.include_router(router)
    return app


@pytest.fixture
def connection(postgres: Postgres) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres.url) as connection:
        yield connection


async def ready(app: Repid) -> int:
    return (await app.server().counts("default")).ready


async def test_what_is_sent_is_there_when_the_caller_commits(app: Repid, connection: psycopg.Connection) -> None:
    async with app.magic():
        await Queue("default", app=app).declare()
        connection.execute("CREATE TEMPORARY TABLE orders (number int)")
        connection.execute("INSERT INTO orders VALUES (1)")
        await Job("greet", args={"name": "Ada"}, app=app).enqueue(connection=connection)
        await app.send_message_json(channel="default", payload={}, headers={"topic": "greet"}, connection=connection)
        await app.using(connection=connection).enqueue(greet, "Grace")
        assert await ready(app) == 0
        connection.commit()
        assert await ready(app) == 3
        assert connection.execute("SELECT * FROM orders").fetchall() == [(1,)]


async def test_a_full_queue_is_not_waited_for_in_the_callers_transaction(
    app: Repid, connection: psycopg.Connection
) -> None:
    async with app.magic():
        await Queue("default", app=app, max_size=2).declare()
        await app.using(connection=connection).enqueue(greet, "Ada")
        await app.using(connection=connection).enqueue(greet, "Grace")
        with pytest.raises(QueueFull, match="queue 'default' is full"):
            await app.using(connection=connection).enqueue(greet, "Edsger")
        connection.commit()
        assert await ready(app) == 2


async def test_nothing_is_sent_when_the_caller_rolls_back(app: Repid, connection: psycopg.Connection) -> None:
    async with app.magic():
        await app.send_message_json(channel="default", payload={}, connection=connection)  # it begins the transaction
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        connection.rollback()
        with connection.transaction(force_rollback=True):
            await app.send_messages_json(channel="default", payloads=[1, 2], connection=connection)
        assert await ready(app) == 0


async def test_an_idle_worker_is_woken_by_the_commit(app: Repid, connection: psycopg.Connection) -> None:
    received: list[float] = []
    server = app.server()
    async with app.magic():
        await server.declare(["default"])
        async with server.consume({"default": None}) as consumer, trio.open_nursery() as nursery:

            async def work() -> None:
                deliveries = await consumer.receive(1)
                received.append(trio.current_time())
                await consumer.settle([Settlement(delivery, ACK) for delivery in deliveries])

            nursery.start_soon(work)
            await trio.sleep(0.2)
            await app.send_message_json(channel="default", payload={}, connection=connection)
            await trio.sleep(0.2)
            assert not received
            committed = trio.current_time()
            connection.commit()
            with trio.fail_after(2):
                while not received:
                    await trio.sleep(0.005)
            assert received[0] - committed < 1


async def test_an_id_that_is_alive_is_refused_and_the_transaction_goes_on(
    app: Repid, connection: psycopg.Connection
) -> None:
    async with app.magic():
        await app.send_message_json(channel="default", payload={}, message_id="one")
        with pytest.raises(DuplicateId):
            await app.send_message_json(channel="default", payload={}, message_id="one", connection=connection)
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
async def test_an_id_that_another_transaction_is_storing_is_alive_only_if_that_commits(
    app: Repid, connection: psycopg.Connection, commits: bool
) -> None:
    async with app.magic():
        server = app.server()
        await server.declare(["default"])
        await app.send_message_json(channel="default", payload={}, message_id="1", connection=connection)
        outcomes: list[BrokerRefused | None] = []
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                outcomes.extend(await server.publish([message("1", "default"), message("2", "default")]))

            nursery.start_soon(publish)
            with trio.fail_after(4):
                while not is_waited_for(connection):
                    await trio.sleep(0.01)
            if commits:
                connection.commit()
            else:
                connection.rollback()
        assert [type(outcome) for outcome in outcomes] == [DuplicateId if commits else NoneType, NoneType]
        assert await ready(app) == 2


def is_waited_for(connection: psycopg.Connection) -> bool:
    """Whether another session waits for a lock that this one has."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    return connection.execute(sql).fetchall() != [(0,)]


async def test_a_snapshot_that_is_older_than_the_queue(app: Repid, connection: psycopg.Connection) -> None:
    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    connection.execute("SELECT 1")
    async with app.magic():
        await app.send_message_json(channel="default", payload={}, connection=connection)
        connection.commit()
        assert await ready(app) == 1


async def test_a_connection_that_commits_by_itself(app: Repid, postgres: Postgres) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        async with app.magic():
            await app.send_message_json(channel="default", payload={}, connection=connection)
            assert await ready(app) == 1


async def test_a_connection_that_commits_by_itself_is_given_back_without_a_transaction_whatever_happens(
    app: Repid, postgres: Postgres, schema: str, connection: psycopg.Connection
) -> None:
    def locked(table: str) -> None:
        connection.rollback()
        connection.execute(SQL("LOCK TABLE {}").format(Identifier(schema, table)))

    idle = psycopg.pq.TransactionStatus.IDLE
    with psycopg.connect(postgres.url, autocommit=True) as own:
        send = partial(app.send_message_json, channel="default", payload={}, connection=own)
        async with app.magic():
            await Queue("default", app=app).declare()
            locked("queue")
            with trio.move_on_after(0.3) as scope:
                await send(headers={"topic": "a"})
            assert scope.cancelled_caught
            assert own.info.transaction_status == idle
            with pytest.raises(BrokerRefused, match="another transaction that is open has locked"):
                await send(headers={"topic": "b"})
            assert own.info.transaction_status == idle
            locked("message")
            own.execute("SET statement_timeout = 100")
            with pytest.raises(BrokerRefused, match=r"statement timeout\): it has waited for a lock too long"):
                await send()
            assert own.info.transaction_status == idle
            connection.rollback()
            assert await ready(app) == 0


async def test_a_commit_whose_end_is_not_known_is_not_told_as_a_refusal(
    app: Repid, postgres: Postgres, schema: str
) -> None:
    here = Identifier(schema)
    async with app.magic():
        await Queue("default", app=app).declare()
        with psycopg.connect(postgres.url, autocommit=True) as own:
            own.execute(
                SQL(
                    "CREATE FUNCTION {0}.end_session() RETURNS trigger LANGUAGE plpgsql AS $$"
                    "BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;"
                    "CREATE CONSTRAINT TRIGGER end_session AFTER INSERT ON {0}.message DEFERRABLE INITIALLY DEFERRED "
                    "FOR EACH ROW EXECUTE FUNCTION {0}.end_session()"
                ).format(here)
            )
            try:
                with pytest.raises(PublishUnknown):
                    await app.send_message_json(channel="default", payload={}, connection=own)
            finally:
                postgres.execute(SQL("DROP FUNCTION {}.end_session CASCADE").format(here))


async def test_a_server_that_falls_silent_is_not_waited_for_on_the_callers_connection(
    app: Repid, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(borrowing, "PATIENCE", 0.3)
    monkeypatch.setattr(borrowing, "LAST_PATIENCE", 0.3)
    async with app.magic(), through_proxy(postgres) as (proxy, url):
        await Queue("default", app=app).declare()
        with await trio.to_thread.run_sync(partial(psycopg.Connection[Any].connect, url)) as own:
            proxy.is_frozen = True
            with (
                trio.fail_after(2),
                pytest.raises(BrokerRefused, match=r"no answer within .* the connection= was closed"),
            ):
                await app.send_message_json(channel="default", payload={}, connection=own)
            assert own.closed
        assert await ready(app) == 0


class Nonsense(Loader):
    """Reads any column as what it is not."""

    format = psycopg.pq.Format.BINARY

    def load(self, data: object) -> str:
        return "nonsense"


async def test_the_servers_own_connections_that_fall_silent_are_not_waited_for(
    postgres: Postgres, schema: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SILENCE", 0.3)
    async with through_proxy(postgres) as (proxy, url):
        server = PostgresServer(url, schema=schema)
        async with server.connection():
            await server.declare(["default"])
            proxy.silence()
            with trio.fail_after(3), pytest.raises(BrokerUnavailable, match="did not answer within"):
                await server.publish_in(connection, [message("1", queue="default", topic="new")])
        connection.rollback()
        assert connection.execute("SELECT 1").fetchone() == (1,)


async def test_loaders_that_the_program_has_registered_are_for_its_own_columns(
    app: Repid, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = AdaptersMap(psycopg.adapters)
    for name in ("int8", "bytea", "text", "bool", "float8"):
        connection.adapters.register_loader(name, Nonsense)
        everywhere.register_loader(name, Nonsense)
    monkeypatch.setattr(psycopg.adapters, "_loaders", everywhere._loaders)
    async with app.magic():
        await Queue("default", app=app, max_size=5).declare()
        await app.send_message_json(channel="default", payload={}, message_id="one", connection=connection)
        with pytest.raises(DuplicateId):
            await app.send_message_json(channel="default", payload={}, message_id="one", connection=connection)
        connection.commit()
        assert await ready(app) == 1


async def test_a_connection_to_another_database_that_has_such_tables_too(
    app: Repid, postgres: Postgres, schema: str
) -> None:
    name = f"{schema}_other"
    postgres.execute(SQL("CREATE DATABASE {} TEMPLATE template0").format(Identifier(name)))
    try:
        url = urlsplit(postgres.url)._replace(path=f"/{name}").geturl()
        other = Repid(Connection(PostgresServer(url, schema=schema)))
        async with other.magic():
            await Queue("elsewhere", app=other).declare()
            async with app.magic():
                await app.send_message_json(channel="default", payload={})
                with psycopg.connect(url) as own:
                    with pytest.raises(UsageError, match="is to another database than the server is"):
                        await app.send_message_json(channel="default", payload={}, connection=own)
            assert (await Queue("elsewhere", app=other).counts()).ready == 0
    finally:
        postgres.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def test_a_connection_of_asyncio(app: Repid, postgres: Postgres) -> None:
    async def main() -> tuple[int, int]:
        async with app.magic(), await psycopg.AsyncConnection.connect(postgres.url) as connection:
            await connection.execute("SELECT 1")
            await Queue("default", app=app).declare()
            await Job("greet", args={"name": "Ada"}, app=app).enqueue(connection=connection)
            before = await ready(app)
            await connection.commit()
            return before, await ready(app)

    assert asyncio.run(main()) == (0, 1)


def test_a_connection_of_sqlalchemy_under_asyncio(app: Repid, postgres: Postgres) -> None:
    engines = pytest.importorskip("sqlalchemy.ext.asyncio")

    async def main() -> tuple[int, int]:
        engine = engines.create_async_engine(postgres.url.replace("postgresql:", "postgresql+psycopg:"))
        async with app.magic(), engine.connect() as connection:
            await Queue("default", app=app).declare()
            await Job("greet", args={"name": "Ada"}, app=app).enqueue(connection=connection)
            await app.using(connection=connection.sync_connection).enqueue(greet, "Grace")
            before = await ready(app)
            await connection.commit()
            found = before, await ready(app)
        await engine.dispose()
        return found

    assert asyncio.run(main()) == (0, 2)


def test_a_connection_of_sqlalchemy_that_has_done_nothing_else(app: Repid, postgres: Postgres) -> None:
    engines = pytest.importorskip("sqlalchemy")
    engine = engines.create_engine(postgres.url.replace("postgresql:", "postgresql+psycopg:"))
    with app.sync() as client, engine.connect() as connection:
        client.send_message_json(channel="default", payload={}, connection=connection)
        connection.rollback()
        client.send_message_json(channel="default", payload={}, connection=connection)
        client.send_message_json(channel="default", payload={}, connection=connection)
        connection.commit()
        with connection.begin():
            client.send_message_json(channel="default", payload={}, connection=connection)
        assert client.run(lambda: ready(app)) == 3
    engine.dispose()


def test_a_connection_of_a_program_that_blocks(app: Repid, connection: psycopg.Connection) -> None:
    with app.sync() as client:
        client.send_message_json(channel="default", payload={}, connection=connection)
        connection.rollback()
        client.send_message_json(channel="default", payload={}, connection=connection)
        connection.commit()
        assert client.run(lambda: ready(app)) == 1


async def test_what_cannot_be_done(app: Repid, postgres: Postgres, schema: str, connection: psycopg.Connection) -> None:
    def send(connection: Any) -> Any:
        return app.send_message_json(channel="default", payload={}, connection=connection)

    async with app.magic():
        with pytest.raises(ConfigurationError, match="connection= must be an open connection of psycopg 3"):
            await send("postgresql://")
        with connection.pipeline():
            with pytest.raises(UsageError, match="pipeline mode"):
                await send(connection)
        with pytest.raises(psycopg.Error):
            connection.execute("no SQL")
        with pytest.raises(UsageError, match="has failed: roll it back"):
            await send(connection)
        connection.rollback()
        job = Job("greet", args={"name": "Ada"}, every=60, app=app)
        with pytest.raises(ConfigurationError, match="the recurring job 'greet' stores a schedule"):
            await job.enqueue(connection=connection)
        postgres.execute(SQL("ALTER TABLE {}.message RENAME TO elsewhere").format(Identifier(schema)))
        try:
            with pytest.raises(BrokerRefused, match="refused to publish on the connection="):
                await send(connection)
        finally:
            connection.rollback()
            postgres.execute(SQL("ALTER TABLE {}.elsewhere RENAME TO message").format(Identifier(schema)))
        connection.close()
        with pytest.raises(UsageError, match="closed or broken"):
            await send(connection)


async def test_other_servers_say_that_they_cannot(connection: psycopg.Connection) -> None:
    app = Repid(Connection(InMemoryServer()))
    async with app.magic():
        with pytest.raises(NotSupported, match="which InMemoryServer cannot: use PostgresServer"):
            await app.send_message_json(channel="default", payload={}, connection=connection)


async def test_of_two_transactions_that_wait_for_each_others_ids_the_servers_own_is_made_again(
    app: Repid, connection: psycopg.Connection
) -> None:
    outcomes: list[BrokerRefused | None] = []
    async with app.magic():
        server = app.server()

        async def publish() -> None:
            outcomes.extend(await server.publish([message("first", "default"), message("second", "default")]))

        await Job("greet", id_="second", app=app).enqueue(connection=connection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await trio.sleep(
                0.5
            )  # it has stored the first one and waits for the second; in a second it will look for why
            await Job("greet", id_="first", app=app).enqueue(connection=connection)
            connection.commit()
        assert [type(outcome) for outcome in outcomes] == [DuplicateId, DuplicateId]
        assert await ready(app) == 2
