"""What a message costs in Redis, and that nothing of it stays."""

from __future__ import annotations

from engines.redis import Redis

from repid import Envelope
from repid.brokers.redis import RedisServer
from repid.brokers.redis.layout import keys_of
from repid.delivery import Ack, DeadLetter, NewResult, Retry, Settlement
from repid.envelope import new_ids

COUNT = 2000

LASTING = {"epoch", "queues", "consumers", "alive", "wanted", "sleepers"}
"""What is there as long as a queue is declared and a consumer is open."""


def sizes(redis: Redis, prefix: str) -> dict[str, int]:
    """The bytes of each key that is there."""
    keys = keys_of(prefix)
    found = redis.execute_all(*(("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys))
    return {key.decode().partition(":")[2]: size for key, size in zip(keys, found, strict=True) if size is not None}


def envelopes(payload: bytes) -> list[Envelope]:
    headers = {"topic": "send_an_email"}
    return [Envelope(id_, "default", payload, "application/json", headers) for id_ in new_ids(COUNT)]


async def test_a_queued_message_costs_at_most_350_bytes_beyond_its_payload(redis: Redis, prefix: str) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["default"])
        payload = b"x" * 40
        before = sum(sizes(redis, prefix).values())
        await server.publish(envelopes(payload))
        each = (sum(sizes(redis, prefix).values()) - before) / COUNT - len(payload)
    assert each <= 350


async def test_nothing_stays_of_what_was_acknowledged(redis: Redis, prefix: str) -> None:
    server = RedisServer(redis.url, prefix=prefix, lease_timeout=60)
    async with server.connection():
        await server.declare(["default"])
        async with server.consume({"default": None}) as consumer:
            after = []
            for _ in range(3):
                await server.publish(envelopes(b"{}"))
                done = 0
                while done < COUNT:
                    deliveries = await consumer.receive(500)
                    first = [one for one in deliveries if one.attempt == 1]
                    again, rest = first[:20], [one for one in deliveries if one not in first[:20]]
                    await consumer.report([(one, None) for one in deliveries[:5]])
                    await consumer.settle(
                        [
                            *(Settlement(one, Retry(0)) for one in again),
                            *(
                                Settlement(one, Ack(), result=NewResult(id=one.envelope.id, state="success", ttl=0.0))
                                for one in rest
                            ),
                        ]
                    )
                    done += len(rest)
                await server.store_results([NewResult(id="last", state="success", ttl=0.0)] * 3)
                await consumer.receive(1, max_wait=0)
                found = sizes(redis, prefix)
                assert found.keys() - LASTING <= {"results", "result-expiries"}
                after.append(sum(size for name, size in found.items() if name in LASTING))
            assert len(set(after)) == 1
            assert redis.execute("HLEN", f"{{{prefix}}}:results") <= 10
        await server.delete("default")
    assert sizes(redis, prefix).keys() <= {"epoch", "results", "result-expiries"}


async def test_dead_letters_go_without_a_trace(redis: Redis, prefix: str) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["default"])
        await server.publish(envelopes(b"{}"))
        async with server.consume({"default": None}) as consumer:
            while deliveries := await consumer.receive(500, max_wait=0):
                await consumer.settle([Settlement(one, DeadLetter("failed")) for one in deliveries])
        assert (await server.counts("default")).dead == COUNT
        assert await server.delete_messages("default") == COUNT
    assert sizes(redis, prefix).keys() == {"epoch", "queues"}


async def test_thousands_of_results_are_stored_when_thousands_are_over(redis: Redis, prefix: str) -> None:
    def results(count: int, ttl: float) -> list[NewResult]:
        return [NewResult(id=str(number), state="success", payload=b"x", ttl=ttl) for number in range(count)]

    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.store_results(results(9000, -1.0))
        await server.store_results(results(4500, 60.0))
        fetched = await server.fetch_results([str(number) for number in range(4501)])
        assert [result is None for result in fetched] == [False] * 4500 + [True]
        assert redis.execute("HLEN", f"{{{prefix}}}:results") == 4500


async def test_a_record_that_cannot_be_read_keeps_no_other_from_being_revived(redis: Redis, prefix: str) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([Envelope(id_, "q", b"x") for id_ in ("bad", "good")])
        redis.execute("HSET", f"{{{prefix}}}:messages", "tbad", "zz")
        async with server.consume({"q": None}) as consumer:
            [delivery] = await consumer.receive(10, max_wait=0)
            await consumer.settle([Settlement(delivery, DeadLetter("failed", None))])
            bad, good = await server.revive("q")
            assert "cannot be read" in str(bad)
            assert good is None
            assert [one.envelope.id for one in await consumer.receive(10, max_wait=0)] == ["good"]
