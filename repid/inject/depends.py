"""`Depends`, and what may stand in it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from ..names import check_one_of

Scope: TypeAlias = Literal["run", "worker"]
"""How long the value of a dependency lives."""


class Depends(msgspec.Struct, frozen=True, eq=False):
    """`parameter: Annotated[T, Depends(function)]`: for each run `function` is called, and its value is given.

    It may be async or sync, a class or another callable, or a generator function with one `yield`: what it yields is
    the value, and what comes after is carried out when the actor has ended, however it ended. What the actor raised
    is raised at the `yield`; the generator may raise something else, but not make a success of it.

    Its own parameters may be dependencies too, the `Message`, or what a `Header` or `Payload` marks; others need
    defaults. Within one run each function is called once, and its value shared.

    `scope="worker"`: it is called once for each worker, before that consumes, and its value shared by all runs: a pool
    of connections, say. What comes after its `yield` is carried out when the last run has ended. It runs on the loop
    that the worker was called on, and its own parameters are of that scope, too. What it raises stops the worker with a
    `LifespanError`.

    A dependency runs where it would if the actor had called it: that of an async actor in its task, where a sync one
    must not block; a sync one of a sync actor in its thread or process. Async ones of a sync actor, and sync ones
    that these ask for, run on the event loop around the call. The actor's timeout includes them all.
    """

    function: Callable[..., Any]
    scope: Scope = "run"

    def __post_init__(self) -> None:
        check_one_of("scope of a Depends", self.scope, get_args(Scope))


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
