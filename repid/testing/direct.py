"""Messages for calling an actor directly, without a worker: what it says to its message is kept, to be looked at."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from ..application import Application
from ..calls import Exchange
from ..codec import JSON, encode_json
from ..delivery import Delivery, Disposition, Progress, Terms
from ..envelope import Envelope, new_id
from ..errors import ConfigurationError, UsageError
from ..inject import Message, SyncMessage
from ..names import brief, check_count
from ..producer import Outcomes, Publish, Publisher, copy_headers, make_envelope

T = TypeVar("T")


class DirectMessage(Message):
    """A `Message` that no worker knows: `await actor(1, message=DirectMessage())`.

    It obeys the rules of every message: a second verb raises `AlreadySettled`, `retry` in the last attempt
    `UsageError`.

    payload, content_type: as they were sent; `json` in their place: anything that can be encoded as JSON.
    attempt, retries: 1 for the first attempt, and how many times a failed run may be made again.
    headers, reply_to, channel, message_id: as in `send_message`.
    app: that of the actors which the actor enqueues by `message.enqueue` and `message.outbox.enqueue`.

    Raises `ConfigurationError` for what no message could have.
    """

    __slots__ = ("_kept",)

    def __init__(
        self,
        *,
        payload: bytes = b"",
        content_type: str | None = None,
        json: Any = None,
        attempt: int = 1,
        retries: int = 0,
        headers: Mapping[str, str] | None = None,
        reply_to: str | None = None,
        channel: str = "default",
        message_id: str | None = None,
        app: Application | None = None,
    ) -> None:
        if json is not None:
            payload, content_type = encode_json(json), JSON
        elif not isinstance(payload, bytes):
            raise ConfigurationError(f"payload must be bytes, but is {brief(payload)}: give json=... in its place")
        check_count("attempt", attempt, least=1)
        check_count("retries", retries)
        envelope = make_envelope(
            channel,
            payload,
            content_type,
            {"headers": copy_headers(headers), "reply_to": reply_to, "message_id": message_id or new_id()},
        )
        terms = Terms(mode="auto", attempt=attempt, retries=retries, retry_delay=float)
        self._kept = _Kept(app)
        super().__init__(Delivery(envelope, attempt, 0, token=None), terms, self._kept)

    @property
    def for_threads(self) -> SyncMessage:
        """The same message for an actor that is a plain function (`def`)."""
        return SyncMessage(self)

    @property
    def verdict(self) -> Disposition | None:
        """What follows from the verb that was said: `Ack`, `Retry`, `Release` or `DeadLetter`. None: none was said."""
        return self._kept.verdict

    @property
    def sent(self) -> Sequence[Envelope]:
        """What was sent at once, and with the verdict: replies, and what the outbox held."""
        return tuple(self._kept.sent)

    @property
    def held(self) -> Sequence[Envelope]:
        """What the outbox holds back: it is sent when the message is acknowledged, also by a plain return."""
        return () if self._outbox is None else tuple(self._outbox._held)  # noqa: SLF001  the other half of it

    @property
    def told(self) -> Sequence[Progress]:
        """What was told of its progress, in order."""
        return tuple(self._kept.told)


class _Kept:
    """A message context that keeps what is said. Nothing of it waits for anybody."""

    def __init__(self, app: Application | None) -> None:
        self._app = app
        self.verdict: Disposition | None = None
        self.sent: list[Envelope] = []
        self.told: list[Progress] = []

    def in_trio(self, function: Callable[..., T], *arguments: Any) -> T:
        """There is no other thread."""
        return function(*arguments)

    def wait_for(self, call: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:  # noqa: ARG002  part of the protocol
        """Carry out a call that waits for nothing. A verb has taken effect when it was called."""
        coroutine = call()
        if not inspect.iscoroutine(coroutine):
            return None  # type: ignore[return-value] # a verb, which gives nothing
        try:
            coroutine.send(None)
        except StopIteration as stop:
            value: T = stop.value
            return value
        coroutine.close()
        raise UsageError("a message of a test cannot wait for anything outside of it")

    def hand_over(
        self,
        delivery: Delivery,  # noqa: ARG002  part of the protocol
        disposition: Disposition,
        outbox: tuple[Envelope, ...],
    ) -> Callable[[], Awaitable[None]]:
        """Keep the verdict."""
        self.verdict = disposition
        self.sent.extend(outbox)
        return _at_once

    def defer(self, delivery: Delivery, disposition: Disposition) -> Callable[[], Awaitable[None]]:  # noqa: ARG002  as above
        """Keep the verdict."""
        self.verdict = disposition
        return _at_once

    def report(self, delivery: Delivery, progress: Progress) -> Callable[[], Awaitable[None]]:  # noqa: ARG002  as above
        """Keep the progress."""
        self.told.append(progress)
        return _at_once

    def publisher(self, _: str | None, __: bool, /) -> Publisher:
        """What is sent is kept, whatever the server."""
        return Publisher(self._publish)

    def through_middlewares(self, hold: Publish, /) -> Publish:
        """There are no producer middlewares."""
        return hold

    @property
    def exchange(self) -> Exchange:
        """The app."""
        if self._app is None:
            raise UsageError(
                "this message does not know which actors there are: give it the app, DirectMessage(app=app)"
            )
        return self._app

    async def _publish(self, envelopes: Sequence[Envelope]) -> Outcomes:
        self.sent.extend(envelopes)
        return [None] * len(envelopes)


async def _at_once() -> None:
    """The answer is there."""
