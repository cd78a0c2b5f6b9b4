"""What full queues drop is told to the log, whatever it was dropped for."""

from __future__ import annotations

from pathlib import Path

import pytest
from engines.postgres import Postgres
from engines.redis import Redis

from repid import InMemoryServer, PostgresServer, Server, SQLiteServer
from repid.brokers.redis import RedisServer
from repid.delivery import ACK, Bounds, Settlement
from repid.ports import Schedule

from .broker_aids import message, now_ready

pytestmark = pytest.mark.real_time

QUEUES = {"sent": 2, "sent by an outbox": 1, "sent by a schedule": 1}
"""How many messages each queue drops."""


async def drop(server: Server) -> None:
    async with server.connection():
        await server.declare(["q"])
        await server.set_bounds(dict.fromkeys(QUEUES, Bounds(max_size=1, when_full="drop_oldest")))
        await server.publish([message("work"), *(message(queue, queue) for queue in QUEUES)])
        await server.publish([message("1", "sent"), message("2", "sent")])
        async with server.consume({"q": None}) as consumer:
            [delivery] = await now_ready(consumer)
            [verdict] = await consumer.settle([Settlement(delivery, ACK, (message("3", "sent by an outbox"),))])
            assert verdict.outcome == "settled"
        tick = message("4", "sent by a schedule")
        await server.put_schedule(Schedule(name="s", envelope=tick, every=60.0), 1000.0)
        assert await server.tick("s", 1000.0, 1060.0, tick) == "fired"


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in (record.getMessage() for record in caplog.records) if "has dropped" in text]


TOLD = [
    f'queue {queue!r} was full and has dropped {count} of its oldest messages (when_full="drop_oldest")'
    for queue, count in QUEUES.items()
]


async def test_the_log_tells_what_is_dropped_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    await drop(InMemoryServer())
    assert told(caplog) == TOLD


async def test_the_log_tells_what_is_dropped_in_sqlite(caplog: pytest.LogCaptureFixture, path: Path) -> None:
    await drop(SQLiteServer(path))
    assert told(caplog) == TOLD


async def test_the_log_tells_what_is_dropped_in_postgresql(
    caplog: pytest.LogCaptureFixture, postgres: Postgres, schema: str
) -> None:
    await drop(PostgresServer(postgres.url, schema=schema))
    assert told(caplog) == TOLD


async def test_the_log_tells_what_is_dropped_in_redis(
    caplog: pytest.LogCaptureFixture, redis: Redis, prefix: str
) -> None:
    await drop(RedisServer(redis.url, prefix=prefix))
    assert told(caplog) == TOLD
