"""How the cost of one message grows with whatever there can be many of. It is processor time, so a busy machine matters little.

Each figure is measured on a fresh server. Where the size is small, as many messages are sent as take a time that can be measured.
"""

from __future__ import annotations

import gc
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import process_time
from typing import Self

import trio
import trio.testing

from repid import InMemoryServer, JobHandle, Repid, Router, Server, SQLiteServer
from repid.envelope import NO_OPTIONS, Envelope, Options, new_id
from repid.ports import Schedule, StoredSchedule

from ._shared import Arguments, Figures

FEWEST = 1_000
"""Messages that one figure is measured on, at the least."""
BULK = 1_000
TASKS = 100
"""So many tasks send at once: the disk does not wait for each message."""
FAR = 1e8
"""Seconds."""
Costs = dict[str, float]
"""Microseconds for each message, by what was done with it."""
NewServer = Callable[[], Server]

router = Router(channel="q0")


@router.actor(store_result=True)
async def numbered(number: int) -> int:
    return number


async def noop() -> None: ...


def app_on(server: Server, queues: int = 1, topics: int = 1) -> Repid:
    """An app with an actor for each of the topics `t0`, `t1` … of each of the queues `q0`, `q1` …"""
    app = Repid(title="bench", version="1")
    app.servers.register_server("default", server, is_default=True)
    for queue in range(queues):
        of_queue = Router(channel=f"q{queue}")
        for topic in range(topics):
            of_queue.actor(name=f"t{topic}")(noop)
        app.include_router(of_queue)
    return app


class Timer:
    """The processor time of a block, in microseconds for each of so many messages."""

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self.cost = 0.0

    def __enter__(self) -> Self:
        self._start = process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cost = (process_time() - self._start) / self._messages * 1e6


@asynccontextmanager
async def connected(new_server: NewServer) -> AsyncIterator[Server]:
    server = new_server()
    async with server.connection():
        await server.declare(["q0"])
        yield server


def make_envelope(options: Options = NO_OPTIONS) -> Envelope:
    return Envelope(new_id(), "q0", b"{}", headers={"topic": "t0"}, options=options)


async def send(server: Server, amount: int, options: Options = NO_OPTIONS) -> None:
    """Send messages for `t0` of `q0`, in bulk."""
    for start in range(0, amount, BULK):
        refused = await server.publish([make_envelope(options) for _ in range(start, min(start + BULK, amount))])
        assert not any(refused)


async def at_once(work: Callable[[Sequence[int]], Awaitable[None]], amount: int) -> None:
    """Share numbers among tasks, each of which does one after the other."""
    async with trio.open_nursery() as nursery:
        for first in range(min(TASKS, amount)):
            nursery.start_soon(work, range(first, amount, TASKS))


async def drain(app: Repid, runs: int) -> None:
    report = await app.run_worker(messages_limit=runs)
    assert report.succeeded == runs, f"{report.succeeded} of {runs} ran"


async def send_and_drain(server: Server) -> Costs:
    """What messages cost beside whatever else there is on the server."""
    app = app_on(server)
    with Timer(FEWEST) as sending:
        await send(server, FEWEST)
    with Timer(FEWEST) as draining:
        await drain(app, FEWEST)
    return {"sent": sending.cost, "drained": draining.cost}


async def beside_waiting(new_server: NewServer, size: int) -> Costs:
    async with connected(new_server) as server:
        await send(server, size)
        return await send_and_drain(server)


async def beside_delayed(new_server: NewServer, size: int) -> Costs:
    async with connected(new_server) as server:
        await send(server, size, Options(delay=FAR))
        return await send_and_drain(server)


async def beside_leased(new_server: NewServer, size: int) -> Costs:
    """The leased messages have a ttl, which has not passed yet."""
    async with connected(new_server) as server:
        await send(server, size, Options(ttl=FAR))
        async with server.consume({"q0": frozenset({"t0"})}) as consumer:
            left = size
            while left:
                left -= len(await consumer.receive(min(BULK, left)))
            return await send_and_drain(server)


async def to_each_of_many(new_server: NewServer, size: int, *, queues: bool) -> Costs:
    """Messages, one by one, to each of many new queues, or topics of one queue; then a worker for all of these."""
    server = new_server()
    app = app_on(server, queues=size) if queues else app_on(server, topics=size)
    amount = max(size, FEWEST)

    async def publish(numbers: Iterable[int]) -> None:
        for number in numbers:
            queue, topic = (number % size, 0) if queues else (0, number % size)
            await app.send_message_json(channel=f"q{queue}", payload={}, headers={"topic": f"t{topic}"})

    async with server.connection():
        with Timer(amount) as sending:
            await at_once(publish, amount)
        with Timer(amount) as draining:
            await drain(app, amount)
    return {"sent": sending.cost, "drained": draining.cost}


