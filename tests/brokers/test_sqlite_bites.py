"""No transaction of the SQLite broker keeps others waiting because there is much to do: it is done in bites."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from repid.brokers import SQLiteServer
from repid.brokers.sqlite import claiming, publishing, store, thread, views
from repid.delivery import DeadLetter, Settlement
from repid.envelope import Envelope
from repid.errors import DuplicateId
from repid.ports import Counts

from .broker_aids import ids, message, now_ready
from .sqlite_aids import Opening, SteppedClock, consuming, messages, serving

BITE = 10


@pytest.fixture(autouse=True)
def _small_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BITE", BITE)
    monkeypatch.setattr(views, "BITE", BITE)
    monkeypatch.setattr(claiming, "RESCUED_AT_ONCE", BITE)
    monkeypatch.setattr(publishing, "REVIVED_AT_ONCE", BITE)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What connections execute from now on."""
    noted: list[str] = []
    monkeypatch.setattr(thread, "open_file", Opening(lambda connection: connection.set_trace_callback(noted.append)))
    return noted


@contextmanager
def counting(statements: list[str]) -> Iterator[list[int]]:
    """How many rows at most were changed by one transaction cannot be seen; how many transactions there were can."""
    statements.clear()
    count: list[int] = []
    yield count
    count.append(statements.count("COMMIT"))


def raw_count(path: Path, table: str) -> int:
    """As another program sees it, which moves nothing by looking."""
    connection = sqlite3.connect(path)
    (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    return int(count)


@pytest.mark.parametrize("table", ["dead", "ready"])
async def test_one_transaction_moves_a_bite_of_what_is_due(path: Path, table: str) -> None:
    clock = SteppedClock()
    async with serving(path, "q", "r", clock=clock) as server:
        await server.publish(
            [
                message(str(number), ttl=5.0) if table == "dead" else message(str(number), delay=5.0)
                for number in range(25)
            ]
        )
        clock.advance(6)
        moved = []
        for number in range(4):
            await server.publish([message(f"other {number}", "r", delay=1e6)])
            moved.append(raw_count(path, table))
        assert moved == [10, 20, 25, 25]


async def test_who_waits_gets_all_that_is_due_bite_by_bite(path: Path) -> None:
    clock = SteppedClock()
    async with serving(path, clock=clock) as server, consuming(server) as consumer:
        await server.publish([message(str(number), delay=5.0) for number in range(25)])
        clock.advance(6)
        received: list[str] = []
        with trio.fail_after(10):
            while len(received) < 25:
                received += ids(await consumer.receive(100))
        assert received == [str(number) for number in range(25)]


async def test_what_expires_while_it_is_leased_is_looked_at_once_and_dies_when_it_comes_back(
    path: Path, statements: list[str]
) -> None:
    clock = SteppedClock()
    async with serving(path, clock=clock) as server, consuming(server) as consumer:
        await server.publish([message(str(number), ttl=5.0) for number in range(25)])
        deliveries = await now_ready(consumer)
        clock.advance(6)
        for number in range(4):
            await server.publish([message(f"other {number}")])
        statements.clear()
        await server.publish([message("one more")])
        assert not [statement for statement in statements if "expires_at <= " in statement]
        clock.advance(100)
        assert await consumer.rescue() == len(deliveries) == 25
        assert await server.counts("q") == Counts(ready=5, dead=25)


async def test_lost_leases_are_taken_back_in_bites(path: Path, statements: list[str]) -> None:
    clock = SteppedClock()
    async with serving(path, clock=clock) as server, consuming(server) as consumer:
        await server.publish(messages(range(25)))
        assert len(await now_ready(consumer)) == 25
        clock.advance(61)
        with counting(statements) as transactions:
            assert await consumer.rescue() == 25
        assert transactions[0] >= 3
        assert await server.counts("q") == Counts(ready=25)


async def test_a_queue_is_flushed_in_bites_and_what_is_leased_stays(path: Path, statements: list[str]) -> None:
    async with serving(path, "q", "r") as server, consuming(server) as consumer:
        await server.publish(messages(range(5)))
        assert len(await now_ready(consumer)) == 5
        await server.publish(messages(range(5, 30)))
        await server.publish([message(f"late {number}", delay=1e6) for number in range(25)])
        await server.publish([message("r", "r"), message("late r", "r", delay=1e6)])
        with counting(statements) as transactions:
            assert await server.flush("q") == 50
        assert transactions[0] >= 6
        assert await server.counts("q") == Counts(leased=5)
        assert await server.counts("r") == Counts(ready=1, scheduled=1)


async def test_a_queue_is_deleted_in_bites(path: Path, statements: list[str]) -> None:
    async with serving(path) as server:
        await fill(server)
        with counting(statements) as transactions:
            await server.delete("q")
        assert transactions[0] >= 5
        for table in ("queue", "lane", "message", "ready", "dead"):
            assert raw_count(path, table) == 0
        await server.delete("q")


async def fill(server: SQLiteServer) -> None:
    """25 dead messages and 25 ready ones."""
    async with consuming(server) as consumer:
        await server.publish(messages(range(25)))
        deliveries = await now_ready(consumer)
        await consumer.settle([Settlement(delivery, DeadLetter("nacked")) for delivery in deliveries])
    await server.publish(messages(range(100, 125)))


@pytest.mark.parametrize("by_keys", [False, True])
async def test_dead_messages_are_revived_in_bites(path: Path, statements: list[str], by_keys: bool) -> None:
    async with serving(path) as server:
        await fill(server)
        await server.publish(messages([12]))
        keys = [dead.key for dead in await server.browse("q", "dead")] if by_keys else None
        with counting(statements) as transactions:
            answers = await server.revive("q", keys)
        assert transactions[0] >= 3
        assert [type(answer) for answer in answers] == [DuplicateId if n == 12 else type(None) for n in range(25)]
        assert await server.counts("q") == Counts(ready=50, dead=1)


async def test_new_topics_and_queues_are_read_once_each_however_many_there_are(
    path: Path, statements: list[str]
) -> None:
    def to(queue: str, number: int) -> Envelope:
        return message(f"{queue} {number}", queue, topic=str(number))

    async with serving(path) as one, serving(path) as two, consuming(two) as consumer:
        statements.clear()
        await one.publish([to("q", number) for number in range(100)])
        for number in range(100, 120):
            await one.publish([to("q", number)])
            await one.declare([f"queue {number}"])
        from_the_start = [statement for statement in statements if "FROM lane WHERE id > 0" in statement]
        assert len(from_the_start) <= 1  # the other connection knew none yet
        assert len(await now_ready(consumer, 200)) == 120
        await two.publish([to("queue 119", 1)])
        assert await one.counts("queue 119") == Counts(ready=1)
        await one.delete("queue 119")
        await one.declare(["queue 119", "queue 120"])
        assert await two.counts("queue 119") == await two.counts("queue 120") == Counts()
        await two.publish([to("queue 119", 2)])
        assert [item.envelope.id for item in await one.browse("queue 119", "ready")] == ["queue 119 2"]
