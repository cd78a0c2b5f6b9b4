"""Actors that call the library of the other event loop, or raise its cancellation, fail alone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trio
from aids import UnreliableServer, send

from repid import Connection, InMemoryServer, Queue, Repid, Router

from .hosting import nothing_is_left


async def sleeps() -> None:
    await trio.sleep(0.001)


async def yields() -> None:
    await trio.lowlevel.checkpoint()


async def opens_a_scope() -> None:
    with trio.move_on_after(60):
        await asyncio.sleep(0.005)


async def opens_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 0.001)
        await asyncio.sleep(0.005)


async def has_children() -> None:
    await asyncio.gather(opens_a_scope(), opens_a_scope())


CALLS: list[Callable[[], Coroutine[Any, Any, None]]] = [
    sleeps,
    yields,
    opens_a_scope,
    opens_a_nursery,
    has_children,
]


@pytest.mark.parametrize("later", [False, True], ids=["first step", "later step"])
def test_a_call_of_trio_in_an_asyncio_actor_fails_alone_with_a_hint(run: Any, *, later: bool) -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()
    finished: list[int] = []

    def declare(call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        @router.actor(name=call.__name__)
        async def wrong() -> None:
            if later:
                await asyncio.sleep(0)
            await call()

    for call in CALLS:
        declare(call)

    @router.actor
    async def innocent() -> None:
        await asyncio.sleep(0.02)
        finished.append(1)

    app.include_router(router)

    async def main() -> None:
        async with app.magic():
            for _ in range(3):
                for call in CALLS:
                    await send(app, call.__name__)
                    await send(app, "innocent")
            report = await app.run_worker(burst=True, handle_signals=[])
            assert (report.succeeded, report.dead) == (15, 15)
            dead = await Queue().get_messages("dead")
            assert all(each.failure is not None and 'backend="trio"' in each.failure.text for each in dead)
        assert nothing_is_left()

    run(main())
    assert len(finished) == 15


async def test_a_call_of_asyncio_in_a_trio_actor_fails_alone_with_a_hint(app: Repid, server: UnreliableServer) -> None:
    router = Router()

    @router.actor
    async def sleeps() -> None:
        await asyncio.sleep(1)

    @router.actor
    async def yields() -> None:
        await asyncio.sleep(0)

    @router.actor
    async def in_a_group() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asyncio.sleep, 1)

    @router.actor
    async def innocent() -> None:
        await trio.sleep(1)

    app.include_router(router)
    for topic in ("sleeps", "yields", "in_a_group", "innocent"):
        await send(app, topic)
    report = await app.run_worker(burst=True)
    assert (report.succeeded, report.dead) == (1, 3)
    failures = [each.failure for each in await server.browse("default", "dead")]
    assert all(failure is not None and "--loop asyncio" in failure.traceback for failure in failures)
    assert all(failure is not None and "--loop asyncio" in failure.text for failure in failures)


@pytest.mark.parametrize("where", ["first step", "later step", "middleware", "dependency", "thread"])
def test_a_cancellation_of_asyncios_that_is_nobodys_is_a_failure_of_that_run(run: Any, where: str) -> None:
    kept = asyncio.CancelledError("kept from another task")
    app, router = Repid(Connection(InMemoryServer())), Router(retries=1, retry_policy=lambda _: 0)

    async def cancelled(call_next: Any, message: Any, actor: Any) -> Any:
        await call_next(message, actor)
        raise kept

    if where == "thread":

        @router.actor(name="poison")
        def in_a_thread() -> None:
            raise kept
    else:

        @router.actor(name="poison", middlewares=[cancelled] if where == "middleware" else [])
        async def in_a_task() -> None:
            if where == "later step":
                await asyncio.sleep(0.001)
            if where == "dependency":
                done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                done.cancel()
                await done
            if where != "middleware":
                raise kept

    @router.actor
    async def innocent() -> None:
        await asyncio.sleep(0.02)

    app.include_router(router)

    async def main() -> None:
        async with app.magic():
            for topic in ("innocent", "poison", "innocent"):
                await send(app, topic)
            report = await app.run_worker(messages_limit=4, handle_signals=[])
            assert (report.succeeded, report.retried, report.dead, report.released) == (2, 1, 1, 0)
            [dead] = await Queue().get_messages("dead")
            assert dead.failure is not None
            assert dead.failure.type == "CancelledError"
        assert nothing_is_left()

    run(main())


PROGRAM = """
import asyncio, logging, sys, time
import trio, trio_asyncio
from repid import *
logging.disable()
app = Repid(Connection(SQLiteServer(sys.argv[1]) if len(sys.argv) > 1 else InMemoryServer()))
router = Router(channel="q")

@router.actor
async def good(message: Message) -> None:
    await asyncio.sleep(0.01)
    await message.outbox.send_message_json(channel="out")
    await message.ack()

@router.actor
def blocks(message: SyncMessage) -> None:
    message.nack()

@router.actor(timeout=0.05)
async def hangs() -> None:
    await asyncio.sleep(60)

@router.actor
async def calls_trio() -> None:
    await asyncio.sleep(0)
    with trio.move_on_after(1):
        await asyncio.sleep(0.01)

app.include_router(router)

async def main() -> None:
    async with app.magic():
        for topic in ("good", "blocks", "hangs", "calls_trio") * 3:
            await app.send_message_json(channel="q", headers={"topic": topic})
        report = await app.run_worker(burst=True)
        assert (report.succeeded, report.dead) == (3, 9), report
        assert await Queue("out").size() == 3
        worker = asyncio.create_task(app.run_worker())
        await asyncio.sleep(0.05)
        worker.cancel()
        await asyncio.wait([worker])
        assert worker.cancelled()

asyncio.run(main())
print("ended well")
"""

WITHIN_TRIO = """
import trio, trio_asyncio
from repid import *
app = Repid(Connection(InMemoryServer()))

async def in_asyncio() -> None:
    async with app.magic():
        raise AssertionError

async def main() -> None:
    async with trio_asyncio.open_loop():
        async with app.magic():
            await Queue().declare()
        try:
            await trio_asyncio.aio_as_trio(in_asyncio)()
        except RuntimeError as error:
            assert "this loop is itself run by trio" in str(error), error
        async with app.magic():
            await Queue().declare()

trio.run(main)
print("ended well")
"""


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="trio-asyncio does not import here")
@pytest.mark.parametrize("program", [PROGRAM, WITHIN_TRIO], ids=["asyncio.run", "its own loop within trio"])
@pytest.mark.parametrize("durable", [False, True], ids=["memory", "sqlite"])
def test_a_program_that_has_imported_trio_asyncio_works_or_is_told_why_not(
    program: str, tmp_path: Path, *, durable: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, *([str(tmp_path / "jobs.db")] if durable else [])],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ended well\n"), done.stderr
