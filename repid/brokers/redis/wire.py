"""The connections to one server: one for calls, one on which the server tells news.

Theory. Requests on one connection are sent at once and answered in their order, so concurrent calls need no pool:
each call puts a request in line. What is asked while a task sends goes with the next piece of that task. Replies are
read, and commands written, by hiredis, which is the parser of Redis' own client.

One task at a time reads, and hands the answers out. On the connection for calls that is a task that waits for an answer
itself: so one call at a time takes one turn of the event loop, not two. When it has its answer, the first of the others
that wait goes on. Reading waits only for the socket, and what was read is parsed and handed out without a checkpoint: a
task that is cancelled leaves nothing half read. While nobody asks for `IDLE_TIME`, the connection is watched, so that
its end is noticed; the next call ends the watch. The connection for news always has its reader. A task that reads when
the connection is given up is woken by its closing.

coredis was tried first. It runs well on trio, but one call goes through two tasks, three channels and a dozen objects
of its: a PING cost 214 µs of processor time, and here a fifth of that. In batches this does not matter; for one message
at a time it is most of the way from a publish to its run.

News has a connection of its own: Redis cuts subscribers off whose answers pile up (client-output-buffer-limit pubsub),
and answers to calls may be large.

Bounds. Who opens, and who asks, bounds it: the front door each call, the driver what it asks by itself. A publish is
bounded here instead, since a cancel scope takes half as long as all else that a publish takes here: `see_through` opens
one only if the caller is cancelled, and `watch` ends the connection when the first request in line has had no answer
for `ANSWER_TIME`. `watch` counts its looks, one in each `IDLE_TIME`, and not the time: after a while in which the loop
was blocked, an answer may be there and not read yet.

A request that was given up keeps its place in line, so that the answers that follow find theirs; a send that was given
up ends the connection, since half a command may be on its way.
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

IDLE_TIME = 0.5
"""Seconds without a request after which a connection for calls is watched."""

_PIECE = 65_536
"""Bytes that are read at once."""

_MORE = object()
"""The parser needs more bytes."""


def _packed(*parts: Any) -> bytes:
    """A command as it is written."""
    packed: bytes = hiredis.pack_command(parts)
    return packed


def _written(*parts: Any) -> bytes:
    """Parts of a command as they are written, without their number."""
    packed = _packed(*parts)
    return packed[packed.index(b"\n") + 1 :]


def _by_text(script: Script) -> tuple[bytes, bytes]:
    """How a command names a script by its hash, and how by its text."""
    return _written(b"EVALSHA", script.sha), _written(b"EVAL", script.text)


class _Request:
    """One that was put in line. `reply` is an exception where the server said no, or the connection ended. `put_at`:
    how often `watch` had looked by then.
    """

    __slots__ = ("is_answered", "put_at", "reply", "task")

    def __init__(self, put_at: int = 0) -> None:
        self.put_at = put_at
        self.is_answered = False
        self.reply: Any = None
        self.task: Task | None = None

    def answer(self, reply: Any) -> None:
        self.reply = reply
        self.is_answered = True
        self.rouse()

    def rouse(self) -> bool:
        """Let the task that waits go on although there is no answer. Returns whether one waits."""
        task, self.task = self.task, None
        if task is not None:
            reschedule(task)
        return task is not None

    async def wait_roused(self) -> None:
        """Wait for the answer, or to be roused."""
        self.task = current_task()
        await wait_task_rescheduled(self._give_up)

    def _give_up(self, _: object) -> Abort:
        self.task = None
        return Abort.SUCCEEDED


class Connection:
    """One connection. `told`: what the server says without being asked. `then` is awaited when that was heard, in the
    same step up to its first wait.
    """

    def __init__(self, stream: Stream, place: str) -> None:
        self.told: Callable[[Sequence[Any]], None] | None = None
        self.then: Callable[[], Awaitable[None]] | None = None
        self._stream = stream
        self._place = place
        self._parser = hiredis.Reader(replyError=Refused, notEnoughData=_MORE)
        self._line: deque[_Request] = deque()
        self._unsent: list[bytes] = []
        self._is_sending = False
        self._has_reader = False
        self._watch: trio.CancelScope | None = None  # ends the watch; None while there is none
        self._requests = 0
        self._looks = 0
        self._ended: Exception | None = None
        self._end_seen = trio.Event()

    def put(self, command: bytes) -> _Request:
        """Put a command in line, as it is written; `send` sends it."""
        request = _Request(self._looks)
        self._requests += 1
        if self._ended is not None:
            request.answer(self._ended)
        else:
            self._unsent.append(command)
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
        self._unsent.append(_packed(*parts))
        await self.send()

    async def ask(self, *parts: Any) -> Any:
        """The answer to one command. Raises what `FAILED` names."""
        request = self.put(_packed(*parts))
        await self.send()
        return await self.answer_to(request)

    async def answer_to(self, request: _Request) -> Any:
        """Wait for the answer to a request that was sent. Raises what `FAILED` names."""
        while not request.is_answered:
            if not self._has_reader:
                await self._read(request)
                continue
            if self._watch is not None:
                self._watch.cancel()
            await request.wait_roused()
        if isinstance(request.reply, Exception):
            raise request.reply
        return request.reply

    async def see_through(self, request: _Request) -> Any:
        """As `answer_to`, also if the caller is cancelled meanwhile: then its next checkpoint raises `Cancelled`.
        `watch` bounds it.
        """
        try:
            return await self.answer_to(request)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                return await self.answer_to(request)
            raise AssertionError from None  # nobody cancels the scope

    async def listen(self) -> None:
        """Read until the connection ends, and raise then: for a connection on which the server speaks by itself."""
        try:
            await self._read(_Request())
            raise self._broken()
        finally:
            self._end(BrokerUnavailable(f"the connection to {self._place} was closed"))

    async def watch(self) -> None:
        """Wait until the connection ends, and raise then: for a connection that is read by those who ask. End it when
        the server has not answered a request for `ANSWER_TIME`.
        """
        try:
            while self._ended is None:
                requests = self._requests
                with trio.move_on_after(IDLE_TIME):
                    await self._end_seen.wait()
                self._looks += 1
                if self._line and (self._looks - self._line[0].put_at) * IDLE_TIME >= ANSWER_TIME:
                    self._end(BrokerUnavailable(f"{self._place} did not answer within {ANSWER_TIME:g} s"))
                if self._requests == requests and not self._has_reader:
                    with trio.CancelScope() as self._watch:
                        await self._read(_Request())
                    self._watch = None
            raise self._broken()
        finally:
            self._end(BrokerUnavailable(f"the connection to {self._place} was closed"))

    async def _read(self, request: _Request) -> None:
        """Hand out answers until this request has its own, or the connection ends."""
        self._has_reader = True
        try:
            while not request.is_answered and self._ended is None:
                self._hand_out(await self._stream.receive_some(_PIECE))
                if self.then is not None:
                    await self.then()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, hiredis.ProtocolError) as error:
            self._end(error)
        finally:
            self._has_reader = False
            for other in self._line:
                if other.rouse():  # it reads now
                    break

    def _hand_out(self, data: bytes | bytearray) -> None:
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._parser.feed(bytes(data))
        while (reply := self._parser.gets()) is not _MORE:
            if type(reply) is hiredis.PushNotification:
                if self.told is not None:
                    self.told(reply)
            elif self._line:
                self._line.popleft().answer(reply)
            else:  # or the connection was given up, and this is the answer to an earlier command
                raise hiredis.ProtocolError("the server answered what nobody had asked")

    def _broken(self) -> BrokerUnavailable:
        error = self._ended
        found = BrokerUnavailable(f"{self._place} cannot be reached any more: {str(error) or type(error).__name__}")
        found.__cause__ = error
        return found

    def _end(self, error: Exception) -> None:
        self._ended = self._ended or error
        self._end_seen.set()
        if self._watch is not None:
            self._watch.cancel()
        while self._line:
            self._line.popleft().answer(self._ended)


class Wire:
    """Two open connections. Calls raise what `errors.explain` makes of what went wrong."""

    def __init__(self, place: str, prefix: str, calls: Connection, news: Connection) -> None:
        self.place = place
        self._calls = calls
        self._news = news
        self._keys = keys_of(prefix)
        self._beginnings: dict[bytes, bytes] = {}
        """By the name of a script, what is sent before its arguments: many keys."""

    def ask(self, name: str, argument: Any, *more: bytes) -> Answer:
        """Put a script in line, with an argument that is packed and more that are not; await its answer later."""
        return self.put(name, to_argument(argument), *more)

    def put(self, name: str, *arguments: bytes) -> Answer:
        """Put a script in line; await its answer later. Several go out together."""
        wanted = script(name)
        beginning = self._beginnings.get(wanted.sha)
        if beginning is None:
            keys = (self._keys[place] for place in wanted.keys)
            beginning = self._beginnings[wanted.sha] = _written(b"EVALSHA", wanted.sha, len(wanted.keys), *keys)
        count = 3 + len(wanted.keys) + len(arguments)
        if len(arguments) == 1:  # as `_written`, in fewer steps
            [only] = arguments
            command = b"*%d\r\n%b$%d\r\n%b\r\n" % (count, beginning, len(only), only)
        else:
            command = b"*%d\r\n%b%b" % (count, beginning, _written(*arguments))
        return Answer(self._calls, self.place, wanted, command)

    async def run(self, name: str, argument: Any, *more: bytes) -> Any:
        """The answer of one script."""
        return await self.ask(name, argument, *more).get()

    def put_command(self, *parts: bytes) -> None:
        """Put a command in line whose answer nobody needs."""
        self._calls.put(_packed(*parts))

    async def send(self) -> None:
        """Send what is in line, and wait for no answer. It is written before the first wait, if it can be."""
        await self._calls.send()

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

    async def listen(self, channels: Sequence[str], tell: Callable[[bytes], None]) -> None:
        """Hand on what is published on these channels, from now on. Returns once they are listened to. What `tell`
        puts in line is sent in the same step.
        """
        begun, left = trio.Event(), len(channels)

        def told(message: Sequence[Any]) -> None:
            nonlocal left
            if message[0] == b"message":
                tell(message[2])
            elif message[0] == b"subscribe":
                left -= 1
                if not left:
                    begun.set()

        self._news.told, self._news.then = told, self.send
        await self._news.send_unanswered(b"SUBSCRIBE", *channels)  # it is answered by messages, not by a reply
        await begun.wait()


class Answer:
    """A script that was put in line, and its answer when it has come."""

    __slots__ = ("_calls", "_command", "_place", "_request", "_script")

    def __init__(self, calls: Connection, place: str, wanted: Script, command: bytes) -> None:
        self._calls = calls
        self._place = place
        self._script = wanted
        self._command = command
        self._request = calls.put(command)

    async def get(self) -> Any:
        """Wait for it. A server that does not know the script yet is given it."""
        return await self._get(self._calls.answer_to)

    async def see_through(self) -> Any:
        """As `get`, also if the caller is cancelled meanwhile."""
        return await self._get(self._calls.see_through)

    async def _get(self, answer_to: Callable[[_Request], Awaitable[Any]]) -> Any:
        try:
            await self._calls.send()
            try:
                return await answer_to(self._request)
            except Refused as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
            # It is loaded, because Redis 7.4 forgets soon what was only evaluated. And this call is made with its text:
            # somebody may have the server forget all scripts in between.
            self._calls.put(_packed(b"SCRIPT", b"LOAD", self._script.text))
            request = self._calls.put(self._command.replace(*_by_text(self._script), 1))
            await self._calls.send()
            return await answer_to(request)
        except FAILED as error:
            raise explain(error, self._place) from error


@asynccontextmanager
async def opened(address: Address, context: ssl.SSLContext | None, prefix: str, name: str) -> AsyncIterator[Wire]:
    """Both connections, open for a block. Raises `FAILED` where that fails, and `BrokerUnavailable` if one ends."""
    place = str(address)
    server = await find_server(address, context, prefix)
    if server is not address:
        place = f"{server.host}:{server.port} of {place}"
    async with open_stream(server, context) as first, open_stream(server, context) as second:
        calls, news = Connection(first, place), Connection(second, place)
        with trio.fail_after(ANSWER_TIME):
            for connection in (calls, news):
                await _enter(connection, address, name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.watch)
            nursery.start_soon(news.listen)
            yield Wire(place, prefix, calls, news)
            nursery.cancel_scope.cancel()


async def _enter(connection: Connection, address: Address, name: str) -> None:
    """Choose the protocol, say who we are, and choose the database."""
    login = (b"AUTH", *address.login) if address.login else ()
    await connection.ask(b"HELLO", b"3", *login, b"SETNAME", name)
    if address.database:
        await connection.ask(b"SELECT", address.database)
