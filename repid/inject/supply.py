"""A function and its dependencies as one call.

The values of one run are kept by number: 0 is the message, 1 the value of the first step, and so on. A generator is
entered as a context manager and left in reverse order; that it swallows an error is of no account, so that a failed
run cannot be taken for a success by a forgotten `raise`, neither by the worker nor by the dependencies around.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from types import AsyncGeneratorType, CoroutineType, GeneratorType, TracebackType
from typing import Any, Self, TypeAlias

import msgspec

from ..errors import ConfigurationError
from ..tracebacks import raise_again, traceback_of
from .depends import Kind, Scope
from .message import Message

Function: TypeAlias = Callable[..., Any]
Values: TypeAlias = dict[int, Any]
Wants: TypeAlias = tuple[tuple[str, int], ...]
"""Parameters, and the number of the value for each."""

MESSAGE = 0


class Step(msgspec.Struct, frozen=True):
    """One dependency: what is called, how, with what, and the number of what it gives.

    One of the scope "worker" is not carried out in a run: a worker that starts has it give its value, and puts a
    `Given` in its place.
    """

    number: int
    function: Callable[..., Any]
    kind: Kind
    wants: Wants
    scope: Scope = "run"


class Given:
    """In the place of a dependency of the scope "worker": gives the value that is there."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __call__(self) -> Any:
        """The value."""
        return self._value


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
        with Opened() as opened:
            for step in self.steps:
                values[step.number] = _enter(step, values, opened)
            return self.function(**{**arguments, **_pick(self.wants, values)})


class SuppliedAsync(Supplied, frozen=True):
    """The same of an async function, whose steps may be async too."""

    async def __call__(self, given: Values, arguments: dict[str, Any]) -> Any:
        """Carry out the steps and call the function."""
        values = dict(given)
        async with Opened() as opened:
            await enter_all(self.steps, values, opened)
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
        async with Opened() as opened:
            await enter_all(self.outer, values, opened)
            return await call(message, {number: values[number] for number in self.passed_on})


class Opened:
    """The generators that were entered, to be left in the reverse order. None of them may make a success of a failure.

    An exit stack of `contextlib` would walk along the contexts of the errors. These may run code that raises, and a
    chain of them that goes in a circle would keep it walking for ever.
    """

    __slots__ = ("_managers",)

    def __init__(self) -> None:
        self._managers: list[tuple[Function, AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]] = []

    def add(self, function: Function, manager: AbstractContextManager[Any] | AbstractAsyncContextManager[Any]) -> None:
        """Note one that was entered, and whose it is."""
        self._managers.append((function, manager))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        raised = error
        while self._managers:
            function, manager = self._managers.pop()
            assert isinstance(manager, AbstractContextManager)  # others are entered on the event loop only
            try:
                manager.__exit__(*_parts(raised))
            except BaseException as another:  # noqa: BLE001  it is raised when all are left
                raised = _yields_too_often(function, another) if _is_of_contextlib(another) else another
        if raised is not None and raised is not error:
            raise_again(raised)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        raised = error
        while self._managers:
            function, manager = self._managers.pop()
            try:
                if isinstance(manager, AbstractAsyncContextManager):
                    await manager.__aexit__(*_parts(raised))
                else:
                    manager.__exit__(*_parts(raised))
            except BaseException as another:  # noqa: BLE001  as above
                raised = _yields_too_often(function, another) if _is_of_contextlib(another) else another
        if raised is not None and raised is not error:
            raise_again(raised)

    async def aclose(self) -> None:
        """Leave all of them."""
        await self.__aexit__(None, None, None)


def _parts(
    error: BaseException | None,
) -> tuple[type[BaseException] | None, BaseException | None, TracebackType | None]:
    return (None, None, None) if error is None else (type(error), error, traceback_of(error))


async def enter_all(steps: Iterable[Step], values: Values, opened: Opened) -> None:
    """Carry out the steps on the event loop; what comes after their yields is left to `opened`."""
    for step in steps:
        if step.kind is Kind.ASYNC:
            values[step.number] = await step.function(**_pick(step.wants, values))
        elif step.kind is Kind.ASYNC_GENERATOR:
            values[step.number] = await _enter_async(step, values, opened)
        else:
            values[step.number] = _enter(step, values, opened)


