"""Priorities: what is urgent goes first, and nothing starves.

A priority is a head start: a LOW job is treated as if it had been enqueued ten minutes later than it was, a MEDIUM one
(the default) as if one minute later. So HIGH goes first among jobs of like age, but a LOW job that has waited for ten
minutes goes before a HIGH one that has just come. Within a class, first in is first out.

Run it: python examples/priorities.py
"""

import trio

from repid import Connection, InMemoryServer, Job, PrioritiesT, Queue, Repid, Worker

worker = Worker(tasks_limit=1, burst=True)  # one at a time, so that the order shows


@worker.actor(queue="mail")
async def send(subject: str) -> None:
    await trio.sleep(0.05)
    print(f"sent: {subject}")


async def enqueue(subject: str, priority: PrioritiesT) -> None:
    await Job("send", queue="mail", args={"subject": subject}, priority=priority).enqueue()
    print(f"enqueued as {priority.name}: {subject}")


async def main() -> None:
    app = Repid(Connection(InMemoryServer()))
    async with app.magic():
        await Queue("mail").declare()
        await enqueue("our newsletter", PrioritiesT.LOW)
        await enqueue("your invoice", PrioritiesT.MEDIUM)
        await enqueue("your delivery is on its way", PrioritiesT.MEDIUM)
        await enqueue("reset your password", PrioritiesT.HIGH)
        await worker.run()


if __name__ == "__main__":
    trio.run(main)
