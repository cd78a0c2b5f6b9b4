"""Collecting declarations, with defaults that are handed down."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, overload

from ..calls import BatchActor
from ..delivery import UNBOUNDED, Bounds, Mode, WhenFull
from ..errors import ConfigurationError
from ..fields import Field
from ..inject import NO_NAMES, UnresolvedAnnotation, enclosing_names
from ..names import show_options
from ..retry import RetryPolicy
from .actor import Actor, ActorMiddleware, Misfit, OnError, Where
from .declaration import build_actor, check_is_function, name_of, place_of, what_to_do_about_namesakes
from .options import DEFAULTS, ActorOptions, BatchOptions, RouterOptions, check_bounds_hold, check_options, inherit
from .routing import RoutingStrategy

log = logging.getLogger("repid.worker")

Function = TypeVar("Function", bound=Callable[..., Any])
A = TypeVar("A")
Q = ParamSpec("Q")
R = TypeVar("R")


class DeclareBatch(Protocol):
    """Declares a batch actor. What each message gets as its result is what the function returns a list of."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[list[A], Q], Coroutine[Any, Any, None]], /
    ) -> BatchActor[A, Q, Coroutine[Any, Any, None], None]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[list[A], Q], Coroutine[Any, Any, Sequence[R | Exception] | None]], /
    ) -> BatchActor[A, Q, Coroutine[Any, Any, Sequence[R | Exception] | None], R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[list[A], Q], None], /) -> BatchActor[A, Q, None, None]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[list[A], Q], Sequence[R | Exception] | None], /
    ) -> BatchActor[A, Q, Sequence[R | Exception] | None, R]: ...

    def __call__(self, function: Any, /) -> Any:
        """The function itself."""
        ...


def _option(name: str) -> Callable[[Router], Any]:
    """What a router says of this option, else its default."""
    return lambda router: router._defaults.get(name, DEFAULTS.get(name))


class Router:
    """A collection of actors and of other routers.

    Its options (see `RouterOptions`) are defaults for its actors and for the routers included in it; what is
    nearer to the actor wins. What is declared after a router was included counts too, until a worker runs. An actor is
    known by its channel and its name: of two that have both in common, the first one declared gets the messages, and a
    worker that starts warns of the other.

    Each option can be read as a field, with its default where it was not given, and not assigned.
    """

    __slots__ = ("__weakref__", "_defaults", "_entries")

    channel = Field[str](_option("channel"))
    timeout = Field[float](_option("timeout"))
    retries = Field[int](_option("retries"))
    retry_policy = Field[RetryPolicy](_option("retry_policy"))
    concurrency = Field[float | None](_option("concurrency"))
    confirmation_mode = Field[Mode](_option("confirmation_mode"))
    on_error = Field[OnError | None](_option("on_error"))
    run_in_process = Field[bool](_option("run_in_process"))
    middlewares = Field[tuple[ActorMiddleware, ...]](_option("middlewares"))
    routing_strategy = Field[RoutingStrategy](_option("routing_strategy"))
    store_result = Field[bool](_option("store_result"))
    result_ttl = Field[float](_option("result_ttl"))
    backend = Field[Where](_option("backend"))
    strict = Field[bool](_option("strict"))
    on_misfit = Field[Misfit](_option("on_misfit"))
    max_size = Field[int | None](_option("max_size"))
    max_bytes = Field[int | None](_option("max_bytes"))
    when_full = Field[WhenFull](lambda router: router._defaults.get("when_full", UNBOUNDED.when_full))
    queue = Field[str](_option("channel"))

    def __init__(self, **defaults: Unpack[RouterOptions]) -> None:
        self._defaults = check_options("a router", defaults, of_actor=False)
        self._entries: list[_Declaration | Router] = []

    def __repr__(self) -> str:
        return f"Router({show_options(self._defaults)})"

    @overload
    def actor(self, function: Function, /) -> Function: ...

    @overload
    def actor(self, /, *, batch: int, **options: Unpack[BatchOptions]) -> DeclareBatch: ...

    @overload
    def actor(self, /, **options: Unpack[ActorOptions]) -> Callable[[Function], Function]: ...

    def actor(self, function: Any = None, /, **options: Any) -> Any:
        """Declare an actor: `@router.actor` or `@router.actor(name=..., ...)`, options as in `ActorOptions`.

        The function stays what it was, and may go on being called as such. Raises `ConfigurationError`, with file and
        line of the function, for whatever is wrong with it or with the options. Annotations that name what the module
        defines later are read when the router is included.

        `batch`: how many messages become one call at most, with a list that has an element for each (see
        `BatchOptions`). The function returns None, or a list with an entry for each message: its result, or the
        exception with which this message alone has failed. A parameter `messages: list[Message]` has the messages,
        whose verbs work one by one. What the function raises is the failure of all that have no verdict yet.
        """
        caller = inspect.currentframe()
        if function is not None:
            return self._declare(function, options, caller and caller.f_back)

        def declare(function: Callable[..., Any]) -> Any:
            caller = inspect.currentframe()
            return self._declare(function, options, caller and caller.f_back)

        return declare

    def _declare(self, function: Function, options: Mapping[str, Any], caller: FrameType | None) -> Function:
        declaration = _Declaration(function, options, caller)
        with declaration.placed():
            check_bounds_hold(self._defaults, declaration.what, declaration.options)
        with suppress(UnresolvedAnnotation):  # it may name what the module defines later
            declaration.build(inherit(DEFAULTS, self._defaults))
        self._entries.append(declaration)
        return function

    def include_router(self, router: Router) -> None:
        """Take over the actors of another router; this router's options are their defaults.

        Resolves the type hints of its actors. Raises `ConfigurationError` for what is wrong with them, and for a
        router that would contain itself.
        """
        if not isinstance(router, Router):
            raise ConfigurationError(f"only a Router can be included, but this is {router!r}")
        if router._contains(self):
            raise ConfigurationError("a router cannot include itself, not by way of others either")
        check_bounds_hold(self._defaults, "an included router", router._defaults)
        for _ in router._resolve(inherit(DEFAULTS, self._defaults)):
            pass
        self._entries.append(router)

    def actors(self) -> list[Actor]:
        """Every actor, in the order of declaration, with what it inherits filled in."""
        return list(self._resolve(DEFAULTS))

    def _count(self) -> int:
        """The number of declarations and included routers, which only grows."""
        return sum(1 + entry._count() if isinstance(entry, Router) else 1 for entry in self._entries)

    def _resolve(self, inherited: Mapping[str, Any]) -> Iterator[Actor]:
        options = inherit(inherited, self._defaults)
        for entry in self._entries:
            if isinstance(entry, Router):
                yield from entry._resolve(options)
            else:
                yield entry.build(options)

    def _contains(self, router: Router) -> bool:
        return self is router or any(isinstance(e, Router) and e._contains(router) for e in self._entries)


