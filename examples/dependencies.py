"""Dependencies: what actors are given beside their payload, opened for each run and closed after it.

A run that fails closes its dependencies too: what it raised is raised at their `yield`, so that a transaction can be
rolled back. Whoever asks for the same dependency within a run gets the same value.

Run it: python examples/dependencies.py
"""

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import trio

from repid import Connection, Depends, InMemoryServer, Job, Message, Queue, Repid, Worker

logging.getLogger("repid").setLevel(logging.CRITICAL)  # workers log each failure; here its traceback would distract
stock = {"apples": 5}
worker = Worker(messages_limit=2, tasks_limit=1)


async def transaction(message: Message) -> AsyncIterator[dict[str, int]]:
    changed = dict(stock)
    try:
        yield changed
    except BaseException:
        print(f"{message.message_id}: rolled back")
        raise
    await trio.sleep(0.01)  # a database would take its time
    stock.update(changed)
    print(f"{message.message_id}: committed")


Stock = Annotated[dict[str, int], Depends(transaction)]


def watch(changed: Stock) -> Iterator[None]:
    yield
    print(f"{changed['apples']} apples left")


@worker.actor
async def sell(item: str, count: int, changed: Stock, _: Annotated[None, Depends(watch)]) -> None:
    if changed[item] < count:
        raise LookupError(f"not enough {item}")
    changed[item] -= count


async def main() -> None:
    async with Repid(Connection(InMemoryServer())).magic():
        await Queue().declare()
        for name in ("first", "second"):
            await Job("sell", id_=name, args={"item": "apples", "count": 3}).enqueue()
        report = await worker.run()
    print(f"{report.succeeded} succeeded, {report.dead} dead, in stock: {stock}")


if __name__ == "__main__":
    trio.run(main)
