"""Threads and processes are limits: what a worker claims follows them, and what waits for one is within reach. Real time."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aids_processes
import pytest
import trio
from aids import UnreliableServer, send

from repid import Counts, Handle, Message, PrioritiesT, Repid, Report, Router
from repid.actors import catch_all_routing_strategy
from repid.runtime import limits
from repid.runtime.crew import LONGEST_PARKED
from repid.runtime.limits import Limit

pytestmark = pytest.mark.real_time


@pytest.fixture
async def app(server: UnreliableServer) -> AsyncGenerator[Repid, None]:
    """As everywhere, but on the real clock: a thread does not wait for a virtual one."""
    app = Repid()
    app.servers.register_server("default", server)
    async with app.magic():
        await server.declare(["default", "other"])
        yield app


class Gate:
    """Sync actors wait here until it is opened."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self._open = threading.Event()

    def wait(self, n: int) -> None:
        self.began.append(n)
        assert self._open.wait(30)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def send_jobs(app: Repid, router: Router, gate: Gate, count: int) -> None:
    """Declare an actor `job` that waits at the gate, and send it so many messages."""
    router.actor(name="job")(gate.wait)
    for n in range(count):
        await send(app, "job", n=n)


@asynccontextmanager
async def working(app: Repid, gate: Gate, **options: Any) -> AsyncGenerator[Handle, None]:
    """A worker for a block; the gate is open afterwards."""
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(partial(app.run_worker, **options))
        try:
            yield handle
        finally:
            gate.open()
            handle.stop()


async def until(condition: Any) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.005)


async def test_a_worker_claims_no_more_than_its_threads_can_run(
    app: Repid, router: Router, server: UnreliableServer, gate: Gate
) -> None:
    await send_jobs(app, router, gate, 10)
    async with working(app, gate, threads_limit=3):
        await until(lambda: len(gate.began) == 3)
        assert await server.counts("default") == Counts(ready=7, leased=3)


async def test_actors_share_the_threads_and_async_ones_need_none(
    app: Repid, router: Router, server: UnreliableServer, gate: Gate
) -> None:
    ran: list[int] = []
    router.actor(name="one")(gate.wait)
    router.actor(name="two", queue="other")(gate.wait)

    @router.actor
    async def quick(n: int) -> None:
        ran.append(n)

    for n in range(5):
        await send(app, "one", n=n)
        await send(app, "two", channel="other", n=10 + n)
        await send(app, "quick", n=n)
    async with working(app, gate, threads_limit=2):
        await until(lambda: len(gate.began) == 2 and len(ran) == 5)
        assert sorted(gate.began) == [0, 10]  # by rank; threads begin in any order
        assert await server.counts("default") == Counts(ready=4, leased=1)


async def test_an_actor_keeps_to_its_concurrency_and_to_the_threads(
    app: Repid, router: Router, server: UnreliableServer, gate: Gate
) -> None:
    router.actor(name="narrow", concurrency=1)(gate.wait)
    router.actor(name="wide")(gate.wait)
    for n in range(3):
        await send(app, "narrow", n=n)
        await send(app, "wide", n=10 + n)
    async with working(app, gate, threads_limit=3):
        await until(lambda: len(gate.began) == 3)
        assert sorted(gate.began) == [0, 10, 11]
        assert await server.counts("default") == Counts(ready=3, leased=3)


async def test_an_actor_that_takes_everything_of_its_queue_claims_for_its_threads_too(
    app: Repid, router: Router, server: UnreliableServer, gate: Gate
) -> None:
    router.actor(name="job", routing_strategy=catch_all_routing_strategy)(gate.wait)
    for n in range(6):
        await send(app, f"topic {n}", n=n)
    async with working(app, gate, threads_limit=2):
        await until(lambda: len(gate.began) == 2)
        assert await server.counts("default") == Counts(ready=4, leased=2)


async def test_after_a_stop_and_a_pause_nothing_more_begins(
    app: Repid, router: Router, server: UnreliableServer, gate: Gate
) -> None:
    await send_jobs(app, router, gate, 8)
    async with working(app, gate, threads_limit=2) as handle:
        await until(lambda: len(gate.began) == 2)
        await server.pause("default")
        gate.open()
        with trio.move_on_after(0.2):
            await until(lambda: len(gate.began) > 2)
        assert len(gate.began) == 2
        handle.stop()
    assert await server.counts("default") == Counts(ready=6, paused=True)


