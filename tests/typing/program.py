"""A program of a user, read by the checkers only: what its names are is asserted, and what is wrong is marked."""

from __future__ import annotations

from typing import Annotated, Any, assert_type

import trio

from repid import (
    ActorMiddleware,
    Connection,
    Depends,
    Envelope,
    InMemoryMessageBroker,
    InMemoryServer,
    Job,
    JobHandle,
    Message,
    Queue,
    Repid,
    Report,
    Result,
    Router,
    Server,
    SQLiteServer,
    Status,
    SyncMessage,
    Worker,
)

app = Repid(Connection(InMemoryMessageBroker()))
app.servers.register_server("disk", SQLiteServer("jobs.db"), is_default=True)
router = Router(queue="sums", timeout=5)


def settings() -> dict[str, int]:
    return {}


@router.actor(store_result=True)
async def add(a: int, b: int, settings: Annotated[dict[str, int], Depends(settings)]) -> int:
    return a + b + len(settings)


@router.actor
def store(message: SyncMessage) -> None:
    assert_type(message.send_message_json(channel="c"), Envelope)


@router.actor(retries=2)
async def relay(message: Message) -> None:
    await message.outbox.send_message_json(channel="c", payload=1)
    await message.ack()


app.include_router(router)


def takes_server(server: Server) -> Connection:
    return Connection(server)


async def main() -> None:
    takes_server(InMemoryServer())
    async with app.magic():
        await Queue("sums").declare()
        handle = await Job("add", queue="sums", args={"a": 1, "b": 2}).enqueue()
        assert_type(handle, JobHandle)
        assert_type(await handle.wait(), Result[Any])
        assert_type(await handle.wait_as(int, timeout=5), Result[int])
        assert_type(await Job("add").wait(5), Result[Any])
        assert_type(Job("add").retries, int)
        assert_type(Job("add").server_name, str | None)
        assert_type(Worker().graceful_shutdown_time, float)
        assert_type(router.middlewares, tuple[ActorMiddleware, ...])
        assert_type(Queue().name, str)
        assert_type(await handle.status(), Status)
        found = await handle.result_as(int)
        if found is not None:
            assert_type(found.value, int)
        async for status in handle.watch():
            assert_type(status, Status)
        assert_type(await Worker([router], burst=True).run(), Report)
        assert_type(await app.send_message_json(channel="c", payload=[1]), Envelope)
    async with trio.open_nursery() as nursery, app.servers.default.connection():
        await nursery.start(app.run_worker)
    with app.sync() as client:
        assert_type(client.enqueue(Job("add")), JobHandle)
        assert_type(client.wait(handle, 5), Result[Any])
        assert_type(client.result(handle, timeout=5), Result[Any])


trio.run(main)
