"""Schedules: an actor that ticks by itself, a recurring job, and how to look after them while workers run.

Any number of workers may run: each tick is one message. Needs: pip install '.[cron]'

Run it: python examples/schedules.py
"""

import trio

from repid import Connection, InMemoryServer, Job, Queue, Repid, Worker

worker = Worker()


@worker.actor(every=0.3)
async def heartbeat() -> None:
    print("heartbeat")


@worker.actor(cron="0 3 * * *", timezone="Europe/Berlin")
async def tidy_up() -> None:
    print("it is three o'clock in the morning")


@worker.actor
async def remind(text: str) -> None:
    print(f"remember: {text}")


async def main() -> None:
    app = Repid(Connection(InMemoryServer()))
    async with app.magic():
        await Queue().declare()
        await Job("remind", args={"text": "drink water"}, every=0.5).enqueue()
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            print("stored:", ", ".join(stored.schedule.name for stored in await app.schedules.list()))
            await trio.sleep(0.75)
            await app.schedules.pause("default:heartbeat")
            print("the heartbeat is paused")
            await trio.sleep(0.5)
            await app.schedules.remove("default:remind")
            worker.stop()


if __name__ == "__main__":
    trio.run(main)
