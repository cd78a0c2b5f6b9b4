"""What the tests of the SQLite broker share."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import trio.testing

from repid.brokers import SQLiteServer
from repid.brokers.consumer import Consumer
from repid.brokers.sqlite import schema
from repid.brokers.sqlite.clock import MICRO, Clock
from repid.delivery import ACK, Delivery, Settlement
from repid.envelope import Envelope
from repid.ports import Topics

from .broker_aids import message


class SteppedClock(Clock):
    """The real clocks, moved and stepped by order; counts how often it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0
        self.stepped = 0
        self.reads = 0

    def wall(self) -> int:
        self.reads += 1
        return super().wall() + self.passed + self.stepped

    def boot(self) -> int:
        return super().boot() + self.passed

    def advance(self, seconds: float) -> None:
        self.passed += round(seconds * MICRO)

    def step_wall(self, seconds: float) -> None:
        self.stepped += round(seconds * MICRO)


@asynccontextmanager
async def serving(
    path: Path, *queues: str, clock: Clock | None = None, lease_timeout: float = 60.0
) -> AsyncGenerator[SQLiteServer, None]:
    """A connected server with these queues ("q" if none is given)."""
    server = SQLiteServer(path, clock=clock, lease_timeout=lease_timeout)
    async with server.connection():
        await server.declare(queues or ["q"])
        yield server


@asynccontextmanager
async def consuming(server: SQLiteServer, topics: Topics = None) -> AsyncGenerator[Consumer, None]:
    async with server.consume({"q": topics}) as consumer:
        yield consumer


def messages(numbers: Iterable[object]) -> list[Envelope]:
    return [message(str(number)) for number in numbers]


async def ack(consumer: Consumer, deliveries: Iterable[Delivery]) -> list[bool]:
    verdicts = await consumer.settle([Settlement(delivery, ACK) for delivery in deliveries])
    return [verdict.accepted for verdict in verdicts]


async def idle() -> None:
    """Until everybody waits and the broker's thread has nothing to do."""
    await trio.testing.wait_all_tasks_blocked(0.03)


class Opening:
    """Opens files as `schema.open_file` does, and does something to every connection then."""

    def __init__(self, change: Callable[[sqlite3.Connection], object]) -> None:
        self._open = schema.open_file
        self._change = change

    def __call__(self, how: schema.Opening, give_up_at: Callable[[], float]) -> sqlite3.Connection:
        connection = self._open(how, give_up_at)
        self._change(connection)
        return connection


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another Python process running this code; its standard output and input are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
