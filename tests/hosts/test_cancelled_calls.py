"""Public calls that are cancelled at their k-th step, once or again and again, under trio and asyncio.

Afterwards nothing is lost or doubled, no task is left, and the next call works. `REPID_STEPS=300` looks at more steps
(`make cancelled`).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sniffio
import trio

from repid import (
    ConfigurationError,
    Connection,
    Counts,
    InMemoryServer,
    Job,
    Message,
    Queue,
    Repid,
    Router,
    SQLiteServer,
)

from .hosting import nothing_is_left

STEPS = int(os.environ.get("REPID_STEPS", "6"))

Call = Callable[[Repid], Awaitable[Any]]

SENDS: dict[str, Call] = {
    "send_message": lambda app: app.send_message(channel="q", payload=b"1"),
    "send_messages_json": lambda app: app.send_messages_json(channel="q", payloads=[1]),
    "enqueue": lambda app: Job("x", queue="q", app=app).enqueue(),
}
AGAIN = 3
"""Under trio a call is cancelled so often in a row, and beside others, before one is let through."""


def finished(app: Repid) -> Job:
    return Job("answer", queue="work", id_="finished", app=app)


async def wait_in_vain(job: Job) -> None:
    with suppress(TimeoutError):
        await job.wait(timeout=0.01)


async def _fetch(job: Job) -> None:
    await job.result


async def _remove(app: Repid) -> None:
    """Remove the schedule; there is always one to remove."""
    await _recur(app)
    with suppress(ConfigurationError):  # an attempt beside this one was quicker
        await app.schedules.remove("hourly")
    await _recur(app)


async def _recur(app: Repid) -> None:
    await Job("x", queue="asleep", id_="hourly", every=3600, app=app).enqueue()


async def _work_beside(app: Repid) -> None:
    """A worker in a task of its own, which is let work for some steps and stopped."""
    if sniffio.current_async_library() == "trio":
        async with trio.open_nursery() as nursery:
            handle = await nursery.start(partial(app.run_worker, handle_signals=[]))
            handle.stop()
        return
    async with asyncio.TaskGroup() as group:
        task = group.create_task(app.run_worker(handle_signals=[]))
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()


LOOKS: dict[str, Call] = {
    "declare": lambda app: Queue("q", app=app).declare(),
    "counts": lambda app: Queue("q", app=app).counts(),
    "get_messages": lambda app: Queue("q", app=app).get_messages(),
    "pause and resume": lambda app: _pause(Queue("q", app=app)),
    "cancel": lambda app: Job("x", queue="q", id_="nobody", app=app).cancel(),
    "wait": lambda app: finished(app).wait(timeout=10),
    "wait in vain": lambda app: wait_in_vain(Job("answer", queue="asleep", id_="waiting", app=app)),
    "result": lambda app: _fetch(finished(app)),
    "status": lambda app: finished(app).status(),
    "watch": lambda app: anext(aiter(finished(app).watch())),
    "find": lambda app: app.server().find(["waiting"]),
    "schedules.list": lambda app: app.schedules.list(),
    "schedules.change": lambda app: app.schedules.change("hourly", every=3600 * random.randint(1, 9)),
    "schedules.pause": lambda app: app.schedules.pause("hourly"),
    "schedules.resume": lambda app: app.schedules.resume("hourly"),
    "schedules.remove": _remove,
    "run_worker": lambda app: app.run_worker(burst=True, handle_signals=[]),
    "a worker beside": _work_beside,
}


async def prepare(app: Repid) -> None:
    """What the calls are about."""
    await app.server().declare(["q", "asleep"])
    await finished(app).enqueue()
    await app.run_worker(burst=True, handle_signals=[])
    await Job("answer", queue="asleep", id_="waiting", app=app).enqueue()
    await _recur(app)


async def check_rest(app: Repid) -> None:
    """All that was prepared is there, once."""
    assert (await finished(app).wait(timeout=10)).value == 42
    assert await app.server().counts("asleep") == Counts(ready=1)
    assert [stored.schedule.name for stored in await app.schedules.list()] == ["hourly"]
    assert await app.server().counts("work") == Counts()


async def _pause(queue: Queue) -> None:
    try:
        await queue.pause()
    finally:
        await queue.resume()


def make(path: Path | None) -> Repid:
    app, router = (
        Repid(Connection(InMemoryServer() if path is None else SQLiteServer(path, synchronous="NORMAL"))),
        Router(channel="work"),
    )

    @router.actor
    async def done(message: Message) -> None:
        await message.ack()

    @router.actor(store_result=True)
    async def answer() -> int:
        return 42

    app.include_router(router)
    return app


async def check_sent(app: Repid, before: int, *, returned: bool) -> int:
    """How many there are now: one more if the call returned, none or at most one if it was cancelled."""
    now = (await Queue("q", app=app).counts()).ready
    assert now - before in ({1} if returned else {0, 1})
    return now


@pytest.fixture(params=["memory", "sqlite"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "jobs.db" if request.param == "sqlite" else None


@pytest.mark.parametrize("name", [*SENDS, *LOOKS])
@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
def test_under_asyncio_a_call_is_cancelled_at_any_step(path: Path | None, name: str, *, again: bool) -> None:
    call = {**SENDS, **LOOKS}[name]

    async def cancel_at(app: Repid, step: int) -> bool:
        task = asyncio.ensure_future(call(app))
        for _ in range(step):
            await asyncio.sleep(0)
        task.cancel()
        while again and not task.done():
            await asyncio.sleep(0)
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return not task.cancelled()

    async def main() -> None:
        app, sent = make(path), 0
        async with app.magic():
            await prepare(app)
            tasks = asyncio.all_tasks()
            for step in range(STEPS):
                returned = await cancel_at(app, step)
                if name in SENDS:  # of a call that is cancelled as it returns, asyncio tells the cancellation alone
                    sent = await check_sent(app, sent, returned=returned)
                assert asyncio.all_tasks() == tasks
                await call(app)
                sent += name in SENDS
            assert (await Queue("q", app=app).counts()).ready == sent
            await check_rest(app)
        assert nothing_is_left()

    asyncio.run(main())


@pytest.mark.parametrize("name", [*SENDS, *LOOKS])
@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
async def test_under_trio_a_call_is_cancelled_at_any_step(path: Path | None, name: str, *, again: bool) -> None:
    call = {**SENDS, **LOOKS}[name]
    app, sent = make(path), 0

    async def attempt(returned: list[object]) -> None:
        returned.append(await call(app))

    async def cancel_at(step: int, returned: list[object]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt, returned)
            for _ in range(step):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    async with app.magic():
        await prepare(app)
        for step in range(STEPS):
            returned: list[object] = []
            async with trio.open_nursery() as nursery:
                for number in range(AGAIN if again else 1):
                    nursery.start_soon(cancel_at, step + number, returned)
            if again:
                for number in range(AGAIN):
                    await cancel_at(max(0, step - number), returned)
            if name in SENDS:
                now = (await Queue("q", app=app).counts()).ready
                assert now - sent == len(returned)
                sent = now
            await call(app)
            sent += name in SENDS
        assert (await Queue("q", app=app).counts()).ready == sent
        await check_rest(app)
