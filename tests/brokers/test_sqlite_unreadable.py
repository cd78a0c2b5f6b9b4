"""Rows that cannot be read: each is buried or shown as far as it can be, and those beside it go on."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest
import trio

from repid import BrokerRefused, Counts, Schedule
from repid.brokers.sqlite.unreadable import UNREADABLE
from repid.delivery import DeadLetter, Delivery, Failure, NewResult, Retry, Settlement
from repid.envelope import Envelope, Options
from repid.ports import BrowsedMessage

from .broker_aids import ids, message, now_ready
from .sqlite_aids import SteppedClock, ack, consuming, idle, serving

pytestmark = pytest.mark.real_time

ROWS = {
    "headers": "headers = x'c1'",
    "headers of another kind": "headers = x'91a161'",
    "headers with a value that is no text": "headers = x'81a16101'",
    "headers with a name that is no text": "headers = x'8101a161'",
    "options": "extra = x'c1'",
    "options of another kind": "extra = x'a161'",
    "options as text": "extra = 'x'",
    "payload": "payload = 'text'",
    "payload is a number": "payload = 5",
    "id is a number": "id = 5",
    "id is no UTF-8": "id = CAST(x'ff' AS TEXT)",
    "content type is no UTF-8": "content_type = CAST(x'ff' AS TEXT)",
    "attempt": "attempt = 'x'",
    "expiry": "expires_at = 'x'",
}


def change(path: Path, sql: str) -> None:
    """Another program writes to the file."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(sql)
    connection.close()


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_a_message_that_cannot_be_read_is_buried_and_the_rest_goes_on(path: Path, row: str) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message("before"), message("bad", priority=600), message("after", priority=600)])
        change(path, f"UPDATE message SET {row} WHERE id = 'bad'")
        assert len(await server.browse("q", "ready")) == 3
        deliveries = [*await consumer.receive(1), *await consumer.receive(1)]
        assert ids(deliveries) == ["before", "after"]
        assert await server.counts("q") == Counts(leased=2, dead=1)
        [letter] = await server.browse("q", "dead")
        assert letter.reason == "payload"
        assert letter.failure is not None
        assert letter.failure.type == UNREADABLE
        assert await ack(consumer, deliveries) == [True, True]
        [answer] = await server.revive("q")
        if answer is None:  # what was wrong is not taken over
            assert ids(await now_ready(consumer)) == ["bad"]
        else:
            assert "cannot be read" in str(answer)
            assert await server.counts("q") == Counts(dead=1)


async def test_who_waits_is_not_held_up_by_what_cannot_be_read(path: Path) -> None:
    async with serving(path) as server, serving(path) as other, consuming(server) as consumer:
        received: list[Delivery] = []

        async def wait() -> None:
            received.extend(await consumer.receive(10))

        async with trio.open_nursery() as nursery:
            await server.pause("q")
            nursery.start_soon(wait)
            await other.publish([message("bad")])
            change(path, "UPDATE message SET headers = x'c1'")
            await server.resume("q")
            while (await server.counts("q")).dead == 0:
                await trio.sleep(0.01)
            await other.publish([message("good")])
        assert ids(received) == ["good"]


async def test_of_many_topics_only_what_cannot_be_read_is_buried(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message(str(number), topic=str(number % 3)) for number in range(30)])
        change(path, "UPDATE message SET payload = 5 WHERE seq % 7 = 0")
        received: list[Delivery] = []
        while batch := await now_ready(consumer, 4):
            received += batch
        counts = await server.counts("q")
        assert (counts.dead, counts.leased, counts.ready) == (4, 26, 0)
        assert len(received) == 26


@pytest.mark.parametrize("topics", [1, 3, 150])
@pytest.mark.parametrize("rank", ["'x'", "x'ff'"])
async def test_a_rank_that_is_no_number_stops_nobody(path: Path, topics: int, rank: str) -> None:
    async with serving(path) as server, consuming(server) as consumer, trio.open_nursery() as nursery:
        await server.publish([message(str(number), topic=str(number % topics)) for number in range(300)])
        change(path, f"UPDATE ready SET rank = {rank} WHERE seq IN (SELECT seq FROM message WHERE id IN ('0', '1'))")
        assert len(await server.browse("q", "ready", limit=300)) == 300
        received: list[Delivery] = []
        while batch := await now_ready(consumer, 50):
            received += batch
        assert len({*ids(received), *(letter.envelope.id for letter in await server.browse("q", "dead"))}) == 300
        assert len(received) >= 298
        nursery.start_soon(consumer.receive, 1)
        await idle()
        await server.publish([message("new")])


async def test_who_waits_is_not_held_up_by_a_rank_that_is_no_number(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message(str(number), topic=str(number)) for number in range(150)])
        change(path, "UPDATE ready SET rank = 'x' WHERE seq % 2")
        change(path, "UPDATE queue SET paused = 1")
        change(path, "UPDATE meta SET directory = directory + 1")
        received: list[Delivery] = []

        async def wait() -> None:
            received.extend(await consumer.receive(200))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await idle()
            await server.resume("q")
        assert len(received) == 75
        assert (await server.counts("q")).dead == 75


