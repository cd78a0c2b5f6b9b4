# mypy: ignore-errors
# Reason: taskiq lives in another environment.
"""taskiq in memory: `InMemoryBroker` on uvloop, with the formatter that is fastest here (`JSONFormatter`).

This broker has no queue: `kiq` makes an asyncio task that runs as soon as the sender waits, and no limit on how many
run at once is kept. So a drain is timed from the end of the enqueueing to the end of `wait_all()`, and the workloads
that need a limit or a queue leave taskiq out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop
from taskiq import InMemoryBroker
from taskiq.formatters.json_formatter import JSONFormatter

from ._shared import (
    Arguments,
    Figures,
    Measurement,
    growth,
    idle_pauses,
    latency,
    now,
    rate,
    resident_size,
    typed_payloads,
)

broker = InMemoryBroker(max_async_tasks=100).with_formatter(JSONFormatter())
started: list[float] = []
arrived = asyncio.Event()


@broker.task
async def noop() -> None: ...


@broker.task
async def typed(number: int, text: str) -> None: ...


@broker.task
async def first() -> None:
    await noop.kiq()


@broker.task
async def ping() -> None:
    started.append(now())
    arrived.set()


async def drain(count: int, waits: int = 1) -> Figures:
    """`wait_all` looks once at what runs: a chain of two takes two of them."""
    start = now()
    for _ in range(waits):
        await broker.wait_all()
    end = now()
    assert all(task.done() for task in broker._running_tasks)  # noqa: SLF001 - a check, outside the timing
    return rate(count, start, end)


async def enqueue(count: int) -> None:
    for payload in typed_payloads(count):
        await typed.kiq(**payload)


async def measure_noop(arguments: Arguments) -> Figures:
    for _ in range(arguments["messages"]):
        await noop.kiq()
    return await drain(arguments["messages"])


async def measure_typed(arguments: Arguments) -> Figures:
    await enqueue(arguments["messages"])
    return await drain(arguments["messages"])


async def measure_chain(arguments: Arguments) -> Figures:
    for _ in range(arguments["messages"]):
        await first.kiq()
    return await drain(arguments["messages"], waits=2)


async def measure_enqueue(arguments: Arguments) -> Figures:
    payloads = typed_payloads(arguments["messages"])
    start = now()
    for payload in payloads:
        await typed.kiq(payload["number"], payload["text"])
    end = now()
    await broker.wait_all()
    return rate(len(payloads), start, end)


async def measure_latency(arguments: Arguments) -> Figures:
    sent: list[float] = []
    for pause in idle_pauses(arguments["samples"]):
        arrived.clear()
        sent.append(now())
        await ping.kiq()
        await arrived.wait()
        await asyncio.sleep(pause)
    return latency([start - send for send, start in zip(sent, started, strict=True)])


async def measure_processed(arguments: Arguments) -> Figures:
    batch = arguments["messages"] // arguments["rounds"]
    sizes: list[int] = []
    for _ in range(arguments["rounds"]):
        await enqueue(batch)
        await drain(batch)
        sizes.append(resident_size())
    return growth(batch, sizes)


def on_uvloop(measure: Callable[[Arguments], Coroutine[Any, Any, Figures]]) -> Measurement:
    return lambda arguments: uvloop.run(measure(arguments))


MEASUREMENTS: dict[str, Measurement] = {
    "noop": on_uvloop(measure_noop),
    "typed": on_uvloop(measure_typed),
    "enqueue-bulk": on_uvloop(measure_enqueue),
    "enqueue-one": on_uvloop(measure_enqueue),
    "chain": on_uvloop(measure_chain),
    "latency": on_uvloop(measure_latency),
    "memory-processed": on_uvloop(measure_processed),
}
DISTRIBUTIONS = ("taskiq", "uvloop", "pydantic")
