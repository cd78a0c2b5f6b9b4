"""What names, numbers and durations people may give, checked at the border with one clear error each."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any

from .errors import ConfigurationError, did_you_mean
from .retry import seconds

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,254}")


def check_name(kind: str, name: str) -> str:
    """The name itself; raises `ConfigurationError` unless letters, digits and `_.:/-`, 255 at most, letter first."""
    if not isinstance(name, str) or not _is_name(name):
        raise ConfigurationError(
            f"{name!r} is not a valid {kind} name: it must start with a letter or _, go on with letters, digits "
            "or any of _ . : / - and have at most 255 characters"
        )
    return name


@lru_cache(maxsize=4096)
def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def check_duration(name: str, value: float | timedelta, *, positive: bool = False) -> float:
    """The duration in seconds; raises `ConfigurationError` for negative ones, NaN and what is no duration.

    `positive`: zero is refused too.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        raise ConfigurationError(f"{name} must be seconds or a timedelta, but is {value!r}")
    try:
        duration = seconds(value)
    except OverflowError:
        raise ConfigurationError(f"{name} must be less than 1e308 seconds") from None
    if math.isnan(duration) or duration < 0 or (positive and duration == 0):
        raise ConfigurationError(f"{name} must {'be positive' if positive else 'not be negative'}, but is {value!r}")
    return duration


def check_count(name: str, value: float, *, least: int = 0) -> float:
    """A whole number of at least `least`, or infinity; raises `ConfigurationError` for anything else."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or value == math.inf) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, but is {value!r}")
    return value


def check_retries(name: str, value: float) -> int:
    """The number itself; raises `ConfigurationError` unless it is whole, not negative and finite."""
    if value == math.inf:
        raise ConfigurationError(f"{name} must be finite: a message that never gives up never becomes a dead letter")
    return int(check_count(name, value))


def check_flag(name: str, value: bool) -> bool:
    """The value itself; raises `ConfigurationError` unless it is True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, but is {value!r}")
    return value


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises `ConfigurationError` for the first given word that is not known, with the closest one that is."""
    words = list(known)
    for word in given:
        if word not in words:
            raise ConfigurationError(
                f"{what} has no option {word!r}{did_you_mean(word, words)}; the options are: {', '.join(sorted(words))}"
            )


def check_function(name: str, value: Any, *arguments: str, **keywords: str) -> Any:
    """The value itself; raises `ConfigurationError` unless it is a plain function that takes these arguments."""
    _check_takes(name, value, arguments, keywords)
    if any(waits(each) for waits in (*_GENERATORS, inspect.iscoroutinefunction) for each in _forms(value)):
        raise ConfigurationError(
            f"{name} must be a plain function that returns its answer, but {_called(value)} does not"
        )
    return value


def check_middleware(name: str, value: Any, *arguments: str) -> Any:
    """The value itself; raises `ConfigurationError` unless it takes these arguments and may return something to await."""
    _check_takes(name, value, arguments, {})
    if any(is_generator(each) for is_generator in _GENERATORS for each in _forms(value)):
        raise ConfigurationError(
            f"{name} must be an async function that returns, but {_called(value)} is a generator function: write "
            f"return await call_next({', '.join(arguments[1:])}) instead of a yield"
        )
    return value


def awaiting(middleware: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The middleware, named in the error if what it returns cannot be awaited. An async function is what it was."""
    if any(map(inspect.iscoroutinefunction, _forms(middleware))):
        return middleware

    def call(*arguments: Any) -> Awaitable[Any]:
        returned = middleware(*arguments)
        if not inspect.isawaitable(returned):
            raise ConfigurationError(
                f"the middleware {_called(middleware)} returned {returned!r:.80}, which cannot be awaited: declare it with "
                "async def, or return what call_next returned"
            )
        return returned

    return call


_GENERATORS = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def _called(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else f"{name.replace('<locals>.', '')}()"


def _forms(value: Any) -> tuple[Any, Any]:
    """What may tell how a callable works: itself, or the method that makes it callable."""
    return value, getattr(type(value), "__call__", None)  # noqa: B004  the method itself is wanted


def _check_takes(name: str, value: Any, arguments: Sequence[str], keywords: Mapping[str, str]) -> None:
    if not callable(value):
        raise ConfigurationError(f"{name} must be callable, but is {value!r}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # of what is written in C there may be none
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        wanted = ", ".join([*arguments, *(f"{key}=" for key in keywords)])
        raise ConfigurationError(f"{name} is called with ({wanted}), but {_called(value)} cannot be: {error}") from None


def check_mapping(name: str, value: object) -> None:
    """Raises `ConfigurationError` unless the value is a mapping."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} must be a mapping, but is {value!r}")


def check_iterable(name: str, value: object) -> None:
    """Raises `ConfigurationError` unless the value can be iterated over, and is no text."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise ConfigurationError(f"{name} must be a list of several, but is {value!r}")


def check_one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raises `ConfigurationError` unless the value is one of the known words."""
    words = list(known)
    if not isinstance(value, str) or value not in words:
        hint = did_you_mean(value, words) if isinstance(value, str) else ""
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, words))}, but is {value!r}{hint}")
