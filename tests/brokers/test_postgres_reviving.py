"""Reviving on PostgreSQL while others change the directory."""

from __future__ import annotations

import pytest
import trio
from engines.postgres import Postgres

from repid import PostgresServer
from repid.delivery import DeadLetter, Settlement

from .broker_aids import message, now_ready

pytestmark = pytest.mark.real_time


async def test_what_is_revived_while_consumers_come_and_go_is_not_taken_for_alive(
    postgres: Postgres, schema: str
) -> None:
    server, other = (PostgresServer(postgres.url, schema=schema) for _ in range(2))
    async with server.connection(), other.connection():
        await server.declare(["q"])
        await server.publish([message(str(number)) for number in range(40)])
        async with server.consume({"q": None}) as consumer:
            deliveries = await now_ready(consumer)
            await consumer.settle([Settlement(one, DeadLetter("failed", None)) for one in deliveries])
        async with trio.open_nursery() as nursery:

            async def come_and_go() -> None:
                while True:
                    async with other.consume({"q": None}):
                        pass

            nursery.start_soon(come_and_go)
            answers = [
                answer
                for letter in await server.browse("q", "dead")
                for answer in await server.revive("q", [letter.key])
            ]
            nursery.cancel_scope.cancel()
        assert answers == [None] * 40
