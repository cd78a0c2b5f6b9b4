"""A program of a user, read by the checkers only: what its names are is asserted, and what is wrong is marked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial, wraps
from typing import Annotated, Any, ParamSpec, TypeVar, assert_type

import trio

import repid
from repid import (
    INJECTED,
    ActorMiddleware,
    Connection,
    DeadMessage,
    Depends,
    Envelope,
    Header,
    InMemoryMessageBroker,
    InMemoryServer,
    Job,
    JobHandle,
    Message,
    Payload,
    Queue,
    QueueStatus,
    Repid,
    Report,
    Result,
    Router,
    Server,
    SQLiteServer,
    Status,
    SyncJobHandle,
    SyncMessage,
    Worker,
)
from repid.testing import DirectMessage, Run, TestClient

app = Repid(Connection(InMemoryMessageBroker()))
app.servers.register_server("disk", SQLiteServer("jobs.db"), is_default=True)
router = Router(queue="sums", timeout=5)


def settings() -> dict[str, int]:
    return {}


@router.actor(store_result=True)
async def add(a: int, b: int, settings: Annotated[dict[str, int], Depends(settings)]) -> int:
    return a + b + len(settings)


P = ParamSpec("P")
R = TypeVar("R")


def logged(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return await function(*args, **kwargs)

    return call


@router.actor
@logged
async def size(path: str) -> int:
    return len(path)


@router.actor
def store(message: SyncMessage) -> None:
    assert_type(message.send_message_json(channel="c"), Envelope)


@router.actor(retries=2)
async def relay(message: Message) -> None:
    await message.outbox.send_message_json(channel="c", payload=1)
    await message.ack()


@router.actor
async def half(number: int, *, digits: int = 2, message: Message = INJECTED) -> float:
    handle = await message.enqueue(half, number // 2)
    assert_type(handle, JobHandle[float])
    assert_type(await message.outbox.enqueue(name_of, 5, kind="k"), JobHandle[str | None])
    assert_type(await message.outbox.enqueue_many(half, [1]), list[JobHandle[float]])
    assert_type(await message.using(delay=5).enqueue(half, 1), JobHandle[float])
    return number / 2


@router.actor(batch=500, batch_wait=0.2, retries=2)
async def write(rows: list[dict[str, int]], messages: list[Message] = INJECTED) -> None:
    assert_type(await messages[0].enqueue(measure, "x"), JobHandle[float])


@router.actor(batch=10)
def measure(texts: list[str], messages: list[SyncMessage] = INJECTED) -> list[float | Exception]:
    messages[0].ack()
    return [float(len(text)) for text in texts]


@router.actor
def name_of(number: int, kind: str, message: SyncMessage = INJECTED) -> str | None:
    assert_type(message.enqueue(half, number), SyncJobHandle[float])
    assert_type(message.outbox.using(retries=1).enqueue_many(half, [1, 2]), list[SyncJobHandle[float]])
    return None


async def pool() -> AsyncIterator[dict[str, int]]:
    yield {}


def account(tenant: Annotated[str, Header("x-tenant")], order: Annotated[int, Payload()]) -> str:
    return tenant * order


@app.lifespan
async def lifespan(pool: Annotated[dict[str, int], Depends(pool, scope="worker")]) -> AsyncIterator[None]:
    yield


@app.lifespan
def blocking_lifespan() -> Iterator[None]:
    yield


@app.on_dead_letter
async def alert(dead: DeadMessage) -> None:
    assert_type(dead.actor, str | None)


@app.on_dead_letter
def alert_in_a_thread(dead: DeadMessage) -> None: ...


@router.actor(on_misfit="release")
async def pay(
    tenant: Annotated[str, Header("x-tenant")] = INJECTED, account: Annotated[str, Depends(account)] = INJECTED
) -> None: ...


app.include_router(router)


async def under_test() -> None:
    with app.override({settings: dict}):
        pass
    async with TestClient(app, overrides={pool: dict}) as client:
        assert_type(client, TestClient)
        assert_type(await client.process_next(), Run | None)
        assert_type(await client.drain(raise_errors=True), list[Run])
        assert_type(await client.advance(hours=3), list[Run])
        assert_type(client.assert_enqueued(add, a=1), Envelope)
        await relay(DirectMessage(attempt=2))
    assert_type(await app.list_queues(), list[QueueStatus])


async def calls() -> None:
    handle = await app.enqueue(half, 3, digits=1)
    assert_type(handle, JobHandle[float])
    assert_type(await handle.wait(), Result[float])
    assert_type((await handle.wait(5)).value, float)
    assert_type(await handle.wait_as(str), Result[str])
    assert_type(await app.enqueue(name_of, 1, kind="k"), JobHandle[str | None])
    assert_type(await app.using(delay=5, id_="x").enqueue(half, 3), JobHandle[float])
    assert_type(await app.call(half, 3), float)
    assert_type(await app.call(name_of, 3, "k"), str | None)
    assert_type(await app.call(size, "x"), int)
    assert_type(await app.enqueue_many(size, ["x"]), list[JobHandle[int]])
    assert_type(await app.using(call_timeout=5).call(half, 3), float)
    assert_type(app.job(half, 3), Job[float])
    assert_type(await app.job(half, 3).enqueue(), JobHandle[float])
    assert_type(await app.enqueue_many(half, [1, 2]), list[JobHandle[float]])
    assert_type(await app.enqueue_many(partial(half, digits=1), range(3)), list[JobHandle[float]])
    assert_type(await app.enqueue_many([app.job(half, 3)]), list[JobHandle[float]])
    await app.enqueue_many([app.job(half, 3), app.job(name_of, 1, "k")])
    mixed: list[object] = await app.gather([await app.enqueue(half, 1), await app.enqueue(name_of, 1, "k")])
    assert len(mixed)
    async with app.map(half, [1, 2], limit=5) as values:
        async for value in values:
            assert_type(value, float)
    async with app.using(retries=2).map(partial(name_of, kind="k"), range(3), on_error="yield", ordered=False) as names:
        async for name in names:
            assert_type(name, Result[str | None])
    handles = await app.enqueue_many(half, [1, 2])
    assert_type(await app.gather(handles), list[float])
    assert_type(await app.gather(handles, on_error="return", timeout=5), list[Result[float]])
    assert_type(await app.first_of(handles, cancel_others=True), Result[float])
    assert_type(await app.enqueue(write, {"a": 1}), JobHandle[None])
    assert_type(await app.using(delay=1).enqueue(measure, "x"), JobHandle[float])
    assert_type(await app.enqueue_many(measure, ["x", "y"]), list[JobHandle[float]])
    assert_type(await app.call(measure, "x"), float)
    assert_type(await app.job(measure, "x").enqueue(), JobHandle[float])
    assert_type(app.handle(measure, "id"), JobHandle[float])
    assert_type(app.handle(half, "id"), JobHandle[float])
    assert_type(app.handle(name_of, "id"), JobHandle[str | None])
    app.handle("half", "id")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async with app.map(measure, ["x"]) as lengths:
        assert_type([each async for each in lengths], list[float])
    await write([{"a": 1}], [DirectMessage()])
    assert_type(measure(["x"]), Sequence[float | Exception] | None)
    await app.enqueue_many(measure, [1])  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await app.enqueue(half, "3")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await app.enqueue(half)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await app.enqueue(half, 3, digit=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await app.call(name_of, 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await app.enqueue_many(half, ["3"])  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]


def blocking_calls() -> None:
    with app.sync() as client:
        assert_type(client.enqueue(half, 3), SyncJobHandle[float])
        assert_type(client.enqueue(measure, "x"), SyncJobHandle[float])
        blocking = client.enqueue(half, 3)
        assert_type(client.handle(half, "id"), SyncJobHandle[float])
        assert_type(blocking.wait(5), Result[float])
        assert_type(blocking.wait_as(int, timeout=5), Result[int])
        assert_type(blocking.result, Result[float] | None)
        assert_type(blocking.status(), Status)
        assert_type(client.status(blocking), Status)
        assert_type(list(blocking.watch()), list[Status])
        assert_type(client.call(measure, "x"), float)
        with client.map(half, [1, 2]) as halves, client.map(measure, ["x"], on_error="yield") as lengths:
            assert_type(list(halves), list[float])
            assert_type(next(lengths), Result[float])
        assert_type(client.enqueue_many(measure, ["x"]), list[SyncJobHandle[float]])
        assert_type(client.wait(client.enqueue(half, 3)), Result[float])
        assert_type(client.call(half, 3), float)
        assert_type(client.using(call_timeout=5).call(name_of, 3, kind="k"), str | None)
        assert_type(client.call(size, "x"), int)
        assert_type(client.using(delay=1).enqueue(half, 3), SyncJobHandle[float])
        assert_type(client.enqueue_many(half, [1]), list[SyncJobHandle[float]])
        assert_type(client.enqueue_many([app.job(half, 3)]), list[SyncJobHandle[float]])
        assert_type(client.gather(client.enqueue(half, 1), client.enqueue(half, 2)), list[float])
        assert_type(client.gather(client.enqueue_many(half, [1]), timeout=5), list[float])
        assert_type(client.first_of(client.enqueue_many(half, [1])), Result[float])


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
        if (await handle.status()).state == "sucess":  # type: ignore[comparison-overlap]
            raise AssertionError
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
        assert_type(client.enqueue(Job("add")), SyncJobHandle)
        assert_type(client.wait(handle, 5), Result[Any])
        assert_type(client.result(handle, timeout=5), Result[Any])


trio.run(main)


def misspell() -> None:
    """A name that repid does not have is an error, although some are loaded at their first use."""
    repid.Rooter()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
