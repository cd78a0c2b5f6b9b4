"""A worker whose engine goes away for a while: it goes on by itself, and the log tells it once."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
from modest_driver import ModestDriver
from trio.testing import MockClock

from repid import Connection, Envelope, Job, Repid, Router, Server
from repid.ports import Topics
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
    told = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "repid.link"]
    assert told == 2 * [
        ("WARNING", "Server(_CutDriver) lost its link and reconnects: the engine went away"),
        ("INFO", "Server(_CutDriver) has its link again"),
    ]


async def test_verdicts_are_settled_as_soon_as_the_engine_is_back(autojump_clock: MockClock) -> None:
    cut, driver = Cut(), ModestDriver(lease_timeout=300)
    server = Server(cut(driver))
    app, router = Repid(Connection(server)), Router()

    @router.actor
    async def work() -> None:
        await trio.sleep(1)

    app.include_router(router)
    waited = []
    async with app.magic(), trio.open_nursery() as nursery:
        handle = await nursery.start(app.run_worker)
        for outage in range(5):
            await Job("work").enqueue()
            await trio.sleep(0.5)
            cut.go_down()
            await trio.sleep(60 + outage)
            cut.come_back()
            while server.link.state != "up":
                await trio.sleep(0.01)
            was_up = trio.current_time()
            while driver.leased:
                await trio.sleep(0.01)
            waited.append(trio.current_time() - was_up)
        handle.stop()
    assert max(waited) < 0.1


class SlowToOpen(ModestDriver):
    """Lets nobody in within less than half a second, and less than a quarter passes until it has taken a subscription."""

    @asynccontextmanager
    async def link(self, watched: Collection[str]) -> AsyncIterator[None]:
        await trio.sleep(0.5)
        async with super().link(watched):
            yield

    async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
        await trio.sleep(0.2)
        await super().subscribe(consumer, queues)


async def test_a_worker_has_work_within_two_seconds_of_its_engines_return(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    cut, driver, began = Cut(), SlowToOpen(), list[float]()
    server = Server(cut(driver))
    app, router = Repid(Connection(server)), Router()

    @router.actor
    async def work() -> None:
        began.append(trio.current_time())

    app.include_router(router)
    waited = []
    async with app.magic(), trio.open_nursery() as nursery:
        handle = await nursery.start(app.run_worker)
        for outage in range(50):
            caplog.clear()
            cut.go_down()
            await driver.publish([Envelope(str(outage), "default", b"{}", headers={"topic": "work"})])
            await trio.sleep(60 + outage / 37)
            assert handle.statistics().link.state == "down"
            came_back = trio.current_time()
            cut.come_back()
            await trio.sleep(5)
            waited.append(began.pop() - came_back)
            [warning] = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
            assert warning.startswith("Server(_CutDriver) lost its link and reconnects: ")
        handle.stop()
    assert max(waited) < 2.0


class MuteDriver(ModestDriver):
    """Does not answer who subscribes, if told so."""

    is_mute = False

    async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
        if self.is_mute:
            await trio.sleep_forever()
        await super().subscribe(consumer, queues)


async def test_an_engine_that_falls_silent_just_as_it_is_back_is_tried_again(autojump_clock: MockClock) -> None:
    cut, driver, seen = Cut(), MuteDriver(lease_timeout=300), []
    server = Server(cut(driver))
    app, router = Repid(Connection(server)), Router()

    @router.actor
    async def work() -> None:
        seen.append(trio.current_time())

    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        handle = await nursery.start(app.run_worker)
        cut.go_down()
        driver.is_mute = True
        await trio.sleep(5)
        cut.come_back()
        await trio.sleep(5)
        driver.is_mute = False
        await trio.sleep(20)
        assert server.link.state == "up"
        await Job("work").enqueue()
        await trio.sleep(5)
        assert len(seen) == 1
        handle.stop()


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
