"""repid on SQLite, on trio, in the environment that runs the harness. `SQLiteServer` as it comes: synchronous=FULL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import trio

from repid import Repid, Router, SQLiteServer
from repid.delivery import Release, Settlement
from repid.ports import Consumer

from ._shared import (
    LATENCY_WARM_UP,
    Arguments,
    Figures,
    Measurement,
    chunks,
    file_size,
    idle_pauses,
    latency,
    now,
    rate,
    ready_cost,
    typed_payloads,
)
from .repid_processes import measure_one

CHANNEL = "bench"
RUNNER = Path(__file__).with_name("run.py")
PAUSE = 0.02
"""Seconds between two messages to the idle worker, at the least: four times what its broker waits between two looks."""

router = Router(channel=CHANNEL)
latencies: list[float] = []


@router.actor
async def noop() -> None: ...


@router.actor
async def typed(number: int, text: str) -> None: ...


@router.actor
async def ping(sent: float) -> None:
    latencies.append(now() - sent)


def new_app(arguments: Arguments, name: str = "repid") -> tuple[Repid, SQLiteServer]:
    server = SQLiteServer(path_of(arguments, name))
    app = Repid(title="bench", version="1")
    app.servers.register_server("default", server, is_default=True)
    app.include_router(router)
    return app, server


def path_of(arguments: Arguments, name: str = "repid") -> str:
    return str(Path(arguments["folder"]) / f"{name}.db")


async def enqueue(app: Repid, topic: str, payloads: list[dict[str, Any]], batch: int = 1000) -> None:
    for part in chunks(payloads, batch):
        await app.send_messages_json(channel=CHANNEL, payloads=part, headers={"topic": topic})


async def drain(app: Repid, runs: int, executors: int) -> Figures:
    """Time a worker of so many runs, from just before it starts until it has returned."""
    start = now()
    report = await app.run_worker(messages_limit=runs, tasks_limit=executors)
    end = now()
    assert report.succeeded == runs, f"{report.succeeded} of {runs} ran"
    return rate(runs, start, end)


async def measure_bulk(arguments: Arguments) -> Figures:
    (app, server), payloads = new_app(arguments), typed_payloads(arguments["messages"])
    async with server.connection():
        start = now()
        await enqueue(app, "typed", payloads, arguments["batch"])
        figures = rate(len(payloads), start, now())
        start = now()
        await enqueue(app, "typed", payloads, 1000)
        return {**figures, "thousands": rate(len(payloads), start, now())["rate"]}


async def measure_publishers(arguments: Arguments) -> Figures:
    """So many tasks; each awaits one call after the other."""
    app, server = new_app(arguments)
    payloads = typed_payloads(arguments["messages"])

    async def publish(part: list[dict[str, Any]]) -> None:
        for payload in part:
            await app.send_message_json(channel=CHANNEL, payload=payload, headers={"topic": "typed"})

    async with server.connection():
        await server.declare([CHANNEL])
        start = now()
        async with trio.open_nursery() as nursery:
            for number in range(arguments["publishers"]):
                nursery.start_soon(publish, payloads[number :: arguments["publishers"]])
        return rate(len(payloads), start, now())


async def measure_noop(arguments: Arguments) -> Figures:
    app, server = new_app(arguments)
    async with server.connection():
        await enqueue(app, "noop", [{}] * arguments["messages"])
        return await drain(app, arguments["messages"], arguments["executors"])


def measure_latency(arguments: Arguments) -> Figures:
    """The worker is another process; it is left idle for a while, then gets one message at a time."""
    command = [sys.executable, str(RUNNER), "repid_sqlite", "sqlite-latency-worker", json.dumps(dict(arguments))]
    trio.run(declare, arguments)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        try:
            assert worker.stdout.readline() == "idle\n", "the worker did not start"
            trio.run(send_pings, arguments)
            figures: Figures = json.loads(worker.stdout.readline())["figures"]
        except BaseException:
            worker.kill()
            raise
    return figures


async def declare(arguments: Arguments) -> None:
    _, server = new_app(arguments)
    async with server.connection():
        await server.declare([CHANNEL])


async def send_pings(arguments: Arguments) -> None:
    app, server = new_app(arguments)
    async with server.connection():
        for pause in idle_pauses(arguments["samples"], PAUSE):
            await trio.sleep(pause)
            await app.send_message_json(channel=CHANNEL, payload={"sent": now()}, headers={"topic": "ping"})


async def measure_latency_worker(arguments: Arguments) -> Figures:
    """The other process: processor time while idle, then how long each message took."""
    app, server = new_app(arguments)
    runs = arguments["samples"] + LATENCY_WARM_UP
    worker = partial(app.run_worker, messages_limit=runs, tasks_limit=arguments["executors"])
    async with server.connection(), trio.open_nursery() as nursery:
        await nursery.start(worker)
        await trio.sleep(1)
        used, start = time.process_time(), now()
        await trio.sleep(arguments["idle"])
        idle = (time.process_time() - used) / (now() - start)
        os.write(1, b"idle\n")
    return {**latency(latencies), "idle": 100 * idle}


async def measure_row(arguments: Arguments) -> Figures:
    await declare(arguments)
    app, server = new_app(arguments)
    before = file_size(path_of(arguments))
    async with server.connection():
        await enqueue(app, "typed", typed_payloads(arguments["messages"]), arguments["batch"])
    return ready_cost(arguments["messages"], before, file_size(path_of(arguments)))


async def timed_claim(consumer: Consumer, batch: int) -> float:
    """Seconds that leasing a batch takes; it is given back, so that the queue stays as long as it is."""
    start = now()
    deliveries = await consumer.receive(batch)
    end = now()
    assert len(deliveries) == batch
    await consumer.settle([Settlement(delivery, Release()) for delivery in deliveries])
    return end - start


async def measure_depth(arguments: Arguments) -> Figures:
    """The median claim from a long queue, relative to that from a short one; they take turns, each on its own file."""
    times: list[list[float]] = [[], []]
    async with AsyncExitStack() as stack:
        consumers = []
        for name, count in (("short", arguments["few"]), ("long", arguments["messages"])):
            app, server = new_app(arguments, name)
            await stack.enter_async_context(server.connection())
            await enqueue(app, "typed", typed_payloads(count), 10_000)
            consumers.append(await stack.enter_async_context(server.consume({CHANNEL: frozenset({"typed"})})))
        for _ in range(arguments["claims"]):
            for consumer, taken in zip(consumers, times, strict=True):
                taken.append(await timed_claim(consumer, arguments["batch"]))
    short, long = map(median, times)
    return {"slowdown": long / short, "short": short, "long": long}


async def measure_growth(arguments: Arguments) -> Figures:
    """The file is looked at after each round, closed, so that the WAL is in it."""
    app, server = new_app(arguments)
    batch = arguments["messages"] // arguments["rounds"]
    sizes = []
    for _ in range(arguments["rounds"]):
        async with server.connection():
            await enqueue(app, "typed", typed_payloads(batch))
            await drain(app, batch, arguments["executors"])
        sizes.append(file_size(path_of(arguments)))
    return {"growth": sizes[-1] / sizes[len(sizes) // 5 - 1], "sizes": sizes}


def on_trio(measure: Callable[[Arguments], Awaitable[Figures]]) -> Measurement:
    return lambda arguments: trio.run(measure, arguments)


MEASUREMENTS: dict[str, Measurement] = {
    "sqlite-bulk": on_trio(measure_bulk),
    "sqlite-publishers": on_trio(measure_publishers),
    "sqlite-noop": on_trio(measure_noop),
    "sqlite-latency": measure_latency,
    "sqlite-latency-worker": on_trio(measure_latency_worker),
    "sqlite-row": on_trio(measure_row),
    "sqlite-depth": on_trio(measure_depth),
    "sqlite-growth": on_trio(measure_growth),
    "processes": measure_one,
}
DISTRIBUTIONS = ("repid-trio", "trio", "msgspec")
