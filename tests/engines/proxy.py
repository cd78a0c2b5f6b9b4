"""A TCP proxy on the loopback that cuts, delays and swallows, on order."""

from __future__ import annotations

import math
import random
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import trio


class Proxy:
    """Hands on what goes between clients and one server.

    `swallows_answers`: what the server says is not handed on. `is_frozen`: nothing is, and nobody is told.
    `answers_left`: after so many pieces of what the server says it is as if frozen. `cuts_answers`: so many connections are closed in the place of the server's next answer.
    `delay`: seconds, from and to, for which each piece is held back. `refuses`: new connections are closed at once; `refusals` counts them.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None = None) -> None:
        self._target = host, port
        self._context = context
        self.port = 0
        self.swallows_answers = False
        self.is_frozen = False
        self.cuts_answers = 0
        self.answers_left = math.inf
        self.refuses = False
        self.refusals = 0
        self.delay = (0.0, 0.0)
        self.connections = 0
        self._silent = 0  # connections up to this number hand nothing on any more
        self._streams: set[trio.SocketStream] = set()

    def cut(self) -> None:
        """Close every connection that is open."""
        for stream in self._streams:
            stream.socket.close()
        self._streams.clear()

    def silence(self) -> None:
        """Leave every connection that is open half-open: it hands nothing on any more, and nobody is told."""
        self._silent = self.connections

    async def serve(self, client: trio.SocketStream) -> None:
        if self.refuses:
            self.refusals += 1
            await client.aclose()
            return
        self.connections += 1
        number = self.connections
        try:
            server = await trio.open_tcp_stream(*self._target)
        except OSError:  # nobody listens there
            await client.aclose()
            return
        self._streams |= {client, server}
        there: trio.abc.Stream = client
        if self._context is not None:
            there = trio.SSLStream(client, self._context, server_side=True)
        try:
            async with trio.open_nursery() as nursery:
                hand_on = partial(self._hand_on, number, nursery.cancel_scope)
                nursery.start_soon(hand_on, there, server)
                nursery.start_soon(partial(hand_on, is_answer=True), server, there)
        finally:
            self._streams -= {client, server}
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(client)
                await trio.aclose_forcefully(server)

    async def _hand_on(
        self,
        number: int,
        scope: trio.CancelScope,
        source: trio.abc.Stream,
        target: trio.abc.Stream,
        *,
        is_answer: bool = False,
    ) -> None:
        try:
            async for piece in source:
                await trio.sleep(random.uniform(*self.delay))
                self.answers_left -= is_answer
                if self.is_frozen or number <= self._silent or self.answers_left < 0:
                    await trio.sleep_forever()
                if is_answer and self.cuts_answers:
                    self.cuts_answers -= 1
                    break
                if not (is_answer and self.swallows_answers):
                    await target.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def proxy_to(host: str, port: int, context: ssl.SSLContext | None = None) -> AsyncGenerator[Proxy, None]:
    """A proxy to this server, on a free port. Clients speak TLS with it where a context is given."""
    proxy = Proxy(host, port, context)
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
