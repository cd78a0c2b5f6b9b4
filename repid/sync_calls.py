"""The verbs that enqueue a call of an actor, for code that blocks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from .calls import BatchActor, Caller, Using, UsingOptions, options_stand_before
from .handle import JobHandle
from .names import check_iterable
from .sync_handle import SyncJobHandle

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
T = TypeVar("T")


class SyncCaller:
    """The verbs that enqueue a call, for code that blocks. They raise what those of `Caller` raise."""

    __slots__ = ()

    @property
    def _caller(self) -> Caller:
        raise NotImplementedError

    def _call(self, function: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:
        """Have a call carried out in the event loop, and wait for it in this thread. `is_waiting`: it may take long."""
        raise NotImplementedError

    def _wait_for(self, verb: Callable[..., Coroutine[Any, Any, R]], /, *arguments: Any, **keywords: Any) -> R:
        """Have a verb that does not take long carried out, as by `_call`."""
        return self._call(partial(verb, *arguments, **keywords), is_waiting=False)

    def _for_here(self, handle: JobHandle[R]) -> SyncJobHandle[R]:
        """The handle for code that blocks. In the event loop's own thread a verb gives what is awaited there."""
        return SyncJobHandle(handle, self._call) if isinstance(handle, JobHandle) else handle

    def _all_for_here(self, handles: list[JobHandle[R]]) -> list[SyncJobHandle[R]]:
        return [self._for_here(each) for each in handles] if isinstance(handles, list) else handles

    @overload
    def enqueue(self, actor: BatchActor[A, ..., Any, R], item: A, /) -> SyncJobHandle[R]: ...

    @overload
    def enqueue(self, actor: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> SyncJobHandle[R]: ...

    @overload
    def enqueue(self, actor: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncJobHandle[R]: ...

    @options_stand_before
    def enqueue(self, actor: Callable[..., Any], /, *args: Any, **kwargs: Any) -> SyncJobHandle[Any]:
        """Publish a call of the actor with these arguments, as `Repid.enqueue`."""
        return self._for_here(self._wait_for(self._caller.enqueue, actor, *args, **kwargs))

    @overload
    def enqueue_many(self, actor: BatchActor[A, ..., Any, R], items: Iterable[A], /) -> list[SyncJobHandle[R]]: ...

    @overload
    def enqueue_many(
        self, actor: Callable[Concatenate[A, ...], Awaitable[R]], items: Iterable[A], /
    ) -> list[SyncJobHandle[R]]: ...

    @overload
    def enqueue_many(
        self, actor: Callable[Concatenate[A, ...], R], items: Iterable[A], /
    ) -> list[SyncJobHandle[R]]: ...

    @options_stand_before
    def enqueue_many(self, actor: Callable[..., Any], items: Iterable[Any], /) -> list[SyncJobHandle[Any]]:
        """Publish one call of the actor for each item, as `Repid.enqueue_many`. The items are read in this thread."""
        batch = read_here("the items of enqueue_many", items)
        return self._all_for_here(self._wait_for(self._caller.enqueue_many, actor, batch))


def read_here(what: str, given: Iterable[A]) -> list[A]:
    """What was given, as a list, read in the thread that calls: that may block, or make calls itself.

    Raises `ConfigurationError` for what is no iterable, and for text.
    """
    check_iterable(what, given)
    return list(given)


class SyncUsing(SyncCaller):
    """The verbs that enqueue a call, with options, for code that blocks."""

    __slots__ = ("_options", "_origin", "_using")

    def __init__(self, origin: SyncCaller, options: Mapping[str, Any]) -> None:
        self._origin = origin
        self._options = options
        self._using = Using(origin._caller, options)  # noqa: SLF001  its own kind

    def __repr__(self) -> str:
        return repr(self._using)

    @property
    def _caller(self) -> Caller:
        return self._using

    def _call(self, function: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:
        return self._origin._call(function, is_waiting=is_waiting)  # noqa: SLF001

    def _wait_for(self, verb: Callable[..., Coroutine[Any, Any, R]], /, *arguments: Any, **keywords: Any) -> R:
        return self._origin._wait_for(verb, *arguments, **keywords)  # noqa: SLF001  another one in a process

    def using(self, **options: Unpack[UsingOptions]) -> SyncUsing:
        """These options and more; what is said later wins."""
        return SyncUsing(self._origin, {**self._options, **options})
