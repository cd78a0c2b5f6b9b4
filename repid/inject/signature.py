"""What a function asks for: parameters from the payload, dependencies, the message, the rest of the payload."""

from __future__ import annotations

import functools
import inspect
import operator
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter as P  # noqa: N817  its constants are all that is used
from typing import Any

import msgspec

from ..errors import ConfigurationError
from ..results import ANYTHING, Unreadable
from .constraints import translate_constraints
from .depends import Depends, Kind, kind_of
from .hints import (
    EXAMPLES,
    MARKERS,
    Names,
    bare,
    check_decodable,
    element_of,
    is_for_threads,
    is_message,
    marker_of,
    names_of,
    plain_function,
)
from .injected import INJECTED
from .markers import Header, Payload
from .reading import Reader

NO_REST: Any = object()
"""In place of a type: the function has no `**kwargs`."""


class Field(msgspec.Struct, frozen=True):
    """One parameter that the payload fills. Not `required`: it has a default, which Python applies by itself."""

    name: str
    hint: Any
    required: bool


class Signature(msgspec.Struct, frozen=True):
    """What a function asks for. `function` is its name, for texts.

    `headers`: what is read from headers. `rest`: the type of each value in its `**kwargs`, or `NO_REST`. The payload
    never fills what is `reserved`: the message, dependencies, and what is bound already (by a partial, or as a method's
    self). `returns`: the type that it is annotated to return, or why that cannot be read (`Unreadable`).
    """

    function: str
    fields: tuple[Field, ...]
    messages: tuple[str, ...]
    dependencies: tuple[tuple[str, Depends], ...]
    headers: tuple[Reader, ...]
    rest: Any
    reserved: frozenset[str]
    returns: Any


def read_signature(
    function: Callable[..., Any], local_names: Mapping[str, Any], *, of_batch: bool = False
) -> Signature:
    """What the function asks for. Raises `ConfigurationError` naming function, parameter and what is wrong.

    `of_batch`: its one payload parameter is a list, and the field has the type of an element; messages come as a list,
    too. `local_names`: what names in its annotations mean that are local to the functions around it. What a
    `functools.partial` has bound is settled: the payload does not touch it.
    """
    name = qualified_name_of(function)
    names = names_of(function, local_names)
    fields: list[Field] = []
    messages: list[str] = []
    dependencies: list[tuple[str, Depends]] = []
    headers: list[Reader] = []
    rest = NO_REST
    for parameter in open_parameters(function, name):
        where = f"parameter {parameter.name!r} of {name}()"
        check_default(parameter, where)
        check_by_name(parameter, where)
        hint = names.hint_of(parameter, where)
        marker = marker_of(hint, where)
        if marker is not None:
            _check_one(parameter, where, type(marker).__name__)
        if isinstance(marker, Depends):
            dependencies.append((parameter.name, marker))
            continue
        if isinstance(marker, Header):
            headers.append(Reader(parameter, marker, hint, where))
            continue
        if isinstance(marker, Payload):
            raise ConfigurationError(
                f"{where} has a Payload, but what an actor is given comes from the payload anyway: leave it out; it is "
                "for the parameters of dependencies"
            )
        element = element_of(hint)
        if is_message(element if of_batch else hint) and parameter.kind is not P.VAR_KEYWORD:
            if kind_of(function) in {Kind.ASYNC, Kind.ASYNC_GENERATOR}:
                check_on_the_loop(element if of_batch else hint, where)
            messages.append(parameter.name)
            continue
        if not is_message(hint if of_batch else element):  # else what is wrong is how many messages it asks for
            check_is_injected(parameter, where)
        if of_batch or is_message(element):
            hint = _element_of_batch(parameter, hint, where, of_batch=of_batch)
        hint = translate_constraints(hint, where)
        check_decodable(hint, where)
        if parameter.kind is P.VAR_KEYWORD:
            rest = hint
        else:
            fields.append(Field(parameter.name, hint, required=parameter.default is P.empty))
    bound = function.keywords if isinstance(function, functools.partial) else {}
    reserved = _keywords(plain_function(function)).difference(field.name for field in fields)
    reserved = reserved.union(bound, messages)
    returns = _returned(function, name, names)
    if of_batch:
        _check_one_list(name, fields, headers)
        returns = _result_of_one(returns)
    return Signature(name, tuple(fields), tuple(messages), tuple(dependencies), tuple(headers), rest, reserved, returns)


def _check_one_list(name: str, fields: Sequence[Field], headers: Sequence[Reader]) -> None:
    if headers:
        raise ConfigurationError(
            f"parameter {headers[0].parameter!r} of {name}() is read from a header, of which each message of a batch "
            "has its own: take the messages, as messages: list[Message], and read their headers"
        )
    if len(fields) != 1:
        has = ", ".join(repr(field.name) for field in fields) or "none"
        raise ConfigurationError(
            f"{name}() is given batches, so it must have one parameter that is a list, with an element for each "
            f"message, but it has {len(fields) or ''}{': ' if fields else ''}{has}"
        )


