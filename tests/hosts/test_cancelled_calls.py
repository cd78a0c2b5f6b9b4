"""Public calls that are cancelled at their k-th step, once or again and again, under trio and asyncio.

Afterwards nothing is lost or doubled, no task is left, and the next call works. `REPID_STEPS=300` looks at more steps.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from repid import Connection, InMemoryServer, Job, Message, Queue, Repid, Router, SQLiteServer

from .hosting import nothing_is_left

STEPS = int(os.environ.get("REPID_STEPS", "10"))

Call = Callable[[Repid], Awaitable[Any]]

SENDS: dict[str, Call] = {
    "send_message": lambda app: app.send_message(channel="q", payload=b"1"),
    "send_messages_json": lambda app: app.send_messages_json(channel="q", payloads=[1]),
    "enqueue": lambda app: Job("x", queue="q", app=app).enqueue(),
}
LOOKS: dict[str, Call] = {
    "declare": lambda app: Queue("q", app=app).declare(),
    "counts": lambda app: Queue("q", app=app).counts(),
    "get_messages": lambda app: Queue("q", app=app).get_messages(),
    "pause and resume": lambda app: _pause(Queue("q", app=app)),
    "cancel": lambda app: Job("x", queue="q", id_="nobody", app=app).cancel(),
    "schedules.list": lambda app: app.schedules.list(),
    "run_worker": lambda app: app.run_worker(burst=True, handle_signals=[]),
}


async def _pause(queue: Queue) -> None:
    try:
        await queue.pause()
    finally:
        await queue.resume()


def make(path: Path | None) -> Repid:
    app, router = Repid(Connection(InMemoryServer() if path is None else SQLiteServer(path))), Router(channel="work")

    @router.actor
    async def done(message: Message) -> None:
        await message.ack()

    app.include_router(router)
    return app


async def check_sent(app: Repid, before: int, *, returned: bool, may_have_been_sent: bool) -> int:
    """How many there are now: one more if the call returned, none or at most one if it was cancelled."""
    now = (await Queue("q", app=app).counts()).ready
    assert now - before in ({1} if returned else {0, 1} if may_have_been_sent else {0})
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
            await app.server().declare(["q"])
            tasks = asyncio.all_tasks()
            for step in range(STEPS):
                returned = await cancel_at(app, step)
                if name in SENDS:  # of a call that is cancelled as it returns, asyncio tells the cancellation alone
                    sent = await check_sent(app, sent, returned=returned, may_have_been_sent=True)
                assert asyncio.all_tasks() == tasks
                await call(app)
                sent += name in SENDS
            assert (await Queue("q", app=app).counts()).ready == sent
        assert nothing_is_left()

    asyncio.run(main())


@pytest.mark.parametrize("name", [*SENDS, *LOOKS])
async def test_under_trio_a_call_is_cancelled_at_any_step(path: Path | None, name: str) -> None:
    call = {**SENDS, **LOOKS}[name]
    app, sent = make(path), 0
    async with app.magic():
        await app.server().declare(["q"])
        for step in range(STEPS):
            returned: list[object] = []

            async def attempt(returned: list[object] = returned) -> None:
                returned.append(await call(app))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(attempt)
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            if name in SENDS:
                sent = await check_sent(app, sent, returned=bool(returned), may_have_been_sent=False)
            await call(app)
            sent += name in SENDS
        assert (await Queue("q", app=app).counts()).ready == sent