async def _enter_async(step: Step, values: Values, opened: Opened) -> Any:
    manager = asynccontextmanager(step.function)(**_pick(step.wants, values))
    try:
        value = await manager.__aenter__()
    except RuntimeError as error:
        if _is_of_contextlib(error):
            raise _does_not_yield(step.function) from None
        raise
    opened.add(step.function, manager)
    return value


def _enter(step: Step, values: Values, opened: Opened) -> Any:
    if step.kind is Kind.SYNC:
        return _checked(step, step.function(**_pick(step.wants, values)))
    manager = contextmanager(step.function)(**_pick(step.wants, values))
    try:
        value = manager.__enter__()
    except RuntimeError as error:
        if _is_of_contextlib(error):
            raise _does_not_yield(step.function) from None
        raise
    opened.add(step.function, manager)
    return value


def _is_of_contextlib(error: BaseException) -> bool:
    """Whether contextlib says that a generator yields too little or too often. What it raises itself has its frame."""
    link = traceback_of(error)
    within = None if link is None else link.tb_next
    return within is not None and within.tb_next is None and within.tb_frame.f_globals.get("__name__") == "contextlib"


def _does_not_yield(function: Function) -> ConfigurationError:
    return ConfigurationError(f"{function!r} has ended without a yield: it must yield once, which gives the value")


def _yields_too_often(function: Function, said: BaseException) -> ConfigurationError:
    error = ConfigurationError(f"{function!r} yields more than once: what comes after the first yield is for closing")
    error.__context__ = said.__context__  # the failure of the run, if it was thrown in
    return error


def _pick(wants: Wants, values: Values) -> dict[str, Any]:
    return {name: values[number] for name, number in wants}


def _checked(step: Step, value: Any) -> Any:
    if inspect.iscoroutine(value):
        value.close()
        raise ConfigurationError(
            f"the dependency {step.function!r} returned a coroutine, but is no async function: declare it with "
            "async def"
        )
    return value


@contextmanager
def _block() -> Iterator[None]:
    yield


@asynccontextmanager
async def _async_block() -> AsyncIterator[None]:
    yield


_BLOCKS = frozenset({type(_block()), type(_async_block())})
_UNSTARTED = frozenset({CoroutineType, GeneratorType, AsyncGeneratorType, *_BLOCKS})

FINISHED = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set})
"""The types of most values: those of which `is_unfinished` is False, without asking it."""


def is_unfinished(value: object) -> bool:
    """Whether a value is work, which an actor cannot mean to return: nothing of it has been done, as of a coroutine, a
    generator or the block of a context manager made of one, or it may still go on, as that of a future.
    """
    cls = type(value)  # and no `isinstance`, which asks the value
    return cls in _UNSTARTED or issubclass(cls, _futures.classes())


class _Futures:
    """The classes of futures. Where their module was not imported, no value is one of them; so they are looked for
    again when other modules were imported, and not for each value.
    """

    def __init__(self) -> None:
        self._modules = 0
        self._classes: tuple[type, ...] = ()

    def classes(self) -> tuple[type, ...]:
        """Those that there are now."""
        if (modules := len(sys.modules)) != self._modules:
            found = [getattr(sys.modules.get(module), "Future", None) for module in ("asyncio", "concurrent.futures")]
            self._classes = tuple(each for each in found if isinstance(each, type))
            self._modules = modules
        return self._classes


_futures = _Futures()


def refuse_unfinished(what: str, value: Any) -> ConfigurationError:
    """The error of an actor or the like that returned what `is_unfinished`."""
    cls = type(value)
    if issubclass(cls, _futures.classes()):
        return ConfigurationError(
            f"{what} returned a future, whose work may still go on when the run has ended: await it, or return its "
            "result()"
        )
    if cls in _BLOCKS:
        return ConfigurationError(f"{what} returned a context manager, of which nothing has been run: {_ITERATE}")
    if inspect.isasyncgen(value):
        return ConfigurationError(f"{what} returned an async generator, of which nothing has been run: {_ITERATE}")
    value.close()  # it was not started: nothing of it runs, and nobody is warned of it
    if inspect.iscoroutine(value):
        return ConfigurationError(
            f"{what} returned a coroutine that nobody has awaited: await it, or where a sync function returned it, "
            "declare the actor with async def, and so the wrapper of a decorator"
        )
    return ConfigurationError(f"{what} returned a generator, of which nothing has been run: {_ITERATE}")


_ITERATE = "a function with yield in it cannot be an actor, behind a decorator neither; do the work and return a value"
