"""Collecting declarations, with defaults that are handed down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, Unpack, overload

from ..errors import ConfigurationError
from .actor import Actor
from .declaration import build_actor, name_of
from .options import DEFAULTS, ActorOptions, RouterOptions, check_options, inherit

Function = TypeVar("Function", bound=Callable[..., Any])


class Router:
    """A collection of actors and of other routers.

    Its options (see `RouterOptions`) are defaults for its actors and for the routers included in it; what is
    nearer to the actor wins. What is declared after a router was included counts too, until a worker runs.
    """

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

        The function stays what it was, and may go on being called as such. Raises `ConfigurationError`.
        """

        def declare(function: Function) -> Function:
            if not callable(function):
                raise ConfigurationError(f"an actor must be a function, but is {function!r}")
            what = f"actor {options.get('name') or name_of(function)!r}"
            self._entries.append(_Declaration(function, check_options(what, options, of_actor=True)))
            return function

        return declare if function is None else declare(function)

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


class _Declaration:
    """A function and the options given with it."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self._function = function
        self._options = options

    def build(self, inherited: Mapping[str, Any]) -> Actor:
        return build_actor(self._function, inherit(inherited, self._options))
