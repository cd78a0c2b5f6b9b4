"""A producer: several tasks that publish, one message at a time or many, until they have published what was ordered."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import msgspec
import trio

from repid import BrokerUnavailable, Envelope, Repid

from .steps import QUEUE, DoomedServer, Orders, obey

SENDERS = 5
SIZES = (1, 1, 1, 2, 5, 20, 40)
HEADERS = {"topic": "work"}
PATIENCE = 20
"""How many times a call is made anew that failed because the broker was not available."""


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


async def keep_sending(app: Repid, server: DoomedServer, orders: Orders, numbers: Iterator[int]) -> None:
    chance = random.Random(f"{orders.prefix} {orders.seed}")
    for first in numbers:
        size = chance.choice(SIZES)
        chosen = [first, *(number for _, number in zip(range(size - 1), numbers, strict=False))]
        ids = [(f"{orders.prefix}-{number}", number) for number in chosen]
        for _ in range(PATIENCE):
            try:
                await send_some(app, server, ids)
                break
            except BrokerUnavailable as error:
                sys.stderr.write(f"again: {error}\n")
        else:
            raise AssertionError(f"the broker was not available {PATIENCE} times")
        await trio.sleep(len(ids) * SENDERS / orders.rate * chance.uniform(0.5, 1.5))


async def main() -> None:
    orders, doom = obey(sys.argv)
    server = DoomedServer(orders, doom)
    app = Repid()
    app.servers.register_server("default", server)
    numbers = iter(range(orders.count))
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare([QUEUE])
        for _ in range(SENDERS):
            nursery.start_soon(keep_sending, app, server, orders, numbers)


if __name__ == "__main__":
    trio.run(main)
