"""What a worker does at its borders with the broker: while an answer is on its way, and when none comes."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from aids import UnreliableServer, send

from repid import (
    BrokerUnavailable,
    Connection,
    Counts,
    Handle,
    InMemoryServer,
    Job,
    Message,
    Queue,
    Repid,
    Router,
)


class DistantServer(UnreliableServer):
    """A broker whose answers to `receive` take a while."""

    distance = 1.0

    async def trouble(self, method: str) -> None:
        await super().trouble(method)
        if method == "receive" and self.distance:
            await trio.sleep(self.distance)


async def test_a_worker_reads_ahead_where_the_broker_is_distant(autojump_clock: trio.testing.MockClock) -> None:
    server = DistantServer()
    server.distance = 0.1
    app, router = Repid(Connection(server)), Router()
    app.include_router(router)

    @router.actor
    async def job(i: int) -> None:
        await trio.sleep(0.01 + i % 10 * 0.02)

    async with app.magic():
        await Queue().declare()
        payloads = [{"i": i} for i in range(2000)]
        await app.send_messages_json(channel="default", payloads=payloads, headers={"topic": "job"})
        assert (await app.run_worker(burst=True, tasks_limit=10)).succeeded == 2000
    assert server.calls["receive"] < 350  # without reading ahead it is asked nearly 500 times


async def test_messages_with_and_without_a_result_are_settled_together(autojump_clock: trio.testing.MockClock) -> None:
    results = InMemoryServer()
    app, router = Repid(Connection(InMemoryServer()), result_store=results), Router()
    app.include_router(router)

    @router.actor
    async def double(x: int) -> int:
        return 2 * x

    async with results.connection(), app.magic():
        await Queue().declare()
        stored = await Job("double", args={"x": 2}, store_result=True).enqueue()
        other = await Job("double", args={"x": 3}).enqueue()
        with trio.move_on_after(5):
            await app.run_worker()
        assert await Queue().counts() == Counts()
        found = await results.fetch_results([stored.id, other.id])
    assert [result is not None for result in found] == [True, False]


async def test_a_verb_outside_of_the_worker_is_told_that_the_worker_gave_up_settling(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    taken: list[Message] = []
    told: list[str] = []

    @router.actor(confirmation_mode="manual")
    async def job(message: Message) -> None:
        taken.append(message)

    async def ack() -> None:
        with pytest.raises(BrokerUnavailable) as error:
            await taken[0].ack()
        told.append(str(error.value))

    await send(app, "job")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        server.hanging.add("settle")
        nursery.start_soon(ack)
        await trio.sleep(1)
        handle.stop()
    assert told == [f"the worker ended before the server had answered for {taken[0].message_id!r}"]
