"""What actors in processes say to their messages: it comes by a local socket, and is said here in their stead.

Nothing is unpickled that did not begin with the key of a run under way, which only the process of that run has got.
What was said is final when it has come: the process may be killed while it waits for the answer.
"""

from __future__ import annotations

import io
import math
import pickle
import secrets
import socket
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context, copy_context
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import Any

import trio

from ..ctrl_c import let_ctrl_c_through
from ..errors import UsageError
from ..handle import JobHandle
from ..inject import SyncMessage
from ..inject.process_message import KEY_LENGTH, LENGTH, VERBS, Address, Sent, VerbCall, Way, for_process
from ..tracebacks import is_a, name_of, text_of

REQUEST_TIME = 30.0
"""Seconds that a process may take to send what it has begun to say."""


class ProcessVerbs:
    """Listens for what the processes of one worker say."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._messages: dict[bytes, tuple[SyncMessage, Context]] = {}
        """By their keys: those that are in processes now, each with the context of its run."""

    @contextmanager
    def lent(self, value: Any) -> Generator[Any, None, None]:
        """The value with a stand-in for each message in it, also in lists and dicts, which reaches us for the block."""
        keys: list[bytes] = []
        try:
            yield self._stand_in(value, keys)
        finally:
            for key in keys:
                del self._messages[key]

    def _stand_in(self, value: Any, keys: list[bytes]) -> Any:
        if isinstance(value, SyncMessage):
            key = secrets.token_bytes(KEY_LENGTH)
            self._messages[key] = value, copy_context()
            keys.append(key)
            return for_process(value, Way(self._address, key))
        if type(value) in {list, tuple}:
            return type(value)([self._stand_in(each, keys) for each in value])
        if type(value) is dict:
            return {name: self._stand_in(each, keys) for name, each in value.items()}
        return value

    async def answer(self, stream: trio.SocketStream) -> None:
        """Take what one connection says, and answer it."""
        async with stream:
            try:
                with trio.fail_after(REQUEST_TIME):
                    found = self._messages.get(await _receive(stream, KEY_LENGTH))
                    if found is None:
                        return
                    message, context = found
                    (length,) = LENGTH.unpack(await _receive(stream, LENGTH.size))
                    request = await _receive(stream, length)
                for variable, of_run in context.items():  # what the run says is said as in its own task
                    variable.set(of_run)
                answer = await _answer_to(message, request)
                with trio.fail_after(REQUEST_TIME):
                    await stream.send_all(LENGTH.pack(len(answer)) + answer)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, EOFError):
                return  # the process is gone, or was killed


async def _receive(stream: trio.SocketStream, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        part = await stream.receive_some(min(length - len(received), 65536))
        if not part:
            raise EOFError
        received += part
    return bytes(received)


async def _answer_to(message: SyncMessage, request: bytes) -> bytes:
    """What came of a call of a verb, to be sent back."""
    try:
        value = await _carry_out(message, _Unpickler(io.BytesIO(request)).load())
        return pickle.dumps((False, _without_handles(value)))
    except BaseException as error:  # it is raised in the process
        let_ctrl_c_through(error)
        if is_a(error, trio.Cancelled) and trio.current_effective_deadline() == -math.inf:
            raise
        return _to_raise(error)


def _to_raise(error: BaseException) -> bytes:
    """The error, to be sent back; where it cannot be sent, what it says."""
    try:
        answer = pickle.dumps((True, error))
        pickle.loads(answer)  # noqa: S301  our own: there are errors that can be written and not read
    except BaseException as fault:  # noqa: BLE001  whatever is wrong with it
        let_ctrl_c_through(fault)
        return pickle.dumps((True, UsageError(f"{name_of(error)}: {text_of(error)}")))
    return answer


async def _carry_out(message: SyncMessage, call: VerbCall) -> Any:
    if call.verb not in VERBS:
        raise UsageError(f"a message has no verb {call.verb!r}")
    target: Any = message._message.outbox if call.to_outbox else message._message  # noqa: SLF001  the other half of it
    if call.options:
        target = target.using(**call.options)
    found = getattr(target, call.verb)
    value = found(*call.arguments, **call.keywords) if callable(found) else found
    return await value if isawaitable(value) else value


def _without_handles(value: Any) -> Any:
    if isinstance(value, JobHandle):
        return Sent(value.envelope)
    if isinstance(value, list):
        return [_without_handles(each) for each in value]
    return value


class _Unpickler(pickle.Unpickler):
    """For functions of the program's main module, which has another name in its processes."""

    def find_class(self, module: str, name: str) -> Any:
        """As everywhere, except for that module."""
        return super().find_class("__main__" if module == "__mp_main__" else module, name)


@asynccontextmanager
async def listen_to_processes() -> AsyncGenerator[ProcessVerbs, None]:
    """Listen for a block, at a socket file that only this user may open, or where there are none at a port."""
    is_unix = hasattr(socket, "AF_UNIX")
    with (
        tempfile.TemporaryDirectory(prefix="repid-") as folder,
        socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET, socket.SOCK_STREAM) as plain,
    ):
        address: Address = str(Path(folder) / "verbs") if is_unix else ("127.0.0.1", 0)
        plain.bind(address)
        plain.listen(128)
        verbs = ProcessVerbs(address if is_unix else plain.getsockname())
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(plain))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.serve_listeners, verbs.answer, [listener]))
            yield verbs
            nursery.cancel_scope.cancel()
