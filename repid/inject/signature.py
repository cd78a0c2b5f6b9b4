"""What a function asks for: parameters from the payload, dependencies, the message, the rest of the payload."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from inspect import Parameter as P  # noqa: N817 (its constants are all that is used)
from typing import Any

import msgspec

from ..errors import ConfigurationError
from .constraints import translate_constraints
from .depends import Depends, Kind, kind_of
from .hints import check_decodable, dependency_of, is_for_threads, is_message, names_of, plain_function

NO_REST: Any = object()
"""In place of a type: the function has no `**kwargs`."""


class Field(msgspec.Struct, frozen=True):
    """One parameter that the payload fills. Not `required`: it has a default, which Python applies by itself."""

    name: str
    hint: Any
    required: bool


class Signature(msgspec.Struct, frozen=True):
    """What a function asks for. `function` is its name, for texts.

    `rest`: the type of each value in its `**kwargs`, or `NO_REST`. The payload never fills what is `reserved`: the
    message, dependencies, and what is bound already (by a partial, or as a method's self).
    """

    function: str
    fields: tuple[Field, ...]
    messages: tuple[str, ...]
    dependencies: tuple[tuple[str, Depends], ...]
    rest: Any
    reserved: frozenset[str]


def read_signature(function: Callable[..., Any], local_names: Mapping[str, Any]) -> Signature:
    """What the function asks for. Raises `ConfigurationError` naming function, parameter and what is wrong.

    `local_names`: what names in its annotations mean that are local to the functions around it. What a `functools.partial` has bound is settled: the payload does not touch it.
    """
    name = name_of(function)
    names = names_of(function, local_names)
    fields: list[Field] = []
    messages: list[str] = []
    dependencies: list[tuple[str, Depends]] = []
    rest = NO_REST
    for parameter in open_parameters(function, name):
        where = f"parameter {parameter.name!r} of {name}()"
        check_default(parameter, where)
        check_by_name(parameter, where)
        hint = names.hint_of(parameter, where)
        depends = dependency_of(hint, where)
        if depends is not None:
            _check_one(parameter, where)
            dependencies.append((parameter.name, depends))
            continue
        if is_message(hint) and parameter.kind is not P.VAR_KEYWORD:
            if kind_of(function) in {Kind.ASYNC, Kind.ASYNC_GENERATOR}:
                check_on_the_loop(hint, where)
            messages.append(parameter.name)
            continue
        hint = translate_constraints(hint, where)
        check_decodable(hint, where)
        if parameter.kind is P.VAR_KEYWORD:
            rest = hint
        else:
            fields.append(Field(parameter.name, hint, required=parameter.default is P.empty))
    bound = function.keywords if isinstance(function, functools.partial) else {}
    reserved = _keywords(plain_function(function)).difference(field.name for field in fields)
    reserved = reserved.union(bound, messages)
    return Signature(name, tuple(fields), tuple(messages), tuple(dependencies), rest, reserved)


def name_of(function: Callable[..., Any]) -> str:
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
    """The parameters of a function but for those that a partial has bound by name."""
    try:
        if sys.version_info >= (3, 14):  # unknown names stay in the annotations and are reported one by one
            import annotationlib  # noqa: PLC0415 (is not there before)

            signature = inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
        else:
            signature = inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{name}() has no signature that can be read: wrap it in a function: {error}"
        ) from error
    bound = function.keywords if isinstance(function, functools.partial) else {}
    return [each for each in signature.parameters.values() if each.name not in bound or each.kind is P.VAR_KEYWORD]


def check_default(parameter: inspect.Parameter, where: str) -> None:
    """Raise `ConfigurationError` if a `Depends` stands where a default does."""
    if isinstance(parameter.default, Depends) or parameter.default is Depends:
        raise ConfigurationError(
            f"{where} has a Depends as its default: write {parameter.name}: Annotated[T, Depends(function)] instead"
        )


def check_by_name(parameter: inspect.Parameter, where: str) -> None:
    """Raise `ConfigurationError` if a parameter cannot be filled by its name."""
    if parameter.kind is P.POSITIONAL_ONLY:
        raise ConfigurationError(f"{where} is positional-only, but parameters are filled by name: remove the '/'")
    if parameter.kind is P.VAR_POSITIONAL:
        raise ConfigurationError(
            f"{where} takes positional arguments, but parameters are filled by name: "
            f"replace '*{parameter.name}' by a parameter that is a list, or by '*' alone"
        )


def check_on_the_loop(hint: Any, where: str) -> None:
    """Raise `ConfigurationError` if the parameter of a function that runs on the event loop is a `SyncMessage`."""
    if is_for_threads(hint):
        raise ConfigurationError(
            f"{where} is a SyncMessage, whose verbs block, but the function runs on the event loop: "
            "annotate it with Message, and await the verbs"
        )


def _check_one(parameter: inspect.Parameter, where: str) -> None:
    if parameter.kind is P.VAR_KEYWORD:
        raise ConfigurationError(
            f"{where} takes the rest of the payload, but a Depends gives one value: use a parameter without '**'"
        )