@pytest.mark.parametrize("lane", ["'x'", "-5", "77"])
async def test_a_lease_without_a_lane_is_settled_and_rescued_like_any(path: Path, lane: str) -> None:
    clock = SteppedClock()
    async with serving(path, clock=clock) as server, consuming(server) as consumer:
        await server.publish([message("settled"), message("lost")])
        [delivery, _] = await consumer.receive(2)
        change(path, f"UPDATE lease SET lane = {lane}")
        [verdict] = await consumer.settle([Settlement(delivery, Retry(0.0))])
        assert verdict.accepted
        assert ids(await now_ready(consumer)) == ["settled"]
        clock.advance(100)
        assert await consumer.rescue() == 2
        assert sorted(ids(await now_ready(consumer))) == ["lost", "settled"]


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM message WHERE id IN ('1', '3')",
        "UPDATE scheduled SET due = 'x'",
        "UPDATE ready SET rank = 5",
        "UPDATE message SET due = 5, rank = 5, lane = 5",
        "INSERT INTO lease (seq, n, lane, until, boot, consumer) SELECT seq, 0, lane, 1 << 60, 1, 1 FROM message WHERE seq % 2",
    ],
)
async def test_a_queue_in_whose_places_something_is_wrong_can_be_emptied(path: Path, sql: str) -> None:
    async with serving(path) as server:
        await server.publish([message("1"), message("2"), message("3", delay=60.0), message("4", delay=60.0)])
        change(path, sql)
        with trio.fail_after(10):
            await server.flush("q")
        counts = await server.counts("q")
        assert (counts.ready, counts.scheduled) == (0, 0)
        await server.delete("q")
        assert await server.find(["1", "2", "3", "4"]) == [[], [], [], []]


async def test_the_sender_of_what_cannot_be_read_finds_a_failure(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message("bad")])
        change(path, "UPDATE message SET headers = x'c1'")
        assert await now_ready(consumer) == []
        [result] = await server.fetch_results(["bad"])
        assert result is not None
        assert (result.state, result.failure and result.failure.type) == ("failure", UNREADABLE)


@pytest.mark.parametrize("row", ["extra = x'c1'", "extra = 'x'", "id = CAST(x'ff' AS TEXT)", "result_id = 7"])
async def test_what_cannot_be_read_expires_is_rescued_and_cancelled_like_anything(path: Path, row: str) -> None:
    clock = SteppedClock()
    async with serving(path, clock=clock) as server, consuming(server) as consumer:
        await server.publish([message("expiring", ttl=1.0), message("leased"), message("cancelled", delay=60.0)])
        await consumer.receive(1)
        change(path, f"UPDATE message SET {row} WHERE id = 'expiring'")
        clock.advance(2)
        assert (await server.counts("q")).dead <= 1  # nothing is raised
        await server.publish([message("other")])
        change(path, f"UPDATE message SET {row.replace('ff', 'fe')} WHERE id = 'leased'")
        clock.advance(100)
        for _ in range(12):
            await consumer.rescue()
            await now_ready(consumer)
            clock.advance(100)
        await server.publish([message("last")])
        assert (await server.counts("q")).leased + (await server.counts("q")).ready > 0


async def test_browsing_shows_what_can_be_read_of_every_row(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message(name, topic="t") for name in ("dead", "bad dead", "leased", "bad leased")])
        deliveries = await consumer.receive(4)
        failure = Failure("E", "text")
        await consumer.settle([Settlement(delivery, DeadLetter("failed", failure)) for delivery in deliveries[:2]])
        await server.publish([message(name, delay=60.0) for name in ("scheduled", "bad scheduled")])
        change(path, "UPDATE message SET headers = x'c1', failure = x'c1' WHERE id LIKE 'bad%'")
        change(path, "UPDATE dead SET failure = x'c1', extra = x'c1' WHERE id LIKE 'bad%'")
        for category in ("dead", "leased", "scheduled"):
            good, bad = await server.browse("q", category)
            assert [good.envelope.id, bad.envelope.id] == [category, f"bad {category}"]
            assert bad.failure is not None
            assert bad.failure.type == UNREADABLE
            assert bad.envelope.payload == b"x"
        assert good.failure is None


async def test_reviving_a_queue_leaves_only_what_cannot_be_read(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message("good"), message("bad")])
        deliveries = await consumer.receive(2)
        await consumer.settle([Settlement(delivery, DeadLetter("nacked")) for delivery in deliveries])
        change(path, "UPDATE dead SET extra = x'c1' WHERE id = 'bad'")
        good, bad = await server.revive("q")
        assert good is None
        assert isinstance(bad, BrokerRefused)
        assert await server.counts("q") == Counts(ready=1, dead=1)


