"""FastAPI and a worker in two processes, and live progress by server-sent events. Needs: pip install fastapi uvicorn

In another terminal the same with `worker`; then POST /films?minutes=5, and GET /films/ID/progress with its answer.

Run it: python examples/fastapi_progress.py
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from tempfile import gettempdir

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from repid import INJECTED, Connection, Message, Repid, Router, SQLiteServer

jobs = Repid(Connection(SQLiteServer(f"{gettempdir()}/repid-fastapi-progress.db")))
router = Router(queue="films", store_result=True)


@router.actor
async def convert(minutes: int, message: Message = INJECTED) -> str:
    for minute in range(1, minutes + 1):
        await asyncio.sleep(0.5)
        await message.progress(minute, minutes)
    return f"a film of {minutes} minutes"


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with jobs.magic():
        yield


jobs.include_router(router)
app = FastAPI(lifespan=lifespan)


@app.post("/films")
async def order(minutes: int) -> str:
    return (await jobs.enqueue(convert, minutes)).id


@app.get("/films/{id_}")
async def wait(id_: str) -> str:
    return (await jobs.handle(convert, id_).wait(timeout=30)).value


@app.get("/films/{id_}/progress")
async def progress(id_: str) -> StreamingResponse:
    changes = jobs.handle(convert, id_).watch()
    events = (f"data: {each.state} {each.done or 0:g}\n\n" async for each in changes)
    return StreamingResponse(events, media_type="text/event-stream")


if __name__ == "__main__":
    jobs.run(loop="asyncio") if "worker" in sys.argv else uvicorn.run(app)
