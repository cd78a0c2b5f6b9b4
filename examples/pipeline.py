"""A pipeline inside a trio application: two stages with a bounded number of calls at once, and a page that fails.

Run it: python examples/pipeline.py
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator

import trio

from repid import Connection, InMemoryServer, Repid, Result, Router

logging.getLogger("repid").setLevel(logging.CRITICAL)  # workers log each failure
PAGES = {
    "/": "welcome to the small shop of small things",
    "/shop": "small spoons and small forks and one big bowl",
    "/about": "we like small things",
}

app = Repid(Connection(InMemoryServer()), title="word count")
router = Router(channel="pages")


@router.actor(concurrency=2)  # be kind to the server: two downloads at once
async def download(path: str) -> str:
    await trio.sleep(0.1)
    return PAGES[path]


@router.actor
async def count(text: str) -> dict[str, int]:
    return Counter(text.split())


async def downloaded(pages: AsyncIterator[Result[str]]) -> AsyncIterator[str]:
    async for page in pages:
        if page.is_success:
            yield page.value
        elif page.failure is not None:
            print(f"a page failed: {page.failure.type}: {page.failure.text}")


async def main() -> None:
    app.include_router(router)
    total: Counter[str] = Counter()
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        downloads = app.map(download, [*PAGES, "/gone"], on_error="yield")
        async with downloads as pages, app.map(count, downloaded(pages), ordered=False) as counts:
            async for words in counts:
                print(f"a page has {sum(words.values())} words")
                total.update(words)
        worker.stop()
    print("most common: {} ({} times)".format(*total.most_common(1)[0]))


if __name__ == "__main__":
    trio.run(main)