async def test_one_result_that_cannot_be_read_hides_no_other(path: Path) -> None:
    async with serving(path) as server:
        failure = Failure("E", "text")
        await server.store_results([NewResult(id=id_, state="failure", failure=failure) for id_ in ("a", "b", "c")])
        change(path, "UPDATE result SET failure = x'c1' WHERE id = 'a'")
        change(path, "UPDATE result SET finished_at = 'x' WHERE id = 'b'")
        a, b, c = await server.fetch_results(["a", "b", "c"])
        assert a is not None
        assert (a.state, a.failure and a.failure.type) == ("failure", UNREADABLE)
        assert b is None
        assert c is not None
        assert c.failure == failure


async def test_one_schedule_that_cannot_be_read_hides_no_other_and_is_told_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path) as server:
        for name in ("a", "b", "c"):
            await server.put_schedule(Schedule(name=name, every=60.0, envelope=message("1")), 10.0)
        change(path, "UPDATE schedule SET body = x'c1' WHERE name = 'b'")
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                assert [stored.schedule.name for stored in await server.schedules()] == ["a", "c"]
        assert [record.getMessage()[:40] for record in caplog.records] == ["the schedule 'b' cannot be read, so it d"]
        assert await server.tick("b", 10.0, 20.0, None) == "lost"
        assert await server.remove_schedule("b")


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO consumer (boot, until, takes) VALUES (1, 1 << 62, x'c1')",
        "INSERT INTO lane (queue, topic) VALUES (77, 'x')",
        "INSERT INTO lane (queue, topic) SELECT id, CAST(x'ff' AS TEXT) FROM queue",
        "INSERT INTO queue (name) VALUES (CAST(x'ff' AS TEXT))",
        "INSERT INTO ready VALUES (1, 0, 99)",
        "INSERT INTO ready SELECT id, 0, 99 FROM lane",
        "UPDATE message SET expires_at = 'x'",
    ],
)
async def test_what_another_program_writes_beside_the_messages_stops_nobody(path: Path, sql: str) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message("1"), message("2", ttl=60.0)])
        change(path, sql)
        change(path, "UPDATE meta SET directory = directory + 1")
        await server.publish([message("3")])
        assert len(await now_ready(consumer)) >= 1
        assert await now_ready(consumer) == []
    async with serving(path) as server, consuming(server, frozenset({"a"})) as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(consumer.receive, 1)
        await idle()
        await server.publish([message("4", topic="a")])


async def test_places_without_messages_keep_nobody_busy(path: Path) -> None:
    clock = SteppedClock()
    async with serving(path, clock=clock) as server, consuming(server) as consumer, trio.open_nursery() as nursery:
        await server.publish([message("1")])
        await consumer.receive(1)
        change(path, "INSERT INTO ready SELECT id, 0, 99 FROM lane")
        nursery.start_soon(consumer.receive, 1)
        await trio.sleep(0.3)
        reads = clock.reads
        await trio.sleep(0.3)
        assert clock.reads - reads < 100
        nursery.cancel_scope.cancel()


def test_what_is_shown_has_bytes_for_every_text(path: Path) -> None:
    async def show() -> list[BrowsedMessage]:
        async with serving(path) as server:
            await server.publish([Envelope("1", "q", b"", "text/plain", {"topic": "t"}, "r", Options(retries=1))])
            change(path, "UPDATE message SET content_type = CAST(x'ff' AS TEXT), headers = x'81a161a3edb080'")
            return await server.browse("q", "ready")

    [shown] = trio.run(show)
    assert shown.failure is not None
    for text in (shown.envelope.content_type, shown.failure.text, *shown.envelope.headers.values()):
        assert text is not None
        text.encode()


async def test_a_due_schedule_that_cannot_be_read_holds_up_no_other(path: Path) -> None:
    async with serving(path) as server:
        for name in ("a", "b", "c"):
            await server.put_schedule(Schedule(name=name, every=60.0, envelope=message("1")), 10.0)
        change(path, "UPDATE schedule SET body = x'c1' WHERE name = 'b'")
        change(path, "UPDATE schedule SET next_at = 'x' WHERE name = 'c'")
        due = await server.due_schedules(10)
        assert [stored.schedule.name for stored in due.due] == ["a"]


async def test_due_schedules_that_cannot_be_read_do_not_count(path: Path) -> None:
    async with serving(path) as server:
        for number in range(50):
            await server.put_schedule(Schedule(name=str(number), every=60.0, envelope=message("1")), float(number))
        change(path, "UPDATE schedule SET body = x'c1' WHERE next_at < 40 AND next_at <> 20")
        due = await server.due_schedules(3)
        assert [stored.schedule.name for stored in due.due] == ["20", "40", "41"]
        for name in "abcdefgh":
            await server.put_schedule(Schedule(name=name, every=1.0, envelope=message("1")), 1e12)
        change(path, "UPDATE schedule SET body = x'c1' WHERE next_at = 1e12 AND name < 'g'")
        due = await server.due_schedules(14)
        assert [stored.schedule.name for stored in due.due][11:] == ["g", "h"]
