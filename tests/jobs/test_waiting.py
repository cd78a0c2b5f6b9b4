"""Waiting for a job: bounded and typed, alike for a job, its handle and the blocking client."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

import pytest
import trio

from repid import (
    ConfigurationError,
    InMemoryServer,
    Job,
    Message,
    Repid,
    Report,
    Result,
    ResultError,
    Router,
    SyncMessage,
)


async def test_a_wait_ends_after_its_timeout_and_changes_nothing(app: Repid, router: Router) -> None:
    router.actor(store_result=True)(nap)
    job = Job("nap", args={"seconds": 10})
    handle = await job.enqueue()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: app.run_worker(messages_limit=1))
        for waiting in (handle, job):
            start = trio.current_time()
            with pytest.raises(TimeoutError, match="has not ended within 3 seconds"):
                await waiting.wait(timeout=timedelta(seconds=3))
            assert trio.current_time() - start == pytest.approx(3)
        assert (await handle.wait(timeout=30)).value == 10.0
    assert (await job.wait(0)).value == 10.0  # it has ended: nothing to wait for


async def test_a_wait_that_was_too_short_says_how_the_job_stands(app: Repid, router: Router) -> None:
    router.actor(store_result=True)(nap)
    waiting, late = await app.enqueue(nap, 10), await app.using(delay=60).enqueue(nap, 1)
    with pytest.raises(TimeoutError, match=r"within 3 seconds: it is still ready, so no worker has begun it$"):
        await waiting.wait(3)
    with pytest.raises(TimeoutError, match=r"within 3 seconds: it is scheduled for later$"):
        await late.wait(3)
    with pytest.raises(TimeoutError, match="within 5 seconds: it is still ready"):
        await app.using(call_timeout=5).call(nap, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: app.run_worker(messages_limit=1))
        with pytest.raises(TimeoutError, match=r"within 3 seconds: it is running$"):
            await waiting.wait(3)


async def nap(seconds: float) -> float:
    await trio.sleep(seconds)
    return seconds


async def test_a_wait_may_say_the_type_of_the_value(app: Repid, router: Router) -> None:
    @router.actor(store_result=True)
    async def double(n: int) -> int:
        return 2 * n

    handle = await Job("double", args={"n": 4}).enqueue()
    await app.run_worker(burst=True)
    found = await handle.wait_as(int, timeout=5)
    assert_type(found, Result[int])
    assert found.value == 8
    with pytest.raises(ResultError):
        _ = (await handle.wait_as(str)).value


async def test_a_timeout_that_is_none_is_refused(app: Repid) -> None:
    handle = await Job("nap").enqueue()
    wrong: Any = "5"
    for timeout in (wrong, -1, float("nan")):
        with pytest.raises(ConfigurationError, match="timeout"):
            await handle.wait(timeout)


@pytest.mark.real_time
def test_a_client_waits_alike() -> None:
    app, router = Repid(), Router()
    app.servers.register_server("default", InMemoryServer())
    router.actor(store_result=True)(nap)
    app.include_router(router)
    with app.sync() as client:
        client.run(lambda: app.servers.default.declare(["default"]))
        job = Job("nap", args={"seconds": 0}, id_="1")
        client.enqueue(job)
        for wait in (client.wait, client.result):
            with pytest.raises(TimeoutError, match=r"has not ended within 0\.01 seconds"):
                wait(job, timeout=timedelta(seconds=0.01))
        with client.worker():
            assert client.wait(job, 20).value == 0


async def test_a_message_tells_how_often_it_is_retried_and_which_attempt_is_the_last(
    app: Repid, router: Router
) -> None:
    seen: list[tuple[int, int, bool]] = []

    @router.actor(retries=1, retry_policy=lambda _: 1)
    async def failing(message: Message) -> None:
        seen.append((message.attempt, message.retries, message.is_last_attempt))
        raise ValueError

    @router.actor(retries=5)
    def in_thread(message: SyncMessage) -> None:
        seen.append((message.attempt, message.retries, message.is_last_attempt))

    await Job("failing").enqueue()
    assert await app.run_worker(messages_limit=2) == Report(processed=2, failed=1, retried=1, dead=1)
    await Job("in_thread", retries=0).enqueue()
    await app.run_worker(burst=True)
    assert seen == [(1, 1, False), (2, 1, True), (1, 0, True)]


async def test_an_actor_finds_none_of_the_workers_own_calls_on_its_message(app: Repid, router: Router) -> None:
    found: list[str] = []

    @router.actor
    async def look(message: Message) -> None:
        found.extend(name for thing in (message, message.outbox) for name in dir(thing) if not name.startswith("_"))

    await Job("look").enqueue()
    await app.run_worker(burst=True)
    assert {"ack", "outbox", "send_message"} <= set(found)
    assert not {"close", "acked_first"} & set(found)
