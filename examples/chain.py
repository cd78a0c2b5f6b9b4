"""A chain: each step of an order sends the next one, together with its own acknowledgement or not at all.

What a step puts into `message.outbox` is sent in the same step in which its message is acknowledged. If the step
fails after that line, nothing was sent, and its next attempt cannot ship an order twice.

Run it: python examples/chain.py
"""

import trio

from repid import Connection, InMemoryMessageBroker, Job, Message, Queue, Repid, Router, Worker

router = Router(queue="orders")


@router.actor
async def charge(order: int, message: Message) -> None:
    await trio.sleep(0.1)
    print(f"order {order}: charged")
    await message.outbox.send_message_json(channel="orders", payload={"order": order}, headers={"topic": "pack"})


@router.actor
async def pack(order: int, message: Message) -> None:
    await trio.sleep(0.1)
    print(f"order {order}: packed")
    parcel = {"order": order, "parcel": f"P-{order:03}"}
    await message.outbox.send_message_json(channel="orders", payload=parcel, headers={"topic": "ship"})


@router.actor
async def ship(order: int, parcel: str) -> None:
    await trio.sleep(0.1)
    print(f"order {order}: shipped as {parcel}")


async def main() -> None:
    app = Repid(Connection(InMemoryMessageBroker()))
    async with app.magic():
        await Queue("orders").declare()
        for order in (1, 2, 3):
            await Job("charge", queue="orders", args={"order": order}).enqueue()
        print("3 orders placed")
        report = await Worker(routers=[router], burst=True).run()  # burst: until nothing is left to do
    print(f"done: {report.succeeded} of {report.processed} steps succeeded")


if __name__ == "__main__":
    trio.run(main)