def without_namesakes(actors: Iterable[Actor]) -> list[Actor]:
    """Of actors with one name that read one channel the first, which gets their messages; the others are warned of.

    Actors with a routing strategy of their own are not told apart by their names: all of them stay.
    """
    kept: list[Actor] = []
    first: dict[tuple[str, str], Actor] = {}
    for actor in actors:
        former = first.setdefault((actor.channel, actor.name), actor) if actor.takes is None else actor
        if former is actor:
            kept.append(actor)
            continue
        log.warning(
            "two actors of channel %r have the name %r: messages go to the one declared first, at %s, and never to the "
            "one at %s; %s",
            actor.channel,
            actor.name,
            place_of(former.function, None),
            place_of(actor.function, None),
            what_to_do_about_namesakes(former.function, actor.function),
        )
    return kept


def bounds_of(actors: Iterable[Actor]) -> dict[str, Bounds]:
    """The bounds of the channels that these actors read, where they have any. Raises `ConfigurationError` if they
    differ.
    """
    found: dict[str, Bounds] = {}
    for actor in actors:
        if not actor.bounds.are_none and found.setdefault(actor.channel, actor.bounds) != actor.bounds:
            raise ConfigurationError(
                f"actor {actor.name!r} bounds channel {actor.channel!r} by {actor.bounds}, when_full="
                f"{actor.bounds.when_full!r}, and another actor does so by {found[actor.channel]}, when_full="
                f"{found[actor.channel].when_full!r}: a channel has one bound, so give it in one router"
            )
    return found


class _Declaration:
    """A function, the options given with it, and the local names it mentions. Errors tell its file and line."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any], caller: FrameType | None) -> None:
        self._function: Callable[..., Any] = function.__func__ if isinstance(function, staticmethod) else function
        self._place = place_of(self._function, caller)
        with self.placed():
            self.what = f"actor {options.get('name') or name_of(self._function)!r}"
            check_is_function(self.what, self._function)
            self.options = check_options(self.what, options, of_actor=True)
        self._local_names = enclosing_names(self._function, caller) or NO_NAMES
        self._latest: tuple[Mapping[str, Any], Actor] | None = None
        """What was built last, and with which options: a router, a worker and each of its runs ask for the same."""

    def build(self, inherited: Mapping[str, Any]) -> Actor:
        options = inherit(inherited, self.options)
        if self._latest is None or self._latest[0] != options:
            with self.placed():
                self._latest = options, build_actor(self._function, options, self._local_names)
        return self._latest[1]

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Add file and line of the function to a `ConfigurationError`."""
        try:
            yield
        except ConfigurationError as error:
            error.args = (f"{error} (at {self._place})",)
            raise
