"""The message an actor gets: the delivery's content and the verbs an actor may use on it.

A verb is final when it is called. So a verb is a plain function: it checks, changes the state and hands the verdict
to the worker before it returns, and what it returns only waits for the server's answer. All this happens in the thread
of the worker's trio run, which alone changes the state; a verb that is called in another thread goes there and waits
until it is done. An asyncio task is in that thread too, between two steps of trio, where state may be changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from ..calls import CallerWithOptions, Exchange
from ..codec import JSON, encode_json
from ..delivery import (
    Ack,
    Cancel,
    DeadLetter,
    Delivery,
    Disposition,
    Progress,
    Release,
    Retry,
    Terms,
    Verb,
    disposition_for,
)
from ..envelope import Envelope
from ..errors import AlreadySettled, UsageError
from ..hosts import crossing
from ..names import check_duration, check_number, check_text
from ..producer import Outcomes, Producer, Publish, Publisher, accepted, check_payload, make_envelope

T = TypeVar("T")

Action: TypeAlias = Literal["acked", "nacked", "rejected", "retried", "snoozed", "replied", "cancelled"]
"""What an actor has done with its message."""


_ACTIONS: dict[type[Disposition], Action] = {
    Ack: "acked",
    Retry: "retried",
    Release: "rejected",
    DeadLetter: "nacked",
    Cancel: "cancelled",
}


Wait: TypeAlias = Callable[[], Awaitable[None]]


class MessageContext(Protocol):
    """Where the verbs of a message go. The worker gives one to each message."""

    def in_trio(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a sync function in the thread of the worker's trio run: directly, or from another thread."""
        ...

    def wait_for(self, call: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:
        """Make an async call in the worker's trio run and wait for it, from another thread.

        `is_waiting`: for a job. Raises `trio.Cancelled` in the thread of an actor that is asked to stop meanwhile, and
        for a job also if it was before.
        """
        ...

    def hand_over(self, delivery: Delivery, disposition: Disposition, outbox: tuple[Envelope, ...]) -> Wait:
        """Take the verdict, at once and for good; what is returned waits until the server has answered.

        Waiting raises `LeaseLost` if the server refused the verdict.
        """
        ...

    def defer(self, delivery: Delivery, disposition: Disposition) -> Wait:
        """Take the verdict, at once and for good, and tell the server of it when the run has ended; what is returned is
        a checkpoint.
        """
        ...

    def report(self, delivery: Delivery, progress: Progress) -> Wait:
        """Note how far the run has come; what is returned is a checkpoint."""
        ...

    def publisher(self, server_name: str | None, named: bool, /) -> Publisher:
        """Where messages sent now go; a `server_name` of None: to the server this message came from.

        `named`: the caller chose their ids. Raises `NotSupported` where the server does not compare ids.
        """
        ...

    def through_middlewares(self, hold: Publish, /) -> Publish:
        """`hold` with the app's producer middlewares around it."""
        ...

    @property
    def exchange(self) -> Exchange:
        """Where calls of other actors go; its own server is the one this message came from."""
        ...


class Said(Coroutine[Any, Any, None]):
    """A verb that took effect when it was called. Awaiting it waits for the server's answer; nobody has to."""

    __slots__ = ("_coroutine", "_wait")

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self._coroutine: Coroutine[Any, Any, None] | None = None

    def __await__(self) -> Any:
        return self._waiting().__await__()

    def send(self, value: Any) -> Any:
        """As a coroutine, for those who make a task of it."""
        return self._waiting().send(value)

    def throw(self, *error: Any) -> Any:
        """As a coroutine."""
        return self._waiting().throw(*error)

    def close(self) -> None:
        """As a coroutine."""
        if self._coroutine is not None:
            self._coroutine.close()

    def _waiting(self) -> Coroutine[Any, Any, None]:
        if self._coroutine is None:
            self._coroutine = crossing(self._wait)()
        return self._coroutine


class Received:
    """What there is to know of a received message."""

    __slots__ = ()

    _delivery: Delivery

    @property
    def payload(self) -> bytes:
        """The bytes as they were sent."""
        return self._delivery.envelope.payload

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; changing them changes nothing."""
        return dict(self._delivery.envelope.headers)

    @property
    def channel(self) -> str:
        """The channel (queue) it came from."""
        return self._delivery.envelope.queue

    @property
    def message_id(self) -> str:
        """Its id: the sender's, or a random one."""
        return self._delivery.envelope.id

    @property
    def content_type(self) -> str | None:
        """The media type of the payload, where the sender named one."""
        return self._delivery.envelope.content_type

    @property
    def reply_to(self) -> str | None:
        """The channel on which the sender awaits a reply."""
        return self._delivery.envelope.reply_to

    _terms: Terms

    @property
    def retries(self) -> int:
        """How many times a failed run may be made again: what the sender said, else the actor's option."""
        return self._terms.retries

    @property
    def is_last_attempt(self) -> bool:
        """Whether nothing is retried any more if this run fails: the message becomes a dead letter then."""
        return self.attempt > self.retries

    @property
    def attempt(self) -> int:
        """1 for the first run, one more after each failure. Interrupted runs do not count."""
        return self._delivery.attempt


class Message(Received, Producer, CallerWithOptions):
    """One message in the hands of an actor.

    At most one verb decides its fate: `ack`, `nack`, `reject`, `retry`, `snooze`, `reply` or `reply_json`. It is
    final when called, in any thread: what the actor raises afterwards is only logged, and a second one raises
    `AlreadySettled`. Awaiting a verb waits for the server's answer; cancelling the await, or leaving it out, takes
    nothing back. Without a verb the actor's confirmation mode decides.

    Two runs of one message never overlap: after `reject`, `retry` and `snooze` the message becomes ready again, after
    their delay, when the actor has ended. Only then the server is told, so awaiting these waits for no answer.

    `enqueue`, `send_message`, `send_message_json` and their plural forms send at once, whatever becomes of this
    message; the same methods of `outbox` hold back until the message is acknowledged. Sending has to be awaited.

    An actor that is a plain function (`def`) is given a `SyncMessage` instead.
    """

    __slots__ = (
        "_action",
        "_batch",
        "_delivery",
        "_message_context",
        "_outbox",
        "_terms",
        "arguments",
        "is_under_way",
    )

    arguments: dict[str, Any]
    """What the actor is called with, by parameter name, except its dependencies. A middleware may change it before the
    call.
    """

    is_under_way: bool
    """Whether its actor has not ended yet. The worker says so."""

    def __init__(self, delivery: Delivery, terms: Terms, message_context: MessageContext) -> None:
        self._delivery = delivery
        self._terms = terms
        self._message_context = message_context
        self._action: Action | None = None
        self._outbox: Outbox | None = None
        self.arguments = {}
        self._batch: Sequence[Message] | None = None
        self.is_under_way = True

    def __repr__(self) -> str:
        return f"<Message {self.message_id!r} on {self.channel!r}, attempt {self.attempt}, {self._action or 'open'}>"

    @property
    def batch(self) -> Sequence[Message]:
        """The messages of its run: this one alone, or all of the batch in which it is, in order."""
        return (self,) if self._batch is None else self._batch

    @property
    def is_acted_on(self) -> bool:
        """Whether a verdict has been given."""
        return self._action is not None

    @property
    def action(self) -> Action | None:
        """The verdict that has been given."""
        return self._action

    @property
    def outbox(self) -> Outbox:
        """Sends that happen together with the acknowledgement (`ack`, `reply` or a successful return), or never."""
        if self._outbox is None:
            if self._terms.mode == "ack_first":
                raise UsageError("a message of an 'ack_first' actor has no outbox: it is acknowledged before the start")
            self._outbox = Outbox(self._message_context)
            if self._action is not None:
                self._outbox._close()  # noqa: SLF001  the worker's side of it
        return self._outbox

    def ack(self) -> Coroutine[Any, Any, None]:
        """Done: remove the message, and send what the outbox holds in the same step.

        Raises `LeaseLost` if the message had been given to another worker meanwhile.
        """
        return self._decide("acked", "ack")

    def nack(self) -> Coroutine[Any, Any, None]:
        """Failed for good: a dead letter, without retries. The outbox is dropped."""
        return self._decide("nacked", "nack")

    def reject(self) -> Coroutine[Any, Any, None]:
        """Not here: ready again for any worker when the actor has ended; no attempt is used. The outbox is dropped."""
        return self._decide("rejected", "reject")

    def retry(self, delay: float | timedelta | None = None) -> Coroutine[Any, Any, None]:
        """Run it again, `delay` after the actor has ended (seconds or timedelta; None: its policy). Uses an attempt.

        Raises `UsageError` in the last attempt; the message is still open then.
        """
        self._check_open("retried")
        wait = None if delay is None else check_duration("delay", delay)
        return self._decide("retried", "retry", delay=wait)

    def snooze(self, delay: float | timedelta) -> Coroutine[Any, Any, None]:
        """Not now: ready again `delay` after the actor has ended (seconds or timedelta); no attempt is used. The outbox
        is dropped.
        """
        return self._decide("snoozed", "reject", delay=check_duration("delay", delay))

    def progress(self, done: float, total: float | None = None, note: str = "") -> Coroutine[Any, Any, None]:
        """Tell those who watch the job how far this run has come. Cheap enough for a loop: what is told in quick
        succession is coalesced, the last one counts. Told after the verdict, it goes unheard.

        Raises `ConfigurationError` unless `done` and `total` are finite numbers and `note` is text.
        """
        progress = Progress(
            check_number("done", done),
            None if total is None else check_number("total", total),
            check_text("the note of a progress", note),
        )
        return Said(self._message_context.in_trio(self._message_context.report, self._delivery, progress))

    def reply(
        self,
        *,
        payload: bytes,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        channel: str | None = None,
    ) -> Coroutine[Any, Any, None]:
        """Acknowledge and send a reply to `channel` (None: to `reply_to`) in one step, with the outbox.

        Raises `UsageError` if there is no channel to reply to; the message is still open then. Where producer
        middlewares have a say in the reply, it must be awaited, and is final when they have let it pass.
        """
        self._check_open("replied")
        check_payload(payload)
        target = channel if channel is not None else self.reply_to
        if target is None:
            raise UsageError(f"message {self.message_id!r} has no reply_to: name the channel to reply on with channel=")
        replies: list[Envelope] = []

        async def hold(envelopes: Sequence[Envelope]) -> Outcomes:
            replies.extend(envelopes)
            return [None] * len(envelopes)

        reply = make_envelope(target, payload, content_type, {"headers": headers})
        publish = self._message_context.through_middlewares(hold)
        if publish is hold:
            return self._decide("replied", "ack", (reply,))
        return self._reply_through(publish, reply, replies)

    def reply_json(
        self, payload: Any = None, *, headers: Mapping[str, str] | None = None, channel: str | None = None
    ) -> Coroutine[Any, Any, None]:
        """Like `reply`, with anything msgspec can encode as JSON.

        Raises `PayloadError` for anything else; the message is still open then.
        """
        return self.reply(payload=encode_json(payload), content_type=JSON, headers=headers, channel=channel)

    def _acked_first(self) -> None:
        """The worker acknowledges it before the start, in the mode `ack_first`."""
        self._action = "acked"

    def _close(self, disposition: Disposition) -> tuple[Envelope, ...]:
        """The worker has decided: no verb is possible any more. Gives what to send in the same step."""
        self._action = _ACTIONS[type(disposition)]
        held = () if self._outbox is None else self._outbox._close()  # noqa: SLF001
        return held if isinstance(disposition, Ack) and disposition.failure is None else ()

    def _publisher(self, server_name: str | None, *, named: bool) -> Publisher:
        return self._message_context.publisher(server_name, named)

    @property
    def _exchange(self) -> Exchange:
        return self._message_context.exchange

    def _check_open(self, action: Action) -> None:
        if self._action is not None:
            raise AlreadySettled(
                f"message {self.message_id!r} cannot be {action}: it has been {self._action} already, which is final"
            )

    def _decide(
        self, action: Action, verb: Verb, replies: Sequence[Envelope] = (), delay: float | None = None
    ) -> Coroutine[Any, Any, None]:
        disposition = disposition_for(verb, self._terms, delay=delay)
        if disposition is None:
            raise UsageError(
                f"message {self.message_id!r} cannot be {action}: attempt {self._terms.attempt} is the last "
                f"(retries={self._terms.retries})"
            )
        return Said(self._message_context.in_trio(self._take, action, disposition, replies))

    def _take(self, action: Action, disposition: Disposition, replies: Sequence[Envelope]) -> Wait:
        """Called in the thread of the trio run: decide, and hand the verdict over."""
        self._check_open(action)
        self._action = action
        held = () if self._outbox is None else self._outbox._close()  # noqa: SLF001
        outbox = (*held, *replies) if isinstance(disposition, Ack) else ()
        if self.is_under_way and isinstance(disposition, Retry | Release):
            return self._message_context.defer(self._delivery, disposition)
        return self._message_context.hand_over(self._delivery, disposition, outbox)

    async def _reply_through(self, publish: Publish, reply: Envelope, replies: Sequence[Envelope]) -> None:
        accepted(reply, await publish((reply,)))
        await self._decide("replied", "ack", replies)


class Outbox(Producer, CallerWithOptions):
    """Sends held back until the message is acknowledged; dropped with any other verdict.

    Sending raises `AlreadySettled` once the verdict is given. The handle of an enqueued call is on a message that is
    not there yet: wait for it elsewhere, after the acknowledgement.
    """

    __slots__ = ("_closed", "_held", "_message_context")

    _sends_now = False

    def __init__(self, message_context: MessageContext) -> None:
        self._message_context = message_context
        self._held: list[Envelope] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._held)

    def _close(self) -> tuple[Envelope, ...]:
        """What is held back; later sends are refused."""
        self._closed = True
        return tuple(self._held)

    def _publisher(self, server_name: str | None, *, named: bool) -> Publisher:
        if server_name is not None:
            raise UsageError(
                f"an outbox sends to the server its message came from, not to {server_name!r}: "
                "only there can both happen in one step; use message.send_message for another server"
            )
        if named:
            self._message_context.publisher(None, named)  # refuses what the server cannot do
        hold = self._hold
        publish = self._message_context.through_middlewares(hold)
        return Publisher(publish, self._hold_at_once) if publish is hold else Publisher(publish)

    @property
    def _exchange(self) -> Exchange:
        return self._message_context.exchange

    def _hold_at_once(self, envelope: Envelope) -> bool:
        if not self._closed:
            self._held.append(envelope)
        return not self._closed

    async def _hold(self, envelopes: Sequence[Envelope]) -> Outcomes:
        if self._closed:
            raise AlreadySettled("the outbox was committed with its message's verdict: nothing more can be added to it")
        self._held.extend(envelopes)
        return [None] * len(envelopes)
