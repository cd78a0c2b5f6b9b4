"""The blocking client in threads of a program whose loop has the app open already, and several clients of one app."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from repid import (
    Client,
    Connection,
    InMemoryServer,
    Job,
    NotConnected,
    Queue,
    Repid,
    Router,
    SQLiteServer,
    UsageError,
)

pytestmark = pytest.mark.real_time


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Repid:
    server = InMemoryServer() if request.param == "memory" else SQLiteServer(tmp_path / "jobs.db", synchronous="NORMAL")
    return Repid(Connection(server))


def run_asyncio(main: Callable[[Callable[..., Awaitable[Any]]], Awaitable[Any]]) -> Any:
    return asyncio.run(main(asyncio.to_thread))  # type: ignore[arg-type]


def run_trio(main: Callable[[Callable[..., Awaitable[Any]]], Awaitable[Any]]) -> Any:
    return trio.run(main, trio.to_thread.run_sync)


@pytest.fixture(params=[run_asyncio, run_trio])
def run(request: pytest.FixtureRequest) -> Any:
    """Runs an async function, and gives it what calls a sync one in a thread of the pool."""
    return request.param


def in_a_thread_of_its_own(function: Callable[[], Any]) -> Any:
    """As web servers do that know nothing of the loop."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("make_block", [True, False])
def test_a_sync_actor_may_use_the_client_in_whatever_way(app: Repid, run: Any, *, make_block: bool) -> None:
    router = Router(queue="q", store_result=True)
    ran: list[str] = []

    @router.actor
    def parent() -> bool:
        if make_block:
            with app.sync() as client:
                client.enqueue(Job("child", queue="q"))
        else:
            client = app.sync()
            client.open()
            client.enqueue(Job("child", queue="q"))
            client.close()
        app.sync().enqueue(Job("child", queue="q"))
        return client.is_open

    @router.actor
    def child() -> None:
        ran.append("child")

    app.include_router(router)

    async def main(_: Any) -> None:
        async with app.magic():
            handle = await Job("parent", queue="q").enqueue()
            assert (await app.run_worker(burst=True)).succeeded == 3
            result = await handle.result
            assert result is not None
            assert (result.state, result.value) == ("success", True)

    run(main)
    assert ran == ["child", "child"]


def test_a_thread_of_the_pool_and_one_of_its_own_call_through_the_loop_that_has_the_app_open(
    app: Repid, run: Any
) -> None:
    client = app.sync()

    def send() -> bool:
        client.send_message_json(channel="q")
        with app.sync() as other:
            other.send_message_json(channel="q")
        return client.is_open

    async def main(to_thread: Any) -> None:
        async with app.magic():
            assert await to_thread(send)
            assert await to_thread(in_a_thread_of_its_own, send)
            assert (await Queue("q").counts()).ready == 4
            library = "trio" if trio.lowlevel.in_trio_task() else "asyncio"
            with pytest.raises(UsageError, match=f"would stop the {library} loop"):
                client.send_message_json(channel="q")

    run(main)
    assert not client.is_open
    assert threads("repid client") == 0


def test_a_loop_that_only_runs_a_worker_serves_threads_too(app: Repid, run: Any) -> None:
    router = Router(queue="q")
    client, ran = app.sync(), []

    @router.actor
    def child() -> None:
        ran.append("child")

    @router.actor
    def parent() -> None:
        in_a_thread_of_its_own(lambda: client.enqueue(Job("child", queue="q")))

    app.include_router(router)

    async def prepare(_: Any) -> None:
        async with app.magic():
            await Job("parent", queue="q").enqueue()

    async def main(_: Any) -> None:
        assert (await app.run_worker(burst=True)).succeeded == 2

    run(prepare)
    run(main)
    assert ran == ["child"]


def test_errors_of_a_call_come_through_bare(app: Repid, run: Any) -> None:
    client = app.sync()

    def send() -> None:
        with pytest.raises(NotConnected, match="mine"):
            client.run(fail)

    async def fail() -> None:
        raise NotConnected("mine")

    async def main(to_thread: Any) -> None:
        async with app.magic():
            await to_thread(in_a_thread_of_its_own, send)

    run(main)


