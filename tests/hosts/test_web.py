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
