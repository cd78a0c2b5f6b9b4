"""Aids for tests under asyncio: every test is run on asyncio's own loop, and on uvloop where that is installed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

T = TypeVar("T")

Run = Callable[[Coroutine[Any, Any, T]], T]


def run_asyncio(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(_checked(main))


def run_debug(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(_checked(main), debug=True)


def run_uvloop(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_checked(main))


async def _checked(main: Coroutine[Any, Any, T]) -> T:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    try:
        return await main
    finally:
        gc.collect()
        assert complaints == []


RUNS = [
    pytest.param(run_asyncio, id="asyncio"),
    pytest.param(run_debug, id="debug"),
    pytest.param(run_uvloop, id="uvloop", marks=pytest.mark.skipif(uvloop is None, reason="uvloop is not installed")),
]


def nothing_is_left() -> bool:
    """No task but the present one, and no trio in this thread."""
    from repid.hosts.crossing import bridges

    return asyncio.all_tasks() == {asyncio.current_task()} and not list(bridges.values())


def threads() -> set[str]:
    """The names of the threads that are not idle workers of trio's cache."""
    return {thread.name for thread in threading.enumerate()}
