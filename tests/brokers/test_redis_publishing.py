"""What is published to Redis in one step, whoever publishes at the same time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import trio
from engines.redis import Redis

from repid import Bounds, DuplicateId
from repid.brokers.door import LARGEST_REQUEST
from repid.brokers.redis import RedisServer
from repid.brokers.redis.wire import Connection
from repid.envelope import Envelope

from .broker_aids import message


async def moments(server: RedisServer) -> dict[str, float]:
    """By id when the server took the message in. One step of it knows one moment."""
    found = await server.browse("q", "ready", limit=10_000)
    return {one.envelope.id: one.enqueued_at or 0.0 for one in found}


async def test_each_call_is_published_in_one_step_although_others_are_sent_with_it(redis: Redis, prefix: str) -> None:
    together = LARGEST_REQUEST // 40
    calls = [[message(f"{call}-{number}") for number in range(40)] for call in range(together)]
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(server.publish, call)
        taken_in = await moments(server)
    assert [len({taken_in[envelope.id] for envelope in call}) for call in calls] == [1] * together


async def test_a_call_of_thousands_is_published_in_steps_of_a_thousand(redis: Redis, prefix: str) -> None:
    envelopes = [message(f"{number:04}") for number in range(2500)]
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        assert await server.publish(envelopes) == [None] * 2500
        taken_in = await moments(server)
    assert ends_of_steps(envelopes, taken_in) == ["1000", "2000"]


async def test_large_messages_of_one_call_are_published_in_one_step(redis: Redis, prefix: str) -> None:
    envelopes = [message(f"{number:02}", payload=b"x" * 500_000) for number in range(30)]
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        assert await server.publish(envelopes) == [None] * 30
        taken_in = await moments(server)
        await server.delete("q")
    assert ends_of_steps(envelopes, taken_in) == []


def ends_of_steps(envelopes: list[Envelope], taken_in: dict[str, float]) -> list[str]:
    """The ids with which a new step begins."""
    return [later.id for one, later in pairwise(envelopes) if taken_in[one.id] != taken_in[later.id]]


async def test_a_message_that_is_refused_drops_none_of_a_queue_that_was_bounded_later(
    redis: Redis, prefix: str
) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("0"), message("1"), message("2")])
        await server.set_bounds({"q": Bounds(max_size=2, when_full="drop_oldest")})
        assert [type(outcome) for outcome in await server.publish([message("0")])] == [DuplicateId]
        assert sorted(await moments(server)) == ["0", "1", "2"]
        assert await server.publish([message("3")]) == [None]
        assert sorted(await moments(server)) == ["2", "3"]


async def test_a_server_that_forgets_its_scripts_again_at_once_carries_out_the_call(
    redis: Redis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, forgotten = Connection.put, 0

    def put_and_forget(self: Connection, command: bytes) -> Any:
        nonlocal forgotten
        request = put(self, command)
        if b"LOAD" in command:
            forgotten += 1
            put(self, b"*2\r\n$6\r\nSCRIPT\r\n$5\r\nFLUSH\r\n")
        return request

    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        redis.execute("SCRIPT", "FLUSH")
        monkeypatch.setattr(Connection, "put", put_and_forget)
        for number in range(3):
            assert await server.publish([message(str(number))]) == [None]
        assert forgotten
        assert (await server.counts("q")).ready == 3
