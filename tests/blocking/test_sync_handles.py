"""The handles of code that blocks: of a client, and of a sync actor's message. Real time, but little of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import Context, copy_context
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from repid import (
    INJECTED,
    Client,
    ConfigurationError,
    Connection,
    InMemoryServer,
    Job,
    JobFailed,
    Queue,
    Repid,
    ResultError,
    Router,
    SQLiteServer,
    SyncJobHandle,
    SyncMessage,
    UsageError,
)

pytestmark = pytest.mark.real_time

router = Router(store_result=True)


@router.actor
def divide(one: int, other: int, message: SyncMessage = INJECTED) -> float:
    message.progress(1, 2, "divided by")
    return one / other


@router.actor
async def hang() -> None:
    await trio.sleep_forever()


@pytest.fixture
def app(tmp_path: Path) -> Repid:
    app = Repid(Connection(SQLiteServer(tmp_path / "jobs.db", synchronous="NORMAL")))
    app.include_router(router)
    return app


@pytest.fixture
def client(app: Repid) -> Iterator[Client]:
    with app.sync() as client:
        yield client


def test_a_handle_waits_and_asks_by_plain_calls(client: Client) -> None:
    handle = client.enqueue(divide, 1, 2)
    assert repr(handle) == f"<SyncJobHandle {handle.id!r} on 'default'>"
    assert (handle.queue, handle.envelope.id, handle.schedule_name) == ("default", handle.id, None)
    assert handle.result is None
    assert handle.status().state == "ready"
    with pytest.raises(TimeoutError, match=r"has not ended within .* seconds: it is still ready"):
        handle.wait(timeout=0.01)
    with client.worker():
        assert handle.wait(timeout=10).value == handle.wait_as(float).value == 0.5
        assert list(client.enqueue(divide, 4, 2).watch())[-1].state == "success"
    result, as_text = handle.result, handle.result_as(str)
    assert result is not None
    assert as_text is not None
    assert result.value == 0.5
    with pytest.raises(ResultError, match="is not what was asked for"):
        _ = as_text.value
    assert not handle.cancel()
    assert client.handle(divide, handle.id).wait().value == 0.5


def test_a_handle_raises_what_its_job_did(client: Client) -> None:
    handle = client.using(retries=0).enqueue(divide, 1, 0)
    with client.worker(), pytest.raises(JobFailed, match="ZeroDivisionError"):
        _ = handle.wait(10).value


def test_the_handles_of_jobs_and_of_many_calls_are_such_too(client: Client) -> None:
    client.run(Queue().declare)
    handles: list[Any] = [
        client.enqueue(Job("divide", args={"one": 4, "other": 2})),
        *client.enqueue_many(partial(divide, other=2), [6]),
        *client.enqueue_many([Job("divide", args={"one": 8, "other": 2})]),
    ]
    assert {type(each) for each in handles} == {SyncJobHandle}
    with client.worker():
        assert client.gather(handles) == client.gather(*handles) == [2, 3, 4]
        assert client.first_of(handles[0]).value == client.wait(handles[0]).value == 2
    assert client.status(handles[0]).state == "success"


def test_a_job_that_runs_is_watched_and_cancelled(client: Client) -> None:
    with client.worker():
        handle = client.enqueue(hang)
        states = []
        for status in handle.watch():
            states.append(status.state)
            if status.state == "running":
                assert handle.cancel()
    assert states[-1] == "cancelled"


def test_what_a_handle_has_not_is_told_with_the_call_that_has_it(client: Client) -> None:
    handle: Any = client.enqueue(divide, 1, 2)
    with pytest.raises(AttributeError, match=r"has no 'value', its result has: `handle.wait\(\).value` waits for it"):
        _ = handle.value
    with pytest.raises(AttributeError, match=r"^'SyncJobHandle' object has no attribute 'none'$"):
        _ = handle.none
    assert "value" not in dir(handle)
    for call in (handle.status, partial(handle.status)):
        with pytest.raises(ConfigurationError, match=r"blocks by itself, .*: call status\(\) of the handle"):
            client.run(call)
    with pytest.raises(UsageError, match=r"a thread of repid's own: .* by a function that client.run was given"):
        client.run(lambda: handle.wait(1))


def test_the_app_is_told_that_a_handle_for_code_that_blocks_belongs_to_the_client(app: Repid, client: Client) -> None:
    handle: Any = client.enqueue(divide, 1, 2)
    for handles in ([handle], handle):
        with pytest.raises(ConfigurationError, match="a handle for code that blocks: call gather of the client"):
            client.run(partial(app.gather, handles))
        with pytest.raises(ConfigurationError, match="a handle for code that blocks: call first_of of the client"):
            client.run(partial(app.first_of, handles))


async def test_async_code_is_told_that_such_a_handle_blocks() -> None:
    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    async with app.magic():
        client = app.sync()
        handle: Any = await trio.to_thread.run_sync(partial(client.enqueue, divide, 1, 2))
        with pytest.raises(UsageError, match="are for code that blocks"):
            await handle
        with pytest.raises(UsageError, match="would stop the trio loop that runs in this thread"):
            handle.wait()


async def test_a_sync_actor_waits_for_what_its_message_has_enqueued() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router(store_result=True)

    @router.actor
    def child(number: int) -> int:
        return number + 1

    @router.actor
    def parent(message: SyncMessage = INJECTED) -> list[int]:
        here, there = message.enqueue(child, 1), message.using(retries=1).enqueue_many(child, [2])
        elsewhere: list[int] = []
        thread = threading.Thread(target=lambda: elsewhere.append(there[0].wait(10).value))  # no thread of trio's
        thread.start()
        found = here.wait(10).value
        thread.join()
        return [found, *elsewhere]

    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        assert await app.call(parent) == [2, 3]
        worker.stop()


@pytest.mark.parametrize("by_the_client", [False, True])
async def test_a_sync_actor_that_waits_for_a_job_ends_at_its_timeout(by_the_client: bool) -> None:
    app, router = Repid(Connection(InMemoryServer())), Router(store_result=True)
    ended: list[str] = []

    @router.actor
    async def never(_: int = 0) -> None:
        await trio.sleep_forever()

    @router.actor(timeout=0.1)
    def parent(message: SyncMessage = INJECTED) -> None:
        handle = message.enqueue(never)
        try:
            if by_the_client:
                app.sync().wait(handle)
            handle.wait()
        except trio.Cancelled:
            ended.append(handle.id)
            assert handle.cancel()  # what does not wait is done also then
            raise

    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        with trio.fail_after(10), pytest.raises(JobFailed, match="ran longer than its timeout"):
            await app.call(parent)
        worker.stop()
    assert len(ended) == 1
    assert (worker.report.dead, worker.report.cancelled) == (1, 1)


async def test_a_wait_in_the_context_of_an_earlier_actor_ends_at_the_timeout_of_the_present_one() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router(store_result=True, timeout=0.1)
    contexts: list[Context] = []
    threads: set[int] = set()
    returned: list[object] = []

    @router.actor(timeout=60)
    async def never() -> None:
        await trio.sleep_forever()

    @router.actor
    def earlier() -> None:
        threads.add(threading.get_ident())
        contexts.append(copy_context())
        app.sync().call(never)

    @router.actor
    def present() -> None:
        threads.add(threading.get_ident())
        returned.append(contexts[0].run(app.sync().call, never))

    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(partial(app.run_worker, graceful_shutdown_time=0))
        with trio.fail_after(10):
            for actor in (earlier, present):
                with pytest.raises(JobFailed, match="ran longer than its timeout"):
                    await app.call(actor)
        worker.stop()
    assert (len(threads), returned) == (1, [])


async def test_a_map_in_a_sync_actor_ends_at_its_timeout_and_cancels_what_is_not_over() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router(store_result=True)

    @router.actor
    async def never(_: int) -> None:
        await trio.sleep_forever()

    @router.actor(timeout=0.1)
    def parent() -> None:
        with app.sync().map(never, range(100), limit=5) as results:
            list(results)

    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        with trio.fail_after(10), pytest.raises(JobFailed, match="ran longer than its timeout"):
            await app.call(parent)
        worker.stop()
    assert (worker.report.dead, worker.report.cancelled) == (1, 5)


@pytest.mark.parametrize("by_the_client", [False, True])
async def test_a_sync_actor_that_waits_for_room_ends_at_its_timeout_and_its_clean_up_may_send(
    by_the_client: bool,
) -> None:
    app = Repid(Connection(InMemoryServer()))
    router, full = Router(store_result=True), Router(queue="full", max_size=1)
    told: list[str] = []

    @full.actor(concurrency=1)
    async def hold(_: int) -> None:
        await trio.sleep_forever()

    @router.actor
    async def tell(text: str) -> None:
        told.append(text)

    @router.actor(timeout=0.1)
    def parent(message: SyncMessage = INJECTED) -> None:
        sender = app.sync() if by_the_client else message
        try:
            for number in range(3):
                sender.enqueue(hold, number)
        finally:
            sender.enqueue(tell, "there was no room")

    app.include_router(router)
    app.include_router(full)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(partial(app.run_worker, graceful_shutdown_time=0))
        with trio.fail_after(10):
            with pytest.raises(JobFailed, match="ran longer than its timeout"):
                await app.call(parent)
            while not told:
                await trio.sleep(0.01)
        worker.stop()
    assert told == ["there was no room"]
