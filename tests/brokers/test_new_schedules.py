"""A schedule that another process stores, changes or removes: a worker that rests takes it up at once. A sentence each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
from engines.postgres import Postgres
from engines.redis import Redis

from repid import CallRecord, Connection, Job, PostgresServer, RedisServer, Repid, Router, Server, SQLiteServer
from repid.runtime import scheduler

pytestmark = pytest.mark.real_time

Make: TypeAlias = "Callable[[], Server]"

SOON = 1.5
"""Seconds in which what is due at once has ticked; a look for want of news comes after ten."""

REST = 12.0
"""Seconds; an engine tells of nothing that is due later than in twenty."""


@pytest.fixture(params=["sqlite", "redis", "postgres", "polled postgres"])
def make(
    request: pytest.FixtureRequest, path: Path, redis: Redis, prefix: str, postgres: Postgres, schema: str
) -> Make:
    """Makes a server object for each process."""
    makes: dict[str, Make] = {
        "sqlite": lambda: SQLiteServer(path),
        "redis": lambda: RedisServer(redis.url, prefix=prefix),
        "postgres": lambda: PostgresServer(postgres.url, schema=schema),
        "polled postgres": lambda: PostgresServer(postgres.url, schema=schema, listen=False),
    }
    return makes[request.param]


class Ticks:
    """The moments of all runs, and how often the worker has asked what is due."""

    def __init__(self) -> None:
        self.runs: list[float] = []
        self.looks = 0
        self._ran = trio.Event()

    def note(self) -> None:
        self.runs.append(trio.current_time())
        self._ran.set()

    def watch(self, call: CallRecord) -> None:
        self.looks += call.name == "due_schedules"

    async def next(self, within: float = SOON) -> None:
        self._ran = trio.Event()
        with trio.fail_after(within):
            await self._ran.wait()


@asynccontextmanager
async def worker_that_rests(server: Server) -> AsyncGenerator[Ticks, None]:
    """It has looked for schedules, and found none."""
    ticks, router = Ticks(), Router()

    @router.actor
    async def tick() -> None:
        ticks.note()

    app = Repid(Connection(server))
    app.include_router(router)
    server.add_instrument(ticks.watch)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        with trio.fail_after(SOON):
            while not ticks.looks:
                await trio.sleep(0.01)
        await trio.sleep(0.1)
        yield ticks
        worker.stop()


@asynccontextmanager
async def beside_a_worker(make: Make) -> AsyncGenerator[tuple[Ticks, Repid], None]:
    """A worker that rests, and the app of another process."""
    async with worker_that_rests(make()) as ticks:
        other = Repid(Connection(make()))
        async with other.magic():
            yield ticks, other


async def recur(app: Repid, every: float, id_: str = "job") -> None:
    """Have a job recur; the first time is at once."""
    await Job("tick", id_=id_, every=every, app=app).enqueue()


async def test_a_new_schedule_ticks_in_time(make: Make) -> None:
    async with beside_a_worker(make) as (ticks, other):
        for number, every in enumerate((0.5, 0.3)):
            await recur(other, every, f"{number}")
            await ticks.next()
            await ticks.next()
            await other.schedules.remove(f"{number}")
            await trio.sleep(0.3)


async def test_a_shorter_interval_is_taken_up(make: Make) -> None:
    async with beside_a_worker(make) as (ticks, other):
        await recur(other, REST)
        await trio.sleep(0.3)
        assert not ticks.runs
        await recur(other, 0.4)
        await ticks.next()
        await ticks.next()


async def test_a_removed_schedule_does_not_tick(make: Make) -> None:
    async with beside_a_worker(make) as (ticks, other):
        await recur(other, 0.7)
        await trio.sleep(0.3)
        await other.schedules.remove("job")
        await trio.sleep(0.8)
        assert not ticks.runs


async def test_a_schedule_that_was_paused_goes_on(make: Make) -> None:
    async with beside_a_worker(make) as (ticks, other):
        await recur(other, 0.4)
        await ticks.next()
        await other.schedules.pause("job")
        await trio.sleep(0.5)
        ticks.runs.clear()
        await trio.sleep(0.5)
        assert not ticks.runs
        await other.schedules.resume("job")
        await ticks.next()


async def test_many_new_schedules_cost_few_looks(make: Make) -> None:
    async with beside_a_worker(make) as (ticks, other):
        looks, began = ticks.looks, trio.current_time()
        for number in range(60):
            await recur(other, REST - number / 100, f"{number}")
        most = 4 + (trio.current_time() - began) / scheduler.GATHERING
        await trio.sleep(2 * scheduler.GATHERING)
        assert 0 < ticks.looks - looks <= most + 2


async def hears_after_a_cut(make: Make, cut: Callable[[], object], server: Server) -> None:
    async with worker_that_rests(server) as ticks:
        other = Repid(Connection(make()))
        async with other.magic():
            await trio.sleep(0.2)
        cut()
        with trio.fail_after(10):
            while server.link.state != "down":
                await trio.sleep(0.001)
        other = Repid(Connection(make()))
        async with other.magic():
            await recur(other, 0.5)
            await ticks.next(4)


async def test_what_is_stored_while_the_link_to_redis_is_cut_ticks_when_it_is_back(redis: Redis, prefix: str) -> None:
    def make() -> RedisServer:
        return RedisServer(redis.url, prefix=prefix)

    def cut() -> None:
        for kind in ("normal", "pubsub"):
            redis.execute("CLIENT", "KILL", "TYPE", kind)

    await hears_after_a_cut(make, cut, make())


async def test_what_is_stored_while_the_link_to_postgresql_is_cut_ticks_when_it_is_back(
    postgres: Postgres, schema: str
) -> None:
    def make() -> PostgresServer:
        return PostgresServer(postgres.url, schema=schema)

    def cut() -> None:
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND datname = current_database() AND backend_type = 'client backend'"
        )

    await hears_after_a_cut(make, cut, make())
