"""What the tests of the memory broker share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
import trio.testing

from repid.brokers import InMemoryServer
from repid.brokers.consumer import Consumer
from repid.brokers.memory.driver import MemoryDriver
from repid.delivery import Delivery, Disposition, Settlement
from repid.envelope import Envelope
from repid.ports import Category, Topics, Verdict


def driver_of(server: InMemoryServer) -> MemoryDriver:
    """The part behind the front door."""
    assert isinstance(server._driver, MemoryDriver)
    return server._driver


@asynccontextmanager
async def consuming(server: InMemoryServer, topics: Topics = None) -> AsyncGenerator[Consumer, None]:
    async with server.consume({"q": topics}) as consumer:
        yield consumer


async def settle(consumer: Consumer, delivery: Delivery, disposition: Disposition, *outbox: Envelope) -> Verdict:
    return (await consumer.settle([Settlement(delivery, disposition, outbox)]))[0]


async def browsed(server: InMemoryServer, category: Category) -> list[str]:
    return [found.envelope.id for found in await server.browse("q", category)]


async def finishes(function: Callable[[], Awaitable[object]]) -> bool:
    """Whether it ends without time passing or anybody's help."""
    with trio.move_on_after(0.001):
        await function()
        return True
    return False
