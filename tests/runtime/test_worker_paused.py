"""Paused queues: a worker says that it gets nothing of them. A sentence each."""

from __future__ import annotations

import logging

import pytest
import trio
from aids import UnreliableServer

from repid import Repid, Router
from repid.runtime.watching_queues import LOOK_EVERY


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    found = [(record.levelno, record.getMessage()) for record in caplog.records if "paused" in record.getMessage()]
    return [(level, text[:26]) for level, text in found]


def declare_readers(router: Router) -> None:
    @router.actor(channel="mail")
    async def send() -> None: ...

    @router.actor(channel="reports")
    async def report() -> None: ...


async def test_a_worker_that_starts_on_a_paused_queue_says_so(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    declare_readers(router)
    await server.declare(["mail", "unread"])
    await server.pause("mail")
    await server.pause("unread")
    await app.run_worker(burst=True)
    [record] = [record for record in caplog.records if "paused" in record.getMessage()]
    assert (record.name, record.levelno) == ("repid.worker", logging.WARNING)
    assert record.getMessage() == (
        "queue 'mail' is paused, so no worker gets its messages: `python -m repid resume MODULE:APP mail`, or "
        "Queue('mail').resume(), lets workers have them"
    )


async def test_a_queue_that_is_paused_while_its_worker_runs_is_told_once_and_so_is_its_end(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    declare_readers(router)
    caplog.set_level(logging.INFO)
    async with trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        await server.pause("mail")
        await trio.sleep(3 * LOOK_EVERY)
        assert told(caplog) == [(logging.WARNING, "queue 'mail' is paused, so")]
        await server.resume("mail")
        await trio.sleep(3 * LOOK_EVERY)
        assert told(caplog)[1:] == [(logging.INFO, "queue 'mail' is not paused")]
        nursery.cancel_scope.cancel()


async def test_a_look_that_fails_does_not_end_the_worker(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    declare_readers(router)
    async with trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        await server.delete("mail")
        await trio.sleep(2 * LOOK_EVERY + 1)
        assert caplog.text.count("cannot look for paused queues") == 2
        nursery.cancel_scope.cancel()
