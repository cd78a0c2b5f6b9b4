# mypy: ignore-errors
# Reason: pgqueuer lives in another environment.
"""pgqueuer, on asyncpg and uvloop: rows in one table, claimed with SKIP LOCKED, marked while they run and moved to a log."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import asyncpg
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from pgqueuer.domain.types import QueueExecutionMode

from ._servers import Watch
from ._shared import Arguments, Figures, Measurement, chunks, idle_pauses, latency, now, on_uvloop, typed_payloads

started: list[float] = []
arrived = asyncio.Event()


async def connect(arguments: Arguments) -> tuple[Queries, PgQueuer]:
    producer = Queries(AsyncpgDriver(await asyncpg.connect(arguments["url"])))
    await producer.install()
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(arguments["url"])))

    @queue.entrypoint("noop")
    async def noop(job: object) -> None: ...

    @queue.entrypoint("typed")
    async def typed(job: object) -> None:
        """It gets bytes, and checks nothing."""
        json.loads(job.payload)

    @queue.entrypoint("ping")
    async def ping(_: object) -> None:
        started.append(now())
        arrived.set()

    return producer, queue


async def enqueue(producer: Queries, name: str, payloads: list[dict], batch: int) -> None:
    for part in chunks(payloads, batch):
        bodies = [json.dumps(payload, separators=(",", ":")).encode() for payload in part]
        await producer.enqueue([name] * len(part), bodies, [0] * len(part))


async def measure_bulk(arguments: Arguments) -> Figures:
    (producer, _), payloads = await connect(arguments), typed_payloads(arguments["messages"])
    watch = Watch(arguments)
    await enqueue(producer, "noop", payloads, arguments["batch"])
    return watch.rate(len(payloads))


async def measure_publishers(arguments: Arguments) -> Figures:
    """So many tasks, over a pool of ten connections."""
    await connect(arguments)
    payloads = typed_payloads(arguments["messages"])
    pool = await asyncpg.create_pool(arguments["url"], min_size=10, max_size=10)

    async def publish(part: list[dict]) -> None:
        for payload in part:
            async with pool.acquire() as connection:
                body = json.dumps(payload, separators=(",", ":")).encode()
                await Queries(AsyncpgDriver(connection)).enqueue("noop", body)

    watch = Watch(arguments)
    await asyncio.gather(*(publish(payloads[n :: arguments["publishers"]]) for n in range(arguments["publishers"])))
    return watch.rate(len(payloads))


async def measure_noop(arguments: Arguments) -> Figures:
    return await drain("noop", [{}] * arguments["messages"], arguments)


async def measure_typed(arguments: Arguments) -> Figures:
    return await drain("typed", typed_payloads(arguments["messages"]), arguments)


async def drain(name: str, payloads: list[dict], arguments: Arguments) -> Figures:
    producer, queue = await connect(arguments)
    await enqueue(producer, name, payloads, 1000)
    watch = Watch(arguments)
    await queue.qm.run(
        dequeue_timeout=timedelta(seconds=1), batch_size=arguments["executors"], mode=QueueExecutionMode.drain
    )
    figures = watch.rate(len(payloads))
    assert not sum(row.count for row in await producer.queue_size())
    return figures


async def measure_latency(arguments: Arguments) -> Figures:
    producer, queue = await connect(arguments)
    pauses, sent = idle_pauses(arguments["samples"]), []
    worker = asyncio.create_task(queue.qm.run(batch_size=10))
    await asyncio.sleep(1)
    for pause in pauses:
        arrived.clear()
        sent.append(now())
        await producer.enqueue("ping", b"{}")
        await arrived.wait()
        await asyncio.sleep(pause)
    queue.shutdown.set()
    await worker
    return latency([start - send for send, start in zip(sent, started, strict=True)])


MEASUREMENTS: dict[str, Measurement] = {
    "postgres-bulk": on_uvloop(measure_bulk),
    "postgres-publishers": on_uvloop(measure_publishers),
    "postgres-single": on_uvloop(measure_publishers),
    "postgres-noop": on_uvloop(measure_noop),
    "postgres-typed": on_uvloop(measure_typed),
    "postgres-latency": on_uvloop(measure_latency),
}
DISTRIBUTIONS = ("pgqueuer", "asyncpg", "uvloop")
