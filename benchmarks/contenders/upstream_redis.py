# mypy: ignore-errors
# Reason: repid 2.1.4 lives in another environment; the main one has ours under the same import name.
"""Upstream repid 2.1.4 on Redis streams, on uvloop. It acknowledges; it has no retries, results or fenced leases there."""

from __future__ import annotations

import asyncio

from repid.connections.redis import RedisServer

from repid import Repid

from ._servers import Watch
from ._shared import Arguments, Figures, Measurement, on_uvloop, typed_payloads
from .repid_upstream import CHANNEL, app_on, idle_latency


def new_app(arguments: Arguments) -> Repid:
    return app_on(RedisServer(arguments["url"], batch_size=100))


async def enqueue(app: Repid, topic: str, payloads: list[dict], at_once: int = 50) -> None:
    """There is no bulk form: so many tasks send, one message after the other."""
    headers = {"topic": topic}

    async def send(part: list[dict]) -> None:
        for payload in part:
            await app.send_message_json(channel=CHANNEL, payload=payload, headers=headers)

    await asyncio.gather(*(send(payloads[number::at_once]) for number in range(at_once)))


async def measure_enqueue(arguments: Arguments) -> Figures:
    app, payloads = new_app(arguments), typed_payloads(arguments["messages"])
    async with app.servers.default.connection():
        watch = Watch(arguments)
        await enqueue(app, "typed", payloads, arguments.get("publishers", 50))
        return watch.rate(len(payloads))


async def measure_noop(arguments: Arguments) -> Figures:
    return await drain("noop", [{}] * arguments["messages"], arguments)


async def measure_typed(arguments: Arguments) -> Figures:
    return await drain("typed", typed_payloads(arguments["messages"]), arguments)


async def drain(topic: str, payloads: list[dict], arguments: Arguments) -> Figures:
    app, count = new_app(arguments), len(payloads)
    async with app.servers.default.connection():
        await enqueue(app, topic, payloads)
        watch = Watch(arguments)
        report = await app.run_worker(messages_limit=count, tasks_limit=arguments["executors"])
        figures = watch.rate(count)
    assert report.processed == count
    return figures


async def measure_latency(arguments: Arguments) -> Figures:
    return await idle_latency(new_app(arguments), arguments["samples"], 100, rest=1)


MEASUREMENTS: dict[str, Measurement] = {
    "redis-bulk": on_uvloop(measure_enqueue),
    "redis-publishers": on_uvloop(measure_enqueue),
    "redis-single": on_uvloop(measure_enqueue),
    "redis-noop": on_uvloop(measure_noop),
    "redis-typed": on_uvloop(measure_typed),
    "redis-latency": on_uvloop(measure_latency),
}
DISTRIBUTIONS = ("repid", "uvloop", "pydantic", "redis")
