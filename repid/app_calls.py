"""What an app adds to the verbs that enqueue: jobs made from functions, and waiting for values.

`call` is one call that is made elsewhere. As with every call under structured concurrency, a caller that leaves it
early takes it back: the job is cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, cast, overload

import trio
from msgspec.structs import replace

from .application import Application
from .calls import (
    KNOWN_OPTIONS,
    PLAIN,
    BatchActor,
    Caller,
    CallTerms,
    UsingOptions,
    WithTerms,
    find_callee,
    make_headers,
    options_stand_before,
)
from .codec import JSON
from .envelope import Envelope
from .errors import ConfigurationError, RepidError, ResultError
from .handle import JobHandle
from .hosts import hosted, within
from .job import Element, Job, JobOptions, enqueue_jobs
from .mapping import Map, MapRequest, OnError, check_items
from .names import NOT_OF_CALLS, check_duration, check_id, check_known
from .results import Result

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")

RESULT_TIME = 600.0
"""Seconds for which the result of a call is kept if nothing else was said: its caller waits, and reads it at once."""

WITHDRAWING_TIME = 5.0
"""Seconds that a cancelled caller takes at most to have its job cancelled."""


class AppCallOptions(UsingOptions, total=False):
    """The options of a call (see `UsingOptions`), and one for a caller that waits for its value.

    call_timeout: how long `call` waits for room in a full queue, and then for the value. Default: as long as it takes.
    """

    call_timeout: float | timedelta | None


class AppCaller(Caller):
    """The verbs of an app: those of `Caller`, and those that wait for values."""

    __slots__ = ()

    _call_timeout: float | None = None

    @property
    def _job_options(self) -> JobOptions:
        return {}

    @property
    def _app(self) -> Application:
        raise NotImplementedError

    @overload
    async def call(self, actor: BatchActor[A, ..., Any, R], item: A, /) -> R: ...

    @overload
    async def call(self, actor: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    async def call(self, actor: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @options_stand_before
    async def call(self, actor: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Publish a call of the actor with these arguments, wait until it has ended, and return its value.

        Its result is kept for ten minutes unless `using(result_ttl=...)` says otherwise. Raises `JobFailed` if there is
        no value, with type, text and traceback of the actor's error, and `TimeoutError` where `using(call_timeout=...)`
        is over. Cancelled, or out of time, it has the job cancelled: to leave it running, use `enqueue` and
        `JobHandle.wait`.
        """
        return await self._call(actor, args, kwargs)

    @hosted
    async def _call(self, actor: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        handle, rest = self._enqueue(awaited(self._terms_for("call")), actor, args, kwargs)
        timeout, spent = self._call_timeout, 0.0
        if rest is not None:
            begun = trio.current_time()
            await (rest if timeout is None else sent_within(timeout, handle, rest))
            spent = trio.current_time() - begun
        try:
            result = await (handle.wait() if timeout is None else handle._wait_within(handle._type, timeout, spent))  # noqa: SLF001  its own kind
        except ResultError:
            raise  # it has ended
        except BaseException:
            await withdraw(handle)
            raise
        return result.value

    @overload
    def job(self, actor: BatchActor[A, ..., Any, R], item: A, /) -> Job[R]: ...

    @overload
    def job(self, actor: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...

    @overload
    def job(self, actor: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...

    @options_stand_before
    def job(self, actor: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """The job of calling the actor with these arguments, to be enqueued later, alone or with others."""
        self._terms_for("job")  # where it can be used with them
        callee, arguments, keywords = find_callee(self._exchange, actor, args, kwargs)
        given = callee.bind(arguments, keywords)
        payload = Element(next(iter(given.values()))) if callee.is_of_batch else given
        return Job(callee.name, callee.channel, args=payload, app=self._app, **self._job_options)._of(callee)  # noqa: SLF001

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

    @overload
    async def enqueue_many(self, jobs: Iterable[Job[R]], /) -> list[JobHandle[R]]: ...

    @options_stand_before
    async def enqueue_many(
        self, actor: Callable[..., Any] | Iterable[Job[Any]], items: Iterable[Any] | None = None, /
    ) -> list[JobHandle[Any]]:
        """Publish one call of the actor for each item, which is its first argument, in one step; handles in their
        order.

        More arguments that all calls share are given with `functools.partial(actor, name=value)`. If one item does not
        fit, nothing is sent. Should the server refuse some, the others are enqueued all the same: `SomeRefused`, an
        `ExceptionGroup`, has one outcome for each.

        Or: publish these jobs, in one step for each server. Recurring ones are refused.
        """
        if items is not None:
            return await super().enqueue_many(cast("Callable[..., Any]", actor), items)
        if self._terms_for("enqueue_many") is not PLAIN:
            raise ConfigurationError(
                "jobs have options of their own: leave using() out, or give an actor and its items"
            )
        return await enqueue_jobs(self._app, cast("Iterable[Job[Any]]", actor))

    @overload
    def map(
        self,
        actor: BatchActor[A, ..., Any, R],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["raise"] = "raise",
    ) -> Map[R]: ...

    @overload
    def map(
        self,
        actor: BatchActor[A, ..., Any, R],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["yield"],
    ) -> Map[Result[R]]: ...

    @overload
    def map(
        self,
        actor: Callable[Concatenate[A, ...], Awaitable[R]],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["raise"] = "raise",
    ) -> Map[R]: ...

    @overload
    def map(
        self,
        actor: Callable[Concatenate[A, ...], Awaitable[R]],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["yield"],
    ) -> Map[Result[R]]: ...

    @overload
    def map(
        self,
        actor: Callable[Concatenate[A, ...], R],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["raise"] = "raise",
    ) -> Map[R]: ...

    @overload
    def map(
        self,
        actor: Callable[Concatenate[A, ...], R],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["yield"],
    ) -> Map[Result[R]]: ...

    @options_stand_before
    def map(
        self,
        actor: Callable[..., Any],
        items: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> Map[Any]:
        """Call the actor with each item, at most `limit` at once, and give what they return, in a block with a loop:

        `async with app.map(parse, lines, limit=20) as results: async for result in results: ...`

        The items may be endless, and come from an async generator. More arguments that all calls share are given with
        `functools.partial(parse, name=value)`. `ordered`: results come in the order of the items, else as they come.
        `on_error`: "raise" gives values and raises `JobFailed` where there is none, in its place; the loop may go on.
        "yield" gives a `Result` for each. What the items raise is raised behind the results of all that came before. A
        call is one of the `limit` until its result was taken, so a slow loop slows the calls down. Leaving the block
        has those cancelled that are not over.

        Raises, in the loop, what enqueueing raises, and `ResultError` for a call whose result was lost.
        """
        terms, exchange = awaited(self._terms_for("map")), self._exchange
        check_items(items)
        callee, args, kwargs = find_callee(exchange, actor, (), {})
        callee.envelopes(terms, args, kwargs, ())
        broker, publish = self._way(terms.server_name)
        request = MapRequest[Any](
            callee,
            terms,
            args,
            kwargs,
            broker=broker,
            store=exchange.result_store or broker,
            publish=publish,
            limit=limit,
            ordered=ordered,
            on_error=on_error,
        )
        return Map(request, items)

    def using(self, **options: Unpack[AppCallOptions]) -> AppUsing:
        """The same verbs with these options, as in `AppCallOptions`. Raises `ConfigurationError` for bad ones."""
        return AppUsing(self, options)


class AppUsing(WithTerms, AppCaller):
    """The verbs of an app that enqueue a call, with options. Made with `app.using(...)`, any number of times."""

    __slots__ = ("_call_timeout",)

    _caller: AppCaller

    def __init__(self, app: AppCaller, options: AppCallOptions) -> None:
        plain: dict[str, Any] = dict(options)
        timeout = plain.pop("call_timeout", None)
        self._call_timeout = None if timeout is None else check_duration("call_timeout", timeout)
        check_known("a call", plain, KNOWN_OPTIONS, NOT_OF_CALLS)
        super().__init__(app, plain)

    @property
    def _app(self) -> Application:
        return self._caller._app  # noqa: SLF001  its own kind

    def _terms_for(self, verb: str) -> CallTerms:
        if self._call_timeout is not None and verb != "call":
            raise ConfigurationError(
                f"call_timeout={self._call_timeout:g} is for call, which waits, and not for {verb}: leave it out"
            )
        return super()._terms_for(verb)

    @property
    def _job_options(self) -> JobOptions:
        return cast("JobOptions", self._options)

    def using(self, **options: Unpack[AppCallOptions]) -> AppUsing:
        """These options and more; what is said later wins."""
        more: dict[str, Any] = {**self._options, "call_timeout": self._call_timeout, **options}
        return AppUsing(self._caller, cast("AppCallOptions", more))


def handle_on(app: Application, actor: Callable[..., Any], id_: str) -> JobHandle[Any]:
    """The handle on a job that was enqueued before, here or elsewhere, on the app's default server."""
    checked = check_id(id_, "the id of a job")
    if checked is None:
        raise ConfigurationError(
            "a handle needs the id of its job, which is the `id` of the handle that enqueueing gave"
        )
    callee, _, _ = find_callee(app, actor, (), {})
    envelope = Envelope(checked, callee.channel, b"", JSON, make_headers("a handle", callee.name, {}))
    return JobHandle(app.server(), envelope, app.result_store, callee.returns, _is_known=False)


def awaited(terms: CallTerms) -> CallTerms:
    """The options of a call whose caller waits for its value."""
    options = terms.options
    if terms.connection is not None:
        raise ConfigurationError(
            "a call has connection=, so it is sent when that commits, and its value is waited for before: use enqueue, "
            "and wait behind the transaction"
        )
    if options.store_result is False:
        raise ConfigurationError("a call has store_result=False, and its value is waited for: leave it out")
    ttl = RESULT_TIME if options.result_ttl is None else options.result_ttl
    return replace(terms, options=replace(options, store_result=True, result_ttl=ttl))


async def sent_within(seconds: float, handle: JobHandle[Any], sending: Awaitable[None]) -> None:
    """Send a call. Raises `TimeoutError` if its queue had no room for it within `seconds`."""
    try:
        await within(seconds, lambda: sending)
    except TimeoutError:
        raise TimeoutError(
            f"{handle!r} was not sent within {seconds:g} seconds: queue {handle.queue!r} was full, or its server did "
            "not answer"
        ) from None


async def withdraw(handle: JobHandle[Any]) -> None:
    """Have the job cancelled, although the caller is cancelled. It goes on if the server does not answer in time."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + WITHDRAWING_TIME), suppress(RepidError):
        await handle.cancel()
