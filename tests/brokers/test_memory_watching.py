"""How long a look at a message of the memory broker holds."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from repid import Envelope, InMemoryServer
from repid.delivery import Retry, Settlement
from repid.envelope import Options


async def test_who_watches_a_message_that_was_started_does_not_look_all_the_time_once_its_ttl_is_over(
    autojump_clock: MockClock,
) -> None:
    server = InMemoryServer()
    looks: list[str] = []
    server.add_instrument(lambda call: looks.append(call.name))
    async with server.connection():
        await server.declare(["q"])
        await server.publish([Envelope("a", "q", b"", options=Options(ttl=1.0))])
        async with server.consume({"q": None}) as consumer:
            await consumer.settle([Settlement(d, Retry(100.0)) for d in await consumer.receive(1)])
            seen = await server.watch("a", "a")
            await trio.sleep(2)
            with trio.move_on_after(50):
                await server.watch("a", "a", seen)
    assert looks.count("snapshots") == 2
