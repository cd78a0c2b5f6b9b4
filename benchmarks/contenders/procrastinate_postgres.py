# mypy: ignore-errors
# Reason: procrastinate lives in another environment.
"""procrastinate, on psycopg and uvloop: SQL functions claim one job at a time and note how each ended.

A failed job is retried three times. Jobs are removed when they have ended; results are not kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from procrastinate import App, PsycopgConnector

from ._peers_on_a_server import A_TENTH, TASKS, Payload, measurements, runs
from ._shared import Arguments, Measurement, on_uvloop

CONNECTIONS = 10
RETRIES = 3

POLLING = 0.1
"""Seconds until a worker looks again by itself; the default is 5, which is what a job takes whose notice it misses."""


class Procrastinate:
    """An app that defers and works over one pool of connections."""

    def __init__(self, app: App) -> None:
        async def first() -> None:
            await self.send("noop", {})
            runs.ended.append(None)

        self.app = app
        self.tasks = {task.__name__: app.task(name=task.__name__, retry=RETRIES)(task) for task in (*TASKS, first)}

    async def send(self, task: str, payload: Payload) -> None:
        await self.tasks[task].defer_async(**payload)

    async def send_many(self, task: str, payloads: Sequence[Payload]) -> None:
        await self.tasks[task].batch_defer_async(*payloads)

    async def work(self, executors: int, *, wait: bool) -> None:
        await self.app.run_worker_async(
            concurrency=executors,
            wait=wait,
            delete_jobs="successful",
            fetch_job_polling_interval=POLLING,
            install_signal_handlers=False,
        )

    async def drain(self, count: int, executors: int) -> None:
        """A worker that does not wait ends when it finds nothing, though a job may be about to send another one."""
        while len(runs.ended) < count:
            await self.work(executors, wait=False)

    @asynccontextmanager
    async def working(self, executors: int) -> AsyncIterator[None]:
        worker = asyncio.create_task(self.work(executors, wait=True))
        try:
            yield
        finally:
            worker.cancel()
            await asyncio.wait([worker])


@asynccontextmanager
async def opened(arguments: Arguments) -> AsyncIterator[Procrastinate]:
    app = App(connector=PsycopgConnector(conninfo=arguments["url"], min_size=CONNECTIONS, max_size=CONNECTIONS))
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        yield Procrastinate(app)


MEASUREMENTS: dict[str, Measurement] = measurements(on_uvloop, opened, "postgres", without={"result"}, parts=A_TENTH)
DISTRIBUTIONS = ("procrastinate", "psycopg", "uvloop")
