"""Hello: declare an actor, enqueue two calls of it, run a worker.

Run it: python examples/hello.py
"""

import trio

from repid import Connection, InMemoryServer, Repid, Router

router = Router(channel="greetings")


@router.actor
async def greet(name: str, greeting: str = "Hello") -> None:
    print(f"{greeting}, {name}!")


app = Repid(Connection(InMemoryServer()))
app.include_router(router)


async def main() -> None:
    async with app.magic():
        await app.enqueue(greet, "Ada")
        await app.enqueue(greet, "Grace", greeting="Good morning")
        report = await app.run_worker(burst=True)  # burst: until nothing is left to do
    print(f"{report.succeeded} of {report.processed} messages succeeded.")


if __name__ == "__main__":
    trio.run(main)
