# mypy: ignore-errors
# Reason: streaq lives in another environment.
"""streaq on Redis streams, on trio: tasks are read many at once, then each is fetched, leased, run and ended by itself.

Tasks are tried three times, and are claimed again when a worker does not renew them for a minute. They travel by pickle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from streaq import Worker
from streaq.task import Task

from ._peers_on_a_server import A_TENTH, TASKS, Payload, measurements, runs
from ._shared import Arguments, Measurement, on_trio


class Streaq:
    """One of its workers sends, and others work: it connects only once."""

    def __init__(self, url: str, kept: int) -> None:
        self.url = url
        self.kept = kept
        self.sender = self.new_worker()

    def new_worker(self, **options: int) -> Worker:
        worker = Worker(self.url, anyio_backend="trio", handle_signals=False, **options)
        for task in (*TASKS, self.first):
            worker.task(name=task.__name__, ttl=self.kept, silent=True)(task)
        return worker

    async def first(self) -> None:
        await self.send("noop", {})
        runs.ended.append(None)

    def new_task(self, task: str, payload: Payload) -> Task:
        return self.sender.registry[task].enqueue(**payload)

    async def send(self, task: str, payload: Payload) -> None:
        await self.new_task(task, payload)

    async def send_many(self, task: str, payloads: Sequence[Payload]) -> None:
        await self.sender.enqueue_many([self.new_task(task, payload) for payload in payloads])

    async def drain(self, count: int, executors: int) -> None:
        """A worker in a burst ends when it finds nothing, though a task may be about to send another one."""
        while len(runs.ended) < count:
            worker = self.new_worker(concurrency=executors)
            worker.burst = True
            await worker.run_async()

    @asynccontextmanager
    async def working(self, executors: int) -> AsyncIterator[None]:
        worker = self.new_worker(concurrency=executors)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: worker.run_async(task_status=task_status))
            yield
            nursery.cancel_scope.cancel()

    async def call(self, number: int) -> int:
        task = await self.new_task("answer", {"number": number})
        return (await task.result(timeout=10)).result


@asynccontextmanager
async def opened(arguments: Arguments, *, results: bool = False) -> AsyncIterator[Streaq]:
    streaq = Streaq(arguments["url"], kept=60 if results else 0)
    async with streaq.sender:
        yield streaq


MEASUREMENTS: dict[str, Measurement] = measurements(on_trio, opened, "redis", parts=A_TENTH)
DISTRIBUTIONS = ("streaq", "coredis", "trio", "anyio")