async def for_one_of_many_actors(new_server: NewServer, size: int) -> Costs:
    """As many messages as actors; that these are declared and their worker is started counts."""
    amount = max(size, FEWEST)
    async with connected(new_server) as server:
        await send(server, amount)
        with Timer(amount) as draining:
            await drain(app_on(server, topics=size), amount)
    return {"drained": draining.cost}


async def of_schedules(new_server: NewServer, size: int) -> Costs:
    """Schedules are stored, then all are due and tick."""
    async with connected(new_server) as server:
        due_at = await server.now() - 1

        async def store(numbers: Iterable[int]) -> None:
            for number in numbers:
                schedule = Schedule(name=f"s{number}", envelope=make_envelope(), every=FAR)
                assert await server.replace_schedule(None, StoredSchedule(schedule=schedule, next_at=due_at))

        async def tick(numbers: Iterable[int]) -> None:
            for number in numbers:
                name = due[number].schedule.name
                assert await server.tick(name, due_at, due_at + FAR, make_envelope()) == "fired"

        with Timer(size) as storing:
            await at_once(store, size)
        with Timer(size) as ticking:
            while due := (await server.due_schedules(TASKS)).due:
                await at_once(tick, len(due))
    return {"stored": storing.cost, "ticked": ticking.cost}


async def with_followers(
    new_server: NewServer, size: int, *, follow: Callable[[JobHandle[int]], Awaitable[object]]
) -> Costs:
    """Each message has a task that follows it until it has run."""
    server = new_server()
    app = Repid(title="bench", version="1")
    app.servers.register_server("default", server, is_default=True)
    app.include_router(router)
    rounds = max(FEWEST // size, 1)
    async with server.connection():
        with Timer(size * rounds) as running:
            for _ in range(rounds):
                async with trio.open_nursery() as nursery:
                    for handle in await app.enqueue_many(numbered, range(size)):
                        nursery.start_soon(follow, handle)
                    await trio.testing.wait_all_tasks_blocked()
                    await drain(app, size)
    return {"run": running.cost}


async def watch(handle: JobHandle[int]) -> None:
    async for _ in handle.watch():
        pass


WAITING = (100, 1_000, 10_000, 100_000, 1_000_000)
MANY = (1, 10, 100, 1_000, 10_000)
SCHEDULED = (*MANY, 100_000)

SERIES: dict[str, tuple[Sequence[int], Callable[[NewServer, int], Awaitable[Costs]]]] = {
    "waiting": (WAITING, beside_waiting),
    "delayed": (SCHEDULED, beside_delayed),
    "leased": (MANY, beside_leased),
    "queues": (MANY, partial(to_each_of_many, queues=True)),
    "topics": (MANY, partial(to_each_of_many, queues=False)),
    "actors": (MANY, for_one_of_many_actors),
    "schedules": (SCHEDULED, of_schedules),
    "waiters": (MANY, partial(with_followers, follow=JobHandle.wait)),
    "watchers": (MANY, partial(with_followers, follow=watch)),
}


def exponent(points: Sequence[tuple[int, float]], fitted_from: int) -> float:
    """The k that fits best if all messages together cost n to the power of k. Linear is 1; n log n is about 1.1 here.

    Sizes below `fitted_from` are left out: they show what does not depend on the size.
    """
    large = [(math.log(size), math.log(cost)) for size, cost in points if size >= fitted_from]
    middle, height = (sum(column) / len(large) for column in zip(*large, strict=True))
    slope: float = sum((x - middle) * (y - height) for x, y in large) / sum((x - middle) ** 2 for x, _ in large)
    return 1 + slope


async def measure_scaling(new_server: NewServer, arguments: Arguments) -> Figures:
    """The exponent of each series, that of what grows fastest in it, and all points."""
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, (sizes, measure) in SERIES.items():
        for size in sizes:
            if size <= arguments["largest"]:
                gc.collect()  # what the figure before has left behind is not this one's
                for what, cost in (await measure(new_server, size)).items():
                    points.setdefault(name, {}).setdefault(what, []).append((size, cost))
    exponents = {
        name: {what: exponent(line, arguments["fitted_from"]) for what, line in lines.items()}
        for name, lines in points.items()
    }
    return {**{name: max(each.values()) for name, each in exponents.items()}, "points": points, "exponents": exponents}


async def measure_in_memory(arguments: Arguments) -> Figures:
    return await measure_scaling(InMemoryServer, arguments)


async def measure_on_sqlite(arguments: Arguments) -> Figures:
    numbers = iter(range(10**6))
    return await measure_scaling(lambda: SQLiteServer(f"{arguments['folder']}/{next(numbers)}.db"), arguments)
