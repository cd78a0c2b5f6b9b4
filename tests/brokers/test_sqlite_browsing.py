"""Browsing page by page, and finding messages by their ids, in the SQLite file."""

from __future__ import annotations

from pathlib import Path

import pytest

from repid.brokers.sqlite import SQLiteServer
from repid.delivery import DeadLetter, Settlement
from repid.envelope import PrioritiesT
from repid.ports import Category

from .broker_aids import message, now_ready
from .sqlite_aids import ack, consuming, serving

pytestmark = pytest.mark.real_time


async def pages(server: SQLiteServer, category: Category, size: int) -> list[list[str]]:
    """The ids on each page."""
    found: list[list[str]] = []
    after = None
    while page := await server.browse("q", category, limit=size, after=after):
        found.append([shown.envelope.id for shown in page])
        after = page[-1].key
    return found


async def test_each_category_can_be_browsed_page_by_page(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message(f"d{number}") for number in range(5)])
        dying = await now_ready(consumer)
        await consumer.settle([Settlement(delivery, DeadLetter("failed")) for delivery in dying])
        await server.publish([message(f"l{number}") for number in range(5)])
        await now_ready(consumer)
        await server.publish([message(f"s{number}", delay=100.0 + number) for number in range(5)])
        await server.publish([message(f"r{number}", topic=f"t{number % 2}") for number in range(5)])
        for category in ("ready", "scheduled", "leased", "dead"):
            first = category[0]
            assert await pages(server, category, 2) == [
                [f"{first}0", f"{first}1"],
                [f"{first}2", f"{first}3"],
                [f"{first}4"],
            ]


async def test_a_page_goes_on_behind_a_message_that_has_left_meanwhile(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message(f"{number}", topic=f"t{number}") for number in range(150)])
        first = await server.browse("q", "ready", limit=10)
        taken = await consumer.receive(20)
        await ack(consumer, taken)
        await server.publish([message("before", priority=PrioritiesT.HIGH)])
        second = await server.browse("q", "ready", limit=10, after=first[-1].key)
        assert [shown.envelope.id for shown in second] == [str(number) for number in range(20, 30)]
        assert await server.browse("q", "ready", after="no key") == []


async def test_messages_are_found_by_their_ids_the_live_one_first(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.declare(["other"])
        for _ in range(2):
            await server.publish([message("1")])
            await consumer.settle([Settlement(one, DeadLetter("failed")) for one in await now_ready(consumer)])
        await server.publish([message("1", "other", topic="t"), message("2", delay=60.0), message("3")])
        await now_ready(consumer)
        found = await server.find(["1", "2", "3", "4"])
        assert [[(one.envelope.queue, one.category) for one in each] for each in found] == [
            [("other", "ready"), ("q", "dead"), ("q", "dead")],
            [("q", "scheduled")],
            [("q", "leased")],
            [],
        ]
        assert found[0][0].envelope.headers == {"topic": "t"}
        assert [one.key for one in found[0][1:]] == [one.key for one in await server.browse("q", "dead")]
        for each, low, high in ((found[1][0], 55, 60), (found[2][0], 55, 60)):
            assert each.due_in is not None
            assert low < each.due_in <= high


@pytest.mark.parametrize("category", ["ready", "scheduled", "leased", "dead"])
async def test_a_page_may_be_larger_than_any_number_of_sqlite(path: Path, category: Category) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message("1", delay=100.0) if category == "scheduled" else message("1")])
        if category in {"leased", "dead"}:
            [delivery] = await now_ready(consumer)
            if category == "dead":
                await consumer.settle([Settlement(delivery, DeadLetter("failed"))])
        assert len(await server.browse("q", category, limit=2**64)) == 1
        assert await server.browse("q", category, limit=0) == []
