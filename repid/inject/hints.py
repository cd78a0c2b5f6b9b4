"""Annotations become types, one parameter at a time, so that an error can name the parameter."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from ..codec import JSON_CODEC
from ..errors import ConfigurationError
from .depends import Depends
from .markers import Header, Payload
from .message import Message
from .sync_message import SyncMessage

DECODED_TYPES = (dict, list, str, int, float, bool, type(None))
"""What JSON gives where nothing better is asked for. A class that is a base of one of these can be decoded to."""


class UnresolvedAnnotation(  # noqa: N818  named for what happened, like the errors in errors.py
    ConfigurationError
):
    """An annotation cannot be read: a name in it does not exist, or does not exist yet."""


class Names(msgspec.Struct, frozen=True):
    """What the names in a function's annotations mean: its globals, and over them its type parameters and
    local names.
    """

    globals: dict[str, Any]
    locals: dict[str, Any]

    def resolve(self, annotation: Any, where: str) -> Any:
        """The type an annotation stands for; strings in it are evaluated. `where` begins the error's text."""
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        try:
            return typing.get_type_hints(holder, self.globals, self.locals, include_extras=True)["it"]
        except NameError as error:
            raise UnresolvedAnnotation(
                f"{where}: the name {error.name!r} in its annotation cannot be found; names that are imported under "
                "TYPE_CHECKING only, or that a function defines after the actor, do not exist when the actor is "
                f"declared: define or import {error.name!r} at the top of the module"
            ) from error
        except Exception as error:
            raise UnresolvedAnnotation(f"{where}: its annotation {annotation!r} cannot be read: {error}") from error

    def hint_of(self, parameter: inspect.Parameter, where: str) -> Any:
        """The type a parameter is annotated with; `Any` without annotation."""
        return Any if parameter.annotation is parameter.empty else self.resolve(parameter.annotation, where)


def typed_dict(hints: dict[str, Any]) -> Any:
    """A type to which an object with these keys is decoded: as a plain dict with each value of its type."""
    return typing.TypedDict("Payload", hints)  # type: ignore[operator] # made at run time, from what was declared


def names_of(function: Callable[..., Any], local_names: Mapping[str, Any]) -> Names:
    """What the names in the annotations of `function` mean. Those of messages are known also where not imported."""
    plain = plain_function(function)
    known = getattr(plain, "__globals__", {})
    extra = dict(local_names) if "<locals>" in getattr(plain, "__qualname__", "") else {}
    extra |= {parameter.__name__: parameter for parameter in getattr(plain, "__type_params__", ())}
    messages = {"Message": Message, "SyncMessage": SyncMessage}
    for name, meaning in (*messages.items(), ("repid", types.SimpleNamespace(**messages))):
        if name not in known:
            extra.setdefault(name, meaning)
    return Names(known, extra)


def is_message(hint: Any) -> bool:
    """Whether the hint is `Message` or `SyncMessage`, or both, also with `None` and within `Annotated` or an alias."""
    return bool(_messages_in(hint))


def is_for_threads(hint: Any) -> bool:
    """Whether the hint is `SyncMessage`, and `Message` would not do."""
    return _messages_in(hint) == {SyncMessage}


def element_of(hint: Any) -> Any:
    """The type `T` of a hint that is `list[T]`, `Any` of a bare `list`, also within `Annotated` or an alias;
    else None.
    """
    hint = bare(hint)
    if hint is list:
        return Any
    return typing.get_args(hint)[0] if typing.get_origin(hint) is list else None


def _messages_in(hint: Any) -> set[Any]:
    """Which of `Message` and `SyncMessage` a hint consists of; an empty set if there is anything else in it."""
    hint = bare(hint)
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        members = [_messages_in(member) for member in typing.get_args(hint) if member is not type(None)]
        return set().union(*members) if all(members) else set()
    return {hint} if hint is Message or hint is SyncMessage else set()


MARKERS = (Depends, Header, Payload)
"""What says, within `Annotated`, where a parameter comes from."""


def marker_of(hint: Any, where: str) -> Depends | Header | Payload | None:
    """The `Depends`, `Header` or `Payload` that a hint bears. Raises `ConfigurationError` where it would mean
    nothing.
    """
    *outer, inner = _layers(hint)
    found = [each for layer in outer for each in getattr(layer, "__metadata__", ()) if isinstance(each, MARKERS)]
    mentioned = _mentioned(inner) or (None if found else _mentioned(hint))
    if len(found) > 1 or mentioned is not None:
        name = mentioned or type(found[0]).__name__
        raise ConfigurationError(
            f"{where}: its {name} cannot be read from {hint!r}: write Annotated[T, {EXAMPLES[name]}], with one "
            "of Depends, Header and Payload, and nothing around it"
        )
    return found[0] if found else None


EXAMPLES = {"Depends": "Depends(function)", "Header": "Header('name')", "Payload": "Payload()"}


