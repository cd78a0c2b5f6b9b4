# mypy: ignore-errors
# Reason: dramatiq lives in another environment.
"""dramatiq on Redis: scripts claim messages for a consumer's threads and acknowledge one by one; a heartbeat keeps them.

It comes with middlewares that retry, limit the age and the time of messages, and call back: they are on, as it comes. It has
no call for many messages, and what sends blocks, so that 50 tasks send one after the other; threads would only be slower.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from ._peers_on_a_server import A_TENTH, Payload, measurements, runs
from ._shared import NAP, Arguments, Measurement, now, on_asyncio

THREADS = 16
"""For work that does not wait: with the 8 that are the default it is slower, and with 32."""

MANY = 1000
"""Executors of work that sleeps: as many threads."""

POLLING = 1
"""The most milliseconds between two looks at an empty queue; the default is 1000."""


class Acknowledgements(dramatiq.Middleware):
    """Counts what the broker was told, and says when it was enough."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.loop = loop
        self.count = count
        self.reached = asyncio.Event()
        self.given: list[None] = []

    def after_ack(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:  # noqa: ARG002 - named by dramatiq
        self.given.append(None)
        if len(self.given) == self.count:
            self.loop.call_soon_threadsafe(self.reached.set)


class Dramatiq:
    """A broker that sends, and whose worker has threads."""

    def __init__(self, url: str, *, results: bool) -> None:
        def noop() -> None:
            runs.ended.append(None)

        def typed(number: int, text: str) -> None:  # noqa: ARG001 - it checks neither
            runs.ended.append(None)

        def doze() -> None:
            time.sleep(NAP)
            runs.ended.append(None)

        def ping() -> None:
            runs.started.append(now())
            loop.call_soon_threadsafe(runs.arrived.set)

        def answer(number: int) -> int:
            return number

        def first() -> None:
            self.actors["noop"].send()
            runs.ended.append(None)

        loop = asyncio.get_running_loop()
        keep = {"store_results": True} if results else {}
        self.broker = broker = RedisBroker(url=f"{url}?max_connections=2000")
        self.backend = RedisBackend(url=url)
        if results:
            broker.add_middleware(Results(backend=self.backend))
        self.actors = {
            function.__name__: dramatiq.actor(broker=broker, **keep)(function)
            for function in (noop, typed, doze, ping, answer, first)
        }

    async def send(self, task: str, payload: Payload) -> None:
        self.actors[task].send(**payload)

    async def send_many(self, task: str, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            self.actors[task].send(**payload)

    async def drain(self, count: int, executors: int) -> None:
        acknowledgements = Acknowledgements(asyncio.get_running_loop(), count)
        self.broker.add_middleware(acknowledgements)
        async with self.working(executors if executors == MANY else THREADS):
            await acknowledgements.reached.wait()

    @asynccontextmanager
    async def working(self, executors: int) -> AsyncIterator[None]:
        worker = dramatiq.Worker(self.broker, worker_threads=executors, worker_timeout=POLLING)
        worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(worker.stop)

    async def call(self, number: int) -> int:
        message = self.actors["answer"].send(number)
        return await asyncio.to_thread(message.get_result, backend=self.backend, block=True)


@asynccontextmanager
async def opened(arguments: Arguments, *, results: bool = False) -> AsyncIterator[Dramatiq]:
    peer = Dramatiq(arguments["url"], results=results)
    yield peer
    peer.broker.close()


MEASUREMENTS: dict[str, Measurement] = measurements(on_asyncio, opened, "redis", without={"bulk"}, parts=A_TENTH)
DISTRIBUTIONS = ("dramatiq", "redis", "hiredis")
