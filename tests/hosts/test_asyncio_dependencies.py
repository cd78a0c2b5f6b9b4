"""Dependencies where asyncio is the host, or an actor's choice. The annotations in this file are no strings."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Annotated, Any

import pytest
import trio
from aids import send

from repid import Actor, CallNext, Connection, Depends, InMemoryServer, Message, Queue, Repid, Router, Worker

from .hosting import nothing_is_left

setting: ContextVar[str] = ContextVar("setting", default="unset")


async def around(call_next: CallNext, message: Message, actor: Actor) -> Any:
    return await call_next(message, actor)


surroundings = pytest.mark.parametrize("middlewares", [(), (around,)], ids=["alone", "with a middleware"])


@asynccontextmanager
async def working(router: Router) -> AsyncIterator[Repid]:
    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    async with app.magic():
        await Queue().declare()
        yield app


@surroundings
def test_dependencies_run_in_the_very_task_of_their_actor(run: Any, middlewares: Any) -> None:
    async def main() -> None:
        tasks: list[Any] = []

        async def awaits() -> str:
            tasks.append(asyncio.current_task())
            setting.set("by a dependency")
            async with asyncio.timeout(5):
                await asyncio.sleep(0.001)
            return "async"

        def yields(word: Annotated[str, Depends(awaits)]) -> Iterator[str]:
            tasks.append(asyncio.current_task())
            yield f"generator on {word}"
            tasks.append(asyncio.current_task())

        async def yields_async(word: Annotated[str, Depends(yields)], message: Message) -> AsyncIterator[str]:
            await asyncio.sleep(0.001)
            yield f"async {word}"
            await asyncio.sleep(0.001)
            await message.ack()
            tasks.append(asyncio.current_task())

        router = Router(middlewares=middlewares)

        @router.actor
        async def job(word: Annotated[str, Depends(yields_async)]) -> None:
            await asyncio.sleep(0.001)
            assert word == "async generator on async"
            assert setting.get() == "by a dependency"
            tasks.append(asyncio.current_task())

        async with working(router) as app:
            await send(app, "job")
            assert (await app.run_worker(messages_limit=1)).succeeded == 1
        assert len(tasks) == 5
        assert len(set(tasks)) == 1
        assert isinstance(tasks[0], asyncio.Task)
        assert tasks[0] is not asyncio.current_task()
        assert nothing_is_left()

    run(main())


@surroundings
def test_a_timeout_closes_dependencies_before_it_is_settled(run: Any, middlewares: Any) -> None:
    async def main() -> None:
        log: list[str] = []

        async def outer() -> AsyncIterator[None]:
            try:
                yield
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)
                log.append("closed")
                raise

        router = Router(middlewares=middlewares, timeout=0.05)

        @router.actor
        async def hang(_: Annotated[None, Depends(outer)]) -> None:
            await asyncio.sleep(60)

        async with working(router) as app:
            await send(app, "hang")
            report = await app.run_worker(messages_limit=1)
            assert (report.failed, report.dead) == (1, 1)
            assert log == ["closed"]

    run(main())


@surroundings
def test_a_sync_actor_gets_async_dependencies_from_the_host_loop_and_sync_ones_in_its_thread(
    run: Any, middlewares: Any
) -> None:
    async def main() -> None:
        seen: list[Any] = []
        loop = asyncio.get_running_loop()

        async def on_loop() -> AsyncIterator[str]:
            assert asyncio.get_running_loop() is loop
            async with asyncio.timeout(5):
                await asyncio.sleep(0.001)
            setting.set("by a dependency")
            yield "a word"
            async with asyncio.timeout(5):
                await asyncio.sleep(0.001)
            seen.append("closed")

        def in_thread() -> int:
            return threading.get_ident()

        router = Router(middlewares=middlewares)

        @router.actor
        def job(word: Annotated[str, Depends(on_loop)], thread: Annotated[int, Depends(in_thread)]) -> None:
            assert thread == threading.get_ident() != main_thread
            seen.append((word, setting.get()))

        main_thread = threading.get_ident()
        async with working(router) as app:
            await send(app, "job")
            assert (await app.run_worker(messages_limit=1)).succeeded == 1
        assert seen == [("a word", "by a dependency"), "closed"]
        assert nothing_is_left()

    run(main())


@surroundings
def test_a_thread_with_dependencies_that_is_left_behind_is_told_apart(run: Any, middlewares: Any) -> None:
    async def main() -> None:
        started = asyncio.Event()
        release = threading.Event()
        closed: list[str] = []

        async def outer() -> AsyncIterator[None]:
            started.set()
            try:
                yield
            finally:
                closed.append("closed")

        router = Router(middlewares=middlewares)

        @router.actor
        def stubborn(_: Annotated[None, Depends(outer)]) -> None:
            release.wait(10)

        async with working(Router()) as app:
            worker = Worker([router], app=app, graceful_shutdown_time=0.05)
            running = asyncio.create_task(worker.run())
            await send(app, "stubborn")
            await started.wait()
            await asyncio.sleep(0.05)
            worker.stop()
            report = await running
            release.set()
            assert (report.abandoned, report.released) == (1, 0)
            assert closed == ["closed"]

    run(main())


@surroundings
def test_the_dependencies_of_a_trio_actor_run_in_trio(run: Any, middlewares: Any) -> None:
    async def main() -> None:
        tasks: list[Any] = []

        async def native() -> AsyncIterator[str]:
            tasks.append(trio.lowlevel.current_task())
            await trio.sleep(0.001)
            yield "native"
            await trio.sleep(0.001)

        router = Router(backend="trio", middlewares=middlewares)

        @router.actor
        async def job(word: Annotated[str, Depends(native)]) -> None:
            tasks.append(trio.lowlevel.current_task())
            await trio.sleep(0.001)
            assert word == "native"

        async with working(router) as app:
            await send(app, "job")
            assert (await app.run_worker(messages_limit=1)).succeeded == 1
        assert len(set(tasks)) == 1

    run(main())
