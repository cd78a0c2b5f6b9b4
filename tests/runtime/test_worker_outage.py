"""A worker whose engine goes away for a while: it goes on by itself, and the log tells it once."""

from __future__ import annotations

import logging

import pytest
import trio
from modest_driver import ModestDriver
from trio.testing import MockClock

from repid import Connection, Job, Repid, Router, Server
from repid.testing import Cut


async def test_a_worker_goes_on_after_a_minute_without_its_engine(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    cut, driver, seen = Cut(), ModestDriver(lease_timeout=300), []
    server = Server(cut(driver))
    app, router = Repid(Connection(server)), Router()

    @router.actor
    async def work(number: int) -> None:
        await trio.sleep(5)
        seen.append(number)

    app.include_router(router)
    with caplog.at_level(logging.INFO):
        async with app.magic(), trio.open_nursery() as nursery:
            handle = await nursery.start(app.run_worker)
            for outage in range(2):
                await Job("work", args={"number": 2 * outage}).enqueue()
                await trio.sleep(1)
                cut.go_down()  # the run goes on, and ends while nobody can be told
                await trio.sleep(60)
                assert server.link.state == "down"
                assert server.link.error == "the engine is not there"
                assert trio.current_time() - server.link.since == pytest.approx(60, abs=0.1)
                cut.come_back()
                await trio.sleep(6)
                await Job("work", args={"number": 2 * outage + 1}).enqueue()
                await trio.sleep(10)
            handle.stop()
    assert seen == [0, 1, 2, 3]
    assert (driver.ready, driver.leased, driver.dead) == ([], {}, [])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == 2 * [
        ("WARNING", "Server lost its link and reconnects: the engine went away"),
        ("INFO", "Server has its link again"),
    ]


async def test_a_worker_that_is_told_to_stop_while_its_engine_is_away_ends(autojump_clock: MockClock) -> None:
    cut = Cut()
    app, router = Repid(Connection(Server(cut(ModestDriver())))), Router()

    @router.actor
    async def work() -> None: ...

    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        cut.go_down()
        await trio.sleep(1)
        handle.stop()
        stopped_at = trio.current_time()
    assert trio.current_time() - stopped_at < 30


async def test_a_worker_that_starts_while_its_engine_is_away_waits(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    cut, seen = Cut(), []
    app, router = Repid(Connection(Server(cut(ModestDriver())))), Router()

    @router.actor
    async def work() -> None:
        seen.append(trio.current_time())

    app.include_router(router)
    cut.go_down()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: app.run_worker(messages_limit=1))
        await trio.sleep(30)
        cut.come_back()
        await trio.sleep(6)
        async with app.magic():
            await Job("work", app=app).enqueue()
    assert len(seen) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
