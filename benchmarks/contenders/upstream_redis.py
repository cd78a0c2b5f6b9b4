# mypy: ignore-errors
# Reason: repid 2.1.4 lives in another environment; the main one has ours under the same import name.
"""Upstream repid 2.1.4 on Redis streams, on uvloop. It acknowledges; it has no retries, results, fenced leases or bulk form there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from repid.connections.redis import RedisServer

from repid import Message, Repid, Router

from ._peers_on_a_server import TASKS, Payload, measurements, runs, send_at_once
from ._shared import Arguments, Measurement, on_uvloop
from .repid_upstream import CHANNEL

router = Router(channel=CHANNEL)
for task in TASKS:
    router.actor(task)


@router.actor
async def first(message: Message) -> None:
    await message.send_message_json(channel=CHANNEL, payload={}, headers={"topic": "noop"})
    runs.ended.append(None)


class Upstream:
    """An app that sends and works over one server."""

    def __init__(self, app: Repid) -> None:
        self.app = app

    async def send(self, task: str, payload: Payload) -> None:
        await self.app.send_message_json(channel=CHANNEL, payload=payload, headers={"topic": task})

    async def send_many(self, task: str, payloads: Sequence[Payload]) -> None:
        await send_at_once(self, task, payloads)

    async def drain(self, count: int, executors: int) -> None:
        report = await self.app.run_worker(messages_limit=count, tasks_limit=executors)
        assert report.processed == count

    @asynccontextmanager
    async def working(self, executors: int) -> AsyncIterator[None]:
        worker = asyncio.create_task(self.app.run_worker(tasks_limit=executors))
        try:
            yield
        finally:
            worker.cancel()
            await asyncio.wait([worker])


@asynccontextmanager
async def opened(arguments: Arguments) -> AsyncIterator[Upstream]:
    app = Repid(title="bench", version="1")
    app.servers.register_server("default", RedisServer(arguments["url"], batch_size=100), is_default=True)
    app.include_router(router)
    async with app.servers.default.connection():
        yield Upstream(app)


MEASUREMENTS: dict[str, Measurement] = measurements(on_uvloop, opened, "redis", without={"bulk", "result"})
DISTRIBUTIONS = ("repid", "uvloop", "pydantic", "redis", "hiredis")
