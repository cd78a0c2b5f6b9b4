"""A saga: payment, stock, shipment, and when a step fails for good, what was done before is undone.

Each step sends the next one with its own acknowledgement. A step without retries left becomes a dead letter, and the
hook of dead letters undoes those before it. A worker that is killed just then calls none: see `python -m repid dead`.

Run it: python examples/saga.py
"""

import json
import logging

import trio

from repid import INJECTED, Connection, DeadMessage, InMemoryServer, Message, Repid, Router

logging.disable()  # workers log each failure; here its traceback would distract
app = Repid(Connection(InMemoryServer()))
router = Router(queue="orders", retries=1)
UNDONE = {"reserve": ["pay"], "ship": ["reserve", "pay"]}


@router.actor
async def pay(order: str, message: Message = INJECTED) -> None:
    print(f"{order}: paid")
    await message.outbox.enqueue(reserve, order)


@router.actor
async def reserve(order: str, message: Message = INJECTED) -> None:
    assert "unicorn" not in order, "there is none in stock"
    print(f"{order}: reserved")
    await message.outbox.enqueue(ship, order)


@router.actor(timeout=0.5)
async def ship(order: str) -> None:
    await trio.sleep(60 if "piano" in order else 0)  # the carrier of pianos does not answer
    print(f"{order}: shipped")


@router.actor(retries=100)  # it must succeed in the end
async def undo(step: str, order: str) -> None:
    print(f"{order}: {step} is undone")


@app.on_dead_letter
async def compensate(dead: DeadMessage) -> None:
    order = json.loads(dead.envelope.payload)["order"]
    await app.enqueue_many([app.job(undo, step, order) for step in UNDONE.get(dead.actor or "", [])])


async def main() -> None:
    app.include_router(router)
    async with app.magic():
        await app.enqueue_many(pay, ["a book", "a unicorn", "a piano"])
        await app.run_worker(messages_limit=13)  # that is how many runs it takes


if __name__ == "__main__":
    trio.run(main)
