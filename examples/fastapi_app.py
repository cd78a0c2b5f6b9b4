"""FastAPI under asyncio: requests enqueue jobs and ask for their results; a worker runs in the lifespan.

The API is the same as under trio; the actor is a task of FastAPI's own loop. Needs: pip install fastapi httpx

Run it: python examples/fastapi_app.py
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from repid import Connection, InMemoryServer, Repid, Router

jobs = Repid(Connection(InMemoryServer()))
router = Router(queue="reports", store_result=True)


@router.actor
async def word_count(text: str) -> int:
    return len(text.split())


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with jobs.magic(), asyncio.TaskGroup() as group:
        worker = group.create_task(jobs.run_worker(handle_signals=[]))  # the signals are the web server's
        yield
        worker.cancel()


jobs.include_router(router)
app = FastAPI(lifespan=lifespan)


@app.post("/reports")
async def order(text: str) -> dict[str, str]:
    return {"id": (await jobs.enqueue(word_count, text)).id}


@app.get("/reports/{id_}")
async def fetch(id_: str) -> dict[str, int]:
    result = await jobs.handle(word_count, id_).result
    return {} if result is None else {"words": result.value}


async def main() -> None:
    async with lifespan(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/reports", params={"text": "to be or not to be"})
        while not (report := (await client.get(f"/reports/{answer.json()['id']}")).json()):
            await asyncio.sleep(0.01)
    print(f"a report of {report['words']} words, and the worker has ended")


if __name__ == "__main__":
    asyncio.run(main())
