"""A producer: several tasks that publish, one message at a time or many, until they have published what was ordered."""

from __future__ import annotations

import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial

import msgspec
import trio

from repid import BrokerUnavailable, Envelope, PublishUnknown, Repid

from .steps import HEADERS, QUEUE, DoomedServer, Orders, doomed_server, obey

SENDERS = 5
SIZES = (1, 1, 1, 2, 5, 20, 40)
PATIENCE = 120.0
"""Seconds for which a call is made again that failed because the broker was not available."""


async def send_some(app: Repid, server: DoomedServer, ids: list[tuple[str, int]]) -> None:
    """Publish these, with the app's call for one, with the server's for many. None may be refused."""
    if len(ids) == 1:
        [(id_, number)] = ids
        await app.send_message_json(channel=QUEUE, payload={"number": number}, headers=HEADERS, message_id=id_)
        return
    outcomes = await server.publish(
        [
            Envelope(id_, QUEUE, msgspec.json.encode({"number": number}), "application/json", HEADERS)
            for id_, number in ids
        ]
    )
    if any(outcomes):
        raise AssertionError(f"refused: {[outcome for outcome in outcomes if outcome is not None]}")


async def patiently(call: Callable[[], Awaitable[None]]) -> None:
    """Make the call again until the broker is available and has answered. So what was unknown is proved by its ids."""
    deadline = trio.current_time() + PATIENCE
    while True:
        try:
            return await call()
        except (BrokerUnavailable, PublishUnknown) as error:
            if trio.current_time() > deadline:
                raise
            sys.stderr.write(f"again: {error}\n")
            await trio.sleep(0.05)


async def keep_sending(app: Repid, server: DoomedServer, orders: Orders, numbers: Iterator[int]) -> None:
    chance = random.Random(f"{orders.prefix} {orders.seed}")
    for first in numbers:
        size = chance.choice(SIZES)
        chosen = [first, *(number for _, number in zip(range(size - 1), numbers, strict=False))]
        ids = [(f"{orders.prefix}-{number}", number) for number in chosen]
        await patiently(partial(send_some, app, server, ids))
        await trio.sleep(len(ids) * SENDERS / orders.rate * chance.uniform(0.5, 1.5))


async def main() -> None:
    orders, doom = obey(sys.argv)
    server = doomed_server(orders, doom)
    app = Repid()
    app.servers.register_server("default", server)
    numbers = iter(range(orders.count))
    async with AsyncExitStack() as stack:

        async def connect() -> None:
            await stack.enter_async_context(server.connection())

        await patiently(connect)
        await patiently(partial(server.declare, [QUEUE]))
        nursery = await stack.enter_async_context(trio.open_nursery())
        for _ in range(SENDERS):
            nursery.start_soon(keep_sending, app, server, orders, numbers)


if __name__ == "__main__":
    trio.run(main)
