"""Enqueueing by the function itself: from an actor and its arguments to one message, checked before it is sent.

`Caller` is what an app, a message and an outbox have in common; `Using` is one of them with options. An actor stays the
plain function that it is, so the verbs belong to those who send, and the options stand before the verb:
`app.using(delay=5).enqueue(add, 1, b=2)`. So an argument of the actor is never taken for an option, a type checker sees
the actor's own parameters, and one word serves every verb. (With `app.enqueue.with_options(...)(add, 1)` each verb
would be an object with a method; with `add.using(...)` the actor would be no function any more.)

`Callee` is what these need to know of an actor. It is compiled once; the payload of a call is decoded as a worker will
decode it, so that arguments which are accepted here fit there.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Concatenate, NoReturn, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload

import msgspec
from msgspec.structs import replace

from .codec import JSON, encode_each_as_json, encode_json
from .envelope import NO_OPTIONS, TOPIC, Envelope, Options, PrioritiesT, new_id, new_ids
from .errors import BrokerRefused, ConfigurationError, NotSupported, PayloadError, SomeRefused, UsageError, did_you_mean
from .handle import JobHandle
from .names import NOT_OF_CALLS, brief, check_id, check_iterable, check_known, check_name
from .ports import Broker, ResultStore, name_of
from .producer import Publisher, accepted, copy_headers, given_options, only_topic

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
Q = ParamSpec("Q")
Verb = TypeVar("Verb", bound=Callable[..., Any])
Returns = TypeVar("Returns", covariant=True)  # noqa: PLC0105
OneResult = TypeVar("OneResult", covariant=True)  # noqa: PLC0105


class CallOptions(TypedDict, total=False):
    """What may be said about an enqueued call. Durations are seconds or timedeltas.

    priority: HIGH, MEDIUM (default) or LOW; see `PrioritiesT`.
    id_: makes it unique: while a message with this id is alive, another is refused. Default: a fresh id each time.
    retries, timeout: default: the actor's own (0 and 10 minutes if it has none).
    ttl: a message not started that long after it became due becomes a dead letter. Default: never.
    delay, deferred_until: it becomes due that long after enqueueing, or at that time (a datetime with a time zone).
    store_result: keep its result. Default: the actor's own option, False if it has none.
    result_id, result_ttl: under which id (default: the message's), and for how long (default: a day).
    headers, reply_to: strings by name, and the channel for replies, as in a message.
    server_name: of the server to send to. Default: the app's default server; for a message, the server it came from.
    """

    priority: PrioritiesT | None
    id_: str | None
    retries: int | None
    timeout: float | timedelta | None
    ttl: float | timedelta | None
    delay: float | timedelta | None
    deferred_until: datetime | None
    store_result: bool | None
    result_id: str | None
    result_ttl: float | timedelta | None
    headers: Mapping[str, str] | None
    reply_to: str | None
    server_name: str | None


class UsingOptions(CallOptions, total=False):
    """The options of a call, and where it is enqueued from.

    connection: of psycopg, SQLAlchemy or Django to the database of a `PostgresServer`: what the app enqueues is sent if
    your own transaction on it is committed.
    """

    connection: Any


USING_OPTIONS = frozenset(UsingOptions.__annotations__)
KNOWN_OPTIONS = USING_OPTIONS | {"call_timeout"}


class CallTerms(msgspec.Struct, frozen=True):
    """The options of a call, checked. `due_at`: seconds since 1970."""

    id_: str | None = None
    options: Options = NO_OPTIONS
    headers: Mapping[str, str] = {}
    reply_to: str | None = None
    server_name: str | None = None
    due_at: float | None = None
    connection: Any = None


PLAIN = CallTerms()


def read_terms(what: str, options: Mapping[str, Any]) -> CallTerms:
    """The options, checked. Raises `ConfigurationError`."""
    server_name, reply_to = options.get("server_name"), options.get("reply_to")
    return CallTerms(
        id_=check_id(options.get("id_"), f"the id_ of {what}"),
        options=given_options(options),
        headers=copy_headers(options.get("headers")),
        reply_to=None if reply_to is None else check_name("channel", reply_to),
        server_name=None if server_name is None else check_name("server", server_name),
        due_at=_read_moment(what, options),
        connection=options.get("connection"),
    )


def _read_moment(what: str, options: Mapping[str, Any]) -> float | None:
    moment = options.get("deferred_until")
    if moment is None:
        return None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ConfigurationError(f"deferred_until must be a datetime with a time zone, but is {moment!r}")
    if options.get("delay") is not None:
        raise ConfigurationError(f"{what} has both delay and deferred_until: give one of them")
    return moment.timestamp()


def make_headers(what: str, name: str, given: Mapping[str, str]) -> dict[str, str]:
    """The headers of a message for the actor of this name."""
    if not given and type(name) is str:
        return only_topic(name)
    headers = {TOPIC: name} | dict(given)
    if headers[TOPIC] != name:
        raise ConfigurationError(f"the headers of {what} name another actor as their topic: {headers[TOPIC]!r}")
    return headers


async def deferred(envelopes: Sequence[Envelope], broker: Broker, due_at: float) -> list[Envelope]:
    """These envelopes, which share their options, with the delay that makes them due at that moment of the server's
    clock.
    """
    now = await broker.now() if broker.capabilities.has("schedules") else time.time()
    options = replace(envelopes[0].options, delay=max(0.0, due_at - now))
    return [replace(envelope, options=options) for envelope in envelopes]


def check_unique(what: str, id_: str, broker: Broker) -> None:
    """Raises `NotSupported` where the server cannot keep what has this id unique."""
    if broker.capabilities.unique_ids == "none":
        raise NotSupported(
            f"{what} has id_={id_!r}, which makes it unique, but {name_of(broker)} does not compare ids: leave "
            "id_ out, or use a server that does, such as SQLiteServer"
        )


class Callee(msgspec.Struct, frozen=True, eq=False):
    """What it takes to call one actor by message.

    `names` are its parameters that the payload fills, in order; `positional`: how many of them may be given without
    their name; `by_position` makes of these what is encoded as they are by name, faster than a dict; `injected`: those
    that the worker fills. `takes_rest`: it has `**kwargs`. `check` raises `PayloadError` for an envelope that a worker
    would refuse. `returns`: the type of its results. `payload_of` encodes arguments by name. An actor `is_of_batch`
    whose messages are the elements of its list: a call gives one, which is the whole payload.
    """

    name: str
    function: str
    channel: str
    names: tuple[str, ...]
    positional: int
    injected: frozenset[str]
    takes_rest: bool
    check: Callable[[Envelope, None], object]
    returns: Any
    by_position: Callable[..., Any]
    payload_of: Callable[[Any], bytes] = encode_json
    is_of_batch: bool = False

    def envelope(self, terms: CallTerms, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Envelope:
        """The message for a call with these arguments. Raises `PayloadError` if they do not fit."""
        if keywords or len(arguments) > self.positional or self.is_of_batch:
            given: Any = self.bind(arguments, keywords)
        else:
            given = self.by_position(*arguments) if arguments else None
        try:
            payload = self.payload_of(given) if given else b""
        except PayloadError as error:
            raise self._unsendable(error) from error.__cause__
        if terms is PLAIN:
            envelope = Envelope(new_id(), self.channel, payload, JSON, only_topic(self.name))
        else:
            headers = make_headers(f"a call of {self.name!r}", self.name, terms.headers)
            id_, reply_to, options = terms.id_ or new_id(), terms.reply_to, terms.options
            envelope = Envelope(id_, self.channel, payload, JSON, headers, reply_to, options)
        self.check_call(envelope)
        return envelope

    def check_call(self, envelope: Envelope) -> None:
        """Raises `PayloadError` if a worker would refuse it."""
        try:
            self.check(envelope, None)
        except PayloadError as error:
            if envelope.payload.startswith(b"["):
                self._say_one(error)
            raise

    def envelopes(
        self, terms: CallTerms, arguments: Sequence[Any], keywords: Mapping[str, Any], items: Sequence[Any]
    ) -> list[Envelope]:
        """The messages for calls with one item each, which comes behind the arguments that they share."""
        for option in ("id_", "result_id"):
            if (terms.id_ if option == "id_" else terms.options.result_id) is not None:
                raise ConfigurationError(f"{option} cannot be given for many calls at once: ids must differ")
        if not items:
            return []
        place = len(arguments)
        given = self.bind([*arguments, items[0]], keywords)
        name = self.names[place]
        headers = make_headers(f"a call of {self.name!r}", self.name, terms.headers)
        channel, reply_to, options = self.channel, terms.reply_to, terms.options
        check = self.check
        envelopes: list[Envelope] = []
        try:
            for id_, payload in zip(new_ids(len(items)), self._payloads(given, name, items), strict=True):
                envelope = Envelope(id_, channel, payload, JSON, headers, reply_to, options)
                check(envelope, None)
                envelopes.append(envelope)
        except PayloadError as error:
            self._say_which(error, items, len(envelopes))
            if isinstance(items[len(envelopes)], list):
                self._say_one(error)
            raise
        return envelopes

    def _payloads(self, given: Mapping[str, Any], name: str, items: Sequence[Any]) -> Iterable[bytes]:
        """The payload for each item, the argument of this name. What raises `PayloadError` does it when its
        turn comes.
        """
        if self.payload_of is encode_json:
            with suppress(PayloadError):
                return encode_each_as_json([{**given, name: item} for item in items])
        return (self._payload({**given, name: item}) for item in items)

    def _payload(self, given: Any) -> bytes:
        try:
            return self.payload_of(given)
        except PayloadError as error:
            raise self._unsendable(error) from error.__cause__

    def _unsendable(self, error: PayloadError) -> PayloadError:
        return PayloadError(f"cannot encode the arguments of {self.function}() as JSON", error.faults)

    def _say_which(self, error: PayloadError, items: Sequence[Any], number: int) -> None:
        if len(items) > 1:
            error.add_note(f"this was item {number}, counted from 0, of {len(items)}: {brief(items[number])}")
        if isinstance(items[number], tuple) and len(self.names) > 1:
            error.add_note(
                "an item is the first argument of its call alone; for several make each call a job, app.job(actor, "
                "*item), and enqueue these: app.enqueue_many(jobs)"
            )

    def _say_one(self, error: PayloadError) -> None:
        """Tell that a call gives one element, where it was a list. Type checkers miss that: the actor takes a list."""
        if self.is_of_batch:
            error.add_note(
                f"{self.function}() gets a list from its worker, and a call gives one element of it: "
                "app.enqueue(actor, element); for many there is app.enqueue_many(actor, elements)"
            )

    def bind(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name. Raises `PayloadError` naming each that has no parameter."""
        given = dict(zip(self.names[: self.positional], arguments, strict=False))
        faults = []
        if self.is_of_batch and not (arguments or keywords):
            faults.append(("$", "an element of its list is missing: a call gives it one"))
        if len(arguments) > self.positional:
            faults.append(("$", f"{len(arguments)} positional arguments were given, but it takes {self.positional}"))
        for name, value in keywords.items():
            if name in given:
                faults.append((f"$.{name}", "given twice, by position and by name"))
            elif name in self.injected:
                faults.append((f"$.{name}", "the worker fills this parameter: leave it out"))
            elif name in self.names or self.takes_rest:
                given[name] = value
            else:
                hint = did_you_mean(name, self.names) or _as_option(name)
                faults.append((f"$.{name}", f"there is no such parameter{hint}"))
        if faults:
            raise PayloadError(f"these arguments do not fit {self.function}()", faults)
        return given


def _as_option(name: str) -> str:
    """Where to say what was given with the arguments, if it is an option."""
    if name == "timeout":
        return (
            "; as an option it stands before the verb: using(timeout=…) ends a run that takes longer, "
            "using(call_timeout=…) bounds how long call waits"
        )
    return f"; as an option it stands before the verb: using({name}=…)" if name in KNOWN_OPTIONS else ""


class BatchActor(Protocol[A, Q, Returns, OneResult]):
    """What an actor that was declared with `batch=` is to a type checker; at run time it is the plain function.

    It is called with a list, and a call that is enqueued has one element `A` of it and the result that this one gets.
    """

    def __call__(self, items: list[A], /, *args: Q.args, **kwargs: Q.kwargs) -> Returns:
        """Call the function directly."""
        ...

    @property
    def __result_of_one__(self) -> OneResult:
        """For type checkers only: the result of one message."""
        ...


class Exchange(Protocol):
    """Where calls go, and where their results come from."""

    @property
    def result_store(self) -> ResultStore | None:
        """Where results are kept; None: on the server the message went to."""
        ...

    def server(self, server_name: str | None = None) -> Broker:
        """The server of that name; None: that of the exchange."""
        ...

    def callee(self, function: Callable[..., Any]) -> Callee:
        """The actor that the function was declared as. Raises `ConfigurationError` if the function is no actor."""
        ...


def options_stand_before(verb: Verb) -> Verb:
    """Let `app.enqueue.with_options(...)`, which others have, tell where options stand here."""
    vars(verb)["with_options"] = _have_no_options
    return verb


def _have_no_options(*_: object, **options: object) -> NoReturn:
    shown = ", ".join(f"{name}={brief(value)}" for name, value in options.items())
    raise UsageError(
        f"verbs have no with_options: options stand before the verb, as in using({shown or '...'}).enqueue(actor, ...)"
    )


class Caller:
    """The verbs that enqueue a call of an actor, given as the function itself.

    Every one of them raises, before anything is sent, `PayloadError` for arguments that do not fit the actor (with
    every fault and its path) and `ConfigurationError` for a function that is no actor; `NotSupported` for options that
    the server cannot carry out; `DuplicateId` if a message with the call's id is alive. Parameters that the worker
    fills (the `Message`, dependencies) are not given; for type checkers they need a default, `INJECTED`.
    """

    __slots__ = ()

    _sends_now = True

    def _terms_for(self, verb: str) -> CallTerms:  # noqa: ARG002  others look at it
        """The options, for this verb. Raises `ConfigurationError` where they say nothing of it."""
        return PLAIN

    def _publisher(self, server_name: str | None, *, named: bool) -> Publisher:
        raise NotImplementedError

    def _publisher_within(self, connection: Any, server_name: str | None) -> Publisher:
        """Where calls go within a transaction of the caller's own."""
        raise NotImplementedError

    def _way(self, server_name: str | None) -> tuple[Broker, Publisher]:
        """The server to which calls go, and what publishes there."""
        return self._exchange.server(server_name), self._publisher(server_name, named=False)

    def _way_of(self, terms: CallTerms) -> tuple[Broker, Publisher]:
        broker, publish = self._way(terms.server_name)
        if terms.connection is not None:
            publish = self._publisher_within(terms.connection, terms.server_name)
        return broker, publish

    @property
    def _exchange(self) -> Exchange:
        raise NotImplementedError

    @overload
    async def enqueue(self, actor: BatchActor[A, ..., Any, R], item: A, /) -> JobHandle[R]: ...

    @overload
    async def enqueue(self, actor: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]: ...

    @overload
    async def enqueue(self, actor: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]: ...

    @options_stand_before
    async def enqueue(self, actor: Callable[..., Any], /, *args: Any, **kwargs: Any) -> JobHandle[Any]:
        """Publish a call of the actor with these arguments; its queue is declared if need be.

        The message is as durable as the server promises when this returns. Cancelled: it was not sent.
        """
        handle, rest = self._enqueue(self._terms_for("enqueue"), actor, args, kwargs)
        if rest is not None:
            await rest
        return handle

    def _enqueue(
        self, terms: CallTerms, actor: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[JobHandle[Any], Awaitable[None] | None]:
        """Publish a call, if that can be done at once; else what is returned beside its handle has to be awaited."""
        exchange = self._exchange
        callee, args, kwargs = find_callee(exchange, actor, args, kwargs)
        envelope = callee.envelope(terms, args, kwargs)
        if terms is PLAIN:
            broker, publish = self._way(None)
        else:
            broker, publish = self._way_of(terms)
            if terms.id_ is not None:
                check_unique(f"a call of {callee.name!r}", terms.id_, broker)
        handle = JobHandle(broker, envelope, exchange.result_store, callee.returns, self._sends_now)
        if terms.due_at is None and publish.at_once(envelope):
            return handle, None
        return handle, _publish(handle, publish, terms.due_at)

    @overload
    async def enqueue_many(self, actor: BatchActor[A, ..., Any, R], items: Iterable[A], /) -> list[JobHandle[R]]: ...

    @overload
    async def enqueue_many(
        self, actor: Callable[Concatenate[A, ...], Awaitable[R]], items: Iterable[A], /
    ) -> list[JobHandle[R]]: ...

    @overload
    async def enqueue_many(
        self, actor: Callable[Concatenate[A, ...], R], items: Iterable[A], /
    ) -> list[JobHandle[R]]: ...

    @options_stand_before
    async def enqueue_many(self, actor: Callable[..., Any], items: Iterable[Any], /) -> list[JobHandle[Any]]:
        """Publish one call of the actor for each item, which is its first argument, in one step; handles in their
        order.

        More arguments that all calls share are given with `functools.partial(actor, name=value)`. If one item does not
        fit, nothing is sent. Should the server refuse some, the others are enqueued all the same: `SomeRefused`, an
        `ExceptionGroup`, has one outcome for each.
        """
        terms, exchange = self._terms_for("enqueue_many"), self._exchange
        check_iterable("the items of enqueue_many", items)
        callee, args, kwargs = find_callee(exchange, actor, (), {})
        envelopes = callee.envelopes(terms, args, kwargs, list(items))
        broker, publish = self._way_of(terms)
        if envelopes and terms.due_at is not None:
            envelopes = await deferred(envelopes, broker, terms.due_at)
        store, returns, is_known = exchange.result_store, callee.returns, self._sends_now
        handles = [JobHandle(broker, envelope, store, returns, is_known) for envelope in envelopes]
        if envelopes:
            check_accepted(handles, await publish(envelopes))
        return handles


async def _publish(handle: JobHandle[Any], publish: Publisher, due_at: float | None) -> None:
    if due_at is not None:
        [handle.envelope] = await deferred([handle.envelope], handle.broker, due_at)
    accepted(handle.envelope, await publish((handle.envelope,)))


class WithTerms(Caller):
    """A caller with options."""

    __slots__ = ("_caller", "_options", "_sends_now", "_terms")

    def __init__(self, caller: Caller, options: Mapping[str, Any]) -> None:
        check_known("a call", options, USING_OPTIONS, NOT_OF_CALLS)
        self._caller = caller
        self._sends_now = caller._sends_now  # noqa: SLF001  its own kind
        self._options = options
        self._terms = read_terms("a call", options)

    def __repr__(self) -> str:
        return f"<{', '.join(f'{name}={value!r}' for name, value in self._options.items())} of {self._caller!r}>"

    def _terms_for(self, verb: str) -> CallTerms:  # noqa: ARG002  all
        return self._terms

    def _publisher(self, server_name: str | None, *, named: bool) -> Publisher:
        return self._caller._publisher(server_name, named=named)  # noqa: SLF001

    def _publisher_within(self, connection: Any, server_name: str | None) -> Publisher:
        return self._caller._publisher_within(connection, server_name)  # noqa: SLF001

    def _way(self, server_name: str | None) -> tuple[Broker, Publisher]:
        return self._caller._way(server_name)  # noqa: SLF001

    @property
    def _exchange(self) -> Exchange:
        return self._caller._exchange  # noqa: SLF001


class CallerWithOptions(Caller):
    """The same verbs, and options for them."""

    __slots__ = ()

    def using(self, **options: Unpack[UsingOptions]) -> Using:
        """The same verbs with these options, as in `UsingOptions`. Raises `ConfigurationError` for bad ones."""
        return Using(self, options)


class Using(WithTerms):
    """The verbs of a message or an outbox that enqueue a call, with options. Made with `using(...)`."""

    __slots__ = ()

    def using(self, **options: Unpack[UsingOptions]) -> Using:
        """These options and more; what is said later wins."""
        return Using(self._caller, {**self._options, **options})


def find_callee(
    exchange: Exchange, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[Callee, Sequence[Any], Mapping[str, Any]]:
    """The actor, and its arguments with those that a `functools.partial` has bound."""
    try:
        return exchange.callee(function), arguments, keywords  # a partial may be an actor itself
    except ConfigurationError:
        if not isinstance(function, partial):
            raise
    return find_callee(exchange, function.func, (*function.args, *arguments), {**function.keywords, **keywords})


def check_accepted(handles: Sequence[JobHandle[Any] | None], outcomes: Sequence[BrokerRefused | None]) -> None:
    """Raises `SomeRefused` unless all were accepted."""
    refused = [outcome for outcome in outcomes if outcome is not None]
    if refused:
        answers = [handle if outcome is None else outcome for handle, outcome in zip(handles, outcomes, strict=True)]
        others = "the others are enqueued" if len(refused) < len(outcomes) else "none is enqueued"
        text = f"{len(refused)} of {len(outcomes)} calls were refused; {others}: see outcomes"
        raise SomeRefused(text, refused, answers)
