"""A record that another program has shortened harms only its own message."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest
import trio
from engines.redis import Redis

from repid import Envelope
from repid.brokers.redis import RedisServer
from repid.brokers.redis.layout import to_key
from repid.delivery import Ack, Bounds, DeadLetter, Disposition, Progress, Release, Retry, Settlement
from repid.ports import BrowsedMessage

from .broker_aids import ids, message, now_ready

pytestmark = pytest.mark.real_time


class Bench:
    """A server with a queue, and what shortens records."""

    def __init__(self, redis: Redis, prefix: str, server: RedisServer) -> None:
        self._redis = redis
        self._records = f"{{{prefix}}}:messages"
        self.server = server

    def shorten(self, id_: str, length: int = 3) -> None:
        record = self._redis.execute("HGET", self._records, to_key(id_))
        self._redis.execute("HSET", self._records, to_key(id_), record[:length])

    def spoil(self, ids: Sequence[str]) -> None:
        """Change the end of each record, which no script reads."""
        keys = [to_key(id_) for id_ in ids]
        records = self._redis.execute("HMGET", self._records, *keys)
        spoilt = [part for key, record in zip(keys, records, strict=True) for part in (key, record[:-1] + b"\xc1")]
        self._redis.execute("HSET", self._records, *spoilt)

    async def dead(self) -> list[BrowsedMessage]:
        return await self.server.browse("q", "dead")


@pytest.fixture
async def bench(redis: Redis, prefix: str) -> AsyncGenerator[Bench, None]:
    server = RedisServer(redis.url, prefix=prefix, lease_timeout=0.2)
    async with server.connection():
        await server.declare(["q"])
        yield Bench(redis, prefix, server)


@pytest.mark.parametrize("length", [0, 3, 20, 37, 41])
async def test_what_waits_with_a_damaged_record_can_be_looked_at_and_expires(bench: Bench, length: int) -> None:
    server = bench.server
    await server.publish([message("bad", ttl=0.1), message("later", delay=0.05), message("good")])
    bench.shorten("bad", length)
    bench.shorten("later", length)
    await trio.sleep(0.15)
    assert (await server.counts("q")).leased == 0
    assert [len(found) for found in await server.find(["bad", "good"])][1] == 1
    assert (await server.watch("bad", "bad")).state != "gone"
    assert await server.cancel_each(["bad", "good"]) == ["requested", "cancelled"]
    async with server.consume({"q": None}) as consumer:
        await server.publish([message("next")])
        assert ids(await now_ready(consumer)) == ["next"]
    assert sorted(one.envelope.id for one in await bench.dead()) == ["bad", "later"]


async def test_a_lease_that_ends_on_a_damaged_record_makes_it_a_dead_letter(bench: Bench) -> None:
    server = bench.server
    async with server.consume({"q": None}) as consumer:
        await server.publish([message("bad"), message("good")])
        assert len(await now_ready(consumer)) == 2
        bench.shorten("bad")
        await trio.sleep(0.25)
        assert await consumer.rescue() == 2
        assert ids(await now_ready(consumer)) == ["good"]
    assert [(one.envelope.id, one.reason) for one in await bench.dead()] == [("bad", "payload")]


@pytest.mark.parametrize(
    ("verdict", "dead"), [(Ack(), 0), (DeadLetter("nacked"), 1), (Retry(0.0), 1), (Release(), 1)], ids=repr
)
async def test_a_verdict_on_a_damaged_record_ends_it(bench: Bench, verdict: Disposition, dead: int) -> None:
    server = bench.server
    async with server.consume({"q": None}) as consumer:
        await server.publish([message("bad", ttl=100.0)])
        [delivery] = await now_ready(consumer)
        bench.shorten("bad")
        await consumer.report([(delivery, Progress(1.0, 2.0, ""))])
        assert [one.outcome for one in await consumer.settle([Settlement(delivery, verdict)])] == ["settled"]
        assert await now_ready(consumer) == []
    assert len(await bench.dead()) == dead
    assert (await server.counts("q")).leased == 0


@pytest.mark.parametrize("length", [0, 3, 37, 39])
async def test_a_full_queue_drops_what_has_a_damaged_record(bench: Bench, length: int) -> None:
    server = bench.server
    await server.set_bounds({"q": Bounds(max_size=2, when_full="drop_oldest")})
    await server.publish([message("bad", store_result=True), message("good")])
    bench.shorten("bad", length)
    assert await server.publish([message("new")]) == [None]
    assert [one.envelope.id for one in await server.browse("q", "ready")] == ["good", "new"]
    assert (await server.counts("q")).dropped == 1


async def test_what_is_behind_thousands_of_unreadable_messages_is_received_by_one_call(bench: Bench) -> None:
    server = bench.server
    bad = [Envelope(f"bad {n}", "q", b"", reply_to="q") for n in range(1500)]
    await server.publish([*bad, message("good")])
    bench.spoil([envelope.id for envelope in bad])
    async with server.consume({"q": None}) as consumer:
        assert ids(await consumer.receive(1, max_wait=10.0)) == ["good"]
    assert (await server.counts("q")).dead == 1500
