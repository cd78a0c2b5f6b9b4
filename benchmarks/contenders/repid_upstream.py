# mypy: ignore-errors
# Reason: repid 2.1.4 lives in another environment; the main one has ours under the same import name.
"""Upstream repid 2.1.4: on uvloop, but where asyncio itself is the point; in-memory server, pydantic (its default)."""

from __future__ import annotations

import asyncio

from repid import InMemoryServer, Message, MessageData, Repid, Router

from ._shared import (
    Arguments,
    Figures,
    Measurement,
    growth,
    idle_pauses,
    latency,
    now,
    on_asyncio,
    on_uvloop,
    rate,
    ready_cost,
    resident_size,
    typed_payloads,
)

CHANNEL = "bench"
router = Router(channel=CHANNEL)
started: list[float] = []
arrived = asyncio.Event()


@router.actor
async def noop() -> None: ...


@router.actor
async def typed(number: int, text: str) -> None: ...


@router.actor
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@router.actor
async def first(message: Message) -> None:
    await message.send_message_json(channel=CHANNEL, payload={}, headers={"topic": "noop"})


@router.actor
async def ping() -> None:
    started.append(now())
    arrived.set()


def app_on(server: object) -> Repid:
    app = Repid(title="bench", version="1")
    app.servers.register_server("default", server, is_default=True)
    app.include_router(router)
    return app


def new_app() -> Repid:
    return app_on(InMemoryServer())


async def enqueue(app: Repid, topic: str, payloads: list[dict]) -> None:
    """There is no bulk form; awaiting one after the other never leaves the task, so nothing is faster."""
    headers = {"topic": topic}
    for payload in payloads:
        await app.send_message_json(channel=CHANNEL, payload=payload, headers=headers)


async def drain(app: Repid, topic: str, payloads: list[dict], arguments: Arguments, runs: int) -> Figures:
    async with app.servers.default.connection():
        await enqueue(app, topic, payloads)
        start = now()
        report = await app.run_worker(messages_limit=runs, tasks_limit=arguments["executors"])
        end = now()
    assert report.processed == runs
    return rate(len(payloads), start, end)


async def measure_noop(arguments: Arguments) -> Figures:
    count = arguments["messages"]
    return await drain(new_app(), "noop", [{}] * count, arguments, count)


async def measure_typed(arguments: Arguments) -> Figures:
    count = arguments["messages"]
    return await drain(new_app(), "typed", typed_payloads(count), arguments, count)


async def measure_chain(arguments: Arguments) -> Figures:
    count = arguments["messages"]
    return await drain(new_app(), "first", [{}] * count, arguments, 2 * count)


async def measure_sleep(arguments: Arguments) -> Figures:
    count = arguments["messages"]
    return await drain(new_app(), "sleep", [{"seconds": arguments["seconds"]}] * count, arguments, count)


async def measure_bare_enqueue(payloads: list[dict]) -> float:
    """Messages per second past the app, straight into the server: public, but without the app's middlewares."""
    app, headers = new_app(), {"topic": "typed"}
    async with app.servers.default.connection() as server:
        start = now()
        for payload in payloads:
            encoded = app.default_serializer(payload)
            message = MessageData(payload=encoded, headers=headers, content_type="application/json")
            await server.publish(channel=CHANNEL, message=message)
        return len(payloads) / (now() - start)


async def measure_enqueue_bulk(arguments: Arguments) -> Figures:
    figures = await measure_enqueue(arguments)
    return {**figures, "bare": await measure_bare_enqueue(typed_payloads(arguments["messages"]))}


async def measure_enqueue(arguments: Arguments) -> Figures:
    app, payloads = new_app(), typed_payloads(arguments["messages"])
    async with app.servers.default.connection():
        start = now()
        await enqueue(app, "typed", payloads)
        return rate(len(payloads), start, now())


async def measure_sends(arguments: Arguments) -> Figures:
    return {**await measure_enqueue(arguments), "chain": (await measure_chain(arguments))["rate"]}


async def measure_latency(arguments: Arguments) -> Figures:
    return await idle_latency(new_app(), arguments["samples"], arguments["executors"], rest=0.1)


async def idle_latency(app: Repid, samples: int, executors: int, rest: float) -> Figures:
    """`rest`: seconds in which the worker comes to rest before the first message."""
    pauses = idle_pauses(samples)
    sent: list[float] = []
    async with app.servers.default.connection():
        worker = asyncio.create_task(app.run_worker(messages_limit=len(pauses), tasks_limit=executors))
        await asyncio.sleep(rest)
        for pause in pauses:
            arrived.clear()
            sent.append(now())
            await app.send_message_json(channel=CHANNEL, payload={}, headers={"topic": "ping"})
            await arrived.wait()
            await asyncio.sleep(pause)
        await worker
    return latency([start - send for send, start in zip(sent, started, strict=True)])


async def measure_ready(arguments: Arguments) -> Figures:
    app, count = new_app(), arguments["messages"]
    async with app.servers.default.connection():
        await enqueue(app, "typed", typed_payloads(100))
        before = resident_size()
        for _ in range(0, count, arguments["batch"]):
            await enqueue(app, "typed", typed_payloads(arguments["batch"]))
        return ready_cost(count, before, resident_size())


async def measure_processed(arguments: Arguments) -> Figures:
    app, batch = new_app(), arguments["messages"] // arguments["rounds"]
    sizes: list[int] = []
    async with app.servers.default.connection():
        for _ in range(arguments["rounds"]):
            await enqueue(app, "typed", typed_payloads(batch))
            await app.run_worker(messages_limit=batch, tasks_limit=arguments["executors"])
            sizes.append(resident_size())
    return growth(batch, sizes)


MEASUREMENTS: dict[str, Measurement] = {
    "noop": on_uvloop(measure_noop),
    "typed": on_uvloop(measure_typed),
    "enqueue-bulk": on_uvloop(measure_enqueue_bulk),
    "enqueue-one": on_uvloop(measure_enqueue),
    "chain": on_uvloop(measure_chain),
    "sleep": on_uvloop(measure_sleep),
    "latency": on_uvloop(measure_latency),
    "hosts-asyncio": on_asyncio(measure_noop),
    "hosts-uvloop": on_uvloop(measure_noop),
    "sends-asyncio": on_asyncio(measure_sends),
    "sends-uvloop": on_uvloop(measure_sends),
    "memory-ready": on_uvloop(measure_ready),
    "memory-processed": on_uvloop(measure_processed),
}
DISTRIBUTIONS = ("repid", "uvloop", "pydantic")
