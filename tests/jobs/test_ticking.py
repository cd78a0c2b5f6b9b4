"""A worker that ticks: what it asks of the broker, and what it bears. A sentence each."""

from __future__ import annotations

import logging
import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Any, Unpack
from zoneinfo import ZoneInfo

import pytest
import trio
from aids import UnreliableServer
from msgspec.structs import replace

from repid import ActorOptions, Connection, Job, Queue, Repid, Router, SQLiteServer, Worker
from repid.brokers.sqlite import schedules as sqlite_schedules
from repid.brokers.sqlite.clock import MICRO, Clock
from repid.ports import LONGEST_REST
from repid.runtime.scheduler import AT_ONCE, GATHERING
from repid.schedule import DECLARE_EVERY


class StepClock(Clock):
    """A clock that can be stepped."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0

    def wall(self) -> int:
        return super().wall() + int(self.ahead * MICRO)


def counting(ran: list[Any], **options: Unpack[ActorOptions]) -> Router:
    router = Router()

    @router.actor(**options)
    async def count() -> None:
        ran.append(1)

    return router


async def test_a_worker_that_rests_asks_seldom_what_is_due_and_lists_nothing(
    app: Repid, server: UnreliableServer
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(Worker(routers=[counting([], every=3600)]).run)
        server.calls.clear()
        await trio.sleep(DECLARE_EVERY - 1)
        asked, listed = server.calls["due_schedules"], server.calls["schedules"]
        nursery.cancel_scope.cancel()
    assert listed == 0
    assert asked <= DECLARE_EVERY / LONGEST_REST


async def test_a_schedule_that_is_stored_while_a_worker_rests_ticks_in_time(
    app: Repid, server: UnreliableServer
) -> None:
    moments: list[float] = []
    router = Router()

    @router.actor
    async def count() -> None:
        moments.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        await nursery.start(Worker(routers=[router]).run)
        await trio.sleep(33.3)
        stored_at = trio.current_time()
        await Job("count", id_="s", every=3).enqueue()
        await trio.sleep(7)
        assert moments == pytest.approx([stored_at + 3, stored_at + 6], abs=0.01)
        changed_at = trio.current_time()
        await app.schedules.change("s", every=0.5)
        await trio.sleep(1.2)
        assert moments[2:] == pytest.approx([changed_at + 0.5, changed_at + 1.0], abs=0.01)
        await app.schedules.remove("s")
        await trio.sleep(5)
        assert len(moments) == 4
        nursery.cancel_scope.cancel()


async def test_however_many_schedules_are_stored_a_worker_looks_a_few_times_a_second(
    app: Repid, server: UnreliableServer
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(Worker(routers=[counting([])]).run)
        await trio.sleep(5)
        server.calls.clear()
        for number in range(400):
            await Job("count", id_=f"{number}", every=60).enqueue()
            await trio.sleep(0.01)
        assert 4 <= server.calls["due_schedules"] <= 4 / GATHERING + 2
        nursery.cancel_scope.cancel()


async def test_a_worker_declares_at_its_start_and_then_at_intervals(app: Repid, server: UnreliableServer) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(Worker(routers=[counting([], every=3600)]).run)
        await trio.sleep(DECLARE_EVERY - 1)
        at_the_start = server.calls["schedules"]
        await trio.sleep(2 * DECLARE_EVERY)
        later = server.calls["schedules"] - at_the_start
        nursery.cancel_scope.cancel()
    assert at_the_start == 2  # what is there already, and what has no actor
    assert later == 2


async def test_any_number_of_schedules_that_are_due_at_once_tick_at_once(app: Repid) -> None:
    ran: list[int] = []
    for number in range(2 * AT_ONCE + 7):
        await Job("count", id_=f"{number:03}", deferred_by=3600).enqueue()
    await trio.sleep(3600)
    began = trio.current_time()
    router = Router()

    @router.actor
    async def count() -> None:
        ran.append(1)

    with trio.move_on_after(0.5):
        await Worker(routers=[router]).run()
    assert len(ran) == 2 * AT_ONCE + 7
    assert trio.current_time() - began <= 1
    assert {(s.fired, s.skipped) for s in await app.schedules.list()} == {(1, 0)}


async def test_a_schedule_that_cannot_tick_here_is_named_once_and_holds_up_no_other(
    app: Repid, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []
    router = counting(ran)
    for number in range(AT_ONCE + 1):
        await Job("count", id_=f"bad{number}", cron="0 0 * * *").enqueue()
    for stored in await server.schedules():
        bad = replace(stored.schedule, cron="of a newer version")
        await server.put_schedule(bad, stored.next_at - 1e6)
    await Job("count", id_="good", deferred_by=10).enqueue()
    with caplog.at_level(logging.ERROR, "repid.worker"), trio.move_on_after(45):
        await Worker(routers=[router]).run()
    assert len(ran) == 4
    assert caplog.text.count("schedule 'bad7' cannot tick here") == 1


async def test_a_schedule_that_was_mended_ticks_where_it_could_not(app: Repid, server: UnreliableServer) -> None:
    ran: list[int] = []
    await Job("count", id_="s", deferred_by=10).enqueue()
    [stored] = await server.schedules()
    await server.put_schedule(replace(stored.schedule, every=None, cron="bad"), stored.next_at - 100)
    async with trio.open_nursery() as nursery:
        await nursery.start(Worker(routers=[counting(ran)]).run)
        await trio.sleep(5)
        assert ran == []
        await app.schedules.change("s", every=10)
        await trio.sleep(25)
        assert len(ran) == 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", ["due_schedules", "tick", "schedules"])
async def test_a_broker_that_was_away_loses_no_tick(app: Repid, server: UnreliableServer, method: str) -> None:
    ran: list[int] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(Worker(routers=[counting(ran, every=10)]).run)
        await trio.sleep(8)
        server.failures[method] = 5
        await trio.sleep(37)
        assert len(ran) == 4
        nursery.cancel_scope.cancel()


async def test_what_is_due_is_found_by_the_indexes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with SQLiteServer(path).connection():
        pass
    connection = sqlite3.connect(path)
    for sql, values in (
        (sqlite_schedules.DUE, (1.0, 10)),
        (sqlite_schedules.AHEAD, (1.0, 1.0, 10)),
        (sqlite_schedules.NEXT, (1.0,)),
    ):
        plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))
        assert "USING INDEX schedule_" in plan or "USING COVERING INDEX schedule_" in plan
        assert "SCAN" not in plan
        assert "TEMP B-TREE" not in plan
    connection.close()


async def test_a_schedule_of_a_newer_version_that_cannot_be_read_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []
    app = Repid(Connection(SQLiteServer(tmp_path / "a.db")))
    async with app.magic():
        await Queue().declare()
        for id_ in ("newer", "good"):
            await Job("count", id_=id_, deferred_by=0.1).enqueue()
        connection = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        [body] = connection.execute("SELECT body FROM schedule WHERE name = 'newer'").fetchone()
        newer = body.replace(b"skip", b"fold")
        connection.execute("UPDATE schedule SET body = ? WHERE name = 'newer'", (newer,))
        connection.close()
        async with trio.open_nursery() as nursery:
            await nursery.start(Worker(routers=[counting(ran)]).run)
            with trio.fail_after(20):
                while len(ran) < 2:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert [stored.schedule.name for stored in await app.schedules.list()] == ["good"]
    assert "schedule 'newer' cannot be read" in caplog.text


async def test_of_two_actors_of_one_name_on_one_queue_the_first_has_the_say_about_the_schedule(app: Repid) -> None:
    with trio.move_on_after(3 * DECLARE_EVERY):
        await Worker(routers=[counting([], every=60), counting([], every=70)]).run()
    [stored] = await app.schedules.list()
    assert stored.schedule.every == 60
    assert stored.declaration is not None
    assert stored.declaration.superseded == ()


async def test_a_clock_that_is_set_back_stops_no_interval(tmp_path: Path) -> None:
    clock, ran = StepClock(), list[int]()
    app = Repid(Connection(SQLiteServer(tmp_path / "a.db", clock=clock)))
    clock.ahead = 86400.0
    async with app.magic(), trio.open_nursery() as nursery:
        await nursery.start(Worker(routers=[counting(ran, every=0.3)]).run)
        with trio.fail_after(20):
            while not ran:
                await trio.sleep(0.01)
            clock.ahead, before = 0.0, len(ran)
            while len(ran) < before + 3:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_a_repeated_hour_brings_no_storm(tmp_path: Path) -> None:
    clock, ran = StepClock(), list[int]()
    second_time = datetime(2026, 10, 25, 2, 14, 59, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    clock.ahead = second_time.timestamp() - clock.wall() / MICRO
    app = Repid(Connection(SQLiteServer(tmp_path / "a.db", clock=clock)))
    router = counting(ran, cron="0,15,30,45 2 * * *", timezone="Europe/Berlin")
    async with app.magic():
        with trio.move_on_after(1.5):
            await Worker(routers=[router]).run()
        [stored] = await app.schedules.list()
    assert ran == []
    assert stored.next_at == datetime(2026, 10, 26, 2, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
