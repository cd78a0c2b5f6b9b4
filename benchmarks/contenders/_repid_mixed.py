"""A drain of what a real queue holds: priorities, delays, a limit and retries, against the plain drain of as many messages."""

from __future__ import annotations

import logging
from itertools import islice
from time import process_time

from repid import INJECTED, AppCallOptions, Connection, InMemoryServer, Message, PrioritiesT, Repid, Router

from ._shared import Arguments, Figures

AT_ONCE = 1_000
FAILS_ONCE = 20
"""Of the messages with a limit, one in so many fails in its first attempt, and is tried again at once."""

Options = tuple[str, AppCallOptions]

MIXED: tuple[Options, ...] = (
    ("limited", {"priority": PrioritiesT.HIGH}),
    ("plain", {"priority": PrioritiesT.LOW}),
    ("limited", {"delay": 0.05}),
    ("plain", {"priority": PrioritiesT.HIGH, "delay": 0.1}),
    ("limited", {}),
    ("plain", {}),
)
"""Actor and options of the messages, by thousands in turn."""

PLAIN: tuple[Options, ...] = (("plain", {}),)


async def drain(count: int, options: tuple[Options, ...]) -> float:
    """Seconds of the processor's time until all have succeeded; they are there before."""
    router = Router()

    @router.actor
    async def plain(number: int) -> None: ...

    @router.actor(concurrency=50, retries=3, retry_policy=lambda _: 0)
    async def limited(number: int, message: Message = INJECTED) -> None:
        if number % FAILS_ONCE == 0 and message.attempt == 1:
            raise ConnectionError("try again")

    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    actors = {"plain": plain, "limited": limited}
    numbers, turn, runs = iter(range(count)), 0, count
    async with app.magic():
        while part := list(islice(numbers, AT_ONCE)):
            name, given = options[turn % len(options)]
            await app.using(**given).enqueue_many(actors[name], part)
            turn += 1
            if name == "limited":
                runs += sum(number % FAILS_ONCE == 0 for number in part)
        start = process_time()
        report = await app.run_worker(messages_limit=runs)
        seconds = process_time() - start
    assert report.succeeded == count, f"{report.succeeded} of {count} runs"
    return seconds


async def measure_mixed(arguments: Arguments) -> Figures:
    """The log is silent: what it costs is up to its handlers."""
    logging.getLogger("repid").setLevel(logging.CRITICAL)
    count = arguments["messages"]
    plain, mixed = await drain(count, PLAIN), await drain(count, MIXED)
    return {"rate": count / mixed, "share": plain / mixed}
