"""What the SQLite driver tells of changes to the front door, and what it keeps quiet about."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from repid.brokers.sqlite import change_watch, file_events
from repid.brokers.sqlite.change_watch import _LONGEST_COMMIT, ChangeWatch
from repid.brokers.sqlite.clock import Clock
from repid.brokers.sqlite.driver import SQLiteDriver
from repid.brokers.sqlite.file_events import FileEvents
from repid.brokers.sqlite.requests import WakeUp
from repid.brokers.sqlite.schema import Opening
from repid.delivery import ACK, Delivery, Settlement
from repid.ports import ANYTHING, News, Schedule, StoredSchedule

from .broker_aids import message

pytestmark = pytest.mark.real_time

NOTHING = 0.2
"""Seconds without news after which there is none: ten looks."""


@pytest.fixture(autouse=True)
def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is told only because a second has passed."""
    monkeypatch.setattr(change_watch, "CHECK", 600.0)


@asynccontextmanager
async def linked(path: Path, *watched: str) -> AsyncGenerator[SQLiteDriver, None]:
    """A driver with the queue "q" and the consumer "c" that has told everything it knows."""
    driver = SQLiteDriver(Opening(str(path), "NORMAL", 0o600), 60.0, Clock())
    async with driver.link(set(watched)):
        await driver.declare(["q"])
        await driver.subscribe("c", {"q": None})
        while await driver.news(NOTHING) is not None:
            pass
        yield driver


