"""Trio with nothing around it: what the platform allows at most."""

from __future__ import annotations

import trio

from ._shared import Arguments, Figures, Measurement, now, rate


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


MEASUREMENTS: dict[str, Measurement] = {"sleep": measure_sleep}
DISTRIBUTIONS = ("trio",)
