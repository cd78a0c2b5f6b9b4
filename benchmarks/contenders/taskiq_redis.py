# mypy: ignore-errors
# Reason: taskiq lives in another environment.
"""taskiq on Redis streams, on uvloop: `RedisStreamBroker`, which acknowledges, with the formatter that is fastest here.

Failed tasks are sent again (`SimpleRetryMiddleware`). Results are kept where they are asked for. It has no call for many tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from taskiq import SimpleRetryMiddleware
from taskiq.api import run_receiver_task
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.receiver import Receiver
from taskiq.serializers import JSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from ._peers_on_a_server import A_TENTH, TASKS, Payload, measurements, runs, send_at_once
from ._shared import Arguments, Measurement, on_uvloop

POLLING = 0.001
"""Seconds between two looks whether a result is there; the default is 0.2."""


class Taskiq:
    """A broker that sends, and whose receiver works."""

    def __init__(self, broker: RedisStreamBroker) -> None:
        self.broker = broker

        async def first() -> None:
            await self.send("noop", {})
            runs.ended.append(None)

        self.tasks = {task.__name__: broker.task(task.__name__, retry_on_error=True)(task) for task in (*TASKS, first)}

    async def send(self, task: str, payload: Payload) -> None:
        await self.tasks[task].kiq(**payload)

    async def send_many(self, task: str, payloads: Sequence[Payload]) -> None:
        await send_at_once(self, task, payloads)

    async def drain(self, runs: int, executors: int) -> None:
        receiver = Receiver(
            self.broker,
            max_async_tasks=executors,
            max_prefetch=executors,
            max_tasks_to_execute=runs,
            run_startup=False,
        )
        await receiver.listen(asyncio.Event())

    @asynccontextmanager
    async def working(self, executors: int) -> AsyncIterator[None]:
        task = asyncio.create_task(run_receiver_task(self.broker, max_async_tasks=executors))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def call(self, number: int) -> int:
        task = await self.tasks["answer"].kiq(number)
        return (await task.wait_result(check_interval=POLLING, timeout=10)).return_value


@asynccontextmanager
async def opened(arguments: Arguments, *, results: bool = False) -> AsyncIterator[Taskiq]:
    broker = RedisStreamBroker(arguments["url"]).with_formatter(JSONFormatter())
    broker = broker.with_middlewares(SimpleRetryMiddleware(default_retry_count=3))
    if results:
        backend = RedisAsyncResultBackend(arguments["url"], result_ex_time=60, serializer=JSONSerializer())
        broker = broker.with_result_backend(backend)
    await broker.startup()
    try:
        yield Taskiq(broker)
    finally:
        await broker.shutdown()


MEASUREMENTS: dict[str, Measurement] = measurements(on_uvloop, opened, "redis", without={"bulk"}, parts=A_TENTH)
DISTRIBUTIONS = ("taskiq", "taskiq-redis", "uvloop", "pydantic", "redis", "hiredis")
