"""What lives as long as its worker. The annotations in this file are no strings, so that they can be local."""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Annotated

import pytest
import trio
from aids import Log, UnreliableServer, send

from repid import (
    ConfigurationError,
    Connection,
    DeadMessage,
    Depends,
    Header,
    InMemoryServer,
    LifespanError,
    Message,
    Repid,
    Router,
    Worker,
)
from repid.runtime import Handle
from repid.testing import TestClient


class Pool:
    def __init__(self, name: str = "pool") -> None:
        self.name = name
        self.is_open = True


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def make_pool(log: Log) -> Callable[[], AsyncIterator[Pool]]:
    async def make_pool() -> AsyncIterator[Pool]:
        await trio.sleep(1)
        log.append("pool opens")
        pool = Pool()
        yield pool
        await trio.sleep(1)
        pool.is_open = False
        log.append("pool closes")

    return make_pool


async def test_a_worker_opens_it_once_and_closes_it_after_the_last_run(
    app: Repid, router: Router, log: Log, make_pool: Callable[[], AsyncIterator[Pool]]
) -> None:
    pools: set[int] = set()

    @router.actor
    async def use(pool: Annotated[Pool, Depends(make_pool, scope="worker")]) -> None:
        await trio.sleep(1)
        assert pool.is_open
        pools.add(id(pool))
        log.append("run")

    @router.actor
    def use_in_a_thread(pool: Annotated[Pool, Depends(make_pool, scope="worker")]) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert pool.is_open
        pools.add(id(pool))
        log.append("run")

    for actor in ("use", "use", "use_in_a_thread"):
        await send(app, actor)
    report = await app.run_worker(burst=True)
    assert report.succeeded == 3
    assert log == ["pool opens", "run", "run", "run", "pool closes"]
    assert len(pools) == 1
    await app.run_worker(burst=True)
    assert log[5:] == ["pool opens", "pool closes"]


async def test_it_is_open_before_the_worker_consumes_and_until_its_grace_is_over(
    app: Repid, router: Router, log: Log, make_pool: Callable[[], AsyncIterator[Pool]]
) -> None:
    @router.actor
    async def hang(pool: Annotated[Pool, Depends(make_pool, scope="worker")]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            assert pool.is_open
            log.append("run ends")

    await send(app, "hang")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(lambda task_status: app.run_worker(task_status=task_status))
        assert log == ["pool opens"]
        await trio.sleep(1)
        handle.stop()
    assert log == ["pool opens", "run ends", "pool closes"]


async def test_lifespans_are_nested_with_what_they_want(
    app: Repid, router: Router, log: Log, make_pool: Callable[[], AsyncIterator[Pool]]
) -> None:
    def settings() -> Iterator[str]:
        with log.around("settings"):
            yield "settings"

    @app.lifespan
    async def first(pool: Annotated[Pool, Depends(make_pool, scope="worker")]) -> AsyncIterator[None]:
        assert pool.is_open
        with log.around("first"):
            yield

    @app.lifespan()
    def second(settings: Annotated[str, Depends(settings, scope="worker")]) -> Iterator[None]:
        assert settings == "settings"
        with log.around("second"):
            yield

    @router.actor
    async def run() -> None:
        log.append("run")

    await send(app, "run")
    await app.run_worker(burst=True)
    opened = ["pool opens", "first opens", "settings opens", "second opens"]
    assert log == [*opened, "run", "second closes", "settings closes", "first closes", "pool closes"]


async def test_a_lifespan_may_send_and_a_worker_of_the_app_opens_it_too(app: Repid, log: Log) -> None:
    worker = Worker(burst=True)

    @app.lifespan
    async def greet() -> AsyncIterator[None]:
        await app.send_message_json(channel="default", headers={"topic": "run"})
        with log.around("lifespan"):
            yield

    @worker.actor
    async def run() -> None:
        log.append("run")

    assert (await worker.run()).succeeded == 1
    assert log == ["lifespan opens", "run", "lifespan closes"]


async def test_what_fails_to_open_stops_the_worker_and_closes_what_was_opened(
    app: Repid, router: Router, log: Log, caplog: pytest.LogCaptureFixture, server: UnreliableServer
) -> None:
    @app.lifespan
    async def first() -> AsyncIterator[None]:
        with log.around("first"):
            yield

    async def refuses() -> Pool:
        raise ConnectionRefusedError("nobody listens")

    @router.actor
    async def use(pool: Annotated[Pool, Depends(refuses, scope="worker")]) -> None: ...

    await send(app, "use")
    with pytest.raises(
        LifespanError, match=r"worker was not started: opening .*refuses\(\) raised ConnectionRefusedError: nobody"
    ) as raised:
        await app.run_worker(burst=True)
    assert isinstance(raised.value.__cause__, ConnectionRefusedError)
    assert log == ["first opens", "first closes"]
    assert "nobody listens" in caplog.text
    assert (await server.counts("default")).ready == 1


@pytest.mark.parametrize("waits", [False, True])
def test_ctrl_c_while_a_lifespan_opens_is_no_error_of_the_lifespan(waits: bool) -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()

    @app.lifespan
    async def opens() -> AsyncIterator[None]:
        if waits:
            trio.lowlevel.current_trio_token().run_sync_soon(signal.raise_signal, signal.SIGINT)
            await trio.sleep_forever()
        signal.raise_signal(signal.SIGINT)
        yield

    @router.actor
    async def run() -> None: ...

    app.include_router(router)

    async def main() -> None:
        async with app.magic():
            await app.run_worker(burst=True, handle_signals=[])

    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(main)
    finally:
        signal.signal(signal.SIGINT, former)


async def test_what_fails_to_close_is_told_when_all_is_settled(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @app.lifespan
    async def breaks() -> AsyncIterator[None]:
        yield
        raise OSError("cannot close")

    @router.actor
    async def run() -> None: ...

    await send(app, "run")
    with pytest.raises(LifespanError, match="has ended, but closing what it had opened raised OSError: cannot close"):
        await app.run_worker(burst=True)
    assert (await server.counts("default")).leased == 0


async def test_a_stop_ends_the_opening(app: Repid, router: Router, log: Log) -> None:
    @app.lifespan
    async def never() -> AsyncIterator[None]:
        with log.around("never"):
            await trio.sleep_forever()
            yield

    @router.actor
    async def run() -> None: ...

    async with trio.open_nursery() as nursery:
        worker = Worker([router])
        nursery.start_soon(worker.run)
        await trio.sleep(1)
        worker.stop()
    assert log == ["never opens", "never sees Cancelled", "never closes"]


@pytest.fixture
def signals_found() -> Iterator[list[int]]:
    """The signals of the kind SIGTERM that no worker has taken."""
    found: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, former)


async def test_a_signal_ends_the_opening_and_closes_what_was_opened(
    app: Repid, router: Router, log: Log, signals_found: list[int]
) -> None:
    @app.lifespan
    async def slow() -> AsyncIterator[None]:
        signal.raise_signal(signal.SIGTERM)
        try:
            await trio.sleep_forever()
        finally:
            log.append("closes")
        yield

    @router.actor
    async def run() -> None: ...

    with trio.fail_after(1):
        assert (await app.run_worker(handle_signals=[signal.SIGTERM])).processed == 0
    assert (log, signals_found) == (["closes"], [])


async def test_a_second_signal_does_not_kill_a_worker_that_closes_its_lifespan(
    app: Repid, router: Router, log: Log, signals_found: list[int]
) -> None:
    @app.lifespan
    async def slow() -> AsyncIterator[None]:
        yield
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep(1)
        log.append("closed")

    @router.actor
    async def run() -> None: ...

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(app.run_worker, handle_signals=[signal.SIGTERM]))
        signal.raise_signal(signal.SIGTERM)
    assert (log, signals_found) == (["closed"], [])


