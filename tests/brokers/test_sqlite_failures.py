"""The SQLite broker while statements fail: a rolled-back transaction leaves no trace, and each call fails alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import get_ident

import pytest
import trio
import trio.testing
from faults.injection import KINDS, Faults, Kind

from repid import (
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    Counts,
    NotConnected,
)
from repid.brokers.sqlite import change_watch, schema
from repid.brokers.sqlite.clock import Clock
from repid.brokers.sqlite.news import NewsBox
from repid.brokers.sqlite.requests import Operation, RequestQueue
from repid.brokers.sqlite.schema import open_file
from repid.brokers.sqlite.store import LEASES_TOLD_APART, Store
from repid.brokers.sqlite.transactions import Transactions
from repid.brokers.sqlite.wal import identify, open_wal
from repid.delivery import Delivery
from repid.ports import Snapshot

from .broker_aids import ids, message, now_ready
from .sqlite_aids import ack, consuming, idle, messages, serving

pytestmark = pytest.mark.real_time


@pytest.fixture
def faults() -> Iterator[Faults]:
    faults = Faults()
    with faults.injected():
        yield faults


@pytest.mark.parametrize("undoes", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_who_waits_gets_nothing_of_a_commit_that_failed(
    path: Path, faults: Faults, kind: Kind, undoes: bool
) -> None:
    faults.kind, faults.undoes = kind, undoes
    async with serving(path) as server, consuming(server) as consumer, trio.open_nursery() as nursery:
        received: list[Delivery] = []

        async def wait() -> None:
            received.extend(await consumer.receive(10))

        nursery.start_soon(wait)
        await idle()
        faults.fail(lambda step: step == "COMMIT")
        with pytest.raises(BrokerError):
            await server.publish([message("refused")])
        await idle()
        faults.heal()
        assert received == []
        assert await server.publish([message("confirmed")]) == [None]
        await idle()
        assert ids(received) == ["confirmed"]
        assert await ack(consumer, received) == [True]
        assert await server.counts("q") == Counts()


async def test_numbers_of_a_transaction_that_failed_are_not_used_again(path: Path, faults: Faults) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish(messages("1"))
        [first] = await now_ready(consumer)
        for _ in range(2):
            faults.fail(lambda step: step == "COMMIT")
            with pytest.raises(BrokerUnavailable):
                await server.publish(messages(range(10)))
            faults.heal()
        await server.publish(messages("2"))
        [second] = await now_ready(consumer)
        assert second.token // LEASES_TOLD_APART > first.token // LEASES_TOLD_APART + 20


@pytest.mark.parametrize("statement", ["BEGIN", "PRAGMA data_version", "SELECT directory", "fetch", "ROLLBACK"])
async def test_a_failed_read_closes_no_consumer(path: Path, faults: Faults, statement: str) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        async with serving(path) as other:
            await other.declare(["new"])  # now the directory has to be looked at
        faults.fail_once(statement)
        with pytest.raises(BrokerUnavailable):
            await server.counts("q")
        assert faults.failed == [statement] or faults.failed[0].startswith(statement)
        faults.heal()
        await server.publish(messages("1"))
        assert ids(await now_ready(consumer)) == ["1"]


async def test_a_consumer_whose_opening_failed_is_in_no_account(path: Path, faults: Faults) -> None:
    async with serving(path) as server, consuming(server, frozenset({"a"})) as consumer:
        faults.fail(lambda step: step == "COMMIT")
        with pytest.raises(BrokerUnavailable):
            async with consuming(server, frozenset({"b"})):
                raise AssertionError
        faults.heal()
        await server.publish([message("1", topic="b")])
        assert ids(await now_ready(consumer)) == ["1"]  # nobody else takes this topic


async def test_in_a_round_of_reads_only_the_one_that_cannot_be_carried_out_fails(path: Path, faults: Faults) -> None:
    async with serving(path) as server, consuming(server) as consumer, trio.open_nursery() as nursery:
        failures: list[BrokerUnavailable] = []
        received: list[Delivery] = []

        async def watch() -> None:
            try:
                await server.watch("1", "1", Snapshot(state="gone"))
            except BrokerUnavailable as error:
                failures.append(error)

        async def receive() -> None:
            received.extend(await consumer.receive(1))

        nursery.start_soon(watch)
        nursery.start_soon(receive)
        await idle()
        faults.fail(lambda step: step.startswith("SELECT id, state, payload"))  # only watching reads results
        while not failures:  # at the next round, within a second
            await trio.sleep(0.01)
        faults.heal()
        await server.publish(messages("1"))
        await idle()
        assert ids(received) == ["1"]


async def test_what_is_read_after_a_read_that_ended_the_transaction_gets_a_transaction_of_its_own(path: Path) -> None:
    """After most errors SQLite ends the transaction by itself, in the middle of a round of reads."""
    answers: list[bool | None] = []

    def fail(store: Store) -> None:
        store.execute("ROLLBACK")
        raise Faults.error("IOERR")

    async def ask(operation: Callable[[Store], bool | None]) -> None:
        with suppress(BrokerUnavailable):
            answers.append(await queue.ask(Operation(operation)))

    async with serving(path), trio.open_nursery() as nursery:
        token = trio.lowlevel.current_trio_token()
        queue = RequestQueue(token)
        store = Store(open_file(schema.Opening(str(path), "FULL", 0o600)), Clock(), 1)
        news = NewsBox(token, queue, ())
        with open_wal(str(path)) as wal:
            transactions = Transactions(store, queue, news, str(path), identify(str(path)), wal, "FULL", lambda: 0.0)
            nursery.start_soon(ask, fail)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, lambda store: store.connection.in_transaction)
            await trio.testing.wait_all_tasks_blocked()
            transactions.read(queue.take(lambda _: True))
        store.connection.close()
    assert answers == [True]


@pytest.mark.parametrize("statement", ["BEGIN", "SELECT EXISTS (SELECT 1 FROM ready)", "ROLLBACK"])
async def test_a_look_for_news_that_fails_harms_nobody_who_waits(
    path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    monkeypatch.setattr(change_watch, "CHECK", 60.0)
    async with serving(path) as server, consuming(server) as consumer, serving(path) as other:
        async with trio.open_nursery() as nursery:
            snapshots: list[Snapshot] = []

            async def watch() -> None:
                snapshots.append(await server.watch("1", "1", Snapshot(state="gone")))
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            nursery.start_soon(consumer.events)
            await idle()
            faults.fail(lambda step: step.split(", EXISTS")[0] == statement and not faults.failed)
            await other.publish(messages("1"))
        assert [snapshot.state for snapshot in snapshots] == ["ready"]
        assert len(faults.failed) == 1


async def test_who_waits_survives_a_data_version_that_cannot_be_asked(path: Path, faults: Faults) -> None:
    async with serving(path) as server, serving(path) as other, consuming(server) as consumer:
        async with trio.open_nursery() as nursery:
            received: list[Delivery] = []
            in_transaction: set[int] = set()  # the threads that are

            async def wait() -> None:
                received.extend(await consumer.receive(10))
                nursery.cancel_scope.cancel()

            def is_asked_for_news(step: str) -> bool:
                if step.startswith("BEGIN"):
                    in_transaction.add(get_ident())
                elif step in {"COMMIT", "ROLLBACK"}:
                    in_transaction.discard(get_ident())
                return step == "PRAGMA data_version" and get_ident() not in in_transaction

            nursery.start_soon(wait)
            await idle()
            faults.fail(is_asked_for_news)
            await other.publish(messages("1"))
        assert ids(received) == ["1"]
        assert faults.failed


async def test_a_rollback_that_fails_costs_a_connection_and_nobodys_call_hangs(path: Path, faults: Faults) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        faults.fail(lambda step: step in {"COMMIT", "ROLLBACK"})
        with pytest.raises(BrokerUnavailable):
            await server.publish(messages("refused"))
        faults.heal()
        assert await server.publish(messages("1")) == [None]
        assert ids(await now_ready(consumer)) == ["1"]


async def test_while_no_connection_can_be_opened_again_calls_are_refused_and_later_carried_out(
    path: Path, faults: Faults
) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        faults.fail(lambda step: True)
        for _ in range(3):
            with pytest.raises(BrokerUnavailable):
                await server.publish(messages("refused"))
        faults.heal()
        while True:
            try:
                assert await server.publish(messages("1")) == [None]
                break
            except BrokerUnavailable:
                await trio.sleep(0.01)
        assert ids(await now_ready(consumer)) == ["1"]


async def test_an_id_that_is_no_text_fails_only_its_own_call(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer, trio.open_nursery() as nursery:
        received: list[Delivery] = []

        async def wait() -> None:
            received.extend(await consumer.receive(10))

        nursery.start_soon(wait)
        await idle()
        for call in (
            server.watch("\udcff", "1"),
            server.watch("1", "\udcff"),
            server.cancel("\udcff"),
            server.fetch_results(["\udcff"]),
            server.declare(["\udcff"]),
            server.remove_schedule("\udcff"),
        ):
            with pytest.raises(ConfigurationError):
                await call
        with pytest.raises(ConfigurationError):
            async with consuming(server, frozenset({"\udcff"})):
                raise AssertionError
        await server.publish(messages("1"))
        await idle()
        assert ids(received) == ["1"]


async def test_what_is_urgent_is_never_carried_out_where_others_only_look() -> None:
    """It may come after the thread has looked what waits, and before the thread takes it."""
    queue = RequestQueue(trio.lowlevel.current_trio_token())
    read = Operation(lambda _: None)
    write = Operation(lambda _: None, urgent=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.ask, read)
        nursery.start_soon(queue.ask, write)
        await trio.testing.wait_all_tasks_blocked()
        assert queue.take(lambda request: not request.urgent) == [read]
        assert queue.take(lambda _: True) == [write]
        queue.put_back([read, write])
        nursery.cancel_scope.cancel()


async def test_a_consumer_can_be_closed_while_nothing_can_be_read_or_written(path: Path, faults: Faults) -> None:
    async with serving(path) as server, consuming(server, frozenset({"b"})) as other:
        async with consuming(server, frozenset({"a"})):
            await server.publish([message("1", topic="a")])
            faults.fail(lambda _: True)
        faults.heal()
        await idle()
        while not (received := await now_ready(other)):  # a topic that nobody else takes now
            await trio.sleep(0.01)
        assert ids(received) == ["1"]


async def test_a_request_that_comes_when_the_file_is_closed_is_told_so() -> None:
    queue = RequestQueue(trio.lowlevel.current_trio_token())
    queue.close(NotConnected("the file is closed"))
    for _ in range(2):
        with trio.fail_after(5), pytest.raises(NotConnected, match="the file is closed"):
            await queue.ask(Operation(lambda _: None))
