"""Which server to connect to: the one of the address, the primary that a sentinel names, or the node of a cluster that
has our keys.

It is asked anew each time the link is opened. So a failover needs nothing else: the old primary closes its connections,
or does not answer any more, and the link is opened to the new one. Those who are asked are taken in random order: one
that is cut off from the others may go on naming a server that is no primary any more.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import hiredis
import trio
from msgspec.structs import replace

from ...errors import BrokerUnavailable
from .address import Address
from .errors import FAILED, Refused, moved_to
from .layout import keys_of

ANSWER_TIME = 5.0
"""Seconds within which the server must have let us in, and have answered what the driver asks by itself."""

ASKING_TIME = 1.0
"""Seconds within which a sentinel, or a node of a cluster, must have said where to go; then the next one is asked."""

MOST_MOVES = 5
"""How often one node of a cluster may send us to another one, when the link is opened."""


class Stream(Protocol):
    """What is needed of a stream of trio's."""

    async def send_all(self, data: bytes, /) -> None:
        """Send all of it. Raises `OSError` or what a stream of trio's raises."""
        ...

    async def receive_some(self, most: int, /) -> bytes | bytearray:
        """What has come, empty at the end. Raises as `send_all`."""
        ...


class _Bare:
    """A socket without the layers of trio's stream, which take longer than the system does for a command.

    What fits into the system's buffer is sent without a checkpoint, since the answer is waited for; what does not fit
    is sent although the sender is cancelled. Who receives always waits first: usually nothing has come yet. With a
    stream of trio's, a message on an idle worker takes a tenth longer.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    async def send_all(self, data: bytes, /) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                with trio.fail_after(ANSWER_TIME, shield=True):
                    await trio.lowlevel.wait_writable(self._socket)

    async def receive_some(self, most: int, /) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(most)
            except BlockingIOError:  # it was woken for nothing
                continue


@asynccontextmanager
async def open_stream(address: Address, context: ssl.SSLContext | None) -> AsyncIterator[Stream]:
    """A stream to one server; it is closed without ceremony, since nothing is said at the end."""
    with trio.fail_after(ANSWER_TIME):
        if address.path is not None:
            stream = await trio.open_unix_socket(address.path)
        else:
            stream = await trio.open_tcp_stream(address.host, address.port)
    try:
        if context is not None:
            yield trio.SSLStream(stream, context, server_hostname=address.host, https_compatible=True)
        else:
            own = stream.socket
            with socket.fromfd(own.fileno(), own.family, own.type) as connected:
                connected.setblocking(False)  # noqa: FBT003  it is the socket's
                try:
                    yield _Bare(connected)
                finally:
                    trio.lowlevel.notify_closing(connected)  # a caller may wait for an answer
    finally:
        await trio.aclose_forcefully(stream)


async def find_server(address: Address, context: ssl.SSLContext | None, prefix: str) -> Address:
    """The address of the one server to connect to. Raises what `FAILED` names."""
    if address.kind == "sentinel":
        return await _first(address, lambda node: _ask_sentinel(node, context))
    if address.kind == "cluster":
        return await _first(address, lambda node: _follow(node, context, keys_of(prefix)[0]))
    return address


async def _first(address: Address, ask: Callable[[Address], Awaitable[Address]]) -> Address:
    """What the first of the nodes says that can be asked."""
    wrong = []
    for host, port in random.sample(address.nodes, len(address.nodes)):
        try:
            with trio.fail_after(ASKING_TIME):
                return await ask(replace(address, host=host, port=port))
        except FAILED as error:
            wrong.append(f"{host}:{port}: {str(error) or 'no answer'}")
    raise BrokerUnavailable(f"{address} does not say which server to connect to ({'; '.join(wrong)})")


async def _ask_sentinel(node: Address, context: ssl.SSLContext | None) -> Address:
    found = await _ask(node, context, node.sentinel_login, b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", node.service)
    if found is None:
        raise BrokerUnavailable(f"it knows no primary called {node.service!r}")
    host, port = found
    return replace(node, kind="server", host=host.decode(), port=int(port))


async def _follow(node: Address, context: ssl.SSLContext | None, key: bytes) -> Address:
    """From any node of a cluster to the one that holds the key."""
    for _ in range(MOST_MOVES):
        try:
            await _ask(node, context, node.login, b"EXISTS", key)
        except Refused as error:
            place = moved_to(str(error))
            if place is None:
                raise
            host, port = place
            node = replace(node, host=host or node.host, port=port)
        else:
            return replace(node, kind="server")
    raise BrokerUnavailable(f"its nodes sent us from one to the other {MOST_MOVES} times: the cluster is being changed")


async def _ask(node: Address, context: ssl.SSLContext | None, login: tuple[str, ...], *command: Any) -> Any:
    """The answer to one command, on a connection of its own."""
    commands = [command] if not login else [("AUTH", *login), command]
    reader = hiredis.Reader(replyError=Refused)
    replies: list[Any] = []
    async with open_stream(node, context) as stream:
        await stream.send_all(b"".join(map(hiredis.pack_command, commands)))
        while len(replies) < len(commands):
            if not (data := await stream.receive_some(65_536)):
                raise ConnectionResetError("the server closed the connection")
            reader.feed(bytes(data))
            while (reply := reader.gets()) is not False:
                replies.append(reply)
    for reply in replies:
        if isinstance(reply, Refused):
            raise reply
    return replies[-1]
