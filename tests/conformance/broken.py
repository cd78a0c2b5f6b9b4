"""A memory broker whose parts can be broken, one at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from repid import InMemoryServer, ports
from repid.delivery import Delivery, Settlement
from repid.ports import Topics, Verdict


class BrokenConsumer:
    """A consumer that does what it should, but for what a subclass breaks."""

    def __init__(self, sound: ports.Consumer, server: BrokenServer) -> None:
        self.sound = sound
        self.server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sound, name)

    async def receive(self, limit: int, **limits: Any) -> list[Delivery]:
        deliveries = await self.sound.receive(limit, **limits)
        for delivery in deliveries:
            self.server.leased[delivery.envelope.id] = delivery
        return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        return await self.sound.settle(settlements)


class BrokenServer(InMemoryServer):
    """A memory broker that does what it should, but for what a subclass breaks. `leased`: the last lease of each id."""

    Consumer: type[BrokenConsumer] = BrokenConsumer

    def __init__(self) -> None:
        super().__init__()
        self.leased: dict[str, Delivery] = {}

    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncGenerator[Any, None]:
        async with super().consume(queues) as sound:
            yield self.Consumer(sound, self)


def change(settlement: Settlement, **changes: object) -> Settlement:
    return msgspec.structs.replace(settlement, **changes)
