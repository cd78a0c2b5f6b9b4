"""`Depends`, and what may stand in it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any

import msgspec


class Depends(msgspec.Struct, frozen=True, eq=False):
    """`parameter: Annotated[T, Depends(function)]`: for each run `function` is called, and its value is given.

    It may be async or sync, a class or another callable, or a generator function with one `yield`: what it yields is
    the value, and what comes after is carried out when the actor has ended, however it ended. What the actor raised
    is raised at the `yield`; the generator may raise something else, but not make a success of it.

    Its own parameters may be dependencies too, or the `Message`; others need defaults. Within one run each function
    is called once, and its value shared.

    A dependency runs where it would if the actor had called it: that of an async actor in its task, where a sync one
    must not block; a sync one of a sync actor in its thread or process. Async ones of a sync actor, and sync ones
    that these ask for, run on the event loop around the call. The actor's timeout includes them all.
    """

    function: Callable[..., Any]


class Kind(Enum):
    """How a function gives its value."""

    SYNC = "returns it"
    ASYNC = "must be awaited"
    GENERATOR = "yields it"
    ASYNC_GENERATOR = "yields it and must be awaited"


_KINDS: tuple[tuple[Callable[[Any], bool], Kind], ...] = (
    (inspect.isasyncgenfunction, Kind.ASYNC_GENERATOR),
    (inspect.isgeneratorfunction, Kind.GENERATOR),
    (inspect.iscoroutinefunction, Kind.ASYNC),
)


def kind_of(function: Callable[..., Any]) -> Kind:
    """The kind of a function, also behind `functools.partial`, or of a callable object's `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    candidates = (function, getattr(type(function), "__call__", None))  # noqa: B004  the method itself is wanted
    return next((kind for is_kind, kind in _KINDS if any(map(is_kind, candidates))), Kind.SYNC)
