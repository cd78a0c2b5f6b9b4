"""Errors and values that do harm to whoever looks at them."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import trio


def overriding(*, base: type[BaseException] = Exception, **methods: Any) -> BaseException:
    """An error of a class with these methods."""
    cls = type("Overriding", (base,), methods)
    error: BaseException = cls("group", [ValueError()]) if issubclass(base, BaseExceptionGroup) else cls("text")
    return error


def bite(*_: Any, **__: Any) -> Any:
    raise KeyError("bitten")


def leave(*_: Any) -> Any:
    raise SystemExit(3)


def sleepy(_: object) -> str:
    time.sleep(0.05)
    return "slow"


def again(error: BaseException) -> str:
    return str(error)


def chain(links: int) -> BaseException:
    error: BaseException = ValueError("first")
    for number in range(links):
        later = ValueError(number)
        later.__context__ = error
        error = later
    return error


def nested(depth: int) -> BaseException:
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup("a level", [error])
    return error


def circle(link: str) -> BaseException:
    one, two = ValueError("one"), ValueError("two")
    setattr(one, link, two)
    setattr(two, link, one)
    return one


def with_notes(notes: Any) -> BaseException:
    error = ValueError("noted")
    error.__notes__ = notes
    return error


def odd_syntax_error() -> BaseException:
    error = SyntaxError("odd")
    error.lineno, error.offset, error.text, error.filename = "x", {}, 5, object()  # type: ignore[assignment]
    return error


class Named(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise KeyError

    __module__ = property(bite)


class Text(str):
    __slots__ = ()
    __len__ = __getitem__ = __str__ = __format__ = encode = bite


ERRORS: dict[str, Callable[[], BaseException]] = {
    "__str__ raises": lambda: overriding(__str__=bite),
    "__str__ exits": lambda: overriding(__str__=leave),
    "__str__ returns a number": lambda: overriding(__str__=lambda _: 5),
    "__str__ recurses": lambda: overriding(__str__=again),
    "__str__ sleeps": lambda: overriding(__str__=sleepy),
    "__str__ gives a hostile str": lambda: overriding(__str__=lambda _: Text("text")),
    "__str__ gives beginnings of addresses": lambda: ValueError("a://x:" * 50_000),
    "__str__ gives the name of a long scheme": lambda: ValueError("a." * 100_000 + "://"),
    "__repr__ raises": lambda: ValueError(overriding(__repr__=bite), 1),
    "__getattr__ raises": lambda: overriding(__getattr__=bite),
    "__getattribute__ raises": lambda: overriding(__getattribute__=bite),
    "__class__ raises": lambda: overriding(__class__=property(bite)),
    "__class__ lies": lambda: overriding(__class__=property(lambda _: BaseExceptionGroup)),
    "__class__ says Cancelled": lambda: overriding(__class__=property(lambda _: trio.Cancelled)),
    "__eq__, __hash__ and __bool__ raise": lambda: overriding(__eq__=bite, __hash__=bite, __bool__=bite),
    "with_traceback raises": lambda: overriding(with_traceback=bite),
    "with_traceback returns a number": lambda: overriding(with_traceback=lambda *_: 5),
    "__traceback__ raises": lambda: overriding(__traceback__=property(bite), __context__=property(bite)),
    "__cause__ is no error": lambda: overriding(__cause__=5, __suppress_context__="x"),
    "__reduce__ raises": lambda: overriding(__reduce__=bite, __reduce_ex__=bite),
    "the metaclass raises": Named("Odd", (Exception,), {}),
    "a long type name": type("N" * 1_000_000, (Exception,), {}),
    "no __init__": type("Bare", (Exception,), {"__init__": lambda _: None}),
    "an odd SyntaxError": odd_syntax_error,
    "an odd UnicodeDecodeError": lambda: UnicodeDecodeError.__new__(UnicodeDecodeError),
    "notes that are a number": lambda: with_notes(5),
    "notes that are odd": lambda: with_notes([5, "\ud800", Text("x"), "n" * 1_000_000]),
    "a long chain": lambda: chain(20_000),
    "a circle of causes": lambda: circle("__cause__"),
    "a circle of contexts": lambda: circle("__context__"),
    "a deep group": lambda: nested(500),
    "a wide group": lambda: ExceptionGroup("wide", [ValueError(number) for number in range(100_000)]),
    "a group that cannot be split": lambda: overriding(base=ExceptionGroup, split=bite, subgroup=bite, derive=bite),
    "a group without members": lambda: overriding(base=ExceptionGroup, exceptions=property(bite)),
    "a long text": lambda: ValueError("x" * 20_000_000),
    "lone surrogates": lambda: ValueError("a\ud800b"),
    "a text that is no line": lambda: ValueError("a\0b\nERROR forged\x1b[2J"),
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "StopIteration": lambda: StopIteration(5),
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "SystemExit": lambda: SystemExit("text"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "asyncio.CancelledError": asyncio.CancelledError,
    "a forged Cancelled": lambda: trio.Cancelled._create(source="unknown"),
    "a group of exits": lambda: BaseExceptionGroup("exits", [SystemExit(1), KeyboardInterrupt()]),
    "BaseException": BaseException,
}


def endless() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


VALUES: dict[str, Callable[[], Any]] = {
    "an object": object,
    "a list that holds itself": endless,
    "a lone surrogate": lambda: "\ud800",
    "a dict that bites": lambda: type("D", (dict,), {"items": bite, "__iter__": bite})({object(): 1}),
    "a class that bites": type("O", (), {"__class__": property(bite), "__getattribute__": bite}),
    "a generator": lambda: (number for number in range(3)),
}


PLACES = [(run, broker) for run in ("trio", "asyncio") for broker in ("memory", "sqlite")]


def share_of(place: int, names: Iterable[str]) -> list[str]:
    """The part of the names that is tried in this place: a quarter by the seed, or with REPID_TEST_ALL=1 all of them."""
    chosen = sorted(names)
    if os.environ.get("REPID_TEST_ALL"):
        return chosen
    random.Random(os.environ.get("REPID_TEST_SEED", "0")).shuffle(chosen)
    return chosen[place :: len(PLACES)]
