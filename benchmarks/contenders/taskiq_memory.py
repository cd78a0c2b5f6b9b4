# mypy: ignore-errors
# Reason: taskiq lives in another environment.
"""taskiq in memory: `InMemoryBroker` on uvloop, with the formatter that is fastest here (`JSONFormatter`).

This broker has no queue: `kiq` makes an asyncio task that runs as soon as the sender waits, and no limit on how many
run at once is kept. So a drain is timed from the end of the enqueueing to the end of `wait_all()`, and the workloads
that need a limit or a queue leave taskiq out.
"""

from __future__ import annotations

import asyncio

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
    on_uvloop,
    rate,
    resident_size,
    typed_payloads,
)

broker = InMemoryBroker(max_async_tasks=100).with_formatter(JSONFormatter())
inplace = InMemoryBroker(await_inplace=True, max_stored_results=-1).with_formatter(JSONFormatter())
"""What is sent to it has run when it is sent."""

started: list[float] = []
arrived = asyncio.Event()


@broker.task
async def noop() -> None: ...


@inplace.task
async def echo(number: int) -> int:
    return number


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


async def measure_map(arguments: Arguments) -> Figures:
    """A task for each call and a semaphore. `await_inplace` runs the task within `kiq`, so that its result is there."""
    count, semaphore = arguments["messages"], asyncio.Semaphore(arguments["limit"])

    async def one(number: int) -> int:
        async with semaphore:
            task = await echo.kiq(number)
            return (await task.get_result()).return_value

    start = now()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(count)]
    assert [task.result() for task in tasks] == list(range(count))
    return rate(count, start, now())


async def measure_sends(arguments: Arguments) -> Figures:
    return {"chain": (await measure_chain(arguments))["rate"]}


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


MEASUREMENTS: dict[str, Measurement] = {
    "noop": on_uvloop(measure_noop),
    "typed": on_uvloop(measure_typed),
    "enqueue-bulk": on_uvloop(measure_enqueue),
    "enqueue-one": on_uvloop(measure_enqueue),
    "chain": on_uvloop(measure_chain),
    "sends-asyncio": lambda arguments: asyncio.run(measure_sends(arguments)),
    "sends-uvloop": on_uvloop(measure_sends),
    "map": on_uvloop(measure_map),
    "latency": on_uvloop(measure_latency),
    "memory-processed": on_uvloop(measure_processed),
}
DISTRIBUTIONS = ("taskiq", "uvloop", "pydantic")
