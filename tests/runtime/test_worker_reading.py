"""What is under way between the broker and the worker: claimed ahead, and cancelled on the way. A broker that takes time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import pytest
import trio
import trio.testing
from aids import UnreliableServer, send
from msgspec.structs import replace
from trio.testing import MockClock

from repid import Connection, Counts, Handle, InMemoryServer, Message, Repid, Router, Server
from repid.brokers.memory.driver import MemoryDriver
from repid.delivery import Delivery
from repid.ports import AtMost, Claimed, Consumer, Take, Topics
from repid.runtime.reader import MOST_CLAIMED

TRIP = 0.1
LEASE = 60.0


class FarAway(UnreliableServer):
    """What it hands over is on its way for a while."""

    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncGenerator[Any, None]:
        async with InMemoryServer.consume(self, queues) as consumer:
            yield cast("Consumer", FarAwayConsumer(consumer))


class FarAwayConsumer:
    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    async def receive(self, limit: int, *, take: Take | None = None, **options: Any) -> list[Delivery]:
        batch = await self._consumer.receive(limit, **options)
        with trio.CancelScope(shield=True):
            await trio.sleep(TRIP)
        if take is not None and batch:
            take(batch)
        return batch


@pytest.fixture
def server() -> UnreliableServer:
    return FarAway()


async def test_short_runs_are_claimed_ahead_so_that_none_waits_for_the_broker(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    leased: list[int] = []

    @router.actor
    async def job() -> None:
        leased.append((await server.counts("default")).leased)
        await trio.sleep(TRIP)

    for _ in range(200):
        await send(app, "job")
    started = trio.current_time()
    await app.run_worker(burst=True, tasks_limit=10)
    assert max(leased) > 10
    assert trio.current_time() - started < 200 / 10 * TRIP * 1.5  # twice as long without


async def test_what_was_claimed_ahead_goes_to_other_workers_if_runs_become_long(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    begun: list[int] = []

    @router.actor(timeout=10_000)
    async def job(seconds: float) -> None:
        if seconds > 1:
            begun.append(1)
        await trio.sleep(seconds)

    for seconds in [TRIP / 100] * 300 + [5000] * 20:
        await send(app, "job", seconds=seconds)
    async with trio.open_nursery() as nursery:
        first: Handle = await nursery.start(partial(app.run_worker, tasks_limit=4))
        await trio.sleep(10)
        assert first.statistics().held > 2
        second: Handle = await nursery.start(partial(app.run_worker, tasks_limit=16))
        await trio.sleep(LEASE)
        assert (len(begun), first.statistics().held) == (20, 0)
        await trio.sleep(5000)
        first.stop()
        second.stop()
        assert await server.counts("default") == Counts()


async def test_of_messages_on_their_way_together_only_the_cancelled_one_is_cancelled(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    ran: list[int] = []

    @router.actor
    async def job(n: int) -> None:
        ran.append(n)

    first = await send(app, "job", n=0)
    await send(app, "job", n=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run_worker)
        await trio.sleep(TRIP / 2)
        assert await server.cancel(first.id) == "requested"
        await trio.sleep(5)
        assert ran == [1]
        assert await server.counts("default") == Counts()
        nursery.cancel_scope.cancel()


async def test_a_burst_ends_as_soon_as_a_big_message_it_has_read_last(app: Repid, router: Router) -> None:
    @router.actor
    async def job(data: str, message: Message) -> None:
        if not data:
            await message.outbox.send_message_json(
                channel="default", payload={"data": "x" * 600}, headers={"topic": "job"}
            )

    await send(app, "job", data="")
    began = trio.current_time()
    assert (await app.run_worker(burst=True, claim_bytes=1000)).succeeded == 2
    assert trio.current_time() - began < 10 * TRIP


async def test_a_burst_starts_a_batch_when_the_run_beside_it_has_ended(app: Repid, router: Router) -> None:
    @router.actor(batch=10, batch_wait=30)
    async def write(rows: list[dict[str, Any]]) -> None: ...

    @router.actor
    async def job() -> None:
        await trio.sleep(TRIP / 2)  # so that it ends while the broker is asked

    await send(app, "write")
    await send(app, "job")
    began = trio.current_time()
    assert (await app.run_worker(burst=True)).succeeded == 2
    assert trio.current_time() - began < 10 * TRIP


async def test_a_burst_starts_a_batch_beside_which_nothing_has_room(app: Repid, router: Router) -> None:
    """The other message was left without a verdict, and takes up all that the worker may run."""

    @router.actor(batch=10, batch_wait=30)
    async def write(rows: list[dict[str, Any]]) -> None: ...

    @router.actor(confirmation_mode="manual")
    async def job() -> None: ...

    await send(app, "write")
    await send(app, "job")
    began = trio.current_time()
    report = await app.run_worker(burst=True, tasks_limit=1)
    assert (report.succeeded, report.released) == (1, 1)
    assert trio.current_time() - began < 10 * TRIP


async def test_an_executor_that_is_hired_for_a_message_keeps_no_context_of_its_sender() -> None:
    class Thing: ...

    of_sender: ContextVar[Thing] = ContextVar("of_sender")
    app, router = Repid(Connection(InMemoryServer())), Router()
    done = trio.Event()

    @router.actor
    async def job() -> None:
        done.set()

    async def send_with_a_thing() -> weakref.ref[Thing]:
        thing = Thing()
        of_sender.set(thing)
        await send(app, "job")
        return weakref.ref(thing)

    async def note() -> None:
        noted.append(await send_with_a_thing())

    noted: list[weakref.ref[Thing]] = []
    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker: Handle = await nursery.start(app.run_worker)
        async with trio.open_nursery() as senders:
            senders.start_soon(note)
        await done.wait()
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert noted[0]() is None
        worker.stop()


class SlowForMany(MemoryDriver):
    """It takes a thousandth of a second for each message that it hands over."""

    capabilities = replace(MemoryDriver.capabilities, calls="remote")

    async def claim(self, consumer: str, limit: int, at_most: AtMost) -> Claimed:
        claimed = await super().claim(consumer, limit, at_most)
        await trio.sleep(0.001 * len(claimed.deliveries))
        return claimed


async def test_of_very_many_messages_the_first_run_while_the_others_are_on_their_way(
    autojump_clock: MockClock,
) -> None:
    app, router = Repid(Connection(Server(SlowForMany(LEASE)))), Router(channel="work")
    started: list[float] = []

    @router.actor
    async def job() -> None:
        started.append(trio.current_time())

    app.include_router(router)
    async with app.magic():
        await app.enqueue_many(app.job(job) for _ in range(4 * MOST_CLAIMED))
        began = trio.current_time()
        await app.run_worker(burst=True, tasks_limit=4 * MOST_CLAIMED)
    times = sorted({round(moment - began, 3) for moment in started})
    assert times == [0.001 * MOST_CLAIMED * calls for calls in (1, 2, 3, 4)]
