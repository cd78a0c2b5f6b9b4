"""A crawler in two stages: pages are fetched, a few at once, and their links are followed. Needs: pip install httpx

It crawls the address that it is given, or the folder that `python -m http.server` serves here; start that before.
Run it: python examples/crawler.py
"""

import re
import sys
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import urljoin

import httpx
import trio

from repid import INJECTED, Connection, Depends, InMemoryServer, Message, Repid, Router

app, router = Repid(Connection(InMemoryServer())), Router()
START = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/"
seen = {START}  # in a database, where several workers crawl


async def open_client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=10) as client:
        yield client


Http = Annotated[httpx.AsyncClient, Depends(open_client, scope="worker")]


@router.actor(queue="pages", concurrency=4)
async def fetch(url: str, http: Http = INJECTED, message: Message = INJECTED) -> None:
    response = await http.get(url)
    print(f"{response.status_code} {url}")
    if response.is_success:
        await message.outbox.enqueue(follow, url, response.text)


@router.actor(queue="texts")
async def follow(url: str, html: str, message: Message = INJECTED) -> None:
    found = {urljoin(url, link) for link in re.findall(r'href="([^"#]+)', html)} - seen
    links = {link for link in found if link.startswith(START)}
    seen.update(links)
    try:
        await message.outbox.enqueue_many(fetch, links)
        await message.ack()
    except BaseException:  # nothing was sent: whoever finds them next may send them
        seen.difference_update(links)
        raise


async def main() -> None:
    app.include_router(router)
    async with app.magic():
        await app.enqueue(fetch, START)
        await app.run_worker(burst=True)


if __name__ == "__main__":
    trio.run(main)
