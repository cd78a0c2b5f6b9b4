"""Sending: from what a caller says to envelopes, and from envelopes to a publisher.

`Producer` is what an app, a message and an outbox have in common: the same verbs with different ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeAlias, TypedDict, Unpack

from .codec import JSON, MESSAGE_PACK_CODEC, encode_each_as_json, encode_json
from .envelope import NO_OPTIONS, TOPIC, Envelope, Options, PrioritiesT, new_id, new_ids
from .errors import BrokerRefused, ConfigurationError, NotSupported, PayloadError, QueueNotDeclared
from .names import (
    NOT_OF_MESSAGES,
    brief,
    check_duration,
    check_flag,
    check_id,
    check_iterable,
    check_known,
    check_mapping,
    check_name,
    check_retries,
    check_text,
    onion,
)
from .ports import Broker, Transactional, name_of

Outcomes: TypeAlias = list[BrokerRefused | None]
"""One for each envelope: None, or why it was refused."""

Publish: TypeAlias = Callable[[Sequence[Envelope]], Awaitable[Outcomes]]
"""Publishes a batch; one outcome for each envelope: None, or why it was refused."""


def _never(_: Envelope) -> bool:
    return False


class Publisher:
    """Publishes what a producer sends: `await publisher(envelopes)`, as `Publish`.

    `at_once(envelope)` publishes one message where that takes no wait, in half the time: no coroutine is made for it.
    It returns False, and has done nothing, where that cannot be, or where the message is refused: then the publisher is
    called, which waits or says why.
    """

    __slots__ = ("_publish", "at_once")

    def __init__(self, publish: Publish, at_once: Callable[[Envelope], bool] = _never) -> None:
        self._publish = publish
        self.at_once = at_once

    def __call__(self, envelopes: Sequence[Envelope]) -> Awaitable[Outcomes]:
        """Publish a batch; one outcome for each."""
        return self._publish(envelopes)


class ProducerMiddleware(Protocol):
    """Something around every publishing: `await call_next(envelopes)` publishes them; others may be passed on."""

    def __call__(self, call_next: Publish, envelopes: Sequence[Envelope], /) -> Awaitable[Outcomes]:
        """Called with every batch, of one message or many."""
        ...


class SendOptions(TypedDict, total=False):
    """What may be said about any message besides its channel and payload.

    `headers` (strings to strings; `topic` names the actor), `reply_to` (the channel for replies), `message_id` (unique
    among live messages, and refused by a server that does not compare ids; random if not given), `priority`, `delay`
    and `ttl` (seconds or timedelta), `retries`, `timeout` and `store_result` (in place of the actor's own),
    `server_name` (of the server to send to), `server_specific_parameters` (handed to the broker as they are),
    `connection` (of psycopg, SQLAlchemy or Django to the database of a `PostgresServer`: the message is sent if your
    own transaction on it is committed).
    """

    headers: Mapping[str, str] | None
    reply_to: str | None
    message_id: str | None
    priority: PrioritiesT | None
    delay: float | timedelta | None
    ttl: float | timedelta | None
    retries: int | None
    timeout: float | timedelta | None
    store_result: bool | None
    server_name: str | None
    server_specific_parameters: Mapping[str, Any] | None
    connection: Any


_NAMES_OF_OPTIONS = ("priority", "delay", "ttl", "timeout", "retries", "store_result", "result_ttl")
_SEND_OPTIONS = frozenset(SendOptions.__annotations__)
_PLAIN = frozenset({"headers", "connection"})


class Producer:
    """The verbs of sending. Every one of them raises `ConfigurationError` for bad arguments before anything is sent,
    `PayloadError` for a payload that cannot be encoded, and `BrokerError` for what the broker says.
    """

    __slots__ = ()

    def _publisher(self, server_name: str | None, *, named: bool) -> Publisher:
        """Where this producer's envelopes go. `named`: the caller chose their ids, so the server must compare ids."""
        raise NotImplementedError

    def _publisher_within(self, connection: Any, server_name: str | None) -> Publisher:  # noqa: ARG002  of others
        """The same within a transaction of the caller's, for those who can do that."""
        raise ConfigurationError(
            "connection= is for what an app sends or a job enqueues: what a message sends goes out with its own "
            "settlement"
        )

    def _publisher_for(self, options: SendOptions) -> Publisher:
        if len(options) == ("headers" in options):  # nothing but headers: the common case
            return self._publisher(None, named=False)
        if options.get("connection") is not None:
            return self._publisher_within(options.get("connection"), options.get("server_name"))
        return self._publisher(options.get("server_name"), named=options.get("message_id") is not None)

    async def send_message(
        self, *, channel: str, payload: bytes, content_type: str | None = None, **options: Unpack[SendOptions]
    ) -> Envelope:
        """Send bytes to a channel, which is declared if need be; returns what was sent, with its id.

        The message is as durable as the server promises when this returns. Cancelled: it was not sent.
        """
        check_payload(payload)
        envelope, publish = make_envelope(channel, payload, content_type, options), self._publisher_for(options)
        return envelope if publish.at_once(envelope) else accepted(envelope, await publish((envelope,)))

    async def send_message_json(self, *, channel: str, payload: Any = None, **options: Unpack[SendOptions]) -> Envelope:
        """Like `send_message`, with anything msgspec can encode as JSON (None: no payload).

        That is: dict, list, str, numbers, bool, datetime, UUID, Decimal, Enum, Struct, dataclass, TypedDict…
        """
        envelope = make_envelope(channel, b"" if payload is None else encode_json(payload), JSON, options)
        publish = self._publisher_for(options)
        return envelope if publish.at_once(envelope) else accepted(envelope, await publish((envelope,)))

    async def send_messages(
        self,
        *,
        channel: str,
        payloads: Iterable[bytes],
        content_type: str | None = None,
        **options: Unpack[SendOptions],
    ) -> list[Envelope]:
        """Send many messages in one step; they share the options. Returns what was sent, in order.

        Should some be refused, the others are sent all the same and an `ExceptionGroup` names the refused.
        """
        check_iterable("payloads", payloads)
        batch = list(payloads)
        for payload in batch:
            check_payload(payload)
        return await self._send_all(channel, batch, content_type, options)

    async def send_messages_json(
        self, *, channel: str, payloads: Iterable[Any], **options: Unpack[SendOptions]
    ) -> list[Envelope]:
        """Like `send_messages`, with payloads that are encoded as JSON."""
        check_iterable("payloads", payloads)
        return await self._send_all(channel, encode_each_as_json(list(payloads)), JSON, options)

    async def _send_all(
        self, channel: str, payloads: list[bytes], content_type: str | None, options: SendOptions
    ) -> list[Envelope]:
        if options.get("message_id") is not None:
            raise ConfigurationError("message_id cannot be given for many messages at once: ids must differ")
        publish = self._publisher_for(options)
        model = make_envelope(channel, b"", content_type, options)
        queue, headers, reply_to = model.queue, model.headers, model.reply_to
        shared, parameters = model.options, model.parameters
        envelopes = [
            Envelope(id_, queue, payload, content_type, headers, reply_to, shared, parameters)
            for id_, payload in zip(new_ids(len(payloads)), payloads, strict=True)
        ]
        if envelopes:
            raise_refused(await publish(envelopes), "sent")
        return envelopes


def accepted(envelope: Envelope, outcomes: Outcomes) -> Envelope:
    """The envelope, if its outcome is None; else that is raised."""
    if outcomes[0] is not None:
        raise outcomes[0]
    return envelope


def make_envelope(channel: str, payload: bytes, content_type: str | None, options: SendOptions) -> Envelope:
    """The envelope for what was said; raises `ConfigurationError` naming what is wrong with it."""
    check_name("channel", channel)
    if content_type is not None and content_type is not JSON:
        check_text("content_type", content_type)
    if len(options) == ("headers" in options) or options.keys() <= _PLAIN:  # nothing but headers: the common case
        return Envelope(new_id(), channel, payload, content_type, copy_headers(options.get("headers")))
    if "topic" in options:
        raise ConfigurationError(
            "a message has no option 'topic': the name of its actor is a header, headers={\"topic\": ...}"
        )
    check_known("a message", options, _SEND_OPTIONS, NOT_OF_MESSAGES)
    parameters = options.get("server_specific_parameters")
    if parameters is not None:
        check_mapping("server_specific_parameters", parameters)
        parameters = dict(parameters)
        try:
            MESSAGE_PACK_CODEC.encode(parameters)
        except PayloadError as error:
            raise ConfigurationError(f"server_specific_parameters must be plain values: {error}") from None
    reply_to = options.get("reply_to")
    return Envelope(
        check_id(options.get("message_id")) or new_id(),
        channel,
        payload,
        content_type,
        copy_headers(options.get("headers")),
        None if reply_to is None else check_name("channel", reply_to),
        given_options(options),
        parameters,
    )


def given_options(given: Mapping[str, Any]) -> Options:
    """The options of an envelope out of what a caller has given, checked; what is not given stays None."""
    priority, delay, ttl, timeout, retries, store_result, result_ttl = map(given.get, _NAMES_OF_OPTIONS)
    options = Options(
        priority=None if priority is None else check_priority(priority),
        delay=None if delay is None else check_duration("delay", delay),
        ttl=None if ttl is None else check_duration("ttl", ttl, positive=True),
        retries=None if retries is None else check_retries("retries", retries),
        timeout=None if timeout is None else check_duration("timeout", timeout, positive=True),
        store_result=store_result if store_result is None else check_flag("store_result", store_result),
        result_id=check_id(given.get("result_id"), "result_id"),
        result_ttl=None if result_ttl is None else check_duration("result_ttl", result_ttl, positive=True),
    )
    return NO_OPTIONS if options == NO_OPTIONS else options


def check_priority(priority: PrioritiesT) -> PrioritiesT:
    """The priority itself; raises `ConfigurationError` for what is none."""
    if not isinstance(priority, PrioritiesT):
        raise ConfigurationError(f"priority must be PrioritiesT.HIGH, MEDIUM or LOW, but is {brief(priority)}")
    return priority


def check_payload(payload: bytes) -> None:
    """Raises `ConfigurationError` for a payload that is not bytes."""
    if not isinstance(payload, bytes):
        raise ConfigurationError(
            f"payload must be bytes, but is {type(payload).__name__}: use the _json form of the call for objects"
        )


def copy_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """A copy that nobody changes; raises `ConfigurationError` unless it maps strings to strings. See `only_topic`."""
    if headers is None:
        return {}
    if type(headers) is not dict:
        check_mapping("headers", headers)
    elif len(headers) == 1 and type(topic := headers.get(TOPIC)) is str:
        shared = _shared.get(topic)
        return shared if shared is not None and shared == headers else only_topic(topic)
    copy = dict(headers)
    for name, value in copy.items():
        if type(name) is not str or type(value) is not str:
            raise ConfigurationError(f"headers must map text to text, but hold {brief(name)}: {brief(value)}")
        if not (name.isascii() and value.isascii()):
            check_text("the name of a header", name)
            check_text(f"the header {name!r}", value)
    return copy


def only_topic(topic: str) -> dict[str, str]:
    """Headers that name the topic alone, as most messages have them. All these messages share them, as those of one
    batch do: a dict for each would be a third of what a waiting message takes in memory. Raises `ConfigurationError`.

    Nobody may change the headers of an envelope. Should somebody do it, the messages that are made from then on have
    others.
    """
    shared = _shared.get(topic)
    if shared is None or len(shared) > 1 or shared.get(TOPIC) != topic:
        check_text(f"the header {TOPIC!r}", topic)
        shared = {TOPIC: topic}
        if len(topic) <= _LONGEST_SHARED:
            if len(_shared) >= _MOST_SHARED:
                _shared.clear()
            _shared[topic] = shared
    return shared


_MOST_SHARED = 4096
_LONGEST_SHARED = 200
"""Characters of a topic whose headers are kept: a program may take topics from outside, which may be megabytes long."""

_shared: dict[str, dict[str, str]] = {}
"""By topic."""


def raise_refused(outcomes: Outcomes, done: str) -> None:
    """Raises an `ExceptionGroup` of the refusals, if there are any; the others are `done`."""
    refused = [outcome for outcome in outcomes if outcome is not None]
    if refused:
        others = f"the others are {done}" if len(refused) < len(outcomes) else f"none is {done}"
        raise ExceptionGroup(f"{len(refused)} of {len(outcomes)} messages were refused; {others}", refused)


def publish_declaring(broker: Broker, on_new: Callable[[AbstractSet[str]], None]) -> Publish:
    """What publishes to the broker; queues that turn out not to be declared are declared, and theirs published then.
    `on_new` is told of them.
    """

    async def publish(envelopes: Sequence[Envelope]) -> Outcomes:
        outcomes = await broker.publish(envelopes)
        if not any(outcomes):  # errors are true, None is not
            return outcomes
        missing = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, QueueNotDeclared)]
        if not missing:
            return outcomes
        queues = {envelopes[i].queue for i in missing}
        await broker.declare(queues)
        on_new(queues)
        for i, outcome in zip(missing, await broker.publish([envelopes[i] for i in missing]), strict=True):
            outcomes[i] = outcome
        return outcomes

    return publish


