"""What names, numbers and durations people may give, checked at the border with one clear error each."""

from __future__ import annotations

import inspect
import math
import re
import unicodedata
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any

from .errors import ConfigurationError, did_you_mean
from .retry import seconds
from .tracebacks import without_passwords

LONGEST_REPR = 120
"""Characters of a value that an error's text shows."""

LARGEST_NUMBER = 2.0**63

LARGEST_COUNT = 2**63 - 1
"""What every server can write down: a whole number of 64 bits."""

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]*")
_LONGEST_NAME = 255
NO_HINTS: Mapping[str, str] = {}

_SIGNS = frozenset("_.:/-")


def brief(value: object) -> str:
    """The repr of a value for an error's text: not too long, and also of what has none."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  a repr may raise anything; numbers of many digits do
        return f"of type {type(value).__name__}"
    text = without_passwords(text)  # before it is cut: half an address shows half a password
    return text if len(text) <= LONGEST_REPR else f"{text[:LONGEST_REPR]}…"


_AROUND_VALUES = re.compile("=[^&]*")


def check_escaped(what: str, address: str) -> None:
    """Raise `ConfigurationError` for an address of which a part of the password would be read as another part.

    That would be shown as if it were no secret.
    """
    _, _, where = address.partition("://")
    for sign in "/?#":
        behind = where.partition(sign)[2]
        if "@" in _AROUND_VALUES.sub("", behind):
            raise ConfigurationError(
                f"{what} has an @ behind the sign {sign}, so that its password cannot be told from the host: write / "
                "as %2F, ? as %3F, # as %23 and @ as %40 in user, password and path"
            )


def check_text(name: str, value: str) -> str:
    """The value itself; raises `ConfigurationError` unless it is text that UTF-8 can write."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be text, but is {brief(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(
                f"{name} holds a lone surrogate, which UTF-8 cannot write: {brief(value)}; "
                'give value.encode("utf-8", "backslashreplace").decode() instead'
            ) from None
    return value


def check_id(id_: str | None, what: str = "a message id") -> str | None:
    """The id itself; raises `ConfigurationError` unless it is text of 1 to 255 characters of one line, or None."""
    if id_ is None:
        return None
    if not isinstance(id_, str) or not 0 < len(id_) <= 255:
        raise ConfigurationError(f"{what} must be text of 1 to 255 characters, but is {brief(id_)}")
    if not id_.isprintable():
        for character in id_:
            if unicodedata.category(character) in _NOT_IN_IDS:
                raise ConfigurationError(
                    f"{what} must be one line of text that UTF-8 can write, without control characters, but "
                    f"{brief(id_)} holds {character!r}"
                )
    return id_


_NOT_IN_IDS = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, surrogates, separators of lines and paragraphs: a log line or a terminal would be at
their mercy.
"""


def check_number(name: str, value: float) -> float:
    """The value as a plain int or float; raises `ConfigurationError` unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{name} must be a number (int or float), but is {brief(value)}")
    if not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:  # NaN is not either
        raise ConfigurationError(f"{name} must be a finite number up to {LARGEST_NUMBER:g}, but is {brief(value)}")
    return int(value) if isinstance(value, int) else float(value)


def check_name(kind: str, name: str) -> str:
    """The name itself; raises `ConfigurationError` unless letters, digits and `_.:/-`, 255 at most, letter first.

    Letters and digits are those of any script, with the marks that belong to them. Names are compared character by
    character: two that look alike and are composed in another way (NFC, NFD) are two names.
    """
    if not isinstance(name, str) or not _is_name(name):
        raise ConfigurationError(
            f"{brief(name)} is not a valid {kind} name: it must start with a letter or _, go on with letters, digits "
            f"or any of _ . : / - and have at most {_LONGEST_NAME} characters{_culprit(name)}"
        )
    return name


@lru_cache(maxsize=4096)
def _is_name(name: str) -> bool:
    if not 0 < len(name) <= _LONGEST_NAME:
        return False
    if _PLAIN_NAME.fullmatch(name) is not None:
        return True
    return (name[0] == "_" or name[0].isalpha()) and all(map(_may_be_in_name, name))


