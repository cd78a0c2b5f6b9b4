"""A consumer of very many topics: by rank, and at a cost that does not grow with their number."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from repid.brokers.sqlite import schema, thread
from repid.brokers.sqlite.directory import Directory
from repid.brokers.sqlite.schema import open_file
from repid.delivery import Delivery
from repid.envelope import PrioritiesT
from repid.ports import AtMost

from .broker_aids import ids, message, now_ready
from .sqlite_aids import Opening, ack, consuming, serving

pytestmark = pytest.mark.real_time


async def test_over_many_topics_messages_come_by_rank_whoever_publishes_in_between(path: Path) -> None:
    seeded = random.Random(0)
    async with serving(path) as server, serving(path) as other, consuming(server) as consumer:
        topics = [f"t{number}" for number in range(250)]
        seeded.shuffle(topics)
        await server.publish([message(topic, topic=topic) for topic in topics])
        expected = list(topics)
        got: list[str] = []
        held: list[Delivery] = []
        for number, publisher in enumerate([other, server] * 10):
            urgent = f"urgent {number}"
            await publisher.publish([message(urgent, topic=seeded.choice(topics), priority=PrioritiesT.HIGH)])
            expected.insert(0, urgent)
            received = await now_ready(consumer, 7)
            assert ids(received) == expected[:7]
            del expected[:7]
            got += ids(received)
            held += received
        assert await ack(consumer, held) == [True] * 140
        assert ids(await now_ready(consumer, 1000)) == expected


async def test_over_many_topics_limits_of_topics_are_kept(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message(f"{n} {part}", topic=f"t{n}") for n in range(150) for part in range(2)])
        limits = AtMost(topics={("q", f"t{n}"): n % 2 for n in range(150)})
        received = await consumer.receive(60, at_most=limits, max_wait=0)
        assert ids(received) == [f"{n} 0" for n in range(1, 120, 2)]


async def test_a_removed_queue_leaves_no_lanes_to_who_read_it(path: Path) -> None:
    async with serving(path):
        connection = open_file(schema.Opening(str(path), "FULL", 0o600))
        directory = Directory(connection)
        directory.touch()
        id_, _ = directory.open({"q": None}, boot=1, until=10)
        lane = directory.lane(directory.channel("q"), "a")
        assert directory.ids_for(id_, boot=1, now=5) == {lane}
        directory.remove(directory.channel("q"))
        assert directory.ids_for(id_, boot=1, now=5) == frozenset()
        connection.close()


async def test_draining_many_topics_costs_no_more_for_each_than_draining_a_few(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def count_steps() -> None:
        nonlocal steps
        steps += 1

    def watch(connection: sqlite3.Connection) -> None:
        connection.set_progress_handler(count_steps, 100)

    monkeypatch.setattr(thread, "open_file", Opening(watch))
    costs = []
    async with serving(path) as server, consuming(server) as consumer:
        for number in (400, 1600):
            await server.publish([message(f"{n}", topic=f"t{n}") for n in range(number)])
            before, left = steps, number
            while left:
                received = await now_ready(consumer, 20)
                left -= len(received)
                await ack(consumer, received)
            costs.append((steps - before) / number)
    assert costs[1] < 1.5 * costs[0]
