"""Cancelling a job: wherever its message is in a worker, and whenever the request comes."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import trio
from aids import UnreliableServer, send

from repid import Counts, Handle, Job, Message, Repid, Report, Router, catch_all_routing_strategy


@pytest.mark.parametrize("checkpoints", range(7))
async def test_a_request_at_any_moment_of_a_run_cancels_it(app: Repid, router: Router, checkpoints: int) -> None:
    began = trio.Event()
    ended: list[float] = []

    @router.actor(retries=5)
    async def job() -> None:
        began.set()
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        try:
            await trio.sleep(100)
        finally:
            ended.append(trio.current_time() - started)

    handle = await Job("job").enqueue()
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        worker: Handle = await nursery.start(app.run_worker)
        await began.wait()
        assert await handle.cancel()
        await trio.sleep(1)
        worker.stop()
    assert ended in ([], [0])
    assert worker.report == Report(processed=1, cancelled=1)


@pytest.mark.parametrize("checkpoints", range(40))
async def test_a_request_while_a_worker_claims_the_message_is_not_lost(
    app: Repid, router: Router, server: UnreliableServer, checkpoints: int
) -> None:
    @router.actor
    async def job() -> None:
        await trio.sleep_forever()

    handle = await Job("job").enqueue()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run_worker)
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        assert await handle.cancel()
        await trio.sleep(1)
        assert await server.counts("default") == Counts()
        nursery.cancel_scope.cancel()


async def test_a_cancelled_run_is_never_retried(app: Repid, router: Router, server: UnreliableServer) -> None:
    runs: list[int] = []

    @router.actor(retries=5, retry_policy=lambda _: 0, on_error="retry")
    async def job(message: Message) -> None:
        runs.append(message.attempt)
        await trio.sleep(100)

    handle = await Job("job").enqueue()
    async with trio.open_nursery() as nursery:
        worker: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        await handle.cancel()
        await trio.sleep(100)
        worker.stop()
    assert runs == [1]
    assert await server.counts("default") == Counts()


@pytest.mark.parametrize("how", ["raises", "swallows"])
async def test_an_actor_that_answers_its_cancellation_is_not_run_again(
    app: Repid, router: Router, server: UnreliableServer, how: str
) -> None:
    runs: list[int] = []

    @router.actor(retries=5, retry_policy=lambda _: 0)
    async def job() -> None:
        runs.append(1)
        try:
            await trio.sleep(100)
        except trio.Cancelled:
            if how == "raises":
                raise ValueError from None
            raise
        finally:
            if how == "swallows":
                with trio.CancelScope(shield=True):
                    await trio.sleep(2)

    handle = await Job("job").enqueue()
    async with trio.open_nursery() as nursery:
        worker: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        await handle.cancel()
        await trio.sleep(100)
        worker.stop()
    assert runs == [1]
    assert await server.counts("default") == Counts()


async def test_a_parked_delivery_is_not_started(app: Repid, router: Router, server: UnreliableServer) -> None:
    runs: list[str] = []

    @router.actor(concurrency=1, routing_strategy=catch_all_routing_strategy)
    async def job(message: Message) -> None:
        runs.append(message.message_id)
        await trio.sleep(10)

    first = await Job("job").enqueue()
    second = await Job("job").enqueue()
    third = await Job("job").enqueue()
    async with trio.open_nursery() as nursery:
        worker: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        assert await second.cancel()
        await trio.sleep(50)
        worker.stop()
    assert runs == [first.id, third.id]
    assert await server.counts("default") == Counts()


async def test_what_a_manual_actor_left_without_a_verdict_is_cancelled(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(confirmation_mode="manual")
    async def forgets() -> None: ...

    handle = await Job("forgets").enqueue()
    async with trio.open_nursery() as nursery:
        worker: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        assert await handle.cancel()
        await trio.sleep(1)
        assert await server.counts("default") == Counts()
        worker.stop()


async def test_a_verdict_that_was_given_stands(app: Repid, router: Router, server: UnreliableServer) -> None:
    ended: list[str] = []

    @router.actor
    async def job(message: Message) -> None:
        await message.nack()
        await trio.sleep(10)
        ended.append("undisturbed")

    handle = await Job("job").enqueue()
    async with trio.open_nursery() as nursery:
        worker: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        await handle.cancel()
        worker.stop()
    assert ended == ["undisturbed"]
    assert await server.counts("default") == Counts(dead=1)


async def test_cancelling_makes_room_under_a_limit(app: Repid, router: Router) -> None:
    done: list[int] = []

    @router.actor(concurrency=1)
    async def job(i: int) -> None:
        if i == 0:
            await trio.sleep(100)
        done.append(i)

    handle = await Job("job", args={"i": 0}).enqueue()
    await send(app, "job", i=1)
    async with trio.open_nursery() as nursery:
        worker: Handle = await nursery.start(partial(app.run_worker, tasks_limit=2))
        await trio.sleep(1)
        await handle.cancel()
        await trio.sleep(1)
        assert done == [1]
        worker.stop()


@pytest.mark.real_time
async def test_a_thread_is_asked_to_stop(server: UnreliableServer) -> None:
    app = Repid()
    app.servers.register_server("default", server)
    router = Router()
    began = threading.Event()

    @router.actor
    def job() -> None:
        began.set()
        while True:
            trio.from_thread.check_cancelled()

    app.include_router(router)
    with trio.fail_after(10):
        async with app.magic():
            handle = await Job("job").enqueue()
            async with trio.open_nursery() as nursery:
                worker: Handle = await nursery.start(app.run_worker)
                await trio.to_thread.run_sync(began.wait)
                await handle.cancel()
                worker.stop()
            assert await server.counts("default") == Counts()