def _may_be_in_name(character: str) -> bool:
    """Letters, digits and other numbers, and the marks without which many scripts cannot write a word."""
    return character in _SIGNS or unicodedata.category(character)[0] in "LNM"


def _culprit(name: object) -> str:
    wrong = [each for each in name if not _may_be_in_name(each)] if isinstance(name, str) else []
    return f"; {wrong[0]!r} ({unicodedata.name(wrong[0], 'without a name')}) is none of them" if wrong else ""


def check_duration(name: str, value: float | timedelta, *, positive: bool = False) -> float:
    """The duration in seconds; raises `ConfigurationError` for negative ones, NaN and what is no duration.

    `positive`: zero is refused too.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        raise ConfigurationError(f"{name} must be seconds or a timedelta, but is {brief(value)}")
    try:
        duration = seconds(value)
    except OverflowError:
        raise ConfigurationError(f"{name} must be less than 1e308 seconds") from None
    if math.isnan(duration) or duration < 0 or (positive and duration == 0):
        # the repr of a negative timedelta, such as days=-1, seconds=86399, is read by nobody
        shown = f"{duration:g} seconds" if isinstance(value, timedelta) else brief(value)
        raise ConfigurationError(f"{name} must {'be positive' if positive else 'not be negative'}, but is {shown}")
    return duration


def check_count(name: str, value: float, *, least: int = 0) -> float:
    """A whole number of at least `least`, or infinity; raises `ConfigurationError` for anything else."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or value == math.inf) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, but is {brief(value)}")
    if LARGEST_COUNT < value < math.inf:
        raise ConfigurationError(f"{name} must be at most {LARGEST_COUNT}, but is {brief(value)}")
    return value


def check_retries(name: str, value: float) -> int:
    """The number itself; raises `ConfigurationError` unless it is whole, not negative and finite."""
    if value == math.inf:
        raise ConfigurationError(f"{name} must be finite: a message that never gives up never becomes a dead letter")
    return int(check_count(name, value))