def test_a_wait_ends_when_the_loop_does(app: Repid, run: Any) -> None:
    client, seen = app.sync(), []

    def wait(begun: threading.Event) -> None:
        try:
            client.run(partial(announce_and_wait, begun))
        except NotConnected as error:
            seen.append(str(error))

    async def announce_and_wait(begun: threading.Event) -> None:
        begun.set()
        await trio.sleep_forever()

    threads = []

    async def main(to_thread: Any) -> None:
        async with app.magic():
            begun = threading.Event()
            threads.append(threading.Thread(target=wait, args=[begun]))
            threads[0].start()
            await to_thread(begun.wait)

    run(main)
    threads[0].join(10)
    assert seen == ["the client was closed before this call was over"]
    client.send_message_json(channel="q")
    client.close()


def test_where_a_loop_has_the_app_open_the_client_starts_no_worker(app: Repid, run: Any) -> None:
    def work() -> None:
        with pytest.raises(UsageError, match=r"run its worker there, with app\.run_worker"), app.sync().worker():
            raise AssertionError("it has started")

    async def main(to_thread: Any) -> None:
        async with app.magic():
            await to_thread(work)

    run(main)


def test_a_sync_endpoint_of_fastapi_sends(app: Repid) -> None:
    fastapi: Any = pytest.importorskip("fastapi")
    httpx: Any = pytest.importorskip("httpx")
    client = app.sync()

    @asynccontextmanager
    async def lifespan(_: Any) -> Any:
        async with app.magic():
            await Queue("q").declare()
            yield

    def blocking() -> None:
        client.enqueue(Job("job", queue="q"))

    async def without_app() -> None:
        await Job("job", queue="q").enqueue()

    web = fastapi.FastAPI(lifespan=lifespan)
    web.post("/blocking")(blocking)
    web.post("/without-app")(without_app)

    async def main() -> None:
        transport = httpx.ASGITransport(web)
        async with lifespan(web), httpx.AsyncClient(transport=transport, base_url="http://test") as browser:
            tasks = [browser.post(path) for path in ("/blocking", "/without-app") * 5]
            assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
            assert await Queue("q").size() == 10

    asyncio.run(main())


def threads(name: str) -> int:
    return [thread.name for thread in threading.enumerate()].count(name)


@pytest.fixture
def clients(app: Repid) -> Iterator[tuple[Client, Client]]:
    one, other = app.sync(), app.sync()
    yield one, other
    one.close()
    other.close()


def test_clients_of_one_app_share_what_is_open_until_the_last_one_closes(clients: tuple[Client, Client]) -> None:
    one, other = clients
    one.send_message_json(channel="q")
    other.send_message_json(channel="q")
    assert threads("repid client") == 1
    one.close()
    assert other.is_open
    other.send_message_json(channel="q")
    other.close()
    assert not one.is_open
    assert threads("repid client") == 0


def test_threads_that_open_a_client_each_do_not_disturb_one_another(app: Repid) -> None:
    failures: list[BaseException] = []

    def send() -> None:
        try:
            for _ in range(10):
                with app.sync() as client:
                    client.send_message_json(channel="q")
        except BaseException as error:  # noqa: BLE001  it is shown
            failures.append(error)

    workers = [threading.Thread(target=send) for _ in range(6)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert failures == []
    with app.sync() as client:
        assert client.run(Queue("q", app=app).size) == 60


def test_closing_one_client_ends_its_own_waiting_calls_only(app: Repid, clients: tuple[Client, Client]) -> None:
    one, other = clients
    one.run(Queue(app=app).declare)
    handle = one.enqueue(Job("nobody"))
    fates: list[str] = []

    def wait(client: Client, name: str) -> None:
        try:
            client.result(handle, timeout=1)
        except (NotConnected, TimeoutError) as error:
            fates.append(f"{name} {type(error).__name__}")

    waiting = [
        threading.Thread(target=wait, args=[one, "one"]),
        threading.Thread(target=wait, args=[other, "other"]),
    ]
    for thread in waiting:
        thread.start()
    waiting[0].join(0.3)
    one.close()
    for thread in waiting:
        thread.join(10)
    assert fates == ["one NotConnected", "other TimeoutError"]


def test_a_client_that_was_dropped_without_closing_does_not_keep_others_from_working(app: Repid) -> None:
    for _ in range(3):
        app.sync().send_message_json(channel="q")
    with app.sync() as client:
        assert client.run(Queue("q", app=app).size) == 3
    assert threads("repid client") == 0
