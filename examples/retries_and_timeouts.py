"""Retries and timeouts: what happens to a job that fails, and to one that does not end.

A failed job is run again after a delay, as often as `retries` allows. A job past its timeout is really cancelled: it
stops where it waits, its `finally` blocks run, and only then is it settled. What has no retries left becomes a dead
letter with the error in it, to be looked at and requeued.

Run it: python examples/retries_and_timeouts.py
"""

import logging

import trio

from repid import Connection, InMemoryServer, Job, Message, Queue, Repid, Worker, default_retry_policy_factory

logging.getLogger("repid").setLevel(logging.CRITICAL)  # workers log each failure; here its traceback would distract

worker = Worker(messages_limit=5)  # three runs of `fetch`, two of `hang`
quickly = default_retry_policy_factory(min_backoff=0.1, multiplier=0.1)  # 0.1 s, 0.2 s, 0.4 s, ...


@worker.actor(retries=5, retry_policy=quickly)
async def fetch(url: str, message: Message) -> None:
    print(f"fetch, attempt {message.attempt}")
    if message.attempt < 3:
        raise ConnectionError(f"{url} does not answer")
    print("fetch succeeded")


@worker.actor(timeout=0.3, retries=1, retry_policy=quickly)
async def hang(message: Message) -> None:
    print(f"hang, attempt {message.attempt}")
    try:
        await trio.sleep_forever()
    finally:
        print("hang was cancelled and cleans up")


async def main() -> None:
    app = Repid(Connection(InMemoryServer()))
    async with app.magic():
        await Queue().declare()
        await Job("fetch", args={"url": "https://example.org"}).enqueue()
        await Job("hang").enqueue()
        report = await worker.run()
        for dead in await Queue().get_messages("dead"):
            print(f"dead letter: {dead.envelope.topic}, {dead.failure.text if dead.failure else dead.reason}")
    print(f"{report.processed} runs: {report.succeeded} succeeded, {report.retried} retried, {report.dead} dead")


if __name__ == "__main__":
    trio.run(main)
