"""Results and progress: watch a job while it runs, get what it returned, and see how another one failed.

Run it: python examples/results_and_progress.py
"""

import logging

import trio

from repid import Connection, InMemoryMessageBroker, Job, JobHandle, Message, Queue, Repid, ResultError, Worker

logging.getLogger("repid").setLevel(logging.CRITICAL)  # workers log each failure; here its traceback would distract

worker = Worker(burst=True)


@worker.actor(store_result=True)
async def count_words(text: str, message: Message) -> dict[str, int]:
    counts: dict[str, int] = {}
    words = text.split()
    for done, word in enumerate(words, start=1):
        counts[word] = counts.get(word, 0) + 1
        await message.progress(done, len(words), note=word)  # cheap: what comes in quick succession is coalesced
        await trio.sleep(0.15)
    return counts


@worker.actor(store_result=True)
async def divide(a: int, b: int) -> float:
    return a / b


async def show(handle: JobHandle) -> None:
    async for status in handle.watch():
        if status.done is not None:
            print(f"{status.state}: {status.done} of {status.total} words")
    print(f"over: {(await handle.status()).state}")


async def main() -> None:
    app = Repid(Connection(InMemoryMessageBroker()))
    async with app.magic():
        await Queue().declare()
        counting = await Job("count_words", args={"text": "to be or not to be"}).enqueue()
        dividing = await Job("divide", args={"a": 1, "b": 0}).enqueue()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show, counting)
            nursery.start_soon(worker.run)
        result = await counting.result_as(dict[str, int])
        assert result is not None
        print(result.value)
        try:
            print((await dividing.wait()).value)
        except ResultError as error:
            print(error)


if __name__ == "__main__":
    trio.run(main)