async def test_what_is_not_for_a_worker_is_refused_where_it_is_declared(app: Repid, router: Router) -> None:
    async def for_a_run(message: Message) -> str:
        return message.message_id

    async def from_a_header(tenant: Annotated[str, Header("x-tenant")]) -> str:
        return tenant

    async def of_a_run(word: Annotated[str, Depends(from_a_header)]) -> str:
        return word

    for function in (for_a_run, from_a_header, of_a_run):
        with pytest.raises(ConfigurationError, match="is filled for each run, but the function is called once"):

            @router.actor
            async def use(value: Annotated[str, Depends(function, scope="worker")]) -> None: ...

    with pytest.raises(ConfigurationError, match="a lifespan must be an async function with one yield"):

        @app.lifespan  # type: ignore[type-var]
        async def returns() -> None: ...

    with pytest.raises(ConfigurationError, match="cannot be filled"):

        @app.lifespan
        async def wants(name: str) -> AsyncIterator[None]:
            yield

    with pytest.raises(ConfigurationError, match="scope of a Depends must be one of 'run', 'worker'"):
        Depends(for_a_run, scope="app")  # type: ignore[arg-type]


def process_wide() -> str:
    return "value"


def in_a_process(value: Annotated[str, Depends(process_wide, scope="worker")]) -> str:
    return value


def test_a_process_gets_nothing_of_its_worker() -> None:
    with pytest.raises(ConfigurationError, match="its value lives in the process of the worker"):
        Router().actor(run_in_process=True)(in_a_process)


async def test_a_function_may_be_asked_for_in_both_scopes(app: Repid, router: Router) -> None:
    calls: list[Pool] = []

    def make() -> Pool:
        calls.append(Pool(f"pool {len(calls)}"))
        return calls[-1]

    @router.actor(store_result=True)
    async def use(shared: Annotated[Pool, Depends(make, scope="worker")], own: Annotated[Pool, Depends(make)]) -> None:
        assert shared is calls[0]
        assert own is calls[-1]

    @router.actor
    async def in_another_order(
        own: Annotated[Pool, Depends(make)], shared: Annotated[Pool, Depends(make, scope="worker")]
    ) -> None:
        assert shared is calls[0]
        assert own is calls[-1]

    for actor in ("use", "use", "in_another_order"):
        await send(app, actor)
    assert (await app.run_worker(burst=True)).succeeded == 3
    assert len(calls) == 4


