"""Results and progress: watch a job while it runs, get what it returned, and see how another one failed.

Run it: python examples/results_and_progress.py
"""

import logging

import trio

from repid import INJECTED, Connection, InMemoryServer, JobFailed, JobHandle, Message, Repid, Router

logging.getLogger("repid").setLevel(logging.CRITICAL)  # workers log each failure; here its traceback would distract

app = Repid(Connection(InMemoryServer()))
router = Router(store_result=True)


@router.actor
async def count_words(text: str, message: Message = INJECTED) -> dict[str, int]:
    counts: dict[str, int] = {}
    words = text.split()
    for done, word in enumerate(words, start=1):
        counts[word] = counts.get(word, 0) + 1
        await message.progress(done, len(words), note=word)  # cheap: what comes in quick succession is coalesced
        await trio.sleep(0.15)
    return counts


@router.actor
async def divide(a: int, b: int) -> float:
    return a / b


async def show(handle: JobHandle) -> None:
    async for status in handle.watch():
        if status.done is not None:
            print(f"{status.state}: {status.done} of {status.total} words")
    print(f"over: {(await handle.status()).state}")


async def main() -> None:
    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        counting = await app.enqueue(count_words, "to be or not to be")
        await show(counting)
        print((await counting.wait()).value)
        try:
            print(await app.call(divide, 1, b=0))
        except JobFailed as error:
            print(error)
        worker.stop()


if __name__ == "__main__":
    trio.run(main)
