"""A socket of trio's and hiredis with nothing around them: what the platform allows at most for the same work in batches.

Enqueueing adds a batch to a sorted set and to a hash in one script; a claim takes the first ones out and notes a lease for
each in a second script, and a third one ends the leases and removes the messages. One call after the other. No ids of the
sender's are compared, nothing is fenced, delayed or retried.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import hiredis
import trio

from ._servers import Watch
from ._shared import Arguments, Figures, Measurement, chunks, on_trio, typed_payloads
from .bare_loops import measure_naps

KEYS = ["{bare}:ready", "{bare}:messages", "{bare}:leases"]
ENQUEUE = """
local first = redis.call('HLEN', KEYS[2])
for i, payload in ipairs(ARGV) do
  redis.call('ZADD', KEYS[1], first + i, first + i)
  redis.call('HSET', KEYS[2], first + i, payload)
end
"""
CLAIM = """
local ids = redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1)
if #ids == 0 then return {} end
local leases = {}
for i, id in ipairs(ids) do
  leases[2 * i - 1], leases[2 * i] = ARGV[2], id
end
redis.call('ZREM', KEYS[1], unpack(ids))
redis.call('ZADD', KEYS[3], unpack(leases))
return {ids, redis.call('HMGET', KEYS[2], unpack(ids))}
"""
SETTLE = """
redis.call('ZREM', KEYS[3], unpack(ARGV))
redis.call('HDEL', KEYS[2], unpack(ARGV))
"""


class Client:
    """Scripts, one after the other."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._parser = hiredis.Reader()

    async def ask(self, *parts: Any) -> Any:
        """The answer to one command."""
        await self._stream.send_all(hiredis.pack_command(parts))
        while (reply := self._parser.gets()) is False:
            self._parser.feed(bytes(await self._stream.receive_some(65_536)))
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def load(self, text: str) -> bytes:
        """The name of a script."""
        sha: bytes = await self.ask("SCRIPT", "LOAD", text)
        return sha


@asynccontextmanager
async def connected(arguments: Arguments) -> AsyncIterator[Client]:
    address = urlsplit(arguments["url"])
    async with await trio.open_tcp_stream(str(address.hostname), int(address.port or 6379)) as stream:
        yield Client(stream)


async def enqueue(client: Client, payloads: Sequence[dict[str, Any]], batch: int) -> None:
    sha = await client.load(ENQUEUE)
    for part in chunks(payloads, batch):
        texts = [json.dumps(payload, separators=(",", ":")) for payload in part]
        await client.ask("EVALSHA", sha, len(KEYS), *KEYS, *texts)


async def bulk(arguments: Arguments) -> Figures:
    payloads = typed_payloads(arguments["messages"])
    async with connected(arguments) as client:
        watch = Watch(arguments)
        await enqueue(client, payloads, 100)
        return watch.rate(len(payloads))


async def noop(arguments: Arguments) -> Figures:
    count, done = arguments["messages"], 0
    async with connected(arguments) as client:
        await enqueue(client, [{}] * count, 100)
        claim, settle = await client.load(CLAIM), await client.load(SETTLE)
        watch = Watch(arguments)
        while found := await client.ask("EVALSHA", claim, len(KEYS), *KEYS, 100, 1):
            await client.ask("EVALSHA", settle, len(KEYS), *KEYS, *found[0])
            done += len(found[0])
        figures = watch.rate(count)
        assert done == count
        return figures


MEASUREMENTS: dict[str, Measurement] = {
    "redis-bulk": on_trio(bulk),
    "redis-noop": on_trio(noop),
    "redis-sleep": measure_naps,
}
DISTRIBUTIONS = ("trio", "hiredis")
