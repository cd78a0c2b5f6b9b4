"""Lines through three stages, with bounded queues between them and without: what the bounds cost, and what memory it takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import islice
from math import inf
from time import process_time

import trio

from repid import INJECTED, Connection, InMemoryServer, Message, Repid, Router

from ._shared import Arguments, Figures, now, peak_size, rate

BOUND = 5_000
"""Messages that each queue holds at most."""

READ_AT_ONCE = 1_000
TURNS = 3


def new_app(max_size: int | None) -> tuple[Repid, Callable[[Iterable[str]], Awaitable[object]]]:
    """Lines are split, checked, and gathered in batches; and how to send lines in."""
    router = Router()

    @router.actor(queue="lines", max_size=max_size)
    async def split(line: str, message: Message = INJECTED) -> None:
        number, city, degrees = line.split(";")
        await message.outbox.enqueue(check, int(number), city, float(degrees))

    @router.actor(queue="fields", max_size=max_size)
    async def check(number: int, city: str, degrees: float, message: Message = INJECTED) -> None:
        await message.outbox.enqueue(gather, (number, city, degrees))

    @router.actor(queue="rows", max_size=max_size, batch=500, batch_wait=0.2)
    async def gather(rows: list[tuple[int, str, float]]) -> None: ...

    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    return app, lambda lines: app.enqueue_many(split, lines)


async def run_through(count: int, max_size: int | None) -> tuple[float, float]:
    """Seconds, by the clock and of the processor's time, from the first line to the end of the last row."""
    app, send = new_app(max_size)
    lines = (f"{number};city {number % 100};{number % 40}" for number in range(count))
    async with app.magic(), trio.open_nursery() as nursery:
        start, start_of_work = now(), process_time()
        worker = await nursery.start(partial(app.run_worker, messages_limit=3 * count))
        while part := list(islice(lines, READ_AT_ONCE)):
            await send(part)
        report = await worker.wait()
        times = now() - start, process_time() - start_of_work
    assert report.succeeded == 3 * count, f"{report.succeeded} of {3 * count} runs"
    return times


async def measure_stages(arguments: Arguments) -> Figures:
    """The long run comes first: the most memory that was ever resident is its own then. Then with bounds and without in
    turns, the best of three of each.
    """
    seconds, _ = await run_through(arguments["messages"], BOUND)
    peak = peak_size()
    best: dict[int | None, float] = {}
    for _ in range(TURNS):
        for max_size in (None, BOUND):
            _, work = await run_through(arguments["compared"], max_size)
            best[max_size] = min(best.get(max_size, inf), work)
    return {
        **rate(arguments["messages"], 0.0, seconds),
        "peak": peak / 1e6,
        "share": 100 * best[None] / best[BOUND],
    }