async def publish_within(broker: Broker, connection: Any, envelopes: Sequence[Envelope], *, declare: bool) -> Outcomes:
    """Publish in the caller's transaction. Raises `NotSupported` where the server is in no database that has such."""
    if not isinstance(broker, Transactional):
        raise NotSupported(
            f"connection= publishes in a transaction of yours, which {name_of(broker)} cannot: use PostgresServer"
        )
    if declare:
        await broker.declare({envelope.queue for envelope in envelopes})
    return await broker.publish_in(connection, envelopes)


def psycopg_connection(connection: Any) -> Any:
    """The psycopg connection in what was given as `connection=`: itself, or that of a connection of SQLAlchemy or
    Django.

    To be called in the caller's thread: what Django gives is another connection in each thread. Raises
    `ConfigurationError`.
    """
    found, around = connection, list[Any]()
    for _ in range(_DEEPEST):
        if hasattr(found, "pgconn"):
            for each in around:
                _begin_there(each)
            return found
        around.append(found)
        inner = (getattr(found, name, None) for name in ("driver_connection", "sync_connection", "connection"))
        found = next(filter(None, inner), None)
    raise ConfigurationError(
        "connection= must be an open connection of psycopg 3, or one of SQLAlchemy or Django that holds one, but is "
        f"{connection!r}"
    )


