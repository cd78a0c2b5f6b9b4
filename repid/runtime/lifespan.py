"""What lives as long as its worker: `app.lifespan`, and dependencies of the scope "worker".

Theory. All of it is opened in one task, on the loop where the actors run, and closed in the same task in the reverse
order: a pool of connections, or a cancel scope in it, cannot be moved to another. Where that loop is a host's, the task
is one of its own there, shielded from cancellation until the worker is done with what it holds: it is closed after the
last run, never beside one. What opens needs no place among the runs: once there are values, the plans of the actors are
compiled again with these in the places of the functions, so a run pays nothing for it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import trio

from ..actors import Actor
from ..ctrl_c import let_ctrl_c_through
from ..errors import LifespanError
from ..inject import GivenValues, Opened, Step, Values, enter_all
from ..logs import Log
from ..ports import HostBackend
from ..tracebacks import is_a, leaves, name_of, raise_again, text_of, unwrapped
from .failures import is_cancellation

log = Log("repid.worker")

Open = Callable[[], AbstractAsyncContextManager[GivenValues]]


@asynccontextmanager
async def open_lifespan(
    lifespans: Iterable[Sequence[Step]], actors: Iterable[Actor], host: HostBackend | None, given: GivenValues = ()
) -> AsyncIterator[GivenValues]:
    """Open, for a block, what these lifespans and actors want that is not given; the values of all.

    `host`: where it is opened; None: in the caller's task. Raises `LifespanError` where it fails to open or to close.
    """
    wanted = [steps for steps in (*lifespans, *(actor.plan.for_worker for actor in actors)) if steps]
    there = [function for function, _ in given]
    if all(step.function in there for steps in wanted for step in steps):
        yield given
        return
    opened: Open = partial(_open_here, wanted, given)
    async with opened() if host is None else _open_on_host(opened, host) as values:
        yield values


@asynccontextmanager
async def _open_here(wanted: Iterable[Sequence[Step]], given: GivenValues) -> AsyncIterator[GivenValues]:
    values = list(given)
    opened = Opened()
    try:
        for steps in wanted:
            numbered: Values = {}
            for step in steps:
                found = [value for function, value in values if function == step.function]
                if found:
                    numbered[step.number] = found[0]
                    continue
                with _explained("was not started: opening", step.function):
                    await enter_all((step,), numbered, opened)
                values.append((step.function, numbered[step.number]))
        yield values
    finally:
        with _explained("has ended, but closing", None):
            await opened.aclose()


@asynccontextmanager
async def _open_on_host(opened: Open, host: HostBackend) -> AsyncIterator[GivenValues]:
    has_values, is_over = trio.Event(), trio.Event()
    values: list[GivenValues] = []

    async def hold(given: GivenValues) -> None:
        values.append(given)
        has_values.set()
        await is_over.wait()

    back = host.back_in_trio(hold)

    async def live() -> None:
        async with opened() as given:
            await back(given)

    async def keep(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as shield:
            task_status.started(shield)
            with _explained("cannot go on:", None):
                await host.call(live, (), {})

    try:
        async with trio.open_nursery() as nursery:
            shield = await nursery.start(keep)
            await has_values.wait()  # cancelled by the nursery if it fails to open
            shield.shield = True
            try:
                yield values[0]
            finally:
                shield.shield = False
                is_over.set()
    except BaseExceptionGroup as group:
        error = unwrapped(group)
        raise error from (error.__cause__ if isinstance(error, LifespanError) else None)


@contextmanager
def _explained(what: str, function: Callable[..., Any] | None) -> Iterator[None]:
    """Have an error say that it is one of the lifespan, and log it: the one who started the worker may only see its
    text.
    """
    try:
        yield
    except LifespanError:
        raise
    except BaseException as error:
        let_ctrl_c_through(error)
        if _was_cancelled(error):
            raise
        name = "what it had opened" if function is None else f"{getattr(function, '__qualname__', repr(function))}()"
        text = f"the worker {what} {name} raised {name_of(error)}: {text_of(error)}"
        log.exception("%s", text, in_program=True)
        explained = LifespanError(text)
        explained.__cause__ = error
        # Without a context: exit stacks walk along contexts, and that of this error may have no end.
        raise_again(explained)


def _was_cancelled(error: BaseException) -> bool:
    """Whether the one who opens was cancelled. A cancellation that nobody asked for is an error like others."""
    if trio.lowlevel.in_trio_task():
        return trio.current_effective_deadline() == -math.inf and is_cancellation(error)
    return not any(is_a(each, Exception, SystemExit, KeyboardInterrupt) for each in leaves(error))  # trio's side knows