def check_flag(name: str, value: bool) -> bool:
    """The value itself; raises `ConfigurationError` unless it is True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, but is {brief(value)}")
    return value


def _hints(names: str, hint: str) -> dict[str, str]:
    return {name: hint.format(name) for name in names.split()}


_OF_ACTORS = _hints(
    "backend batch batch_wait concurrency confirmation_mode max_bytes max_size middlewares on_error on_misfit "
    "retry_policy routing_strategy run_in_process strict when_full",
    "it is an option of the actor, @router.actor({}=...)",
)
_OF_SCHEDULES = _hints(
    "every cron timezone overlap missed deferred_by",
    'it is an option of what recurs: a Job("name", {0}=..., ...), or an actor, @router.actor(...)',
)
_ID = _hints("message_id", "its id is id_=...")
NOT_OF_ACTORS = _hints(
    "connection deferred_until delay headers id_ priority reply_to result_id server_name ttl",
    'the sender says it, app.using({0}=...).enqueue(actor, ...) or Job("name", {0}=...)',
) | {"deferred_by": "the interval of a schedule is every=..."}
NOT_OF_JOBS = _OF_ACTORS | _ID | _hints("call_timeout", "its handle waits so long, handle.wait(timeout=...)")
NOT_OF_CALLS = _OF_ACTORS | _OF_SCHEDULES | _ID | _hints("channel queue", "its actor says it, @router.actor({}=...)")
NOT_OF_MESSAGES = (
    _OF_ACTORS
    | _OF_SCHEDULES
    | _hints(
        "deferred_until result_id result_ttl", 'app.using({0}=...).enqueue(actor, ...) and Job("name", {0}=...) have it'
    )
    | {"id_": "its id is message_id=...", "queue": "its queue is channel=..."}
)
"""Options by the thing that does not have them, with what does: one vocabulary has one hint for each word."""


def check_known(what: str, given: Iterable[str], known: Iterable[str], hints: Mapping[str, str] = NO_HINTS) -> None:
    """Raises `ConfigurationError` for the first given word that is not known, with the closest one that is.

    `hints`: for words that people take for options, what to do instead.
    """
    words = list(known)
    for word in given:
        if word in hints and word not in words:
            raise ConfigurationError(f"{what} has no option {word!r}: {hints[word]}")
        if word not in words:
            raise ConfigurationError(
                f"{what} has no option {word!r}{did_you_mean(word, words)}; the options are: {', '.join(sorted(words))}"
            )


def check_hook(name: str, value: Any, *arguments: str) -> None:
    """Raises `ConfigurationError` unless the value is a function, async or not, that takes these arguments and has no
    yield.
    """
    _check_takes(name, value, arguments, {})
    if any(yields(each) for yields in _GENERATORS for each in _forms(value)):
        raise ConfigurationError(f"{name} must return, not yield, but {_called(value)} is a generator function")


def check_function(name: str, value: Any, *arguments: str, **keywords: str) -> Any:
    """The value itself; raises `ConfigurationError` unless it is a plain function that takes these arguments."""
    _check_takes(name, value, arguments, keywords)
    if any(waits(each) for waits in (*_GENERATORS, inspect.iscoroutinefunction) for each in _forms(value)):
        raise ConfigurationError(
            f"{name} must be a plain function that returns its answer, but {_called(value)} does not"
        )
    return value


def check_middleware(name: str, value: Any, *arguments: str) -> Any:
    """The value itself; raises `ConfigurationError` unless it takes these arguments and may return something
    to await.
    """
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
                f"the middleware {_called(middleware)} returned {returned!r:.80}, which cannot be awaited: declare it "
                "with async def, or return what call_next returned"
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
        raise ConfigurationError(f"{name} must be callable, but is {brief(value)}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # of what is written in C there may be none
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        wanted = ", ".join([*arguments, *(f"{key}=" for key in keywords)])
        raise ConfigurationError(f"{name} is called with ({wanted}), but {_called(value)} cannot be: {error}") from None


def show_options(options: Mapping[str, object]) -> str:
    """Options as a call has them, for a repr."""
    return ", ".join(f"{name}={brief(value)}" for name, value in options.items())


def check_mapping(name: str, value: object) -> None:
    """Raises `ConfigurationError` unless the value is a mapping."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} must be a mapping, but is {brief(value)}")


def check_iterable(name: str, value: object) -> None:
    """Raises `ConfigurationError` unless the value can be iterated over, and is no text."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        wanted = (
            "read it before, [each async for each in ...]" if isinstance(value, AsyncIterable) else "put it into a list"
        )
        raise ConfigurationError(f"{name} must be a list of several, but is {brief(value)}: {wanted}")


def check_one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raises `ConfigurationError` unless the value is one of the known words."""
    words = list(known)
    if not isinstance(value, str) or value not in words:
        hint = did_you_mean(value, words) if isinstance(value, str) else ""
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, words))}, but is {brief(value)}{hint}")


def onion(
    innermost: Callable[..., Awaitable[Any]],
    middlewares: Sequence[Any],
    check: Callable[[str, tuple[Any, ...]], None] | None = None,
) -> Callable[..., Awaitable[Any]]:
    """The call with all middlewares around it, the first outermost. Each is called with the rest of the call first.

    `check` is called with the name of a middleware and what it gives to the rest of the call; it raises if that is
    wrong.
    """
    call = innermost
    for middleware in reversed(middlewares):
        call_next = call if check is None else _checked(call, partial(check, _called(middleware)))
        call = partial(awaiting(middleware), call_next)
    return call


def _checked(call: Callable[..., Awaitable[Any]], check: Callable[[tuple[Any, ...]], None]) -> Callable[..., Any]:
    def call_next(*given: Any) -> Awaitable[Any]:
        check(given)
        return call(*given)

    return call_next