def _element_of_batch(parameter: inspect.Parameter, hint: Any, where: str, *, of_batch: bool) -> Any:
    """The type of an element of the list that a batch actor is given. Raises `ConfigurationError` if there is none."""
    if not of_batch:
        raise ConfigurationError(
            f"{where} is a list of messages, but only an actor that is declared with batch=... is given several at "
            "once: annotate it with Message"
        )
    if is_message(hint):
        kind = bare(hint).__name__ if isinstance(bare(hint), type) else "Message"
        raise ConfigurationError(f"{where} is one message, but a batch has many: annotate it with list[{kind}]")
    element = element_of(hint)
    if element is None or parameter.kind is P.VAR_KEYWORD:
        raise ConfigurationError(
            f"{where} is filled with one element for each message of a batch: annotate it as a list of them, as in "
            f"{parameter.name}: list[Row], where a payload is a Row"
        )
    return element


def _result_of_one(returns: Any) -> Any:
    """The type of the result of each message, where a batch actor returns a list of them and of exceptions."""
    if returns is ANYTHING or isinstance(returns, Unreadable):
        return returns
    returns = bare(returns)
    if returns is type(None):
        return returns
    if typing.get_origin(returns) not in {list, tuple, Sequence}:
        return ANYTHING
    element = typing.get_args(returns)[0]
    if typing.get_origin(element) in {typing.Union, types.UnionType}:
        values = [each for each in typing.get_args(element) if not _is_exception(each)]
        return functools.reduce(operator.or_, values) if values else ANYTHING
    return ANYTHING if _is_exception(element) else element


def _is_exception(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, BaseException)


def _returned(function: Callable[..., Any], name: str, names: Names) -> Any:
    """What it is annotated to return. Nothing but a typed result needs it, so one that cannot be read is no error."""
    annotation = _signature_of(function).return_annotation
    if annotation is inspect.Signature.empty:
        return ANYTHING
    try:
        return names.resolve(annotation, f"the result of {name}()")
    except ConfigurationError as error:
        return Unreadable(str(error))


def qualified_name_of(function: Callable[..., Any]) -> str:
    """The qualified name of a function, of what a partial wraps, or of a callable object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name).replace("<locals>.", "")


def _keywords(function: Any) -> frozenset[str]:
    """The names by which a function can be given arguments."""
    parameters = inspect.signature(function).parameters.values() if inspect.isfunction(function) else ()
    return frozenset(each.name for each in parameters if each.kind in {P.POSITIONAL_OR_KEYWORD, P.KEYWORD_ONLY})


def open_parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    """The parameters of a function except those that a partial has bound by name. Raises `ConfigurationError` where
    they cannot be read, or cannot be filled by name.
    """
    check_takes_names(function, f"{name}()")
    try:
        signature = _signature_of(function)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{name}() has no signature that can be read: wrap it in a function: {error}"
        ) from error
    bound = function.keywords if isinstance(function, functools.partial) else {}
    return [each for each in signature.parameters.values() if each.name not in bound or each.kind is P.VAR_KEYWORD]


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # unknown names stay in the annotations and are reported one by one
        import annotationlib  # noqa: PLC0415  is not there before

        return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(function)


def check_is_injected(parameter: inspect.Parameter, where: str) -> None:
    """Raise `ConfigurationError` if a parameter that nobody injects has the default of those that are."""
    if parameter.default is INJECTED:
        raise ConfigurationError(
            f"{where} has the default INJECTED, but no worker fills it: annotate it with Message or with "
            "Annotated[T, Depends(function)], or give it another default"
        )


def check_default(parameter: inspect.Parameter, where: str) -> None:
    """Raise `ConfigurationError` if a `Depends`, `Header` or `Payload` stands where a default does."""
    default = parameter.default
    marker = type(default) if isinstance(default, MARKERS) else default
    if isinstance(marker, type) and marker in MARKERS:
        name = marker.__name__
        raise ConfigurationError(
            f"{where} has a {name} as its default: write {parameter.name}: Annotated[T, {EXAMPLES[name]}] instead"
        )


def check_takes_names(function: Callable[..., Any], what: str) -> None:
    """Raise `ConfigurationError` for a function of `functools.singledispatch`, which takes arguments by position."""
    home = getattr(function, "__globals__", {}).get("__name__") or type(function).__module__
    if home == "functools" and callable(getattr(function, "register", None)):
        raise ConfigurationError(
            f"{what} is a function of functools.singledispatch, which chooses by the first argument without a name, "
            "but parameters are filled by name: declare a function that calls it"
        )


def check_by_name(parameter: inspect.Parameter, where: str) -> None:
    """Raise `ConfigurationError` if a parameter cannot be filled by its name."""
    if parameter.kind is P.POSITIONAL_ONLY:
        raise ConfigurationError(
            f"{where} is positional-only, but parameters are filled by name: remove the '/', or declare a function "
            "that calls it"
        )
    if parameter.kind is P.VAR_POSITIONAL:
        raise ConfigurationError(
            f"{where} takes positional arguments, but parameters are filled by name: "
            f"replace '*{parameter.name}' by a parameter that is a list, or by '*' alone; in a decorator put "
            "@functools.wraps(function) on the wrapper, which then has the parameters of what it wraps"
        )


def check_on_the_loop(hint: Any, where: str) -> None:
    """Raise `ConfigurationError` if the parameter of a function that runs on the event loop is a `SyncMessage`."""
    if is_for_threads(hint):
        raise ConfigurationError(
            f"{where} is a SyncMessage, whose verbs block, but the function runs on the event loop: "
            "annotate it with Message, and await the verbs"
        )


def _check_one(parameter: inspect.Parameter, where: str, marker: str) -> None:
    if parameter.kind is P.VAR_KEYWORD:
        raise ConfigurationError(
            f"{where} takes the rest of the payload, but a {marker} gives one value: use a parameter without '**'"
        )