def test_under_asyncio_it_is_opened_and_closed_in_one_task_of_the_loop() -> None:
    app, router, log = Repid(Connection(InMemoryServer())), Router(), Log()
    app.include_router(router)
    tasks: list[object] = []

    async def make_pool() -> AsyncIterator[Pool]:
        async with asyncio.timeout(60):  # may be left in the task only that has entered it
            tasks.append(asyncio.current_task())
            pool = Pool()
            yield pool
            await asyncio.sleep(0)
            pool.is_open = False
            tasks.append(asyncio.current_task())
            log.append("pool closes")

    @router.actor
    async def use(pool: Annotated[Pool, Depends(make_pool, scope="worker")]) -> None:
        await asyncio.sleep(0.01)
        assert pool.is_open
        log.append("run")

    @router.actor
    async def hang(pool: Annotated[Pool, Depends(make_pool, scope="worker")]) -> None:
        log.append("run")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            assert pool.is_open
            log.append("run ends")

    async def main() -> None:
        async with app.magic():
            await send(app, "use")
            assert (await app.run_worker(burst=True)).succeeded == 1
            assert log == ["run", "pool closes"]
            log.clear()
            await send(app, "hang")
            worker = asyncio.create_task(app.run_worker())
            while not log:
                await asyncio.sleep(0.01)
            worker.cancel()
            with pytest.raises(asyncio.CancelledError):
                await worker
            assert log[:2] == ["run", "run ends"]

    asyncio.run(main())
    assert tasks[0] is tasks[1]
    assert tasks[0] is not None


def test_under_asyncio_what_fails_to_open_stops_the_worker_too(caplog: pytest.LogCaptureFixture) -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()
    app.include_router(router)
    caplog.set_level(logging.CRITICAL)

    @app.lifespan
    async def refuses() -> AsyncIterator[None]:
        await asyncio.sleep(0)
        raise ConnectionRefusedError("nobody listens")
        yield

    @router.actor
    async def run() -> None: ...

    async def main() -> None:
        async with app.magic():
            with pytest.raises(LifespanError, match="nobody listens") as raised:
                await app.run_worker(burst=True)
            assert isinstance(raised.value.__cause__, ConnectionRefusedError)

    asyncio.run(main())


async def test_a_client_for_tests_opens_it_once_and_fakes_take_its_place(
    autojump_clock: trio.testing.MockClock, log: Log, make_pool: Callable[[], AsyncIterator[Pool]]
) -> None:
    app, router = Repid(), Router()
    app.include_router(router)

    @app.lifespan
    async def lifespan() -> AsyncIterator[None]:
        with log.around("lifespan"):
            yield

    @router.actor
    async def use(pool: Annotated[Pool, Depends(make_pool, scope="worker")]) -> str:
        return pool.name

    async def fake() -> AsyncIterator[Pool]:
        with log.around("fake"):
            yield Pool("fake")

    async with TestClient(app) as client:
        for _ in range(2):
            await send(app, "use")
            run = await client.process_next(raise_errors=True)
            assert run is not None
            assert run.value == "pool"
        assert log == ["lifespan opens", "pool opens"]
        with client.override({make_pool: fake}):
            await send(app, "use")
            assert [run.value for run in await client.drain()] == ["fake"]
    assert log[2:] == ["fake opens", "fake closes", "pool closes", "lifespan closes"]
    log.clear()
    async with TestClient(app, overrides={make_pool: fake, lifespan: lambda: None}) as client:
        await send(app, "use")
        assert [run.value for run in await client.drain()] == ["fake"]
    assert log == ["fake opens", "fake closes"]


@pytest.mark.parametrize("host", ["trio", "asyncio"])
@pytest.mark.parametrize("fails", ["opening", "closing", "in a hook"])
def test_the_traceback_of_what_fails_around_the_runs_begins_in_the_program(
    fails: str, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()
    app.include_router(router)

    @router.actor
    async def job() -> None:
        raise KeyError("job")

    @app.lifespan
    async def opened() -> AsyncIterator[None]:
        if fails == "opening":
            raise ValueError("no")
        yield
        if fails == "closing":
            raise ValueError("no")

    @app.on_dead_letter
    async def hook(_: DeadMessage) -> None:
        if fails == "in a hook":
            raise ValueError("no")

    async def main() -> None:
        async with app.magic():
            await app.enqueue(job)
            with pytest.raises(LifespanError) if fails != "in a hook" else nullcontext():
                await app.run_worker(burst=True)

    if host == "trio":
        trio.run(main)
    else:
        asyncio.run(main())
    shown = [record.exc_text for record in caplog.records if record.exc_text and "ValueError" in record.exc_text]
    name = "hook" if fails == "in a hook" else "opened"
    assert shown
    for text in shown:
        assert text.splitlines()[1].endswith(f"in {name}")
        assert text.count("  File ") == 1
