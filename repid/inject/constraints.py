"""Constraints in annotations: those of `annotated_types` become msgspec's, so that they are checked with the payload.

msgspec checks its own `msgspec.Meta` and passes over any other metadata, as Python asks of tools that do not know it.
To the author of `Annotated[int, Gt(0)]` that is a check that never happens, so a constraint that cannot be translated,
or stands where it cannot be (in a field of a class, which msgspec reads by itself), is refused when the actor is
declared. Neither library is imported: the constraints are known by their modules and names.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from ..errors import ConfigurationError
from ..names import brief

_LIBRARIES = frozenset({"annotated_types", "pydantic", "pydantic_core"})
_OPTIONS = {
    "Gt": ("gt", "gt"),
    "Ge": ("ge", "ge"),
    "Lt": ("lt", "lt"),
    "Le": ("le", "le"),
    "MultipleOf": ("multiple_of", "multiple_of"),
    "MinLen": ("min_length", "min_length"),
    "MaxLen": ("max_length", "max_length"),
}
"""From a class of annotated_types to its attribute and the option of `msgspec.Meta`."""

_INFORMATION = frozenset({"Unit", "DocInfo"})


def translate_constraints(hint: Any, where: str) -> Any:
    """The hint with the constraints that msgspec can check as `msgspec.Meta`. Raises `ConfigurationError` for others.

    `where` begins the error's text.
    """
    return _translated(hint, where, ())


def _translated(hint: Any, where: str, aliases: tuple[Any, ...]) -> Any:
    """`aliases`: those that the hint is within. One that contains itself is left as it is."""
    if type(hint).__name__ == "TypeAliasType":  # of Python 3.12
        value = hint.__value__
        inner = value if hint in aliases else _translated(value, where, (*aliases, hint))
        return hint if inner is value else inner
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        base = _translated(hint.__origin__, where, aliases)
        metadata = tuple(new for old in hint.__metadata__ for new in _translate(old, where))
        is_same = base is hint.__origin__ and metadata == hint.__metadata__
        return hint if is_same else Annotated[(base, *metadata)]
    _check_fields(origin or hint, where, set())
    if not parts or origin is typing.Literal:
        return hint
    translated = tuple(_translated(part, where, aliases) for part in parts)
    if all(new is old for new, old in zip(translated, parts, strict=True)):
        return hint
    if origin in {typing.Union, types.UnionType}:
        return typing.Union[translated]  # noqa: UP007  made at run time
    return hint.copy_with(translated) if hasattr(hint, "copy_with") else origin[translated]


def _translate(one: Any, where: str) -> Iterator[Any]:
    """What stands for one piece of metadata: itself, unless it is a constraint of another library than msgspec."""
    if not _is_foreign(one):
        yield one
        return
    name = type(one).__name__
    if name in _INFORMATION:
        return
    if name == "FieldInfo":  # of pydantic, which holds constraints
        yield from (new for each in one.metadata for new in _translate(each, where))
    elif name in _OPTIONS:
        attribute, option = _OPTIONS[name]
        yield _meta(one, option, getattr(one, attribute), where)
    elif name == "Timezone" and one.tz in {None, ...}:
        yield msgspec.Meta(tz=one.tz is ...)
    elif hasattr(type(one), "__iter__"):  # a group, such as Len and Interval
        yield from (new for each in one for new in _translate(each, where))
    else:
        raise _refusal(one, where)


def _meta(constraint: Any, option: str, value: Any, where: str) -> msgspec.Meta:
    try:
        return msgspec.Meta(**{option: value})
    except (TypeError, ValueError):
        raise _refusal(constraint, where) from None


def _check_fields(hint: Any, where: str, seen: set[Any]) -> None:
    """Raise `ConfigurationError` for a foreign constraint in a field of a class, of its classes and so on."""
    if not isinstance(hint, type) or hint in seen or hint.__module__ == "builtins":
        return
    seen.add(hint)
    try:
        fields = typing.get_type_hints(hint, include_extras=True)
    except Exception:  # noqa: BLE001  whether it can be decoded to is found elsewhere
        return
    for name, field in fields.items():
        for part in _parts_of(field):
            if _is_foreign(part) and type(part).__name__ not in _INFORMATION:
                raise _refusal(part, f"{where}: the field {name!r} of {hint.__qualname__}")
            _check_fields(part, where, seen)


def _parts_of(hint: Any) -> Iterator[Any]:
    yield hint
    for part in (*typing.get_args(hint), *([typing.get_origin(hint)] if typing.get_origin(hint) else [])):
        yield from _parts_of(part)


def _is_foreign(metadata: Any) -> bool:
    is_class = isinstance(metadata, type)
    return not is_class and type(metadata).__module__.partition(".")[0] in _LIBRARIES


def _refusal(constraint: Any, where: str) -> ConfigurationError:
    return ConfigurationError(
        f"{where}: its constraint {brief(constraint)} would not be checked: write it as msgspec.Meta(...), or check it "
        "in the function"
    )
