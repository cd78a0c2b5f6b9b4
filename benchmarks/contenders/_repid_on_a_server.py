"""repid on a server, on trio, in the environment that runs the harness: what is the same for every server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from repid import Message, Repid, Router

from ._servers import Watch, counting_queries
from ._shared import (
    LATENCY_WARM_UP,
    NAP,
    Arguments,
    Figures,
    Measurement,
    chunks,
    growth,
    idle_pauses,
    latency,
    now,
    on_trio,
    ready_cost,
    share_of_naps,
    typed_payloads,
)

if TYPE_CHECKING:
    from repid import Server

CHANNEL = "bench"
router = Router(channel=CHANNEL)
latencies: list[float] = []
arrived = [trio.Event()]
"""The last one is set by each ping."""

OpenServer: TypeAlias = "Callable[[Arguments], Server]"
"""Makes the server that the arguments name."""


@router.actor
async def noop() -> None: ...


@router.actor
async def typed(number: int, text: str) -> None: ...


@router.actor
async def ping(sent: float) -> None:
    latencies.append(now() - sent)
    arrived[-1].set()


@router.actor(store_result=True)
async def answer(number: int) -> int:
    return number


@router.actor
async def doze() -> None:
    await trio.sleep(NAP)


@router.actor
async def first(message: Message) -> None:
    await message.send_message_json(channel=CHANNEL, payload={}, headers={"topic": "noop"})


@router.actor
async def first_by_outbox(message: Message) -> None:
    await message.outbox.send_message_json(channel=CHANNEL, payload={}, headers={"topic": "noop"})


def app_on(server: Server) -> Repid:
    app = Repid(title="bench", version="1")
    app.servers.register_server("default", server, is_default=True)
    app.include_router(router)
    return app


async def enqueue(app: Repid, topic: str, payloads: list[dict[str, Any]], batch: int = 1000) -> None:
    for part in chunks(payloads, batch):
        await app.send_messages_json(channel=CHANNEL, payloads=part, headers={"topic": topic})


async def drain(app: Repid, runs: int, arguments: Arguments) -> Figures:
    """Time a worker of so many runs, from just before it starts until it has returned."""
    watch = Watch(arguments)
    report = await app.run_worker(messages_limit=runs, tasks_limit=arguments["executors"])
    figures = watch.rate(runs)
    assert report.succeeded == runs, f"{report.succeeded} of {runs} ran"
    return figures


async def idle_share(seconds: float) -> float:
    """Percent of a core that this process uses so long, after a second in which its worker comes to rest."""
    await trio.sleep(1)
    used, start = time.process_time(), now()
    await trio.sleep(seconds)
    return 100 * (time.process_time() - used) / (now() - start)


async def measure_bulk(open_server: OpenServer, arguments: Arguments) -> Figures:
    server, payloads = open_server(arguments), typed_payloads(arguments["messages"])
    app = app_on(server)
    async with server.connection():
        watch = Watch(arguments)
        await enqueue(app, "typed", payloads, arguments["batch"])
        return watch.rate(len(payloads))


async def measure_publishers(open_server: OpenServer, arguments: Arguments) -> Figures:
    """So many tasks; each awaits one call after the other."""
    server, payloads = open_server(arguments), typed_payloads(arguments["messages"])
    app = app_on(server)

    async def publish(part: list[dict[str, Any]]) -> None:
        for payload in part:
            await app.send_message_json(channel=CHANNEL, payload=payload, headers={"topic": "typed"})

    async with server.connection():
        await server.declare([CHANNEL])
        watch = Watch(arguments)
        async with trio.open_nursery() as nursery:
            for number in range(arguments["publishers"]):
                nursery.start_soon(publish, payloads[number :: arguments["publishers"]])
        return watch.rate(len(payloads))


async def measure_noop(open_server: OpenServer, arguments: Arguments) -> Figures:
    server, count = open_server(arguments), arguments["messages"]
    app = app_on(server)
    async with server.connection():
        watch = Watch(arguments)
        await enqueue(app, "noop", [{}] * count)
        bulk = watch.rate(count)["rate"]
        return {**await drain(app, count, arguments), "bulk": bulk}


async def measure_typed(open_server: OpenServer, arguments: Arguments) -> Figures:
    server, payloads = open_server(arguments), typed_payloads(arguments["messages"])
    app = app_on(server)
    async with server.connection():
        await enqueue(app, "typed", payloads)
        return await drain(app, len(payloads), arguments)


async def measure_latency(open_server: OpenServer, arguments: Arguments) -> Figures:
    """In one process, as for the peers; before that the worker's processor time while idle."""
    server, pauses = open_server(arguments), idle_pauses(arguments["samples"])
    app = app_on(server)
    worker = partial(app.run_worker, messages_limit=arguments["samples"] + LATENCY_WARM_UP)
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare([CHANNEL])
        await nursery.start(worker)
        idle = await idle_share(arguments["idle"])
        for pause in pauses:
            arrived.append(trio.Event())
            await app.send_message_json(channel=CHANNEL, payload={"sent": now()}, headers={"topic": "ping"})
            await arrived[-1].wait()
            await trio.sleep(pause)
    return {**latency(latencies), "idle": idle}


