"""Queues that nobody reads: when a worker tells of them, and when it does not. A sentence each."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from aids import UnreliableServer

from repid import Envelope, Repid, Router, Worker
from repid.runtime.watching_queues import LOOK_EVERY, MOST_LOOKED_AT, MOST_NAMED, TOLD_AFTER

LONG = (TOLD_AFTER + 1) * LOOK_EVERY + 1


@asynccontextmanager
async def working() -> AsyncGenerator[None]:
    router = Router()

    @router.actor
    async def other() -> None: ...

    async with trio.open_nursery() as nursery:
        await nursery.start(Worker(routers=[router]).run)
        yield
        nursery.cancel_scope.cancel()


async def send(server: UnreliableServer, *queues: str) -> None:
    await server.declare(queues)
    assert not any(await server.publish([Envelope(f"to {queue}", queue, b"") for queue in queues]))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if "nobody has read" in record.getMessage()]
    assert all((record.name, record.levelno) == ("repid.worker", logging.WARNING) for record in records)
    return [record.getMessage() for record in records]


async def test_a_queue_that_nobody_reads_is_told_once(
    app: Repid, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    await send(server, "reports")
    await server.declare(["empty"])
    async with working():
        await trio.sleep(LONG - LOOK_EVERY)
        assert told(caplog) == []
        await trio.sleep(10 * LONG)
    text = "nobody has read these queues for 15 minutes, and messages wait in them: 'reports' (1 ready)"
    assert told(caplog) == [text]


async def test_a_queue_that_is_read_now_and_then_or_paused_or_emptied_is_not_told(
    app: Repid, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    await send(server, "paused", "read", "emptied")
    await server.pause("paused")
    async with working():
        for _ in range(3):
            await trio.sleep(TOLD_AFTER * LOOK_EVERY - 1)
            async with server.consume({"read": frozenset({"nothing"})}):
                await server.flush("emptied")
                await trio.sleep(LOOK_EVERY)
            await send(server, "emptied")
    assert told(caplog) == []


async def test_a_queue_that_was_read_and_is_left_again_is_told_again(
    app: Repid, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    await send(server, "reports")
    async with working():
        await trio.sleep(LONG)
        async with server.consume({"reports": frozenset({"nothing"})}):
            await trio.sleep(LOOK_EVERY)
        await trio.sleep(LONG)
    assert len(told(caplog)) == 2


async def test_of_very_many_queues_some_are_named_in_one_line(
    app: Repid, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    await send(server, *(f"queue {number:03}" for number in range(MOST_LOOKED_AT + 50)))
    async with working():
        await trio.sleep(LONG)
    [text] = told(caplog)
    assert text.count("ready") == MOST_NAMED
    assert text.endswith(f"'queue 009' (1 ready) and {MOST_LOOKED_AT - MOST_NAMED} more")


async def test_a_server_that_is_away_proves_nothing_and_stops_nobody(
    app: Repid, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    await send(server, "reports")
    async with working():
        await trio.sleep(2 * LOOK_EVERY - 1)
        server.failures["readers"] = 1
        await trio.sleep(TOLD_AFTER * LOOK_EVERY + 2)  # one look more, and it would be enough without the failure
        assert told(caplog) == []
        await trio.sleep(LONG)
    assert len(told(caplog)) == 1
    assert "cannot look for queues that nobody reads: readers is out of order" in caplog.text
