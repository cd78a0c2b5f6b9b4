"""Collecting declarations, with defaults that are handed down."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar, Unpack, overload

from ..delivery import Mode
from ..errors import ConfigurationError
from ..fields import Field
from ..inject import NO_NAMES, UnresolvedAnnotation, enclosing_names
from ..retry import RetryPolicy
from .actor import Actor, ActorMiddleware, OnError, Where
from .declaration import build_actor, check_is_function, name_of, place_of
from .options import DEFAULTS, ActorOptions, RouterOptions, check_options, inherit
from .routing import RoutingStrategy

log = logging.getLogger("repid.worker")

Function = TypeVar("Function", bound=Callable[..., Any])


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
    queue = Field[str](_option("channel"))

    def __init__(self, **defaults: Unpack[RouterOptions]) -> None:
        self._defaults = check_options("a router", defaults, of_actor=False)
        self._entries: list[_Declaration | Router] = []

    @overload
    def actor(self, function: Function, /) -> Function: ...

    @overload
    def actor(self, /, **options: Unpack[ActorOptions]) -> Callable[[Function], Function]: ...

    def actor(
        self, function: Function | None = None, /, **options: Unpack[ActorOptions]
    ) -> Function | Callable[[Function], Function]:
        """Declare an actor: `@router.actor` or `@router.actor(name=..., ...)`, options as in `ActorOptions`.

        The function stays what it was, and may go on being called as such. Raises `ConfigurationError`, with file and
        line of the function, for whatever is wrong with it or with the options. Annotations that name what the module
        defines later are read when the router is included.
        """
        caller = inspect.currentframe()
        if function is not None:
            return self._declare(function, options, caller and caller.f_back)

        def declare(function: Function) -> Function:
            caller = inspect.currentframe()
            return self._declare(function, options, caller and caller.f_back)

        return declare

    def _declare(self, function: Function, options: ActorOptions, caller: FrameType | None) -> Function:
        declaration = _Declaration(function, options, caller)
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
        for _ in router._resolve(inherit(DEFAULTS, self._defaults)):
            pass
        self._entries.append(router)

    def actors(self) -> list[Actor]:
        """Every actor, in the order of declaration, with what it inherits filled in."""
        return list(self._resolve(DEFAULTS))

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
            "two actors of channel %r have the name %r: messages go to the one declared first, at %s, and never to the one "
            "at %s; give one of them another name or channel",
            actor.channel,
            actor.name,
            place_of(former.function, None),
            place_of(actor.function, None),
        )
    return kept


class _Declaration:
    """A function, the options given with it, and the local names it mentions. Errors tell its file and line."""

    def __init__(self, function: Callable[..., Any], options: ActorOptions, caller: FrameType | None) -> None:
        self._function: Callable[..., Any] = function.__func__ if isinstance(function, staticmethod) else function
        self._place = place_of(self._function, caller)
        with self._placed():
            what = f"actor {options.get('name') or name_of(self._function)!r}"
            check_is_function(what, self._function)
            self._options = check_options(what, options, of_actor=True)
        self._local_names = enclosing_names(self._function, caller) or NO_NAMES

    def build(self, inherited: Mapping[str, Any]) -> Actor:
        with self._placed():
            return build_actor(self._function, inherit(inherited, self._options), self._local_names)

    @contextmanager
    def _placed(self) -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:
            error.args = (f"{error} (at {self._place})",)
            raise
