# mypy: ignore-errors
# Reason: pgqueuer lives in another environment.
"""pgqueuer, on asyncpg and uvloop: rows in one table, claimed with SKIP LOCKED, marked while they run and moved to a log.

It gives its jobs bytes and checks nothing; it retries where an entrypoint asks for it, and keeps no results.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from pgqueuer.domain.types import QueueExecutionMode

from ._peers_on_a_server import Payload, behind_context, doze, measurements, noop, ping, runs, typed
from ._shared import Arguments, Measurement, on_uvloop

CONNECTIONS = 10
"""Of those who send; the worker has one."""


class Pgqueuer:
    """It sends over a pool of connections; its worker has one."""

    def __init__(self, pool: asyncpg.Pool, queue: PgQueuer) -> None:
        self.pool = pool
        self.queue = queue
        for task in (noop, doze, ping):
            queue.entrypoint(task.__name__)(behind_context(task))

        @queue.entrypoint("typed")
        async def decoded(job: object) -> None:
            await typed(**json.loads(job.payload))

        @queue.entrypoint("first")
        async def first(_: object) -> None:
            await self.send("noop", {})
            runs.ended.append(None)

    async def send(self, task: str, payload: Payload) -> None:
        async with self.pool.acquire() as connection:
            await Queries(AsyncpgDriver(connection)).enqueue(task, encoded(payload))

    async def send_many(self, task: str, payloads: Sequence[Payload]) -> None:
        async with self.pool.acquire() as connection:
            count = len(payloads)
            await Queries(AsyncpgDriver(connection)).enqueue([task] * count, [*map(encoded, payloads)], [0] * count)

    async def drain(self, count: int, executors: int) -> None:
        """A worker that drains ends when it finds nothing, though a job may be about to send another one."""
        while len(runs.ended) < count:
            await self.queue.qm.run(
                dequeue_timeout=timedelta(seconds=1), batch_size=executors, mode=QueueExecutionMode.drain
            )

    @asynccontextmanager
    async def working(self, executors: int) -> AsyncIterator[None]:
        worker = asyncio.create_task(self.queue.qm.run(batch_size=executors))
        try:
            yield
        finally:
            self.queue.shutdown.set()
            await worker


def encoded(payload: Payload) -> bytes:
    return json.dumps(payload, separators=(",", ":")).encode()


@asynccontextmanager
async def opened(arguments: Arguments) -> AsyncIterator[Pgqueuer]:
    worker = await asyncpg.connect(arguments["url"])
    async with asyncpg.create_pool(arguments["url"], min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
        await Queries(AsyncpgDriver(worker)).install()
        yield Pgqueuer(pool, PgQueuer(AsyncpgDriver(worker)))
    await worker.close()


MEASUREMENTS: dict[str, Measurement] = measurements(on_uvloop, opened, "postgres", without={"result"})
DISTRIBUTIONS = ("pgqueuer", "asyncpg", "uvloop")
