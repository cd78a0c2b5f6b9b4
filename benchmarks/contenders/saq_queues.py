# mypy: ignore-errors
# Reason: saq lives in another environment.
"""saq on Redis and on PostgreSQL, on uvloop: each job is taken, marked as active, run, and marked as complete by itself.

Jobs are tried three times and travel by orjson. It has no call for many jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from saq import Queue, Worker

from ._peers_on_a_server import A_TENTH, TASKS, Payload, behind_context, measurements, runs, send_at_once
from ._shared import Arguments, Measurement, on_uvloop

ATTEMPTS = 3
NOT_KEPT = -1
"""Of seconds: the job is removed when it has ended."""

POLLING = 0.001
"""Seconds between two looks whether a job has ended, where its result is waited for; the default is 0.5."""


class Saq:
    """A queue that sends, and whose worker works. Jobs that have ended are kept for so many seconds, with their results."""

    def __init__(self, queue: Queue, kept: int) -> None:
        self.queue = queue
        self.kept = kept

    async def send(self, task: str, payload: Payload) -> None:
        await self.queue.enqueue(task, retries=ATTEMPTS, ttl=self.kept, **payload)

    async def send_many(self, task: str, payloads: Sequence[Payload]) -> None:
        await send_at_once(self, task, payloads)

    async def drain(self, count: int, executors: int) -> None:
        acknowledged = asyncio.Event()

        async def after_process(_: object) -> None:
            if self.queue.complete == count:
                acknowledged.set()

        async with self.working(executors, after_process=after_process):
            await acknowledged.wait()

    @asynccontextmanager
    async def working(self, executors: int, **hooks: Any) -> AsyncIterator[None]:
        async def first() -> None:
            await self.send("noop", {})
            runs.ended.append(None)

        functions = [(task.__name__, behind_context(task)) for task in (*TASKS, first)]
        worker = Worker(self.queue, functions, concurrency=executors, **hooks)
        working = asyncio.create_task(worker.start())
        try:
            yield
        finally:
            await worker.stop()
            await working

    async def call(self, number: int) -> int:
        return await self.queue.apply("answer", poll_interval=POLLING, retries=ATTEMPTS, ttl=self.kept, number=number)


@asynccontextmanager
async def opened(arguments: Arguments, *, results: bool = False) -> AsyncIterator[Saq]:
    on_redis = arguments["url"].startswith("redis")
    options = {"max_concurrent_ops": 50} if on_redis else {"min_size": 10, "max_size": 20}
    queue = Queue.from_url(arguments["url"], dump=orjson.dumps, load=orjson.loads, **options)
    await queue.connect()
    await queue.sweep()  # or the worker's own sweep aborts jobs that are just being taken: they wait for seconds
    try:
        yield Saq(queue, kept=60 if results else NOT_KEPT)
    finally:
        await queue.disconnect()


MEASUREMENTS: dict[str, Measurement] = {
    **measurements(on_uvloop, opened, "redis", without={"bulk"}, parts=A_TENTH),
    **measurements(on_uvloop, opened, "postgres", without={"bulk"}, parts=A_TENTH),
}
DISTRIBUTIONS = ("saq", "uvloop", "orjson", "redis", "hiredis", "psycopg")
