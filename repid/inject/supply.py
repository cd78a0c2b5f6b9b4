"""A function and its dependencies as one call.

The values of one run are kept by number: 0 is the message, 1 the value of the first step, and so on. A generator is
entered as a context manager and left in reverse order; that it swallows an error is of no account, so that a failed
run cannot be taken for a success by a forgotten `raise`, neither by the worker nor by the dependencies around.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import msgspec

from ..errors import ConfigurationError
from .depends import Kind
from .message import Message

Values: TypeAlias = dict[int, Any]
Wants: TypeAlias = tuple[tuple[str, int], ...]
"""Parameters, and the number of the value for each."""

MESSAGE = 0


class Step(msgspec.Struct, frozen=True):
    """One dependency: what is called, how, with what, and the number of what it gives."""

    number: int
    function: Callable[..., Any]
    kind: Kind
    wants: Wants


class Supplied(msgspec.Struct, frozen=True):
    """A sync function with the steps that run where it runs. Can be pickled if the functions can."""

    function: Callable[..., Any]
    steps: tuple[Step, ...]
    wants: Wants

    def __repr__(self) -> str:
        return repr(self.function)

    def __call__(self, given: Values, arguments: dict[str, Any]) -> Any:
        """Carry out the steps and call the function."""
        values = dict(given)
        with ExitStack() as stack:
            for step in self.steps:
                values[step.number] = _enter(step, values, stack)
            return self.function(**{**arguments, **_pick(self.wants, values)})


class SuppliedAsync(Supplied, frozen=True):
    """The same of an async function, whose steps may be async too."""

    async def __call__(self, given: Values, arguments: dict[str, Any]) -> Any:
        """Carry out the steps and call the function."""
        values = dict(given)
        async with AsyncExitStack() as stack:
            await _enter_all(self.steps, values, stack)
            return await self.function(**{**arguments, **_pick(self.wants, values)})


class Dependencies(msgspec.Struct, frozen=True):
    """All that an actor depends on. `inner` runs in the actor's place; `outer` are the steps that go around it on the
    event loop, where the actor itself does not run on one; `passed_on`: the values that `inner` gets from there.
    """

    outer: tuple[Step, ...]
    inner: Supplied
    passed_on: frozenset[int]
    takes_message: bool

    async def around(self, call: Callable[[Message, Values], Awaitable[Any]], message: Message) -> Any:
        """Carry out the outer steps around a call of `inner`."""
        values: Values = {MESSAGE: message}
        async with AsyncExitStack() as stack:
            await _enter_all(self.outer, values, stack)
            return await call(message, {number: values[number] for number in self.passed_on})


async def _enter_all(steps: Iterable[Step], values: Values, stack: AsyncExitStack) -> None:
    for step in steps:
        if step.kind is Kind.ASYNC:
            values[step.number] = await step.function(**_pick(step.wants, values))
        elif step.kind is Kind.ASYNC_GENERATOR:
            values[step.number] = await _enter_async(step, values, stack)
        else:
            values[step.number] = _enter(step, values, stack)


async def _enter_async(step: Step, values: Values, stack: AsyncExitStack) -> Any:
    manager = asynccontextmanager(step.function)(**_pick(step.wants, values))
    value = await manager.__aenter__()

    async def leave(*error: Any) -> None:
        await manager.__aexit__(*error)

    stack.push_async_exit(leave)
    return value


def _enter(step: Step, values: Values, stack: ExitStack | AsyncExitStack) -> Any:
    if step.kind is Kind.SYNC:
        return _checked(step, step.function(**_pick(step.wants, values)))
    manager = contextmanager(step.function)(**_pick(step.wants, values))
    value = manager.__enter__()

    def leave(*error: Any) -> None:
        manager.__exit__(*error)

    stack.push(leave)
    return value


def _pick(wants: Wants, values: Values) -> dict[str, Any]:
    return {name: values[number] for name, number in wants}


def _checked(step: Step, value: Any) -> Any:
    if inspect.iscoroutine(value):
        value.close()
        raise ConfigurationError(
            f"the dependency {step.function!r} returned a coroutine, but is no async function: declare it with async def"
        )
    return value


def refuse_unfinished(what: str, value: Any) -> ConfigurationError:
    """The error of an actor or the like that returned a coroutine or a generator, none of which has been run."""
    if inspect.isasyncgen(value):
        return ConfigurationError(f"{what} returned an async generator, of which nothing has been run: {_ITERATE}")
    value.close()  # it was not started: nothing of it runs, and nobody is warned of it
    if inspect.iscoroutine(value):
        return ConfigurationError(
            f"{what} returned a coroutine that nobody has awaited: await it, or where a sync function returned it, declare "
            "the actor with async def, and so the wrapper of a decorator"
        )
    return ConfigurationError(f"{what} returned a generator, of which nothing has been run: {_ITERATE}")


_ITERATE = "a function with yield in it cannot be an actor, behind a decorator neither; do the work and return a value"
