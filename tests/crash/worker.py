"""A worker: one actor whose messages succeed, fail once, are nacked, send others, or outlast their lease."""

from __future__ import annotations

import logging
import sys
from typing import Any
from zlib import crc32

import trio

from repid import Actor, CallNext, Message, Repid, Router

from .journal import Finished, Journal, Linked, Started, Told
from .journal import now as clock
from .steps import HEADERS, NOTHING_SPECIAL, QUEUE, Doom, DoomedServer, Orders, doomed_server, obey

LOOK = 0.02
"""Seconds between two looks at the link: it is not opened again so soon."""


class FailsOnce(Exception):  # noqa: N818 - it says what it is for
    """Raised by every fiftieth message in its first attempt."""


class Work:
    """The actor and the middleware around it."""

    def __init__(self, orders: Orders, doom: Doom, server: DoomedServer) -> None:
        self._lease = orders.lease
        self._doom = doom
        self._server = server

    async def around(self, call_next: CallNext, message: Message, actor: Actor) -> Any:
        """Steps just before the actor starts and just after it has finished."""
        self._doom.reach("before start")
        result = await call_next(message, actor)
        self._doom.reach("after finish")
        return result

    async def work(self, message: Message, number: int) -> None:
        """Take a while, and end in one way or another."""
        doom, id_ = self._doom, message.message_id
        token = self._server.tokens[id_]
        doom.journal.write(Started(at=clock(), id=id_, token=token))
        doom.reach("after start")
        doom.reach("stop run")
        await trio.sleep(self._lease * 1.3 if number % 150 == 11 else crc32(id_.encode()) % 200 / 1000)
        await self._end(message, number)
        doom.reach("before finish")
        doom.journal.write(Finished(at=clock(), id=id_, token=token))

    async def _end(self, message: Message, number: int) -> None:
        if number % 50 == 7 and message.attempt == 1:
            raise FailsOnce
        if number % 211 == 3:
            await message.nack()
        elif number % 41 == 5:
            await message.outbox.send_message_json(
                channel=QUEUE,
                payload={"number": NOTHING_SPECIAL},
                headers=HEADERS,
                message_id=f"{message.message_id}+",
            )


class Telling(logging.Handler):
    """Writes warnings into the journal, besides where they go anyway; not those about one message."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "message_id"):
            self._journal.write(Told(at=clock(), text=record.getMessage()))


async def watch_link(server: DoomedServer, journal: Journal) -> None:
    """Write down whenever the link goes down, and when it is up."""
    was_up = False
    while True:
        is_up = server.link.state == "up"
        if is_up != was_up:
            journal.write(Linked(at=clock(), up=is_up))
            was_up = is_up
        await trio.sleep(LOOK)


async def main() -> None:
    orders, doom = obey(sys.argv)
    server = doomed_server(orders, doom)
    work = Work(orders, doom, server)
    app = Repid(middlewares=[work.around])
    app.servers.register_server("default", server)
    router = Router(channel=QUEUE, retries=5, retry_policy=lambda _: 0.05)
    router.actor(work.work)
    app.include_router(router)
    logging.basicConfig(level=logging.WARNING, handlers=[logging.StreamHandler(), Telling(doom.journal)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_link, server, doom.journal)
        await app.run_worker(tasks_limit=orders.tasks, graceful_shutdown_time=orders.lease * 2)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
