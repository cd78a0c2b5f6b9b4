"""A pipeline inside a trio application: the worker is one more task in a nursery of yours.

`nursery.start` returns when the worker really consumes, with a handle that stops it. Leaving or cancelling the nursery
ends the worker too; nothing of it can outlive the block. The last stage gives its results back to the application.

Run it: python examples/pipeline.py
"""

from collections import Counter

import trio

from repid import InMemoryServer, Message, Repid, Router

PAGES = {
    "/": "welcome to the small shop of small things",
    "/shop": "small spoons and small forks and one big bowl",
    "/about": "we like small things",
}

app = Repid(title="word count")
app.servers.register_server("default", InMemoryServer())
router = Router(channel="pages")
send_counted, counted = trio.open_memory_channel[tuple[str, Counter[str]]](0)  # full: the last stage waits for us


@router.actor(concurrency=2)  # be kind to the server: two downloads at once
async def download(path: str, message: Message) -> None:
    print(f"download {path}")
    await trio.sleep(0.1)
    page = {"path": path, "text": PAGES[path]}
    await message.outbox.send_message_json(channel="pages", payload=page, headers={"topic": "count"})


@router.actor
async def count(path: str, text: str) -> None:
    print(f"count {path}")
    await send_counted.send((path, Counter(text.split())))


async def main() -> None:
    app.include_router(router)
    total: Counter[str] = Counter()
    async with app.servers.default.connection(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        await app.send_messages_json(
            channel="pages", payloads=[{"path": path} for path in PAGES], headers={"topic": "download"}
        )
        for _ in PAGES:
            path, words = await counted.receive()
            print(f"{path} has {words.total()} words")
            total += words
        worker.stop()
    print("most common: {} ({} times)".format(*total.most_common(1)[0]))


if __name__ == "__main__":
    trio.run(main)
