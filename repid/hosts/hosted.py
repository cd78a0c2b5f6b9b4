"""What the facades put around what they offer: under trio it is called as it is, under asyncio it crosses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncContextDecorator, asynccontextmanager
from functools import partial, wraps
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

import trio

from ..errors import UsageError, misused
from .crossing import run_bridge
from .detecting import is_cancelled, trio_runs

P = ParamSpec("P")
T = TypeVar("T")
AsyncFunction = TypeVar("AsyncFunction", bound=Callable[..., Coroutine[Any, Any, Any]])


def hosted(function: AsyncFunction) -> AsyncFunction:
    """A coroutine function of trio's that may also be awaited in an asyncio task.

    Typed as what it was given: type checkers do not agree on what `async def` is, `Coroutine` (mypy) or `CoroutineType`
    (pyright), and a server must be what its protocol says to either of them.
    """
    return cast("AsyncFunction", wraps(function)(crossing(function)))


def hosted_start(function: AsyncFunction) -> AsyncFunction:
    """As `hosted`, for what tells a `task_status` that it has started. It does so as the task that calls it: the task
    groups of anyio look which one that is.
    """
    across = crossing(function)

    @wraps(function)
    async def call(*arguments: Any, **keywords: Any) -> Any:
        status = keywords.get("task_status", trio.TASK_STATUS_IGNORED)
        if status is not trio.TASK_STATUS_IGNORED and not trio_runs():
            from .tasks import in_this_task  # noqa: PLC0415  as in `crossing`

            keywords["task_status"] = SimpleNamespace(started=in_this_task(status.started))
        return await across(*arguments, **keywords)

    return cast("AsyncFunction", call)


def hosted_unless(stays: Callable[[Any], bool]) -> Callable[[AsyncFunction], AsyncFunction]:
    """As `hosted`, for a method that does not have to cross while `stays(self)` is True: then it may run in any task.

    Such a method waits for nothing but `Turns`. Its object belongs to a trio run of this thread, so whatever it wakes
    there is run in that run's next turn.
    """

    def decorate(function: AsyncFunction) -> AsyncFunction:
        across = crossing(function)

        @wraps(function)
        def call(self: Any, /, *arguments: Any, **keywords: Any) -> Coroutine[Any, Any, Any]:
            here = trio_runs() or stays(self)
            return (function if here else across)(self, *arguments, **keywords)

        return cast("AsyncFunction", call)

    return decorate


class Turns:
    """Gives other tasks their turn now and then: a call that never waits would keep them from running.

    A pause in every call costs several times what such a call does. So there is one when `TURN` seconds have passed
    since the last one, and the cancellation of a trio task is looked at in every call, which costs little.

    A trio task pauses best after the work (`give`): a task that the work has woken then runs in this very pause. An
    asyncio task has to pause before it (`take`): a pause that is cancelled cannot say there that the work was done.
    """

    def __init__(self) -> None:
        self.due = 0.0
        """When the next pause is due, on `time.perf_counter`."""

    async def give(self) -> None:
        """To be awaited in trio after the work, when a pause is due. Not cancelled: the next call notices that."""
        self.due = time.perf_counter() + TURN
        await trio.lowlevel.cancel_shielded_checkpoint()
        self.due = time.perf_counter() + TURN

    def is_due(self) -> bool:
        """Whether `take` has anything to do: a pause is due, or the trio task was cancelled, if it is one."""
        return time.perf_counter() >= self.due or is_cancelled()

    async def take(self) -> bool:
        """To be awaited before the work. Returns whether others had their turn. Cancelled: nothing was done."""
        in_trio = trio_runs()
        if time.perf_counter() < self.due:
            if in_trio and is_cancelled():
                await trio.lowlevel.checkpoint_if_cancelled()
            return False
        self.due = time.perf_counter() + TURN  # one pause gives all others their turn: who calls meanwhile needs none
        if in_trio:
            await trio.lowlevel.checkpoint()
        else:
            import asyncio  # noqa: PLC0415  programs on trio do without

            await asyncio.sleep(0)
        self.due = time.perf_counter() + TURN
        return True


TURN = 0.001
"""Seconds for which one task at most keeps the others waiting by calls that never wait."""


def crossing(function: Callable[P, Awaitable[T]], *, late: bool = False) -> Callable[P, Coroutine[Any, Any, T]]:
    """As `hosted`, for whatever gives an awaitable, and without its name.

    `late`: what it returns although it was cancelled counts, and the cancellation is taken for heard.
    """

    async def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        if trio_runs():
            return await function(*arguments, **keywords)
        from .carrying import carry  # noqa: PLC0415  loads asyncio, which programs on trio do without

        return await carry(function, arguments, keywords, late=late)

    return call


def hosted_context(
    function: Callable[P, AbstractAsyncContextManager[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    """As `hosted`, for what gives a context manager: it is entered and left in one trio task, its body runs in the
    caller's.
    """

    @wraps(function)
    def make(*arguments: P.args, **keywords: P.kwargs) -> AsyncBlock[T]:
        again, context = partial(make, *arguments, **keywords), partial(function, *arguments, **keywords)
        if trio_runs():
            return AsyncBlock(context(), again)
        from .carrying import HostedContext  # noqa: PLC0415  as in `crossing`

        return AsyncBlock(HostedContext(context), again)

    return make


class AsyncBlock(AsyncContextDecorator, AbstractAsyncContextManager[T], Generic[T]):
    """What `async with` opens. It also decorates async functions: each call opens its own block, made by `again`."""

    def __init__(self, context: AbstractAsyncContextManager[T], again: Callable[[], AsyncBlock[T]]) -> None:
        self._context = context
        self._again = again
        self._was_entered = False

    def _recreate_cm(self) -> AsyncBlock[T]:  # as `contextlib` calls it
        return self._again()

    async def __aenter__(self) -> T:
        if self._was_entered:
            raise UsageError(
                "this block was entered before, and is for once: make another one for each `async with`, as in "
                "`async with app.magic():`"
            )
        self._was_entered = True
        return await self._context.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._context.__aexit__(kind, error, traceback)

    if not TYPE_CHECKING:  # type checkers report it themselves
        __enter__ = __exit__ = misused(
            "this block is for async code: write `async with` instead of `with`; code that blocks uses "
            "`with app.sync() as client:`"
        )
        __await__ = misused("this is not awaited, but opens a block: `async with ...:`")


def async_block(function: Callable[P, AsyncIterator[T]]) -> Callable[P, AsyncBlock[T]]:
    """As `asynccontextmanager`, for what users open: a wrong use says how it is written."""
    make = asynccontextmanager(function)

    @wraps(function)
    def opened(*arguments: P.args, **keywords: P.kwargs) -> AsyncBlock[T]:
        return AsyncBlock(make(*arguments, **keywords), partial(opened, *arguments, **keywords))

    return opened


async def within(seconds: float, call: Callable[[], Awaitable[T]]) -> T:
    """What the call gives, made in trio. Raises `TimeoutError` if it takes longer, after it was cancelled."""
    with trio.move_on_after(seconds):
        return await call()
    raise TimeoutError(f"there was no answer within {seconds:g} seconds")


def on_host(function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The opposite: a function written for the host; called in a trio guest, it runs as a task of its host loop."""

    async def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        bridge = run_bridge.get() if trio_runs() else None
        if bridge is None:
            return await function(*arguments, **keywords)
        from .tasks import TasksOf  # noqa: PLC0415  as in `crossing`

        result: T = await TasksOf(bridge).call(_await, (function, *arguments), keywords)
        return result

    return call


async def _await(function: Callable[..., Awaitable[T]], /, *arguments: Any, **keywords: Any) -> T:
    """A coroutine, whatever the function gives."""
    return await function(*arguments, **keywords)
