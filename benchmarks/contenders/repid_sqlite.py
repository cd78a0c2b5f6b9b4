"""repid on SQLite, on trio, in the environment that runs the harness. `SQLiteServer` as it comes: synchronous=FULL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import trio

from repid import SQLiteServer
from repid.delivery import Release, Settlement
from repid.ports import Consumer

from ._repid_on_a_server import (
    CHANNEL,
    app_on,
    drain,
    enqueue,
    idle_share,
    latencies,
    measure_noop,
    measure_publishers,
    measure_result,
)
from ._shared import (
    LATENCY_WARM_UP,
    Arguments,
    Figures,
    Measurement,
    file_size,
    idle_pauses,
    latency,
    later,
    now,
    on_trio,
    rate,
    ready_cost,
    typed_payloads,
)

RUNNER = Path(__file__).with_name("run.py")
PAUSE = 0.02
"""Seconds between two messages to the idle worker, at the least: four times what its broker waits between two looks."""


def open_server(arguments: Arguments, name: str = "repid") -> SQLiteServer:
    return SQLiteServer(path_of(arguments, name))


def path_of(arguments: Arguments, name: str = "repid") -> str:
    return str(Path(arguments["folder"]) / f"{name}.db")


async def measure_bulk(arguments: Arguments) -> Figures:
    server, payloads = open_server(arguments), typed_payloads(arguments["messages"])
    app = app_on(server)
    async with server.connection():
        start = now()
        await enqueue(app, "typed", payloads, arguments["batch"])
        figures = rate(len(payloads), start, now())
        start = now()
        await enqueue(app, "typed", payloads, 1000)
        return {**figures, "thousands": rate(len(payloads), start, now())["rate"]}


async def measure_batch(arguments: Arguments) -> Figures:
    numbers = count()
    figures: Figures = await later("_repid_batches", "measure_batches")(
        lambda: open_server(arguments, f"rows-{next(numbers)}"), arguments
    )
    return figures


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
    server = open_server(arguments)
    async with server.connection():
        await server.declare([CHANNEL])


async def send_pings(arguments: Arguments) -> None:
    server = open_server(arguments)
    app = app_on(server)
    async with server.connection():
        for pause in idle_pauses(arguments["samples"], PAUSE):
            await trio.sleep(pause)
            await app.send_message_json(channel=CHANNEL, payload={"sent": now()}, headers={"topic": "ping"})


async def measure_latency_worker(arguments: Arguments) -> Figures:
    """The other process: processor time while idle, then how long each message took."""
    server = open_server(arguments)
    app = app_on(server)
    runs = arguments["samples"] + LATENCY_WARM_UP
    worker = partial(app.run_worker, messages_limit=runs, tasks_limit=arguments["executors"])
    async with server.connection(), trio.open_nursery() as nursery:
        await nursery.start(worker)
        idle = await idle_share(arguments["idle"])
        os.write(1, b"idle\n")
    return {**latency(latencies), "idle": idle}


async def measure_row(arguments: Arguments) -> Figures:
    await declare(arguments)
    server = open_server(arguments)
    app = app_on(server)
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
            server = open_server(arguments, name)
            app = app_on(server)
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
    server = open_server(arguments)
    app = app_on(server)
    batch = arguments["messages"] // arguments["rounds"]
    sizes = []
    for _ in range(arguments["rounds"]):
        async with server.connection():
            await enqueue(app, "typed", typed_payloads(batch))
            await drain(app, batch, arguments)
        sizes.append(file_size(path_of(arguments)))
    return {"growth": sizes[-1] / sizes[len(sizes) // 5 - 1], "sizes": sizes}


MEASUREMENTS: dict[str, Measurement] = {
    "sqlite-bulk": on_trio(measure_bulk),
    "sqlite-batch": on_trio(measure_batch),
    "sqlite-publishers": on_trio(partial(measure_publishers, open_server)),
    "sqlite-single": on_trio(partial(measure_publishers, open_server)),
    "sqlite-result": on_trio(partial(measure_result, open_server)),
    "sqlite-noop": on_trio(partial(measure_noop, open_server)),
    "sqlite-latency": measure_latency,
    "sqlite-latency-worker": on_trio(measure_latency_worker),
    "sqlite-row": on_trio(measure_row),
    "sqlite-depth": on_trio(measure_depth),
    "sqlite-growth": on_trio(measure_growth),
    "processes": later("repid_processes", "measure_one"),
    "scaling-sqlite": on_trio(later("_repid_scaling", "measure_on_sqlite")),
}
DISTRIBUTIONS = ("repid-trio", "trio", "msgspec")
