"""What becomes of messages when connections to PostgreSQL break, at every moment and in every way."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import trio
from engines.postgres import Postgres, running, through_proxy
from engines.proxy import Proxy
from psycopg.sql import SQL, Identifier

from repid import BrokerRefused, BrokerUnavailable, DuplicateId, NoAnswer, PostgresServer, PublishUnknown
from repid.brokers.consumer import Consumer
from repid.brokers.postgres import wire
from repid.brokers.postgres.binding import Step, statement
from repid.brokers.postgres.pool import BEGIN
from repid.brokers.postgres.server import SESSION
from repid.delivery import ACK, Release, Settlement
from repid.ports import UNKNOWN

from .broker_aids import message

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def through_a_proxy(postgres: Postgres, schema: str) -> AsyncGenerator[tuple[Proxy, PostgresServer], None]:
    async with through_proxy(postgres) as (proxy, url):
        server = PostgresServer(url, schema=schema)
        async with server.connection():
            await server.declare(["q"])
            yield proxy, server


@asynccontextmanager
async def impatient(
    postgres: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[tuple[PostgresServer, Consumer], None]:
    """A server that waits for a lock for a tenth of a second, and a consumer of its queue."""
    monkeypatch.setattr("repid.brokers.postgres.server.SESSION", ("lock_timeout=100ms",))
    server = PostgresServer(postgres.url, schema=schema)
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            yield server, consumer


async def up(server: PostgresServer) -> None:
    while server.link.state != "up":
        await trio.sleep(0.01)


def cut_all(postgres: Postgres, name: str = "repid") -> int:
    """Have the server end every connection of ours."""
    sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
    return len(postgres.execute(sql, name))


async def test_a_publish_whose_answer_was_lost_is_proved_by_its_id(postgres: Postgres, schema: str) -> None:
    async with through_a_proxy(postgres, schema) as (proxy, server):
        await server.publish([message("0")])
        proxy.swallows_answers = True
        async with trio.open_nursery() as nursery:

            async def cut() -> None:
                await trio.sleep(0.3)
                proxy.cut()
                proxy.swallows_answers = False

            nursery.start_soon(cut)
            with pytest.raises(PublishUnknown):
                await server.publish([message("1")])
        await up(server)
        [outcome] = await server.publish([message("1")])
        assert isinstance(outcome, DuplicateId)


async def test_a_settlement_whose_answer_was_lost_is_unknown_and_done(postgres: Postgres, schema: str) -> None:
    async with through_a_proxy(postgres, schema) as (proxy, server), server.consume({"q": None}) as consumer:
        await server.publish([message("1")])
        [delivery] = await consumer.receive(1)
        proxy.swallows_answers = True
        async with trio.open_nursery() as nursery:

            async def cut() -> None:
                await trio.sleep(0.3)
                proxy.cut()
                proxy.swallows_answers = False

            nursery.start_soon(cut)
            with pytest.raises(NoAnswer):
                await consumer.settle([Settlement(delivery, ACK)])
        await up(server)
        assert await consumer.settle([Settlement(delivery, ACK)]) == [UNKNOWN]
        assert (await server.counts("q")).leased == 0


async def test_a_server_that_falls_silent_is_given_up_after_five_seconds(postgres: Postgres, schema: str) -> None:
    async with through_a_proxy(postgres, schema) as (proxy, server):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(server.counts, "q")
        proxy.is_frozen = True
        began = trio.current_time()
        with pytest.raises(NoAnswer):
            await server.counts("q")
        assert 4 < trio.current_time() - began < 7
        proxy.silence()  # whoever says farewell on the others waits five seconds more
        proxy.is_frozen = False
        with trio.fail_after(4):
            await up(server)
            await server.publish([message("1")])


async def test_a_worker_asks_again_for_what_somebody_else_has_locked(
    postgres: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with impatient(postgres, schema, monkeypatch) as (server, consumer):
        await server.publish([message("1"), message("2")])
        one, two = await consumer.receive(2)
        with psycopg.connect(postgres.url) as other:
            other.execute(SQL("SELECT FROM {}.lease FOR UPDATE").format(Identifier(schema)))
            for settlement in (Settlement(one, ACK), Settlement(two, Release())):
                with pytest.raises(NoAnswer, match="another transaction that is open has locked"):
                    await consumer.settle([settlement])
                await up(server)
            with pytest.raises(NoAnswer, match="another transaction that is open has locked"):
                await consumer.extend([one])
            await up(server)
        assert [verdict.outcome for verdict in await consumer.settle([Settlement(one, ACK)])] == ["settled"]
        assert await consumer.extend([two]) == [True]


async def test_a_table_that_is_locked_is_waited_for_by_claims_and_breaks_no_link(
    postgres: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with impatient(postgres, schema, monkeypatch) as (server, consumer):
        await server.publish([message("1")])
        [delivery] = await consumer.receive(1)
        await server.publish([message("2")])
        with psycopg.connect(postgres.url) as other:
            other.execute(SQL("LOCK TABLE {}.ready").format(Identifier(schema)))
            with trio.move_on_after(0.5) as scope:
                await consumer.receive(1)
            assert scope.cancelled_caught
            assert server.link.state == "up"
            assert [verdict.outcome for verdict in await consumer.settle([Settlement(delivery, ACK)])] == ["settled"]
        with trio.fail_after(2):
            [delivery] = await consumer.receive(1)
        assert delivery.envelope.id == "2"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "nothing can be claimed now" in caplog.text


async def test_who_waits_cannot_be_woken_and_what_was_done_is_done(
    postgres: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with impatient(postgres, schema, monkeypatch) as (server, consumer):
        with psycopg.connect(postgres.url) as other:
            other.execute(SQL("LOCK TABLE {}.sleeper").format(Identifier(schema)))
            assert await server.publish([message("1"), message("2")]) == [None, None]
            one, two = await consumer.receive(2)
            verdicts = await consumer.settle([Settlement(one, Release()), Settlement(two, ACK)])
            assert [verdict.outcome for verdict in verdicts] == ["settled", "settled"]
            assert server.link.state == "up"
    assert "other processes were not woken" in caplog.text


async def test_a_commit_that_fails_is_told_and_the_answers_of_later_calls_are_their_own(
    postgres: Postgres, schema: str
) -> None:
    here = Identifier(schema)
    server = PostgresServer(postgres.url, schema=schema, connections=1)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("1")])
        postgres.execute(
            SQL(
                "CREATE FUNCTION {0}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;"
                "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON {0}.message DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION {0}.refuse()"
            ).format(here)
        )
        try:
            with pytest.raises(BrokerRefused, match="not now"):
                await server.publish([message("2")])
            assert (await server.counts("q")).ready == 1
        finally:
            postgres.execute(SQL("DROP FUNCTION {}.refuse CASCADE").format(here))
        assert await server.publish([message("2"), message("1")]) != [None, None]
        assert (await server.counts("q")).ready == 2


async def test_what_a_client_that_was_cut_off_has_locked_is_free_soon(
    postgres: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        setting.replace("=6s", "=300ms") for setting in SESSION if setting.startswith("idle_in_transaction_session")
    ]
    assert len(settings) == 1
    monkeypatch.setattr("repid.brokers.postgres.server.SESSION", settings)
    async with through_a_proxy(postgres, schema) as (proxy, server):
        async with server._postgres._pool.wire() as wire:
            await wire.run([BEGIN])
            [[(ended,)]] = await wire.run([Step(statement("SELECT pg_backend_pid()"))])
            proxy.silence()
            with trio.fail_after(5):
                while postgres.execute("SELECT FROM pg_stat_activity WHERE pid = %s", ended):
                    await trio.sleep(0.05)
            wire.close()


async def test_a_link_that_falls_silent_while_it_is_opened_is_given_up(
    postgres: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repid.brokers.postgres.driver.SILENCE", 0.2)
    given_up = 0
    async with PostgresServer(postgres.url, schema=schema).connection():
        pass  # the tables are made, for which there is more time
    async with through_proxy(postgres) as (proxy, url):
        while True:
            proxy.answers_left = given_up
            try:
                with trio.fail_after(10):
                    async with PostgresServer(f"{url}?connect_timeout=2", schema=schema).connection():
                        break
            except BrokerUnavailable:
                given_up += 1
    assert given_up > 5


async def test_a_slow_link_changes_nothing(postgres: Postgres, schema: str) -> None:
    async with through_a_proxy(postgres, schema) as (proxy, server), server.consume({"q": None}) as consumer:
        proxy.delay = (0.05, 0.15)
        await server.publish([message(str(n)) for n in range(5)])
        deliveries = await consumer.receive(5)
        verdicts = await consumer.settle([Settlement(delivery, ACK) for delivery in deliveries])
        assert [verdict.outcome for verdict in verdicts] == ["settled"] * 5


async def test_an_idle_consumer_survives_that_its_connections_are_ended(postgres: Postgres, schema: str) -> None:
    server = PostgresServer(postgres.url, schema=schema)
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer, trio.open_nursery() as nursery:
            received: list[str] = []

            async def wait() -> None:
                received.extend(d.envelope.id for d in await consumer.receive(1))
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait)
            await trio.sleep(0.2)
            assert cut_all(postgres) >= 2
            await trio.sleep(0.1)
            await up(server)
            await server.publish([message("1")])
            await trio.sleep(5)
        assert received == ["1"]


async def test_a_connection_that_is_there_in_the_moment_of_a_cancellation_is_closed(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[psycopg.Connection] = []
    connect, token = psycopg.Connection.connect, trio.lowlevel.current_trio_token()

    def connect_and_cancel(*arguments: Any, **options: Any) -> psycopg.Connection:
        made.append(connect(*arguments, **options))
        token.run_sync_soon(scope.cancel)
        return made[0]

    monkeypatch.setattr(psycopg.Connection, "connect", connect_and_cancel)
    with trio.CancelScope() as scope:
        await wire.connect(postgres.url, {}, "any", prepares=True)
    assert scope.cancelled_caught
    assert made[0].closed


async def test_a_server_that_ends_idle_sessions_leaves_the_link_alone(
    postgres: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = PostgresServer(f"{postgres.url}?options=-c%20idle_session_timeout%3D300", schema=schema)
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            with trio.move_on_after(1):
                await consumer.receive(1)
        assert await server.publish([message("1")]) == [None]
    assert not caplog.records


async def test_a_connection_that_broke_while_it_was_idle_is_not_used(postgres: Postgres, schema: str) -> None:
    server = PostgresServer(postgres.url, schema=schema, listen=False)
    async with server.connection():
        await server.declare(["q"])
        assert cut_all(postgres) >= 1
        await trio.sleep(0.1)
        assert await server.publish([message("1")]) == [None]


async def drain(consumer: Consumer, done: set[str], runs: list[str]) -> None:
    """Work until cancelled, as a worker would: what was not answered is settled again."""
    while True:
        try:
            deliveries = await consumer.receive(20)
        except BrokerUnavailable:
            await trio.sleep(0.02)
            continue
        runs += [delivery.envelope.id for delivery in deliveries]
        while True:
            try:
                verdicts = await consumer.settle([Settlement(delivery, ACK) for delivery in deliveries])
            except BrokerUnavailable:
                await trio.sleep(0.02)
            else:
                break
        done |= {
            delivery.envelope.id
            for delivery, verdict in zip(deliveries, verdicts, strict=True)
            if verdict.outcome != "refused"
        }


async def publish_surely(server: PostgresServer, ids: list[str]) -> None:
    while True:
        try:
            await server.publish([message(id_) for id_ in ids])
        except (BrokerUnavailable, PublishUnknown):
            await trio.sleep(0.02)
        else:
            return


async def test_a_storm_of_broken_connections_loses_nothing(postgres: Postgres, schema: str) -> None:
    """Two hundred messages, two clients, and all connections ended again and again."""
    done: set[str] = set()
    runs: list[str] = []
    ids = [str(n) for n in range(200)]
    producer, worker = (PostgresServer(postgres.url, schema=schema, lease_timeout=1.0) for _ in range(2))
    async with producer.connection(), worker.connection():
        await producer.declare(["q"])
        async with worker.consume({"q": None}) as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(drain, consumer, done, runs)

            async def storm() -> None:
                for _ in range(8):
                    await trio.sleep(0.15)
                    await trio.to_thread.run_sync(cut_all, postgres)

            nursery.start_soon(storm)
            for start in range(0, len(ids), 10):
                await publish_surely(producer, ids[start : start + 10])
                await trio.sleep(0.05)
            with trio.fail_after(30):
                while not done >= set(ids):
                    await trio.sleep(0.2)
                    try:
                        await consumer.rescue()
                    except BrokerUnavailable:
                        await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        counts = await producer.counts("q")
    assert (counts.ready, counts.leased, counts.dead) == (0, 0, 0)
    assert set(runs) == set(ids)


# A server of our own, which may be stopped


@pytest.fixture(scope="module")
def own() -> Iterator[Postgres]:
    with running("embedded") as server:
        yield server


async def test_workers_resume_within_two_seconds_of_the_servers_return(own: Postgres) -> None:
    assert own.process is not None
    with own.schema() as schema:
        server = PostgresServer(own.url, schema=schema)
        async with server.connection():
            await server.declare(["q"])
            async with server.consume({"q": None}) as consumer, trio.open_nursery() as nursery:
                received: list[float] = []

                async def wait() -> None:
                    while True:
                        if await consumer.receive(1):
                            received.append(time.monotonic())

                nursery.start_soon(wait)
                await server.publish([message("0")])
                await trio.sleep(0.2)
                assert len(received) == 1
                await trio.to_thread.run_sync(own.process.stop)
                with trio.fail_after(5):
                    while server.link.state != "down":
                        await trio.sleep(0.01)
                await trio.sleep(1.5)
                await trio.to_thread.run_sync(own.process.start)
                came_back = time.monotonic()
                own.execute("SELECT 1")
                with trio.fail_after(10):
                    await up(server)
                    await server.publish([message("1")])
                    while len(received) < 2:
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
        assert received[1] - came_back < 2.0


async def test_what_was_published_survives_a_crash_of_the_server(own: Postgres) -> None:
    assert own.process is not None
    with own.schema() as schema:
        server = PostgresServer(own.url, schema=schema, lease_timeout=0.5)
        async with server.connection():
            await server.declare(["q"])
            assert await server.publish([message(str(n)) for n in range(50)]) == [None] * 50
            async with server.consume({"q": None}) as consumer:
                taken = await consumer.receive(10)
                await trio.to_thread.run_sync(own.process.crash)
                await trio.to_thread.run_sync(own.process.start)
                with trio.fail_after(10):
                    await up(server)
                await trio.sleep(0.6)
                await consumer.rescue()
                again = await consumer.receive(100)
                assert {d.envelope.id for d in again} == {str(n) for n in range(50)}
                assert not {d.token for d in again} & {d.token for d in taken}


# Behind a pooler in transaction mode


async def test_without_notifications_a_waiting_consumer_notices_what_others_publish(
    postgres: Postgres, schema: str
) -> None:
    worker, producer = (PostgresServer(postgres.url, schema=schema, listen=listen) for listen in (False, True))
    received: list[float] = []
    async with worker.connection(), producer.connection():
        await producer.declare(["q"])
        async with worker.consume({"q": None}) as consumer, trio.open_nursery() as nursery:

            async def wait() -> None:
                while True:
                    if await consumer.receive(1):
                        received.append(trio.current_time())

            nursery.start_soon(wait)
            await trio.sleep(1)
            published = trio.current_time()
            await producer.publish([message("1")])
            with trio.fail_after(3):
                while not received:
                    await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
    assert received[0] - published < 1


async def test_without_notifications_nothing_is_kept_in_the_session(postgres: Postgres, schema: str) -> None:
    server = PostgresServer(postgres.url, schema=schema, listen=False, connections=1)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("1")])
        wire = server._postgres._pool._idle[0]
        assert await wire.run([Step(statement("SELECT name FROM pg_prepared_statements"))]) == [[]]
        await wire.run([Step(statement("DISCARD ALL"))])  # as a pooler may do between two transactions
        async with server.consume({"q": None}) as consumer:
            [delivery] = await consumer.receive(1)
            await consumer.settle([Settlement(delivery, ACK)])
