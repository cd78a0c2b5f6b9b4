"""Aids for tests of workers: a broker that fails on order, and runs on a virtual clock."""

from __future__ import annotations

import subprocess
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import trio
import trio.testing

from repid import BrokerUnavailable, Counts, Envelope, InMemoryServer, Repid
from repid.delivery import Delivery, Settlement
from repid.ports import Consumer, DueSchedules, StoredSchedule, TickOutcome, Topics, Verdict

T = TypeVar("T")


def read_rest(process: subprocess.Popen[Any], seconds: float = 30) -> tuple[Any, Any]:
    """What a process says until it ends, on both of its streams: `communicate` forgets what `readline` has read ahead.

    It is killed after so many seconds.
    """
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        said = [None if stream is None else stream.read() for stream in (process.stdout, process.stderr)]
        process.wait()
    finally:
        timer.cancel()
    return said[0], said[1]


class Log(list[str]):
    """What happened, in order."""

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        self.append(f"{name} opens")
        try:
            yield
        except BaseException as error:
            self.append(f"{name} sees {type(error).__name__}")
            raise
        finally:
            self.append(f"{name} closes")


class UnreliableServer(InMemoryServer):
    """A broker in memory that is not always there: what a worker asks of it can be made to fail.

    `failures[method] = n`: the next n calls raise `BrokerUnavailable`. `hanging`: methods that never answer, or only
    when `heal` is called. `calls` counts what reached it, failed calls included.
    """

    def __init__(self, *, lease_timeout: float = 60.0) -> None:
        super().__init__(lease_timeout=lease_timeout)
        self.failures: Counter[str] = Counter()
        self.hanging: set[str] = set()
        self.calls: Counter[str] = Counter()
        self._healed = trio.Event()

    def heal(self) -> None:
        """Answer everything again, also what hangs now."""
        self.failures.clear()
        self.hanging.clear()
        self._healed.set()
        self._healed = trio.Event()

    async def trouble(self, method: str) -> None:
        """What happens to a call before it is carried out."""
        self.calls[method] += 1
        if method in self.hanging:
            await self._healed.wait()
        if self.failures[method] > 0:
            self.failures[method] -= 1
            await trio.lowlevel.checkpoint()
            raise BrokerUnavailable(f"{method} is out of order")

    async def due_schedules(self, limit: int) -> DueSchedules:
        await self.trouble("due_schedules")
        return await super().due_schedules(limit)

    async def schedules(self, names: Collection[str] | None = None) -> list[StoredSchedule]:
        await self.trouble("schedules")
        return await super().schedules(names)

    async def tick(self, *args: Any) -> TickOutcome:
        await self.trouble("tick")
        return await super().tick(*args)

    async def readers(self) -> list[Mapping[str, Topics]]:
        await self.trouble("readers")
        return await super().readers()

    async def declare(self, queues: Iterable[str]) -> None:
        await self.trouble("declare")
        await super().declare(queues)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Any, None]:
        await self.trouble("connection")
        async with super().connection():
            yield self

    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncGenerator[Any, None]:
        await self.trouble("consume")
        async with super().consume(queues) as consumer:
            yield _UnreliableConsumer(consumer, self)


class _UnreliableConsumer:
    """Goes in front of a consumer; what cannot be made to fail goes straight to it."""

    def __init__(self, consumer: Consumer, server: UnreliableServer) -> None:
        self._consumer = consumer
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    async def receive(self, limit: int, **limits: Any) -> list[Delivery]:
        await self._server.trouble("receive")
        return await self._consumer.receive(limit, **limits)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        await self._server.trouble("settle")
        return await self._consumer.settle(settlements)

    async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        await self._server.trouble("extend")
        return await self._consumer.extend(deliveries)

    async def rescue(self) -> int:
        await self._server.trouble("rescue")
        return await self._consumer.rescue()


def seed_scheduler(seed: object) -> None:
    """Make the order in which trio runs tasks depend on the seed alone (pytest-trio switches determinism on)."""
    trio._core._run._r.seed(str(seed))  # private, and the only way


def run_virtual(main: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """`trio.run` on a virtual clock; what has not ended after a day of it has hung."""

    async def bounded() -> T:
        with trio.fail_after(86_400):
            return await main(*arguments)

    return trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


async def send(app: Repid, actor: str, *, channel: str = "default", **payload: Any) -> Envelope:
    """Send one message to an actor."""
    return await app.send_message_json(channel=channel, payload=payload, headers={"topic": actor})


def total(counts: Counts) -> int:
    """How many messages there are at all."""
    return counts.ready + counts.scheduled + counts.leased + counts.dead


async def failure_of(server: UnreliableServer) -> tuple[str, str]:
    """Type and text of the error of the only dead letter."""
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    return dead.failure.type, dead.failure.text
