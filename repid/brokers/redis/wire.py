"""The connections to one server: one for calls, one on which the server tells news.

Theory. Requests on one connection are sent at once and answered in their order, so concurrent calls need no pool:
whoever asks puts a request in line, and the one task that reads hands the answers out. What is asked while somebody
sends goes with that one's next piece. Replies are read, and commands written, by hiredis, which is the parser of Redis'
own client.

coredis was tried first. It runs well on trio, but one call goes through two tasks, three channels and a dozen objects
of its: a PING cost 214 µs of processor time, and here a fifth of that. In batches this does not matter; for one message
at a time it is most of the way from a publish to its run.

News has a connection of its own: Redis cuts subscribers off whose answers pile up (client-output-buffer-limit pubsub),
and answers to calls may be large.

Bounds. Who opens, and who asks, bounds it: the front door each call, the driver what it asks by itself. A request that
was given up keeps its place in line, so that the answers that follow find theirs; a send that was given up ends the
connection, since half a command may be on its way.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from ...errors import BrokerUnavailable
from .address import Address
from .errors import FAILED, Refused, explain
from .finding import ANSWER_TIME, Stream, find_server, open_stream
from .layout import keys_of, to_argument
from .scripts import Script, script

_PIECE = 65_536
"""Bytes that are read at once."""

_MORE = object()
"""The parser needs more bytes."""


class _Request:
    """One that was put in line. `reply` is an exception where the server said no, or the connection ended."""

    __slots__ = ("is_answered", "reply", "task")

    def __init__(self) -> None:
        self.is_answered = False
        self.reply: Any = None
        self.task: Task | None = None

    def answer(self, reply: Any) -> None:
        self.reply = reply
        self.is_answered = True
        task, self.task = self.task, None
        if task is not None:
            reschedule(task)

    def _give_up(self, _: object) -> Abort:
        self.task = None
        return Abort.SUCCEEDED

    async def wait(self) -> Any:
        if not self.is_answered:
            self.task = current_task()
            await wait_task_rescheduled(self._give_up)
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


class Connection:
    """One connection. `told`: what the server says without being asked."""

    def __init__(self, stream: Stream, place: str) -> None:
        self.told: Callable[[Sequence[Any]], Awaitable[None]] | None = None
        self._stream = stream
        self._place = place
        self._parser = hiredis.Reader(replyError=Refused, notEnoughData=_MORE)
        self._line: deque[_Request] = deque()
        self._unsent: list[bytes] = []
        self._is_sending = False
        self._ended: Exception | None = None

    def put(self, *parts: Any) -> _Request:
        """Put a command in line; `send` sends it."""
        request = _Request()
        if self._ended is not None:
            request.answer(self._ended)
        else:
            self._unsent.append(hiredis.pack_command(parts))
            self._line.append(request)
        return request

    async def send(self) -> None:
        """Send what is in line; a task that is sending already sends it, too."""
        if self._is_sending:
            return
        self._is_sending = True
        try:
            while self._unsent:
                piece = b"".join(self._unsent)
                self._unsent.clear()
                await self._stream.send_all(piece)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._end(error)
        except BaseException:
            self._end(BrokerUnavailable(f"a command to {self._place} was given up in the middle"))
            raise
        finally:
            self._is_sending = False

    async def send_unanswered(self, *parts: Any) -> None:
        """Send a command that gets no reply."""
        self._unsent.append(hiredis.pack_command(parts))
        await self.send()

    async def ask(self, *parts: Any) -> Any:
        """The answer to one command. Raises what `FAILED` names."""
        request = self.put(*parts)
        await self.send()
        return await request.wait()

    async def run(self) -> None:
        """Hand out answers until the connection ends, and raise then."""
        parse, line = self._parser.gets, self._line
        try:
            while data := await self._stream.receive_some(_PIECE):
                self._parser.feed(bytes(data))
                while (reply := parse()) is not _MORE:
                    if type(reply) is hiredis.PushNotification:
                        if self.told is not None:
                            await self.told(reply)
                    else:
                        line.popleft().answer(reply)
                if self._ended is not None:
                    break
            raise self._ended or ConnectionResetError("the server closed the connection")
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, hiredis.ProtocolError) as error:
            self._end(error)
            raise BrokerUnavailable(
                f"{self._place} cannot be reached any more: {str(error) or type(error).__name__}"
            ) from error
        finally:
            self._end(BrokerUnavailable(f"the connection to {self._place} was closed"))

    def _end(self, error: Exception) -> None:
        self._ended = self._ended or error
        while self._line:
            self._line.popleft().answer(self._ended)


class Wire:
    """Two open connections. Calls raise what `errors.explain` makes of what went wrong."""

    def __init__(self, place: str, prefix: str, calls: Connection, news: Connection) -> None:
        self.place = place
        self._calls = calls
        self._news = news
        self._keys = keys_of(prefix)
        self._keys_by_script: dict[str, tuple[int | bytes, ...]] = {}  # their number, and the keys

    def ask(self, name: str, argument: Any, *more: bytes) -> Answer:
        """Put a script in line, with an argument that is packed and more that are not; await its answer later. Several
        go out together.
        """
        wanted = script(name)
        keys = self._keys_by_script.get(name)
        if keys is None:
            keys = len(wanted.keys), *(self._keys[place] for place in wanted.keys)
            self._keys_by_script[name] = keys
        return Answer(self._calls, self.place, wanted, (*keys, to_argument(argument), *more))

    async def run(self, name: str, argument: Any, *more: bytes) -> Any:
        """The answer of one script."""
        return await self.ask(name, argument, *more).get()

    async def command(self, command: bytes, *arguments: str | bytes | float) -> Any:
        """The answer to one command on the connection for calls."""
        try:
            return await self._calls.ask(command, *arguments)
        except FAILED as error:
            raise explain(error, self.place) from error

    async def sign_of_life(self) -> None:
        """Ask for one on the connection for news."""
        try:
            await self._news.ask(b"PING")
        except FAILED as error:
            raise explain(error, self.place) from error

    async def listen(self, channels: Sequence[str], tell: Callable[[bytes], Awaitable[None]]) -> None:
        """Hand on what is published on these channels, from now on. Returns once they are listened to."""
        begun, left = trio.Event(), len(channels)

        async def told(message: Sequence[Any]) -> None:
            nonlocal left
            if message[0] == b"message":
                await tell(message[2])
            elif message[0] == b"subscribe":
                left -= 1
                if not left:
                    begun.set()

        self._news.told = told
        await self._news.send_unanswered(b"SUBSCRIBE", *channels)  # it is answered by messages, not by a reply
        await begun.wait()


class Answer:
    """A script that was put in line, and its answer when it has come."""

    __slots__ = ("_arguments", "_calls", "_place", "_request", "_script")

    def __init__(self, calls: Connection, place: str, wanted: Script, arguments: tuple[Any, ...]) -> None:
        self._calls = calls
        self._place = place
        self._script = wanted
        self._arguments = arguments
        self._request = calls.put(b"EVALSHA", wanted.sha, *arguments)

    async def get(self) -> Any:
        """Wait for it. A server that does not know the script yet is given it."""
        try:
            await self._calls.send()
            try:
                return await self._request.wait()
            except Refused as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
            self._calls.put(b"SCRIPT", b"LOAD", self._script.text)
            return await self._calls.ask(b"EVALSHA", self._script.sha, *self._arguments)
        except FAILED as error:
            raise explain(error, self._place) from error


@asynccontextmanager
async def opened(address: Address, context: ssl.SSLContext | None, prefix: str, name: str) -> AsyncIterator[Wire]:
    """Both connections, open for a block. Raises `FAILED` where that fails, and `BrokerUnavailable` if one ends."""
    place = str(address)
    server = await find_server(address, context, prefix)
    if server is not address:
        place = f"{server.host}:{server.port} of {place}"
    async with (
        open_stream(server, context) as first,
        open_stream(server, context) as second,
        trio.open_nursery() as nursery,
    ):
        calls, news = Connection(first, place), Connection(second, place)
        nursery.start_soon(calls.run)
        nursery.start_soon(news.run)
        with trio.fail_after(ANSWER_TIME):
            for connection in (calls, news):
                await _enter(connection, address, name)
        yield Wire(place, prefix, calls, news)
        nursery.cancel_scope.cancel()


async def _enter(connection: Connection, address: Address, name: str) -> None:
    """Choose the protocol, say who we are, and choose the database."""
    login = (b"AUTH", *address.login) if address.login else ()
    await connection.ask(b"HELLO", b"3", *login, b"SETNAME", name)
    if address.database:
        await connection.ask(b"SELECT", address.database)
