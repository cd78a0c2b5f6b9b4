"""How an asyncio task calls a function of trio's, and enters a context manager of trio's: across the bridge of its
loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

import trio

from .crossing import Bridge, Crossing, TrioEndedError, bridges
from .detecting import trio_runs
from .guest import join, leave

T = TypeVar("T")


async def carry(
    function: Callable[..., Awaitable[T]], arguments: tuple[Any, ...], keywords: Mapping[str, Any], *, late: bool
) -> T:
    """Call a function in trio, and wait for what it gives.

    `late`: what it returns although it was cancelled counts, and the cancellation is taken for heard.
    """
    crossing, loop = Crossing(function, arguments, keywords), asyncio.get_running_loop()
    bridge = bridges.get(loop)
    if bridge is None or not bridge.enter(crossing):
        bridge = await join(loop, crossing)
    try:
        bridge.carry(crossing)
        try:
            await crossing.answer()
        except asyncio.CancelledError as cancelled:
            await crossing.call_off()
            if not crossing.failed and not (late and crossing.has_returned):
                raise cancelled from crossing.error
        return crossing.result()
    finally:
        if bridge.leave(crossing):
            await bridge.end()


class HostedContext(AbstractAsyncContextManager[T], Generic[T]):
    """A context manager of trio's, entered wherever `async with` is."""

    _bridge: Bridge
    _crossing: Crossing[None]
    _value: T

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._make = make
        self._direct: AbstractAsyncContextManager[T] | None = None
        self._error: BaseException | None = None

    async def __aenter__(self) -> T:
        if trio_runs():
            self._direct = self._make()
            return await self._direct.__aenter__()
        self._crossing = Crossing(self._hold)
        self._bridge = await join(asyncio.get_running_loop(), self._crossing)
        try:
            self._bridge.carry(self._crossing)
            await self._crossing.wait()
        except BaseException:
            await leave(self._bridge, self._crossing)
            raise
        return self._value

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._direct is not None:
            return await self._direct.__aexit__(exc_type, exc, traceback)
        self._error = exc
        try:
            if not self._crossing.finished:
                self._bridge.to_trio(self._leaving.set)
            await self._crossing.wait()
        except BaseException as error:
            if error is exc:
                error.__traceback__ = traceback  # without its way through trio
                return False
            if isinstance(error, TrioEndedError):  # a lost connection is told to the next call, not to the block
                return False
            raise
        finally:
            self._error = None
            await leave(self._bridge, self._crossing)
        return exc is not None

    async def _hold(self) -> None:
        self._leaving = trio.Event()
        async with self._make() as self._value:
            self._crossing.pause()
            await self._leaving.wait()
            if self._error is not None:
                raise self._error
