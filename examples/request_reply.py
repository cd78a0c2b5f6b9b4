"""Request and reply: ask an actor a question and wait for its answer.

`message.reply_json` acknowledges the request and sends the reply to its `reply_to` in one step. The side that asks has
an actor of its own on the reply channel, which hands each answer to whoever waits for it.

Run it: python examples/request_reply.py
"""

from uuid import uuid4

import trio

from repid import InMemoryServer, Message, Repid, Router, catch_all_routing_strategy

app = Repid(title="calculator")
app.servers.register_server("default", InMemoryServer())
router = Router()
waiting: dict[str, trio.MemorySendChannel[float]] = {}


@router.actor(channel="calculator")
async def divide(dividend: float, divisor: float, message: Message) -> None:
    print(f"the actor divides {dividend:g} by {divisor:g}")
    await message.reply_json({"result": dividend / divisor}, headers={"answers": message.message_id})


@router.actor(channel="answers", routing_strategy=catch_all_routing_strategy)
async def collect(result: float, message: Message) -> None:
    await waiting[message.headers["answers"]].send(result)


async def ask(dividend: float, divisor: float) -> float:
    question = uuid4().hex
    waiting[question], answer = trio.open_memory_channel[float](1)
    try:
        await app.send_message_json(
            channel="calculator",
            payload={"dividend": dividend, "divisor": divisor},
            headers={"topic": "divide"},
            message_id=question,
            reply_to="answers",
        )
        with trio.fail_after(5):
            return await answer.receive()
    finally:
        del waiting[question]


async def main() -> None:
    app.include_router(router)
    async with app.server().connection(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        print(f"the answer is {await ask(84, 2):g}")
        print(f"the answer is {await ask(1, 8):g}")
        worker.stop()


if __name__ == "__main__":
    trio.run(main)
