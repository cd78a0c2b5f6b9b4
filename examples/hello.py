"""Hello: declare an actor, send it messages, run a worker.

Run it: python examples/hello.py
"""

import trio

from repid import InMemoryServer, Repid, Router

router = Router(channel="greetings")


@router.actor
async def greet(name: str, greeting: str = "Hello") -> None:
    print(f"{greeting}, {name}!")


app = Repid(title="hello")
app.servers.register_server("default", InMemoryServer())
app.include_router(router)


async def main() -> None:
    async with app.servers.default.connection():
        await app.send_message_json(channel="greetings", payload={"name": "Ada"}, headers={"topic": "greet"})
        await app.send_message_json(
            channel="greetings", payload={"name": "Grace", "greeting": "Good morning"}, headers={"topic": "greet"}
        )
        report = await app.run_worker(messages_limit=2)
    print(f"{report.succeeded} of {report.processed} messages succeeded.")


if __name__ == "__main__":
    trio.run(main)