def _mentioned(hint: Any, aliases: tuple[Any, ...] = ()) -> str | None:
    """The name of a marker, or of the bare class, anywhere in a hint. `aliases`: what it was reached through."""
    if isinstance(hint, MARKERS):
        return type(hint).__name__
    if any(hint is each for each in MARKERS):
        return str(hint.__name__)
    if _is_alias(hint):
        return None if hint in aliases else _mentioned(hint.__value__, (*aliases, hint))
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    return next((name for name in (_mentioned(part, aliases) for part in parts) if name is not None), None)


def _is_alias(hint: Any) -> bool:
    return type(hint).__name__ == "TypeAliasType"  # of Python 3.12


def bare(hint: Any) -> Any:
    """The hint without `Annotated`, `Final`, `Required`, `NotRequired`, and with type aliases followed."""
    *_, inner = _layers(hint)
    return inner


def _layers(hint: Any) -> Iterator[Any]:
    """The hint, and what is inside it when one wrapping after the other is taken off."""
    while True:
        yield hint
        origin = typing.get_origin(hint)
        if origin in {typing.Final, typing.Required, typing.NotRequired}:
            hint = typing.get_args(hint)[0]
        elif origin is typing.Annotated:
            hint = hint.__origin__
        elif _is_alias(hint):
            hint = hint.__value__
        else:
            return


def check_decodable(hint: Any, where: str) -> None:
    """Raise `ConfigurationError` unless JSON can be decoded to this type."""
    try:
        JSON_CODEC.bare_decoder(typed_dict({"it": hint}))
        parts = list(_parts(msgspec.inspect.type_info(hint), set()))
    except NameError as error:
        raise UnresolvedAnnotation(
            f"{where}: the name {error.name!r} in a field of {_show(hint)} cannot be found; it must exist at run time, "
            "at the top of the module of that class"
        ) from error
    except RecursionError:
        raise ConfigurationError(
            f"{where}: nothing can be decoded to its type {_show(hint)}, because an alias in it contains itself; make "
            "that alias a dataclass or a msgspec.Struct, which may contain themselves, or use typing.Any in its place"
        ) from None
    except Exception as error:
        raise ConfigurationError(f"{where}: nothing can be decoded to its type {_show(hint)}: {error}") from error
    _check_raw(parts, hint, where)
    foreign = next(_foreign_classes(parts), None)
    if foreign is not None:
        part = "" if foreign is bare(hint) else f"{foreign.__qualname__}, a part of "
        raise ConfigurationError(
            f"{where}: nothing can be decoded to {part}its type {_show(hint)}; make it a dataclass, a "
            "msgspec.Struct, a TypedDict or a builtin type"
        )


def _parts(node: object, seen: set[int]) -> Iterator[msgspec.inspect.Type]:
    """All types in a tree of `msgspec.inspect`."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, msgspec.inspect.Type):
        yield node
    if isinstance(node, (msgspec.inspect.Type, msgspec.inspect.Field)):
        for name in node.__struct_fields__:
            yield from _parts(getattr(node, name), seen)
    elif isinstance(node, tuple):
        for part in node:
            yield from _parts(part, seen)


def _foreign_classes(parts: Iterable[msgspec.inspect.Type]) -> Iterator[type]:
    """The classes that msgspec does not know and no decoded value can be one of."""
    for part in parts:
        if isinstance(part, msgspec.inspect.CustomType):
            cls = typing.get_origin(part.cls) or part.cls
            if not any(_is_subclass(decoded, cls) for decoded in DECODED_TYPES):
                yield cls


def _is_subclass(decoded: type, cls: type) -> bool:
    try:
        return issubclass(decoded, cls)
    except TypeError:  # a protocol that cannot be asked
        return False


def _check_raw(parts: Iterable[msgspec.inspect.Type], hint: Any, where: str) -> None:
    """Raise `ConfigurationError` for a `msgspec.Raw` where msgspec takes no value for one: in a union, and as a
    required key of a TypedDict.
    """
    for part in parts:
        if isinstance(part, msgspec.inspect.UnionType) and any(map(_is_raw, part.types)):
            raise ConfigurationError(
                f"{where}: its type {_show(hint)} has msgspec.Raw beside other types, but Raw takes any value, also "
                "null: leave the others out"
            )
        if isinstance(part, msgspec.inspect.TypedDictType):
            for field in part.fields:
                if field.required and _is_raw(field.type):
                    raise ConfigurationError(
                        f"{where}: nothing can be decoded to its type {_show(hint)}, in which the key {field.name!r} "
                        f"of {part.cls.__qualname__} is a msgspec.Raw: make that NotRequired[msgspec.Raw], or "
                        f"{part.cls.__qualname__} a msgspec.Struct"
                    )


def _is_raw(part: object) -> bool:
    return isinstance(part, msgspec.inspect.RawType)


def plain_function(function: Any) -> Any:
    """The function written with `def` that is inside wrappers, partials, bound methods and callable objects."""
    while not inspect.isfunction(function):
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif hasattr(function, "__func__"):
            function = function.__func__
        elif isinstance(function, type):
            function = function.__init__  # type: ignore[misc] # it is only looked at
        elif inspect.isfunction(type(function).__call__):
            function = type(function).__call__
        else:
            return function
    return inspect.unwrap(function)


def _show(hint: Any) -> str:
    return hint.__qualname__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