def _begin_there(outer: Any) -> None:
    """Have a connection of SQLAlchemy know that a transaction is begun. It begins one at its own first statement, and
    what it has not begun it does not commit.
    """
    in_transaction = getattr(outer, "in_transaction", None)
    if callable(in_transaction) and not hasattr(outer, "sync_connection") and not in_transaction():
        outer.begin()


_DEEPEST = 4
"""Objects within objects that are looked into for a psycopg connection."""


def check_compares_ids(broker: Broker) -> None:
    """Raise `NotSupported` where an id that the caller chose would not be unique."""
    if broker.capabilities.unique_ids == "none":
        raise NotSupported(
            f"message_id was given, which makes a message unique, but {name_of(broker)} does not compare ids: leave "
            "message_id out, or use a server that does, such as SQLiteServer"
        )


async def publish_without_results(publish: Publish, server: str, envelopes: Sequence[Envelope]) -> Outcomes:
    """Publish where nobody keeps results. Raises `NotSupported`, and publishes none, if one is asked for."""
    for envelope in envelopes:
        if envelope.options.store_result:
            raise NotSupported(
                f"message {envelope.id!r} for {envelope.topic!r} says store_result=True, but {server} keeps no "
                "results: give the app a result_store=, give the server another one that keeps them, as state=, or "
                "leave store_result out"
            )
    return await publish(envelopes)


def around(publish: Publish, middlewares: Sequence[ProducerMiddleware]) -> Publish:
    """The publisher with the middlewares around it, the first outermost."""
    return partial(_publish_checked, onion(partial(_publish_given, publish), middlewares))


async def _publish_given(publish: Publish, envelopes: Sequence[Envelope]) -> Outcomes:
    """Publish what the middlewares hand on. Raises `ConfigurationError` unless these are messages."""
    for given in envelopes if isinstance(envelopes, Sequence) else [envelopes]:
        if not isinstance(given, Envelope):
            raise ConfigurationError(
                f"a producer middleware called call_next with {brief(given)}: give it a list of messages "
                "(Envelope), those that it got or others"
            )
    return await publish(envelopes)


async def _publish_checked(publish: Publish, envelopes: Sequence[Envelope]) -> Outcomes:
    """Publish. Raises `ConfigurationError` if what comes back are not the outcomes of these envelopes."""
    outcomes = await publish(envelopes)
    if not isinstance(outcomes, Sequence) or len(outcomes) != len(envelopes):
        raise ConfigurationError(
            f"the producer middlewares returned {outcomes!r} for {len(envelopes)} message(s): each must return what "
            "call_next returned, or another list with one outcome for each message"
        )
    return outcomes
