"""The message an actor gets: the delivery's content and the verbs an actor may use on it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, Protocol, TypeAlias

from ..codec import JSON, encode_json
from ..delivery import ACK, Ack, Cancel, DeadLetter, Delivery, Disposition, Progress, Release, Retry, Terms
from ..envelope import Envelope
from ..errors import AlreadySettled, UsageError
from ..hosts import crossing, hosted
from ..names import check_duration
from ..producer import Outcomes, Producer, Publish, accepted, check_payload, make_envelope

Action: TypeAlias = Literal["acked", "nacked", "rejected", "retried", "snoozed", "replied", "cancelled"]
"""What an actor has done with its message."""


_ACTIONS: dict[type[Disposition], Action] = {
    Ack: "acked",
    Retry: "retried",
    Release: "rejected",
    DeadLetter: "nacked",
    Cancel: "cancelled",
}


class Desk(Protocol):
    """Where the verbs of a message go. The worker gives one to each message."""

    def hand_over(self, delivery: Delivery, disposition: Disposition, outbox: tuple[Envelope, ...]) -> Awaitable[None]:
        """Take the verdict, at once and for good; what is returned waits until the broker has answered.

        Awaiting it raises `LeaseLost` if the broker refused the verdict.
        """
        ...

    def report(self, delivery: Delivery, progress: Progress) -> Awaitable[None]:
        """Note how far the run has come."""
        ...

    def publisher(self, server_name: str | None) -> Publish:
        """Where messages sent now go; None: to the server this message came from."""
        ...

    def holder(self, hold: Publish) -> Publish:
        """`hold` with the app's producer middlewares around it."""
        ...


class Message(Producer):
    """One message in the hands of an actor.

    At most one verb decides its fate: `ack`, `nack`, `reject`, `retry`, `snooze`, `reply` or `reply_json`. It is
    final when called: cancelling the await does not take it back, what the actor raises afterwards is only logged,
    and a second one raises `AlreadySettled`. Without a verb the actor's confirmation mode decides.

    `send_message`, `send_message_json` and their plural forms send at once, whatever becomes of this message;
    the same methods of `outbox` hold back until the message is acknowledged.
    """

    __slots__ = ("_action", "_delivery", "_desk", "_outbox", "_terms", "arguments")

    arguments: dict[str, Any]
    """What the actor is called with, by parameter name, but for its dependencies. A middleware may change it before the
    call.
    """

    def __init__(self, delivery: Delivery, terms: Terms, desk: Desk, action: Action | None = None) -> None:
        self._delivery = delivery
        self._terms = terms
        self._desk = desk
        self._action = action
        self._outbox: Outbox | None = None
        self.arguments = {}

    def __repr__(self) -> str:
        return f"<Message {self.message_id!r} on {self.channel!r}, attempt {self.attempt}, {self._action or 'open'}>"

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

    @property
    def attempt(self) -> int:
        """1 for the first run, one more after each failure. Interrupted runs do not count."""
        return self._delivery.attempt

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
            self._outbox = Outbox(self._desk)
            if self._action is not None:
                self._outbox.close()
        return self._outbox

    async def ack(self) -> None:
        """Done: remove the message, and send what the outbox holds in the same step.

        Raises `LeaseLost` if the message had been given to another worker meanwhile.
        """
        await self._decide("acked", ACK)

    async def nack(self) -> None:
        """Failed for good: a dead letter, without retries. The outbox is dropped."""
        await self._decide("nacked", DeadLetter("nacked"))

    async def reject(self) -> None:
        """Not here: ready again at once, for any worker; no attempt is used. The outbox is dropped."""
        await self._decide("rejected", Release())

    async def retry(self, delay: float | timedelta | None = None) -> None:
        """Run it again after `delay` (seconds or timedelta; None: the actor's policy). Uses an attempt.

        Raises `UsageError` in the last attempt; the message is still open then.
        """
        self._check_open("retried")
        terms = self._terms
        if terms.attempt > terms.retries:
            raise UsageError(
                f"message {self.message_id!r} cannot be retried: attempt {terms.attempt} is the last "
                f"(retries={terms.retries})"
            )
        wait = terms.retry_delay(terms.attempt) if delay is None else check_duration("delay", delay)
        await self._decide("retried", Retry(wait))

    async def snooze(self, delay: float | timedelta) -> None:
        """Not now: ready again after `delay` (seconds or timedelta); no attempt is used. The outbox is dropped."""
        await self._decide("snoozed", Release(check_duration("delay", delay)))

    async def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Tell whoever watches the job how far this run has come. Cheap enough for a loop: what is told in quick
        succession is coalesced, the last one counts. Told after the verdict, it goes unheard.
        """
        await crossing(self._desk.report)(self._delivery, Progress(done, total, note))

    async def reply(
        self,
        *,
        payload: bytes,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        channel: str | None = None,
    ) -> None:
        """Acknowledge and send a reply to `channel` (None: to `reply_to`) in one step, with the outbox.

        Raises `UsageError` if there is no channel to reply to, and what a producer middleware refuses it with; the
        message is still open then.
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
        accepted(reply, await self._desk.holder(hold)((reply,)))
        await self._decide("replied", ACK, replies)

    async def reply_json(
        self, payload: Any = None, *, headers: Mapping[str, str] | None = None, channel: str | None = None
    ) -> None:
        """Like `reply`, with anything msgspec can encode as JSON.

        Raises `PayloadError` for anything else; the message is still open then.
        """
        await self.reply(payload=encode_json(payload), content_type=JSON, headers=headers, channel=channel)

    def acked_first(self) -> None:
        """The worker acknowledges it before the start, in the mode `ack_first`."""
        self._action = "acked"

    def close(self, disposition: Disposition) -> tuple[Envelope, ...]:
        """The worker has decided: no verb is possible any more. Gives what to send in the same step."""
        self._action = _ACTIONS[type(disposition)]
        held = () if self._outbox is None else self._outbox.close()
        return held if isinstance(disposition, Ack) and disposition.failure is None else ()

    def _publisher(self, server_name: str | None) -> Publish:
        return self._desk.publisher(server_name)

    def _check_open(self, action: Action) -> None:
        if self._action is not None:
            raise AlreadySettled(
                f"message {self.message_id!r} cannot be {action}: it has been {self._action} already, which is final"
            )

    @hosted
    async def _decide(self, action: Action, disposition: Disposition, replies: Sequence[Envelope] = ()) -> None:
        self._check_open(action)
        self._action = action
        held = () if self._outbox is None else self._outbox.close()
        outbox = (*held, *replies) if isinstance(disposition, Ack) else ()
        await self._desk.hand_over(self._delivery, disposition, outbox)


class Outbox(Producer):
    """Sends held back until the message is acknowledged; dropped with any other verdict.

    Sending raises `AlreadySettled` once the verdict is given.
    """

    __slots__ = ("_closed", "_desk", "_held")

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._held: list[Envelope] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._held)

    def close(self) -> tuple[Envelope, ...]:
        """What is held back; later sends are refused."""
        self._closed = True
        return tuple(self._held)

    def _publisher(self, server_name: str | None) -> Publish:
        if server_name is not None:
            raise UsageError(
                f"an outbox sends to the server its message came from, not to {server_name!r}: "
                "only there can both happen in one step; use message.send_message for another server"
            )
        return self._desk.holder(self._hold)

    async def _hold(self, envelopes: Sequence[Envelope]) -> Outcomes:
        if self._closed:
            raise AlreadySettled("the outbox was committed with its message's verdict: nothing more can be added to it")
        self._held.extend(envelopes)
        return [None] * len(envelopes)