@asynccontextmanager
async def linked_beside_another(path: Path) -> AsyncGenerator[tuple[SQLiteDriver, SQLiteDriver], None]:
    """The same, and the driver of another process; the first one waits for no commit any more."""
    async with linked(path) as driver, linked(path) as other:
        while await driver.news(2 * _LONGEST_COMMIT) is not None:
            pass
        yield driver, other


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moments in which a thread looks at its file from now on."""
    version, looks = ChangeWatch._version, list[float]()

    def counted(watch: ChangeWatch) -> int:
        looks.append(time.monotonic())
        return version(watch)

    monkeypatch.setattr(ChangeWatch, "_version", counted)
    return looks


async def leased(driver: SQLiteDriver) -> list[Delivery]:
    return (await driver.claim("c", 10, ANYTHING)).deliveries


async def test_a_publish_tells_that_something_is_ready_and_which_watched_message_that_is(path: Path) -> None:
    async with linked(path, "1", "3") as driver:
        await driver.publish([message("1"), message("2")])
        assert await driver.news(1) == News(ready=True, events=False, ids={"1"}, room=False, schedules=False)


async def test_a_claim_and_a_settlement_tell_of_watched_messages_only(path: Path) -> None:
    async with linked(path, "1") as driver:
        await driver.publish([message("1"), message("2")])
        await driver.news(1)
        deliveries = await leased(driver)
        assert await driver.news(1) == News(ready=False, events=False, ids={"1"}, room=False, schedules=False)
        await driver.settle("c", [Settlement(delivery, ACK) for delivery in deliveries[1:]])
        assert await driver.news(NOTHING) is None
        await driver.settle("c", [Settlement(delivery, ACK) for delivery in deliveries[:1]])
        assert await driver.news(1) == News(ready=False, events=False, ids={"1"}, room=False, schedules=False)


async def test_a_request_to_cancel_is_an_event(path: Path) -> None:
    async with linked(path) as driver:
        await driver.publish([message("1")])
        await leased(driver)
        await driver.news(1)
        await driver.cancel(["1"])
        assert await driver.news(1) == News(ready=False, events=True, ids=set(), room=False, schedules=False)


async def test_what_another_process_does_is_told_by_its_kind(path: Path) -> None:
    async with linked(path, "1") as driver, linked(path) as other:
        while await driver.news(NOTHING) is not None:  # the other one has opened the file
            pass
        await other.publish([message("1")])
        assert await driver.news(1) == News(ready=True, events=False, ids=None, room=False, schedules=False)
        assert len(await leased(driver)) == 1
        await driver.news(NOTHING)
        await other.cancel(["1"])
        assert await driver.news(1) == News(ready=False, events=True, ids=None, room=False, schedules=False)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells that a file was written to")
async def test_other_processes_are_noticed_without_looking_at_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked_beside_another(path) as (driver, other):
        looks = count_looks(monkeypatch)
        assert await driver.news(NOTHING) is None
        assert len(looks) < 5
        for number in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.publish, [message(f"{number}")])
                assert await driver.news(5) == News(ready=True, events=False, ids=None, room=False, schedules=False)
                assert len(await leased(driver)) == 1
                await driver.news(NOTHING)


async def test_a_schedule_of_another_process_is_told_if_the_next_one_is_due_at_another_time(path: Path) -> None:
    async with linked_beside_another(path) as (driver, other):
        now = await driver.now()
        for name, due_in, is_told in (("a", 50, True), ("b", 5, True), ("c", 20, False), ("d", -1, True)):
            schedule = Schedule(name=name, envelope=message(name), every=60)
            async with trio.open_nursery() as nursery:
                new = StoredSchedule(schedule=schedule, next_at=now + due_in)
                nursery.start_soon(other.replace_schedules, [(None, new)])
                news = await driver.news(1)
            assert (news is not None and news.schedules) is is_told


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells that a file was closed")
async def test_a_commit_of_another_process_is_seen_as_soon_as_it_is_done(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked_beside_another(path) as (driver, other):
        monkeypatch.setattr(change_watch, "_FIRST_LOOK", 0.2)  # not before that would it look by itself
        for number in range(3):
            assert await driver.news(0.4) is None
            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.publish, [message(f"{number}")])
                assert await driver.news(5) == News(ready=True, events=False, ids=None, room=False, schedules=False)
            assert trio.current_time() < start + 0.15


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells that a file was written to")
async def test_a_file_that_is_written_to_all_the_time_is_looked_at_now_and_then(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked_beside_another(path) as (driver, other):
        monkeypatch.setattr(change_watch, "_FIRST_LOOK", 0.1)
        looks = count_looks(monkeypatch)
        news = 0
        with trio.move_on_after(1.0):
            async with trio.open_nursery() as nursery:

                async def publish() -> None:
                    for number in range(100_000):
                        await other.publish([message(f"{number}")])

                nursery.start_soon(publish)
                while True:
                    assert await driver.news(5) == News(ready=True, events=False, ids=None, room=False, schedules=False)
                    news += 1
        assert 5 <= news <= 11
        assert len(looks) <= 25  # one sees that there is something, one is that of the work loop


async def test_news_is_told_before_the_task_that_waits_for_it_has_its_turn(path: Path) -> None:
    told: list[News] = []
    is_for_leader = False

    def tell(news: News) -> bool:
        told.append(news)
        return is_for_leader

    driver = SQLiteDriver(Opening(str(path), "NORMAL", 0o600), 60.0, Clock())
    driver.tell_at_once(tell)
    async with driver.link(set()):
        await driver.declare(["q"])
        await driver.news(NOTHING)
        told.clear()
        with trio.move_on_after(NOTHING):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(driver.publish, [message("1")])
                raise AssertionError(await driver.news(60))  # it is not for the one that waits here
        assert told == [News(ready=True, events=False, ids=set(), room=False, schedules=False)]
        is_for_leader = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.publish, [message("2")])
            await driver.news(60)
        assert len(told) == 2


async def test_where_the_system_tells_nothing_the_file_is_looked_at(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_events, "_open", lambda _: None)
    async with linked(path) as driver, linked(path) as other:
        while await driver.news(NOTHING) is not None:
            pass
        await other.publish([message("1")])
        assert await driver.news(5) == News(ready=True, events=False, ids=None, room=False, schedules=False)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked")
async def test_the_log_is_watched_from_the_first_wait_for_news_on_and_the_file_is_not_polled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, looking = list[str](), list[ChangeWatch]()
    open_events, look_again = file_events._open, ChangeWatch._look_again

    def note_watch(log: str) -> FileEvents | None:
        watched.append(log)
        return open_events(log)

    def note_looking(watch: ChangeWatch, wake_up: WakeUp, until: float, pause: float) -> None:
        looking.append(watch)
        look_again(watch, wake_up, until, pause)

    monkeypatch.setattr(file_events, "_open", note_watch)
    monkeypatch.setattr(ChangeWatch, "_look_again", note_looking)
    driver = SQLiteDriver(Opening(str(path), "NORMAL", 0o600), 60.0, Clock())
    async with driver.link(set()):
        await driver.declare(["q"])
        await driver.publish([message("1")])
        assert not watched
        while await driver.news(NOTHING) is not None:
            pass
        assert watched == [f"{path}-wal"]
        assert not looking


async def test_news_that_a_cancelled_wait_did_not_take_is_told_to_the_next_one(path: Path) -> None:
    async with linked(path) as driver:
        for _ in range(20):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(driver.news, 60)
                    await driver.publish([message(f"{_}")])
                    scope.cancel()
            news = await driver.news(NOTHING)
            assert news is None or news.ready  # None: the wait was over before it was cancelled
        with trio.CancelScope() as scope:
            scope.cancel()
            await driver.news(60)
        await driver.publish([message("last")])
        with trio.CancelScope() as scope:
            scope.cancel()
            await driver.news(60)
        assert await driver.news(1) == News(ready=True, events=False, ids=set(), room=False, schedules=False)


async def test_what_falls_due_is_told_once_however_long_nobody_claims_it(path: Path) -> None:
    async with linked(path) as driver:
        await driver.publish([message("1", delay=0.4)])
        assert await driver.news(5) == News(ready=True, events=False, ids=None, room=False, schedules=False)
        assert await driver.news(NOTHING) is None
        assert len(await leased(driver)) == 1


async def test_what_falls_due_in_another_process_is_told_in_time(path: Path) -> None:
    async with linked(path) as driver, linked(path) as other:
        await other.publish([message("1", delay=0.5)])
        with trio.fail_after(5):
            while not await leased(driver):
                assert await driver.news(5) is not None
