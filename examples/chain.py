"""A chain: each step of an order sends the next one, together with its own acknowledgement or not at all.

What a step puts into `message.outbox` is sent in the same step in which its message is acknowledged. If the step
fails after that line, nothing was sent, and its next attempt cannot ship an order twice.

Run it: python examples/chain.py
"""

import trio

from repid import INJECTED, Connection, InMemoryServer, Message, Repid, Router

app = Repid(Connection(InMemoryServer()))
router = Router(queue="orders")


@router.actor
async def charge(order: int, message: Message = INJECTED) -> None:
    await trio.sleep(0.1)
    print(f"order {order}: charged")
    await message.outbox.enqueue(pack, order)


@router.actor
async def pack(order: int, message: Message = INJECTED) -> None:
    await trio.sleep(0.1)
    print(f"order {order}: packed")
    await message.outbox.enqueue(ship, order, parcel=f"P-{order:03}")


@router.actor
async def ship(order: int, parcel: str) -> None:
    await trio.sleep(0.1)
    print(f"order {order}: shipped as {parcel}")


async def main() -> None:
    app.include_router(router)
    async with app.magic():
        await app.enqueue_many(charge, [1, 2, 3])
        print("3 orders placed")
        report = await app.run_worker(burst=True)
    print(f"done: {report.succeeded} of {report.processed} steps succeeded")


if __name__ == "__main__":
    trio.run(main)
