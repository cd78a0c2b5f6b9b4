"""Starlette under asyncio: requests send messages; a worker runs in the lifespan.

Needs: pip install starlette httpx
Run it: python examples/starlette_app.py
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from repid import Connection, InMemoryServer, Repid, Router

jobs = Repid(Connection(InMemoryServer()))
router = Router(channel="orders", retries=3)
shipped: list[int] = []


@router.actor
async def ship(order: int) -> None:
    await asyncio.sleep(0.01)
    shipped.append(order)


jobs.include_router(router)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    async with jobs.server().connection(), asyncio.TaskGroup() as group:
        worker = group.create_task(jobs.run_worker(handle_signals=[]))
        yield
        worker.cancel()  # what is not done goes back to the queue


async def order(request: Request) -> JSONResponse:
    number = (await request.json())["order"]
    sent = await jobs.send_message_json(channel="orders", payload={"order": number}, headers={"topic": "ship"})
    return JSONResponse({"id": sent.id}, status_code=202)


app = Starlette(routes=[Route("/orders", order, methods=["POST"])], lifespan=lifespan)


async def main() -> None:
    async with lifespan(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answers = await asyncio.gather(*(client.post("/orders", json={"order": number}) for number in range(3)))
        while len(shipped) < 3:
            await asyncio.sleep(0.01)
    print([answer.status_code for answer in answers], sorted(shipped))


if __name__ == "__main__":
    asyncio.run(main())
