"""The web examples serve real requests through a real server, and end with it."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from repid import Connection, InMemoryServer, Job, Queue, Repid, Worker

from .hosting import nothing_is_left

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # FastAPI looks the annotations up there
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def serving(app: object) -> AsyncIterator[Any]:
    """A client of a server on a port of its own."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", loop="none"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done(), task.result()
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield client
    server.should_exit = True
    await task


def test_fastapi_serves_requests_and_its_worker_answers(run: Any) -> None:
    pytest.importorskip("fastapi")

    async def main() -> None:
        async with serving(load("fastapi_app").app) as client:
            answers = await asyncio.gather(*(client.post("/reports", params={"text": "a b c"}) for _ in range(20)))
            for answer in answers:
                id_ = answer.json()["id"]
                while not (report := (await client.get(f"/reports/{id_}")).json()):
                    await asyncio.sleep(0.01)
                assert report == {"words": 3}
        assert nothing_is_left()

    run(main())


def test_starlette_serves_requests_and_its_worker_ships(run: Any) -> None:
    pytest.importorskip("starlette")

    async def main() -> None:
        module = load("starlette_app")
        async with serving(module.app) as client:
            answers = await asyncio.gather(*(client.post("/orders", json={"order": n}) for n in range(20)))
            assert {answer.status_code for answer in answers} == {202}
            while len(module.shipped) < 20:
                await asyncio.sleep(0.01)
        assert nothing_is_left()

    run(main())


def test_an_actor_that_asks_a_server_is_cancelled_by_its_timeout_and_by_the_end_of_its_worker(run: Any) -> None:
    pytest.importorskip("fastapi")
    from fastapi import FastAPI

    site = FastAPI()
    over = asyncio.Event()

    @site.get("/at-once")
    async def at_once() -> str:
        return "hello"

    @site.get("/late")
    async def late() -> str:
        await over.wait()  # a server waits for its handlers in the end
        return "too late"

    async def main() -> None:
        app = Repid(Connection(InMemoryServer()))
        worker = Worker(app=app, graceful_shutdown_time=0.1)
        begun: list[str] = []
        got: list[str] = []

        async with serving(site) as client, app.magic(), asyncio.TaskGroup() as group:

            @worker.actor
            async def ask(path: str) -> None:
                begun.append(path)
                got.append((await client.get(path, timeout=None)).json())

            running = group.create_task(worker.run())
            await Queue().declare()
            await Job("ask", args={"path": "/at-once"}).enqueue()
            await Job("ask", args={"path": "/late"}, timeout=0.2).enqueue()
            patient = await Job("ask", args={"path": "/late"}).enqueue()
            while len(begun) < 3 or len(got) < 1 or not await Queue().get_messages("dead"):
                await asyncio.sleep(0.01)
            worker.stop()
            report = await running
            over.set()
            assert (report.succeeded, report.failed, report.released) == (1, 1, 1)
            assert [message.envelope.id for message in await Queue().get_messages()] == [patient.id]
        assert got == ["hello"]
        assert nothing_is_left()

    run(main())