async def measure_idle(open_server: OpenServer, arguments: Arguments) -> Figures:
    """A worker that has nothing to do: what it asks of the server, and its processor time."""
    server = open_server(arguments)
    app = app_on(server)
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare([CHANNEL])
        worker = await nursery.start(app.run_worker)
        await trio.sleep(1)
        with counting_queries(arguments) as count:
            start = now()
            idle = await idle_share(arguments["idle"])
            queries = count() / (now() - start)
        worker.stop()
    return {"queries": queries, "idle": idle}


async def measure_result(open_server: OpenServer, arguments: Arguments) -> Figures:
    """From before a job is enqueued until its result is there, with the worker in the same process."""
    server = open_server(arguments)
    app, times = app_on(server), []
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        for number in range(LATENCY_WARM_UP + arguments["samples"]):
            start = now()
            assert await app.call(answer, number) == number
            times.append(now() - start)
        worker.stop()
    return latency(times)


async def measure_sleep(open_server: OpenServer, arguments: Arguments) -> Figures:
    """Jobs that wait, as many at once as there are executors: how much of what arithmetic allows."""
    server, count = open_server(arguments), arguments["messages"]
    app = app_on(server)
    async with server.connection():
        await enqueue(app, "doze", [{}] * count)
        return share_of_naps(await drain(app, count, arguments), arguments)


async def measure_chain(open_server: OpenServer, arguments: Arguments) -> Figures:
    """Each job sends another one, at once or with its acknowledgement; both are counted."""
    server, count = open_server(arguments), arguments["messages"]
    app, figures = app_on(server), {}
    async with server.connection():
        for key, topic in (("plain", "first"), ("outbox", "first_by_outbox")):
            await enqueue(app, topic, [{}] * count)
            figures[key] = (await drain(app, 2 * count, arguments))["rate"]
    return figures


async def measure_size(open_server: OpenServer, size: Callable[[Arguments], int], arguments: Arguments) -> Figures:
    """`size` tells the bytes that the server has taken for messages."""
    server = open_server(arguments)
    app = app_on(server)
    async with server.connection():
        await server.declare([CHANNEL])
        before = size(arguments)
        await enqueue(app, "typed", typed_payloads(arguments["messages"]), arguments["batch"])
        return ready_cost(arguments["messages"], before, size(arguments))


async def measure_growth(open_server: OpenServer, size: Callable[[Arguments], int], arguments: Arguments) -> Figures:
    """What stays in the server of messages that went through, a part of them after the other."""
    server, sizes = open_server(arguments), []
    app, part = app_on(server), arguments["messages"] // arguments["rounds"]
    async with server.connection():
        for _ in range(arguments["rounds"]):
            await enqueue(app, "noop", [{}] * part)
            await drain(app, part, arguments)
            sizes.append(size(arguments))
    return {"growth": growth(part, sizes)["growth"]}


def measurements_under_asyncio(store: str, open_server: OpenServer) -> dict[str, Measurement]:
    """What is measured where asyncio is the host: the actors are its tasks."""
    return {f"{store}-asyncio": lambda arguments: asyncio.run(measure_noop(open_server, arguments))}


def measurements_on(store: str, open_server: OpenServer) -> dict[str, Measurement]:
    """What is measured on every server that is a program of its own, by the names of the workloads."""
    measures: dict[str, Callable[[Arguments], Awaitable[Figures]]] = {
        "bulk": partial(measure_bulk, open_server),
        "publishers": partial(measure_publishers, open_server),
        "single": partial(measure_publishers, open_server),
        "result": partial(measure_result, open_server),
        "sleep": partial(measure_sleep, open_server),
        "chain": partial(measure_chain, open_server),
        "noop": partial(measure_noop, open_server),
        "typed": partial(measure_typed, open_server),
        "asyncio": partial(measure_noop, open_server),
        "latency": partial(measure_latency, open_server),
        "idle": partial(measure_idle, open_server),
    }
    return {f"{store}-{name}": on_trio(measure) for name, measure in measures.items()}
