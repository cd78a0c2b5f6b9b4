"""Where there is no result: an id that is not known, a job that is not over and one that left none are told apart."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio

from repid import (
    Connection,
    InMemoryServer,
    Job,
    JobHandle,
    Queue,
    Repid,
    ResultError,
    Router,
    SQLiteServer,
    UsageError,
)

router = Router(queue="q")


@router.actor
async def fine() -> int:
    return 5


@router.actor
async def fails() -> None:
    raise ValueError


@pytest.fixture(params=["memory", "sqlite"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Repid, None]:
    app = Repid(Connection(InMemoryServer() if request.param == "memory" else SQLiteServer(tmp_path / "jobs.db")))
    app.include_router(router)
    async with app.magic():
        yield app


async def text_of(job: Job | JobHandle) -> str:
    with trio.fail_after(5), pytest.raises(ResultError) as raised:
        await job.wait()
    return str(raised.value)


async def test_an_unknown_id_is_told(app: Repid) -> None:
    job = Job("fine", queue="q", id_="never\u202e")
    assert (await job.status()).state == "unknown"
    assert (await job.status()).is_over
    assert [status.state async for status in job.watch()] == ["unknown"]
    assert await job.result is None
    assert await text_of(job) == (
        r"no message 'never\u202e' is known on the server of queue 'q': it was never enqueued there, or it has ended and "
        "no result of it is stored any more"
    )


async def test_a_job_that_is_not_over_is_waited_for(app: Repid) -> None:
    await Job("fine", queue="q", id_="one", delay=1000).enqueue()
    job = Job("fine", queue="q", id_="one")
    assert (await job.status()).state == "scheduled"
    assert not (await job.status()).is_over
    assert await job.result is None
    with trio.move_on_after(0.05) as scope:
        await job.wait()
    assert scope.cancelled_caught


async def test_one_that_nobody_asked_a_result_of_has_ended_without(app: Repid) -> None:
    handle = await Job("fine", queue="q").enqueue()
    await app.run_worker(burst=True)
    assert (await handle.status()).state == "gone"
    assert await text_of(handle) == (
        f"message {handle.id!r} has ended, and no result of it is stored: no result was asked for (store_result=True on "
        "its job or its actor; on its job, if a full queue has dropped it), or its result has expired (result_ttl)"
    )
    refusing = await Job("fine", queue="q", store_result=False).enqueue()
    await app.run_worker(burst=True)
    assert (await text_of(refusing)).endswith("no result was stored: its job says store_result=False")


async def test_an_expired_result_is_told(app: Repid) -> None:
    handle = await Job("fine", queue="q", store_result=True, result_ttl=0.001).enqueue()
    await app.run_worker(burst=True)
    await trio.sleep(0.01)
    assert (await text_of(handle)).endswith("no result of it is stored: its result has expired (result_ttl)")


async def test_a_dead_letter_without_a_result_is_found_where_it_is(app: Repid) -> None:
    handle = await Job("fails", queue="q").enqueue()
    await app.run_worker(burst=True)
    assert (await handle.status()).state == "dead"
    assert (await text_of(handle)).endswith("; it is among the dead messages of queue 'q'")
    assert "it is among the dead messages" in await text_of(Job("fails", queue="q", id_=handle.id))


async def test_who_saw_it_alive_knows_that_it_has_ended(app: Repid) -> None:
    await Job("fine", queue="q", id_="one").enqueue()
    states = []
    async for status in Job("fine", queue="q", id_="one").watch():
        states.append(status.state)
        await Queue("q").flush()
    assert states == ["ready", "gone"]


async def test_a_result_is_found_by_its_result_id_alone(app: Repid) -> None:
    await Job("fine", queue="q", store_result=True, result_id="mine").enqueue()
    await app.run_worker(burst=True)
    job = Job("fine", queue="q", result_id="mine")
    result = await job.result_as(int)
    assert result is not None
    assert result.value == 5
    assert await Job("fine", queue="q", result_id="other").result is None
    with pytest.raises(UsageError, match="job 'fine' was not enqueued yet: it has no message to ask about"):
        await job.cancel()


def test_the_blocking_client_tells_the_same(tmp_path: Path) -> None:
    app = Repid(Connection(SQLiteServer(tmp_path / "jobs.db")))
    app.include_router(router)
    with app.sync() as client:
        with pytest.raises(ResultError, match="no message 'never' is known on the server of queue 'q'"):
            client.result(Job("fine", queue="q", id_="never"))
        handle = client.enqueue(Job("fine", queue="q"))
        with pytest.raises(TimeoutError):
            client.result(handle, timeout=0.01)
        assert handle.status().state == "ready"
    app.run(burst=True)
    with app.sync() as client, pytest.raises(ResultError, match="has ended, and no result of it is stored"):
        client.result(handle)
