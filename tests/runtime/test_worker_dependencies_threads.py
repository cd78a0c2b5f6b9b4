"""Dependencies of sync actors, in threads and processes. Real time; the annotations in this file are no strings."""

import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Annotated, Any

import aids_processes
import pytest
import trio
from aids import Log, UnreliableServer, failure_of, send

from repid import ConfigurationError, Depends, Handle, Job, Repid, Report, Router

pytestmark = pytest.mark.real_time

setting: ContextVar[str] = ContextVar("setting", default="unset")


@pytest.fixture
def log() -> Log:
    return Log()


async def awaits() -> str:
    await trio.lowlevel.checkpoint()
    return "async"


def returns() -> str:
    return "sync"


@pytest.fixture
async def app(server: UnreliableServer) -> AsyncGenerator[Repid, None]:
    app = Repid()
    app.servers.register_server("default", server)
    async with app.magic():
        await server.declare(["default"])
        yield app


async def test_sync_dependencies_of_a_sync_actor_run_in_its_thread_and_async_ones_on_the_loop(
    app: Repid, router: Router, log: Log
) -> None:
    threads: dict[str, int] = {}

    def here(name: str) -> None:
        threads[name] = threading.get_ident()

    async def on_loop() -> AsyncIterator[str]:
        here("on_loop")
        with log.around("on_loop"):
            await trio.lowlevel.checkpoint()
            setting.set("by a dependency")
            yield "on_loop"
            await trio.lowlevel.checkpoint()

    def in_thread(_: Annotated[str, Depends(on_loop)]) -> Iterator[str]:
        here("in_thread")
        with log.around("in_thread"):
            yield "in_thread"
            here("in_thread's end")

    @router.actor
    def job(a: Annotated[str, Depends(in_thread)], b: Annotated[str, Depends(on_loop)]) -> None:
        here("job")
        log.append(f"job of {a} and {b}, setting {setting.get()}")

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    assert threads["on_loop"] == threading.get_ident()
    assert len({threads.pop("on_loop"), *threads.values()}) == 2
    assert log == [
        "on_loop opens",
        "in_thread opens",
        "job of in_thread and on_loop, setting by a dependency",
        "in_thread closes",
        "on_loop closes",
    ]


async def test_a_sync_dependency_that_an_async_one_wants_is_shared_with_the_thread(app: Repid, router: Router) -> None:
    def make() -> object:
        assert threading.current_thread() is main
        return object()

    async def uses(made: Annotated[object, Depends(make)]) -> object:
        return made

    @router.actor
    def job(a: Annotated[object, Depends(make)], b: Annotated[object, Depends(uses)]) -> None:
        assert a is b

    main = threading.current_thread()
    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


async def test_a_timeout_of_a_thread_closes_its_dependencies(
    app: Repid, router: Router, server: UnreliableServer, log: Log
) -> None:
    async def on_loop() -> AsyncIterator[None]:
        with log.around("on_loop"):
            yield

    def in_thread() -> Iterator[None]:
        with log.around("in_thread"):
            yield

    @router.actor(timeout=0.05)
    def job(_: Annotated[None, Depends(on_loop)], __: Annotated[None, Depends(in_thread)]) -> None:
        while True:
            trio.from_thread.check_cancelled()
            threading.Event().wait(0.005)

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    assert (await failure_of(server))[0] == "TimeoutError"
    sees = ["in_thread sees Cancelled", "in_thread closes", "on_loop sees Cancelled", "on_loop closes"]
    assert log == ["on_loop opens", "in_thread opens", *sees]


async def test_a_thread_that_is_left_behind_is_told_apart(app: Repid, router: Router, log: Log) -> None:
    release = threading.Event()

    async def on_loop() -> AsyncIterator[None]:
        with log.around("on_loop"):
            yield

    @router.actor
    def stubborn(_: Annotated[None, Depends(on_loop)]) -> None:
        release.wait(10)

    await send(app, "stubborn")
    async with trio.open_nursery() as nursery:
        worker: Handle = await nursery.start(partial(app.run_worker, graceful_shutdown_time=0.05))
        while not log:
            await trio.sleep(0.005)
        await trio.sleep(0.05)
        worker.stop()
    release.set()
    assert worker.report == Report(processed=1, abandoned=1)
    assert log == ["on_loop opens", "on_loop sees Cancelled", "on_loop closes"]


async def test_a_sync_actor_that_gives_a_coroutine_is_named(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    def job(_: Annotated[str, Depends(returns)]) -> Any:
        return awaits()

    await send(app, "job")
    await app.run_worker(burst=True)
    kind, text = await failure_of(server)
    assert kind == "ConfigurationError"
    assert "job at" in text


async def test_in_a_process_sync_dependencies_run_there_and_async_ones_are_handed_over(
    app: Repid, router: Router
) -> None:
    router.actor(run_in_process=True, store_result=True)(aids_processes.check_dependencies)
    handle = await Job("check_dependencies", args={"parent": os.getpid()}).enqueue()
    with trio.fail_after(30):
        assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    result = await handle.result
    assert result is not None
    assert result.value == [True, "a word on default", ["process_id"]]
    assert aids_processes.left == []


def test_a_process_needs_dependencies_that_it_can_import() -> None:
    router = Router()

    def local() -> None: ...

    def top(_: None) -> None: ...

    top.__qualname__ = "top"
    top.__annotations__ = {"_": Annotated[None, Depends(local)], "return": None}
    with pytest.raises(ConfigurationError, match="actor 'top' cannot run in a process with its dependency"):
        router.actor(run_in_process=True)(top)