async def test_a_message_of_high_priority_goes_before_all_that_is_not_claimed(
    app: Repid, router: Router, gate: Gate
) -> None:
    await send_jobs(app, router, gate, 5)
    async with working(app, gate, threads_limit=1):
        await until(lambda: len(gate.began) == 1)
        await app.send_message_json(
            channel="default", payload={"n": 99}, headers={"topic": "job"}, priority=PrioritiesT.HIGH
        )
        gate.open()
        await until(lambda: len(gate.began) == 6)
        assert 99 in gate.began[:3]  # one is claimed ahead where asking takes as long as a run, on a busy machine say


async def test_two_workers_share_what_their_threads_can_run(
    app: Repid, router: Router, server: UnreliableServer, gate: Gate
) -> None:
    await send_jobs(app, router, gate, 8)
    async with working(app, gate, threads_limit=2), working(app, gate, threads_limit=2):
        await until(lambda: len(gate.began) == 4)
        assert await server.counts("default") == Counts(ready=4, leased=4)


async def test_short_runs_are_claimed_ahead_and_given_back_when_they_turn_out_long(
    app: Repid, router: Router, server: UnreliableServer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the first run had shown that runs are shorter than a round trip."""
    monkeypatch.setattr(limits, "TRIPS_AHEAD", 1e9)
    router.actor(name="job")(gate.wait)

    @router.actor
    def short() -> None: ...

    await send(app, "short")
    async with working(app, gate, threads_limit=2) as handle:
        await until(lambda: server.calls["settle"])
        for n in range(6):
            await send(app, "job", n=n)
        await until(lambda: len(gate.began) == 2)
        await trio.sleep(0.05)
        assert await server.counts("default") == Counts(ready=2, leased=4)
        now = handle.statistics()
        assert (now.running, now.waiting_for_threads, now.waiting_for_processes, now.waiting_for_room) == (2, 2, 0, 0)
        await trio.sleep(LONGEST_PARKED)
        await until(lambda: server.calls["settle"] > 1)
        assert await server.counts("default") == Counts(ready=4, leased=2)


async def test_cancelling_what_waits_for_a_thread_does_not_wait_for_one(
    app: Repid, router: Router, server: UnreliableServer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limit, "room", lambda self, _: 2 * self.most - self.claimed)
    router.actor(name="job")(gate.wait)
    for n in range(2):
        envelope = await send(app, "job", n=n)
    async with working(app, gate, threads_limit=1):
        await until(lambda: len(gate.began) == 1)
        await trio.sleep(0.05)
        assert await server.counts("default") == Counts(leased=2)
        assert await server.cancel(envelope.id) == "requested"
        await trio.sleep(0.2)
        assert await server.counts("default") == Counts(leased=1)


async def test_a_burst_worker_runs_everything_through_few_threads(app: Repid, router: Router) -> None:
    ran: list[int] = []

    @router.actor
    def job(n: int) -> None:
        ran.append(n)

    for n in range(50):
        await send(app, "job", n=n)
    assert await app.run_worker(burst=True, threads_limit=2) == Report(processed=50, succeeded=50)
    assert sorted(ran) == list(range(50))


async def test_processes_have_a_limit_of_their_own(
    app: Repid, router: Router, server: UnreliableServer, gate: Gate, tmp_path: Path
) -> None:
    router.actor(run_in_process=True)(aids_processes.hang)
    router.actor(name="job")(gate.wait)
    for n in range(4):
        await send(app, "hang", file=str(tmp_path / str(n)))
        await send(app, "job", n=n)
    async with working(app, gate, threads_limit=2, processes_limit=1, graceful_shutdown_time=0):
        await until(lambda: len(gate.began) == 2 and (tmp_path / "0").exists())
        assert await server.counts("default") == Counts(ready=5, leased=3)


async def test_messages_limit_is_exact_with_threads(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    def job(message: Message) -> None: ...

    for _ in range(9):
        await send(app, "job")
    assert (await app.run_worker(messages_limit=5, threads_limit=2)).processed == 5
    assert await server.counts("default") == Counts(ready=4)


def test_the_look_ahead_follows_from_how_long_runs_take() -> None:
    limit = Limit(40, ahead=True)
    assert limit.room(0.001) == 40
    limit.busy += 1
    limit.ended(1.0)
    assert limit.room(0.001) == 40  # 0.3 end during eight round trips
    limit.mean = 0.016
    assert limit.room(0.001) == 60
    limit.mean = 0.001
    assert limit.room(0.001) == 80
    assert Limit(40, ahead=False).room(0.001) == 40
