"""The message as a sync actor gets it: the same verbs as plain calls, made from the actor's thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, Unpack

from ..calls import Caller, UsingOptions
from ..envelope import Envelope
from ..producer import SendOptions
from ..sync_calls import SyncCaller, SyncUsing, read_here
from .message import Action, Message, MessageContext, Outbox, Received

T = TypeVar("T")


class SyncProducer(SyncCaller):
    """The verbs of sending for code that blocks. They raise what those of `Producer` and `Caller` raise."""

    __slots__ = ("_message_context", "_producer")

    def __init__(self, producer: Message | Outbox, message_context: MessageContext) -> None:
        self._producer = producer
        self._message_context = message_context

    def using(self, **options: Unpack[UsingOptions]) -> SyncUsing:
        """`enqueue` and `enqueue_many` with these options, as in `UsingOptions`."""
        return SyncUsing(self, options)

    @property
    def _caller(self) -> Caller:
        return self._producer

    def send_message(
        self, *, channel: str, payload: bytes, content_type: str | None = None, **options: Unpack[SendOptions]
    ) -> Envelope:
        """Send bytes to a channel, as `Repid.send_message`; returns what was sent, with its id."""
        send = self._producer.send_message
        return self._wait_for(send, channel=channel, payload=payload, content_type=content_type, **options)

    def send_message_json(self, *, channel: str, payload: Any = None, **options: Unpack[SendOptions]) -> Envelope:
        """Send anything that can be encoded as JSON, as `Repid.send_message_json`."""
        return self._wait_for(self._producer.send_message_json, channel=channel, payload=payload, **options)

    def send_messages(
        self,
        *,
        channel: str,
        payloads: Iterable[bytes],
        content_type: str | None = None,
        **options: Unpack[SendOptions],
    ) -> list[Envelope]:
        """Send many messages in one step, as `Repid.send_messages`. The payloads are read in the caller's thread."""
        batch = read_here("payloads", payloads)
        send = self._producer.send_messages
        return self._wait_for(send, channel=channel, payloads=batch, content_type=content_type, **options)

    def send_messages_json(
        self, *, channel: str, payloads: Iterable[Any], **options: Unpack[SendOptions]
    ) -> list[Envelope]:
        """Send many messages in one step, as `Repid.send_messages_json`."""
        batch = read_here("payloads", payloads)
        return self._wait_for(self._producer.send_messages_json, channel=channel, payloads=batch, **options)

    def _call(self, function: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:
        return self._message_context.wait_for(function, is_waiting=is_waiting)


class SyncOutbox(SyncProducer):
    """An `Outbox` for code that blocks: sends held back until the message is acknowledged."""

    __slots__ = ("_outbox",)

    def __init__(self, outbox: Outbox, message_context: MessageContext) -> None:
        super().__init__(outbox, message_context)
        self._outbox = outbox

    def __len__(self) -> int:
        return len(self._outbox)


class SyncMessage(SyncProducer, Received):
    """A `Message` for code that blocks: what an actor that is a plain function (`def`) is given in its thread.

    The verbs are those of `Message`, as plain calls: final when called, and back when the server has answered.
    Sends return what was sent. They may be called in any thread that the actor starts, too.

    Called in the event loop's thread, as by `trio.from_thread.run(message.ack)`, a verb returns what that awaits.
    """

    __slots__ = ("_delivery", "_message", "_terms")

    def __init__(self, message: Message) -> None:
        super().__init__(message, message._message_context)
        self._message = message
        self._delivery = message._delivery
        self._terms = message._terms

    def __repr__(self) -> str:
        return repr(self._message).replace("<Message", "<SyncMessage", 1)

    @property
    def is_acted_on(self) -> bool:
        """Whether a verdict has been given."""
        return self._message.is_acted_on

    @property
    def action(self) -> Action | None:
        """The verdict that has been given."""
        return self._message.action

    @property
    def outbox(self) -> SyncOutbox:
        """Sends that happen together with the acknowledgement (`ack`, `reply` or a successful return), or never."""
        return SyncOutbox(self._message.outbox, self._message_context)

    def ack(self) -> None:
        """Done: remove the message, and send what the outbox holds in the same step.

        Raises `LeaseLost` if the message had been given to another worker meanwhile.
        """
        return self._wait_for(self._message.ack)

    def nack(self) -> None:
        """Failed for good: a dead letter, without retries. The outbox is dropped."""
        return self._wait_for(self._message.nack)

    def reject(self) -> None:
        """Not here: ready again for any worker when the actor has ended; no attempt is used. The outbox is dropped."""
        return self._wait_for(self._message.reject)

    def retry(self, delay: float | timedelta | None = None) -> None:
        """Run it again, `delay` after the actor has ended (seconds or timedelta; None: its policy). Uses an attempt.

        Raises `UsageError` in the last attempt; the message is still open then.
        """
        return self._wait_for(self._message.retry, delay)

    def snooze(self, delay: float | timedelta) -> None:
        """Not now: ready again `delay` after the actor has ended (seconds or timedelta); no attempt is used. The outbox
        is dropped.
        """
        return self._wait_for(self._message.snooze, delay)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Tell those who watch the job how far this run has come, as `Message.progress`."""
        return self._wait_for(self._message.progress, done, total, note)

    def reply(
        self,
        *,
        payload: bytes,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        channel: str | None = None,
    ) -> None:
        """Acknowledge and send a reply to `channel` (None: to `reply_to`) in one step, with the outbox.

        Raises what `Message.reply` raises.
        """
        reply = self._message.reply
        return self._wait_for(reply, payload=payload, content_type=content_type, headers=headers, channel=channel)

    def reply_json(
        self, payload: Any = None, *, headers: Mapping[str, str] | None = None, channel: str | None = None
    ) -> None:
        """Like `reply`, with anything msgspec can encode as JSON."""
        return self._wait_for(self._message.reply_json, payload, headers=headers, channel=channel)
