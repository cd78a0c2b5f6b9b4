"""Calls of actors from code that blocks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, cast, overload

from ..app_calls import AppCaller, AppCallOptions, AppUsing
from ..calls import BatchActor, options_stand_before
from ..producer import psycopg_connection
from ..results import Result
from ..sync_calls import SyncCaller
from .mapping import SyncMap

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
T = TypeVar("T")
Options = TypeVar("Options", bound=Mapping[str, Any])


def for_another_thread(options: Options) -> Options:
    """The options of a call that another thread carries out: the connection that is meant is that of this thread."""
    given = options.get("connection")
    return options if given is None else cast("Options", {**options, "connection": psycopg_connection(given)})


class ClientCaller(SyncCaller):
    """The verbs of a client that enqueue a call, and wait for its value."""

    __slots__ = ()

    @property
    def _caller(self) -> AppCaller:
        raise NotImplementedError

    @overload
    def call(self, actor: BatchActor[A, ..., Any, R], item: A, /) -> R: ...

    @overload
    def call(self, actor: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    def call(self, actor: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @options_stand_before
    def call(self, actor: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Publish a call of the actor, wait until it has ended and return its value, as `Repid.call`."""
        return self._call(partial(self._caller.call, actor, *args, **kwargs), is_waiting=True)

    @overload
    def map(
        self,
        actor: BatchActor[A, ..., Any, R],
        items: Iterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["raise"] = "raise",
    ) -> SyncMap[R]: ...

    @overload
    def map(
        self,
        actor: BatchActor[A, ..., Any, R],
        items: Iterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["yield"],
    ) -> SyncMap[Result[R]]: ...

    @overload
    def map(
        self,
        actor: Callable[Concatenate[A, ...], Awaitable[R]],
        items: Iterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["raise"] = "raise",
    ) -> SyncMap[R]: ...

    @overload
    def map(
        self,
        actor: Callable[Concatenate[A, ...], Awaitable[R]],
        items: Iterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["yield"],
    ) -> SyncMap[Result[R]]: ...

    @overload
    def map(
        self,
        actor: Callable[Concatenate[A, ...], R],
        items: Iterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["raise"] = "raise",
    ) -> SyncMap[R]: ...

    @overload
    def map(
        self,
        actor: Callable[Concatenate[A, ...], R],
        items: Iterable[A],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["yield"],
    ) -> SyncMap[Result[R]]: ...

    @options_stand_before
    def map(
        self,
        actor: Callable[..., Any],
        items: Iterable[Any],
        /,
        *,
        limit: int = 20,
        ordered: bool = True,
        on_error: Literal["raise", "yield"] = "raise",
    ) -> SyncMap[Any]:
        """Call the actor with each item, at most `limit` at once, and give what they return, in a block with a loop:

        `with client.map(parse, lines, limit=20) as results: for result in results: ...`

        Everything is as with `Repid.map`. The items are read in this thread, in which the loop runs, and may be
        endless.
        """
        planned: Any = self._caller.map(actor, (), limit=limit, ordered=ordered, on_error=on_error)
        return SyncMap(planned, items, self._call)

    def using(self, **options: Unpack[AppCallOptions]) -> ClientUsing:
        """The same verbs with these options, as in `AppCallOptions`."""
        return ClientUsing(self, options)


class ClientUsing(ClientCaller):
    """The verbs of a client that enqueue a call, with options. Made with `client.using(...)`, any number of times."""

    __slots__ = ("_client", "_options", "_using")

    def __init__(self, client: ClientCaller, options: Mapping[str, Any]) -> None:
        self._client = client
        self._options = for_another_thread(options)
        self._using: AppUsing = client._caller.using(**self._options)  # noqa: SLF001  its own kind

    def __repr__(self) -> str:
        return repr(self._using)

    @property
    def _caller(self) -> AppCaller:
        return self._using

    def _call(self, function: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:
        return self._client._call(function, is_waiting=is_waiting)  # noqa: SLF001

    def using(self, **options: Unpack[AppCallOptions]) -> ClientUsing:
        """These options and more; what is said later wins."""
        return ClientUsing(self._client, {**self._options, **options})
