"""A whole run from blocking code, on the event loop of one's choice."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import trio

from .hosted import hosted

T = TypeVar("T")

LoopName: TypeAlias = Literal["trio", "asyncio", "uvloop"]
"""The event loops that a program may run on."""

LOOP_NAMES: tuple[LoopName, ...] = get_args(LoopName)


def run_on_loop(loop: LoopName, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Run a trio function to its end. On an asyncio loop trio is the guest, and async actors are tasks of that loop.

    Raises `ImportError` if uvloop is wanted and not installed.
    """
    if loop == "trio":
        return trio.run(function, *arguments)
    import asyncio  # noqa: PLC0415  programs on trio do without

    factory = importlib.import_module("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(hosted(function)(*arguments))
