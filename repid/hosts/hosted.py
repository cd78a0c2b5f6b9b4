"""What the facades put around what they offer: under trio it is called as it is, under asyncio it crosses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial, wraps
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, cast

import trio
from trio.lowlevel import TrioToken, current_trio_token, in_trio_run, in_trio_task

from .crossing import Bridge, Crossing, TrioEndedError, bridges, is_run_by_trio, run_bridge
from .guest import join, leave
from .tasks import run_on

P = ParamSpec("P")
T = TypeVar("T")
AsyncFunction = TypeVar("AsyncFunction", bound=Callable[..., Coroutine[Any, Any, Any]])


def trio_runs() -> bool:
    """Whether this is trio's code, and not that of an asyncio task: where one is the guest of the other, they take turns."""
    if not in_trio_task():
        return False
    loop = asyncio._get_running_loop()  # noqa: SLF001  in asyncio.__all__: None, where the other one raises
    return loop is None or asyncio.current_task(loop) is None or not (loop in bridges or is_run_by_trio(loop))


def current_run() -> TrioToken | None:
    """The trio run of this thread, also where an asyncio task calls whose loop is its host. None: there is none."""
    return current_trio_token() if in_trio_run() else None


def is_running(run: TrioToken) -> bool:
    """Whether a trio run has not ended yet."""
    try:
        run.run_sync_soon(lambda: None)
    except trio.RunFinishedError:
        return False
    return True


def hosted(function: AsyncFunction) -> AsyncFunction:
    """A coroutine function of trio's that may also be awaited in an asyncio task.

    Typed as what it was given: type checkers do not agree on what `async def` is, `Coroutine` (mypy) or `CoroutineType`
    (pyright), and a server must be what its protocol says to either of them.
    """
    return cast("AsyncFunction", wraps(function)(crossing(function)))


def hosted_unless(stays: Callable[[Any], bool]) -> Callable[[AsyncFunction], AsyncFunction]:
    """As `hosted`, for a method that need not cross while `stays(self)` is True: then it may run in any task.

    Such a method waits for nothing but `Turns`. Its object belongs to a trio run of this thread, so whatever it wakes there
    is run in that run's next turn.
    """

    def decorate(function: AsyncFunction) -> AsyncFunction:
        across = crossing(function)

        @wraps(function)
        def call(self: Any, *arguments: Any, **keywords: Any) -> Coroutine[Any, Any, Any]:
            here = trio_runs() or stays(self)
            return (function if here else across)(self, *arguments, **keywords)

        return cast("AsyncFunction", call)

    return decorate


class Turns:
    """Gives other tasks their turn now and then: a call that never waits would keep them from running.

    A pause in every call costs several times what such a call does. So there is one when `TURN` seconds have passed since
    the last one, and the cancellation of a trio task is looked at in every call, which costs little.
    """

    def __init__(self) -> None:
        self._due = 0.0

    async def take(self) -> None:
        """To be awaited before the work. Cancelled: nothing was done."""
        in_trio = trio_runs()
        if time.perf_counter() < self._due:
            if in_trio:
                await trio.lowlevel.checkpoint_if_cancelled()
            return
        if in_trio:
            await trio.lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)
        self._due = time.perf_counter() + TURN


TURN = 0.001
"""Seconds for which one task at most keeps the others waiting by calls that never wait."""


def crossing(function: Callable[P, Awaitable[T]], *, late: bool = False) -> Callable[P, Coroutine[Any, Any, T]]:
    """The same for whatever gives an awaitable, and without its name.

    `late`: what it returns although it was cancelled counts, and the cancellation is taken for heard.
    """

    async def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        if trio_runs():
            return await function(*arguments, **keywords)
        crossing, loop = Crossing(function, arguments, keywords), asyncio.get_running_loop()
        bridge = bridges.get(loop)
        if bridge is None or not bridge.enter(crossing):
            bridge = await join(loop, crossing)
        try:
            bridge.carry(crossing)
            try:
                await crossing.answer()
            except asyncio.CancelledError:
                has_raised = await crossing.call_off()
                if not has_raised and not (late and crossing.has_returned):
                    raise
            return crossing.result()
        finally:
            if bridge.leave(crossing):
                await bridge.end()

    return call


def hosted_context(
    function: Callable[P, AbstractAsyncContextManager[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    """The same for what gives a context manager: it is entered and left in one trio task, its body runs in the
    caller's.
    """

    @wraps(function)
    def make(*arguments: P.args, **keywords: P.kwargs) -> AbstractAsyncContextManager[T]:
        context = partial(function, *arguments, **keywords)
        return context() if trio_runs() else HostedContext(context)

    return make


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


async def within(seconds: float, call: Callable[[], Awaitable[T]]) -> T:
    """What the call gives, made in trio. Raises `TimeoutError` if it takes longer, after it was cancelled."""
    with trio.move_on_after(seconds):
        return await call()
    raise TimeoutError(f"there was no answer within {seconds:g} seconds")


def at_home(function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The opposite: a function written for the host; called in a trio guest, it runs as a task of its host loop."""

    async def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        bridge = run_bridge.get() if trio_runs() else None
        if bridge is None:
            return await function(*arguments, **keywords)
        result: T = await run_on(bridge, _await, (function, *arguments), keywords)
        return result

    return call


async def _await(function: Callable[..., Awaitable[T]], *arguments: Any, **keywords: Any) -> T:
    """A coroutine, whatever the function gives."""
    return await function(*arguments, **keywords)
