"""Trio, asyncio and uvloop with nothing around them: what the platform allows at most."""

from __future__ import annotations

import asyncio

import trio

from ._shared import (
    NAP,
    Arguments,
    Figures,
    Measurement,
    idle_pauses,
    microseconds,
    now,
    rate,
    run_on_uvloop,
    seconds_of,
    share_of_naps,
)


async def sleep_often(times: int, seconds: float) -> None:
    for _ in range(times):
        await trio.sleep(seconds)


async def sleep_in_tasks(arguments: Arguments) -> Figures:
    """As many tasks as executors; each sleeps its share of the messages in a loop."""
    count, tasks = arguments["messages"], arguments["executors"]
    start = now()
    async with trio.open_nursery() as nursery:
        for number in range(tasks):
            nursery.start_soon(sleep_often, len(range(number, count, tasks)), arguments["seconds"])
    return rate(count, start, now())


def measure_sleep(arguments: Arguments) -> Figures:
    return trio.run(sleep_in_tasks, arguments)


def measure_naps(arguments: Arguments) -> Figures:
    """What the same jobs come to without a server."""
    return share_of_naps(measure_sleep({**arguments, "seconds": NAP}), arguments)


async def yield_once() -> None:
    await asyncio.sleep(0)


async def rested_hop(loop: asyncio.AbstractEventLoop, pause: float) -> float:
    await asyncio.sleep(pause)
    return await seconds_of(loop.run_in_executor(None, int))


async def gather_yields(arguments: Arguments) -> Figures:
    """What it takes to gather coroutines that each let the loop go round once: tasks, and nothing in them. Before that,
    what it takes to have a thread do nothing, and to hear of it: once after another, and after a rest.
    """
    count, samples, loop = arguments["at_once"], [], asyncio.get_running_loop()
    one = [await seconds_of(loop.run_in_executor(None, int)) for _ in range(arguments["samples"])]
    rested = [await rested_hop(loop, pause) for pause in idle_pauses(arguments["samples"])]
    for _ in range(arguments["rounds"]):
        start = now()
        await asyncio.gather(*(yield_once() for _ in range(count)))
        samples.append((now() - start) / count)
    return {"one": microseconds(one), "rested": microseconds(rested), "many": microseconds(samples)}


async def echo(number: int) -> int:
    return number


async def map_in_tasks(arguments: Arguments) -> Figures:
    """`asyncio.TaskGroup` with a semaphore: a task for each call, no message, nothing encoded."""
    count, semaphore = arguments["messages"], asyncio.Semaphore(arguments["limit"])

    async def one(number: int) -> int:
        async with semaphore:
            return await echo(number)

    start = now()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(count)]
    assert [task.result() for task in tasks] == list(range(count))
    return rate(count, start, now())


MEASUREMENTS: dict[str, Measurement] = {
    "sleep": measure_sleep,
    "map": lambda arguments: asyncio.run(map_in_tasks(arguments)),
    "crossing-asyncio": lambda arguments: asyncio.run(gather_yields(arguments)),
    "crossing-uvloop": lambda arguments: run_on_uvloop(gather_yields(arguments)),
}
DISTRIBUTIONS = ("trio",)
