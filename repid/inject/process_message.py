"""The message as an actor in a process gets it. What it says goes to the worker through a local socket.

Each verb is one connection: it sends the key of its run and what was said, and waits for the answer. So nothing is kept
between two verbs, any thread may use them, and so may a child that the actor forks. The key is known to this process
only, and the worker reads nothing of a connection that does not begin with one.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeAlias, cast

import msgspec

from ..calls import Using
from ..delivery import Delivery, Terms
from ..envelope import Envelope
from ..errors import UsageError
from ..handle import JobHandle
from ..ports import Broker
from .message import Action, Message, MessageContext, Outbox
from .sync_message import SyncMessage, SyncOutbox

KEY_LENGTH = 16
LENGTH = struct.Struct("!Q")
"""How the length of what follows is written."""

Address: TypeAlias = str | tuple[str, int]
"""Of a socket file, or of a port of this machine where there are none."""

VERBS = frozenset(
    {"ack", "nack", "reject", "retry", "snooze", "progress", "reply", "reply_json"}
    | {"send_message", "send_message_json", "send_messages", "send_messages_json", "enqueue", "enqueue_many"}
    | {"is_acted_on", "action", "__len__"}
)
"""What may be said, and asked."""


class VerbCall(msgspec.Struct, frozen=True):
    """A call of a verb of a message, or of its outbox, with the options of `using`."""

    verb: str
    to_outbox: bool
    options: dict[str, Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Way(msgspec.Struct, frozen=True):
    """How a process reaches the worker that runs its actor."""

    address: Address
    key: bytes

    def say(self, call: VerbCall) -> Any:
        """Have the worker carry a call out; returns what it returns, and raises what it raises."""
        request = pickle.dumps(call)
        family = socket.AF_INET if isinstance(self.address, tuple) else socket.AF_UNIX
        try:
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.connect(self.address)
                connection.sendall(self.key + LENGTH.pack(len(request)) + request)
                (length,) = LENGTH.unpack(_receive(connection, LENGTH.size))
                failed, value = pickle.loads(_receive(connection, length))  # noqa: S301  from the worker of this process
        except OSError as error:
            raise UsageError(
                f"the worker of this run cannot be reached any more: it has ended, or the run has: {error}"
            ) from None
        if failed:
            raise value
        return _with_handles(value)


def _receive(connection: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        part = connection.recv(min(length - len(received), 65536))
        if not part:
            raise ConnectionError("no answer")
        received += part
    return bytes(received)


class Sent(msgspec.Struct, frozen=True):
    """In the place of a handle, on its way to a process."""

    envelope: Envelope


def _with_handles(value: Any) -> Any:
    if isinstance(value, Sent):
        return JobHandle(cast("Broker", None), value.envelope)  # asked for nothing here, see `_Saying`
    if isinstance(value, list):
        return [_with_handles(each) for each in value]
    return value


class _Verbs:
    """In the place of a message or its outbox: names what is said."""

    def __init__(self, *, of_outbox: bool) -> None:
        self.of_outbox = of_outbox
        self._sends_now = not of_outbox  # as theirs

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Verb(name)


class _Verb:
    def __init__(self, name: str) -> None:
        self.name = name


class _Saying:
    """How both of them say something."""

    _way: Way
    _verbs: _Verbs

    def _wait_for(self, verb: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
        options: dict[str, Any] = {}
        if isinstance(verb, _Verb):
            name = verb.name
        else:  # bound to options
            using = cast("Using", verb.__self__)  # type: ignore[attr-defined]
            name, options = verb.__name__, dict(using._options)  # noqa: SLF001
        return self._say(name, options, *arguments, **keywords)

    def _call(self, function: Callable[[], Awaitable[Any]], *, is_waiting: bool) -> NoReturn:  # noqa: ARG002
        raise UsageError(
            "this handle is in the process of its actor, where no server is open: pass its id on, or have an actor "
            "that runs in a thread or on the event loop wait for it"
        )

    def _say(self, verb: str, options: dict[str, Any], /, *arguments: Any, **keywords: Any) -> Any:
        return self._way.say(VerbCall(verb, self._verbs.of_outbox, options, arguments, keywords))


class ProcessOutbox(_Saying, SyncOutbox):
    """The outbox of a message that is in a process."""

    __slots__ = ("_verbs", "_way")

    def __init__(self, way: Way) -> None:
        self._way = way
        self._verbs = _Verbs(of_outbox=True)
        super().__init__(cast("Outbox", self._verbs), cast("MessageContext", None))

    def __len__(self) -> int:
        return int(self._say("__len__", {}))


class ProcessMessage(_Saying, SyncMessage):
    """A `SyncMessage` in the process of its actor: what it knows was brought along, and its verbs go to the worker."""

    __slots__ = ("_verbs", "_way")

    def __init__(self, way: Way, envelope: Envelope, terms: Terms) -> None:
        self._way = way
        self._verbs = _Verbs(of_outbox=False)
        self._producer = self._message = cast("Message", self._verbs)
        self._delivery = Delivery(envelope, terms.attempt, 0, None)
        self._terms = terms

    def __repr__(self) -> str:
        return f"<ProcessMessage {self.message_id!r} on {self.channel!r}, attempt {self.attempt}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return ProcessMessage, (self._way, self._delivery.envelope, self._terms)

    @property
    def is_acted_on(self) -> bool:
        """Whether a verdict has been given."""
        return bool(self._say("is_acted_on", {}))

    @property
    def action(self) -> Action | None:
        """The verdict that has been given."""
        return cast("Action | None", self._say("action", {}))

    @property
    def outbox(self) -> SyncOutbox:
        """Sends that happen together with the acknowledgement (`ack`, `reply` or a successful return), or never."""
        return ProcessOutbox(self._way)


def for_process(message: SyncMessage, way: Way) -> ProcessMessage:
    """The message for a process, which reaches the worker that way."""
    terms = message._terms  # noqa: SLF001  its own kind
    plain = Terms(mode=terms.mode, attempt=terms.attempt, retries=terms.retries, retry_delay=float)
    return ProcessMessage(way, message._delivery.envelope, plain)  # noqa: SLF001
