"""CPU work in processes: all cores at work, the event loop free, and a timeout that really kills.

Needs: pip install '.[process]'. The function must be sync and at the top level of a
module, because another process imports it. What it returns comes back: a middleware of the actor sees it.

Run it: python examples/cpu_in_processes.py
"""

import logging
from typing import Any

import trio

from repid import Actor, CallNext, Connection, InMemoryServer, Job, Message, Queue, Repid, Router, Worker

logging.getLogger("repid").setLevel(logging.CRITICAL)  # the failure of `spin` would be logged with its traceback


async def show(call_next: CallNext, message: Message, actor: Actor) -> Any:
    """Print what the actor returned. Runs in this process, around the call in the other one."""
    result = await call_next(message, actor)
    print(f"{actor.name}({message.arguments}) = {result}")
    return result


router = Router(run_in_process=True, middlewares=[show])


@router.actor
def count_primes(below: int) -> int:
    return sum(all(n % divisor for divisor in range(2, int(n**0.5) + 1)) for n in range(2, below))


@router.actor(timeout=1)
def spin() -> None:
    while True:
        pass


async def main() -> None:
    app = Repid(Connection(InMemoryServer()))
    async with app.magic():
        await Queue().declare()
        for below in (100, 1_000, 10_000):
            await Job("count_primes", args={"below": below}).enqueue()
        await Job("spin").enqueue()
        report = await Worker(routers=[router], burst=True).run()
        [dead] = await Queue().get_messages("dead")
    print(f"{dead.envelope.topic} was killed: {dead.failure.text if dead.failure else dead.reason}")
    print(f"{report.succeeded} succeeded, {report.failed} failed")


if __name__ == "__main__":
    trio.run(main)
