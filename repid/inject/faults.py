"""The slow path: everything that is wrong with a payload, each fault with its path.

It decodes again what the fast path could not, field by field, with the same decoders on the same bytes, so both
always agree. Where it does not look inside (unions, custom types, very deep or generic ones) or finds nothing wrong
inside, msgspec's own text stands, at that path.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import inspect as known

from ..codec import Codec, fault_of, path_to
from ..errors import did_you_mean
from .hints import bare
from .signature import NO_REST

Fault: TypeAlias = tuple[str, str]
"""Where (a path that starts at `$`) and what."""

T = TypeVar("T")

MOST_FAULTS = 100
"""Faults listed at most: a list of a million wrong elements must not become a text of a million lines."""

MOST_COMPARED = 20
"""Unknown fields of one object that are compared with a missing one: each comparison takes some microseconds."""

DEEPEST = 32
"""Levels looked into: each costs another decoding of what is below it."""

MISSING = "required, but missing"


class Shape(msgspec.Struct, frozen=True):
    """An object as the slow path sees it: each key with its type and whether it must be there.

    `rest` is the type of the values of all other keys, except the `reserved` ones; `NO_REST`: they do not matter.
    `strict`: what is neither a field nor part of the rest is a fault.
    """

    fields: Mapping[str, tuple[Any, bool]]
    rest: Any = NO_REST
    reserved: frozenset[str] = frozenset()
    strict: bool = False


def find_faults(codec: Codec, payload: bytes, shape: Shape, error: Exception) -> list[Fault]:
    """Everything wrong with a payload that should be an object of this shape; never empty, never raises.

    `error` is what the fast path raised; it stands where the search finds nothing. Bytes that cannot be decoded at
    all are one fault.
    """

    def look(search: _Search) -> Fault | None:
        fault = _not_an_object(codec, payload)
        if fault is None:
            search.look_into_object("$", shape, payload, 0)
        return fault

    return _find(codec, payload, look, error)


def find_faults_of_value(codec: Codec, payload: bytes, hint: Any, error: Exception) -> list[Fault]:
    """As `find_faults`, for a payload that should be a value of this type."""
    return _find(codec, payload, lambda search: search.look_at("$", hint, payload, 0), error)


def _find(codec: Codec, payload: bytes, look: Callable[[_Search], Fault | None], error: Exception) -> list[Fault]:
    search = _Search(codec)
    try:
        fault = _undecodable(codec, payload) or look(search)
        if fault is not None:
            return [fault]
    except Exception:  # noqa: BLE001  whatever happens in the search, the payload did not fit before it
        return [*search.faults, fault_of(error, payload)]
    if len(search.faults) >= MOST_FAULTS:
        search.faults.append(("$", f"there may be more: the search ends after {MOST_FAULTS} faults"))
    return search.faults or [fault_of(error, payload)]


def _undecodable(codec: Codec, payload: bytes) -> Fault | None:
    try:
        codec.bare_decoder(Any)(payload)
    except msgspec.ValidationError:  # well-formed, with a number too large for anything: the search finds its path
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return fault_of(error, payload)
    return None


def _not_an_object(codec: Codec, payload: bytes) -> Fault | None:
    try:
        codec.bare_decoder(dict[str, msgspec.Raw])(payload)
    except msgspec.ValidationError as error:
        path, text = fault_of(error)
        return path, f"the payload must be an object with the names of parameters as its keys: {text}"
    return None


class _Search:
    """One search through one payload; what it finds is added to `faults`."""

    def __init__(self, codec: Codec) -> None:
        self.faults: list[Fault] = []
        self._codec = codec
        self._memory: dict[tuple[object, int], tuple[Any, Any]] = {}

    def look_at(self, path: str, hint: Any, raw: Any, depth: int) -> None:
        """Find what is wrong with `raw` as a value of type `hint`."""
        if len(self.faults) >= MOST_FAULTS:
            return
        try:
            self._once(self._codec.bare_decoder, hint)(raw)
        except Exception as error:  # noqa: BLE001  a class's own __post_init__ may raise anything
            before = len(self.faults)
            look = self._once(_way_inside, hint) if depth < DEEPEST else None
            if look is not None:
                look(self, path, raw, depth + 1)
            if len(self.faults) == before:
                inner_path, text = fault_of(error, bytes(raw))
                self._add(path + inner_path.removeprefix("$"), text)

    def look_into_object(self, path: str, shape: Shape, raw: Any, depth: int) -> None:
        """Find what is wrong with the fields of `raw`."""
        parts = self._parts(dict[str, msgspec.Raw], raw)
        if parts is None:
            return
        for key, (hint, required) in shape.fields.items():
            if key in parts:
                self.look_at(path_to(path, key), hint, parts[key], depth)
            elif required:
                self._add(path_to(path, key), f"{MISSING}{_similar(key, parts, shape)}")
        if shape.rest is NO_REST and not shape.strict:
            return
        for key in [key for key in parts if key not in shape.fields]:
            if shape.rest is not NO_REST and key not in shape.reserved:
                self.look_at(path_to(path, key), shape.rest, parts[key], depth)
            elif shape.strict and len(self.faults) < MOST_FAULTS:
                self._add(path_to(path, key), f"unknown field{did_you_mean(key[:80], shape.fields)}")

    def look_into_array(self, path: str, hints: Any, raw: Any, depth: int) -> None:
        """Find what is wrong with the elements of `raw`; `hints` is one type for all, or a tuple of one for each."""
        parts = self._parts(list[msgspec.Raw], raw)
        if parts is None or (isinstance(hints, tuple) and len(hints) != len(parts)):
            return
        for index, part in enumerate(parts):
            self.look_at(f"{path}[{index}]", hints[index] if isinstance(hints, tuple) else hints, part, depth)

    def look_into_mapping(self, path: str, key_hint: Any, value_hint: Any, raw: Any, depth: int) -> None:
        """Find what is wrong with the values of `raw`, and the first wrong one of its keys."""
        parts = self._parts(dict[Any, msgspec.Raw], raw)
        if parts is None:
            return
        for key, part in parts.items():
            self.look_at(path_to(path, key), value_hint, part, depth)
        self.look_at(path, dict[key_hint, msgspec.Raw], raw, DEEPEST)

    def _add(self, path: str, text: str) -> None:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append((path, text))

    def _parts(self, type_: type[T], raw: Any) -> T | None:
        """The parts of `raw`, undecoded; None if it is not of that kind, which is a fault of `raw` itself."""
        try:
            return typing.cast("T", self._codec.bare_decoder(type_)(raw))
        except msgspec.DecodeError:
            return None

    def _once(self, make: Callable[[Any], T], hint: Any) -> T:
        """`make(hint)`, made once: all elements of a list share a decoder."""
        key = (make, id(hint))
        if key not in self._memory:
            self._memory[key] = (hint, make(hint))  # the hint is kept alive, so its id stays its own
        return typing.cast("T", self._memory[key][1])


class _Look(Protocol):
    def __call__(self, search: _Search, path: str, raw: Any, depth: int, /) -> None: ...


def _way_inside(hint: Any) -> _Look | None:
    """How to look into a value of this type; None: not at all."""
    hint = bare(hint)
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        return _way_inside(members[0]) if len(members) == 1 else None
    info = known.type_info(hint)
    hints = typing.get_args(hint)
    shape = _shape_of(hint, info)
    if shape is not None:
        return lambda search, path, raw, depth: search.look_into_object(path, shape, raw, depth)
    if isinstance(info, (known.ListType, known.SetType, known.FrozenSetType, known.VarTupleType)) and hints:
        return lambda search, path, raw, depth: search.look_into_array(path, hints[0], raw, depth)
    if isinstance(info, known.TupleType) and len(hints) == len(info.item_types):
        return lambda search, path, raw, depth: search.look_into_array(path, hints, raw, depth)
    if isinstance(info, known.DictType) and len(hints) == 2:
        return lambda search, path, raw, depth: search.look_into_mapping(path, *hints, raw, depth)
    return None


def _shape_of(hint: Any, info: known.Type) -> Shape | None:
    """The shape of a struct, dataclass, attrs class or typed dict: names from msgspec, types as they were written."""
    if isinstance(info, known.StructType) and not info.array_like:
        hints = {field.name: field.type for field in msgspec.structs.fields(hint)}
        fields = {field.encode_name: (hints[field.name], field.required) for field in info.fields}
        if info.tag_field is not None:
            fields = {info.tag_field: (Literal[info.tag], False), **fields}
        return Shape(fields, strict=info.forbid_unknown_fields)
    if isinstance(info, (known.DataclassType, known.TypedDictType)) and not typing.get_args(hint):
        known_fields = {field.name: field for field in info.fields}
        hints = typing.get_type_hints(hint, include_extras=True)
        found = ((known_fields[name], _type_in(type_)) for name, type_ in hints.items() if name in known_fields)
        return Shape({field.encode_name: (type_, field.required) for field, type_ in found})
    return None


def _type_in(hint: Any) -> Any:
    """The type of a typed dict's field, which may be wrapped in words about the field itself."""
    while typing.get_origin(hint) in {typing.Required, typing.NotRequired}:
        hint = typing.get_args(hint)[0]
    return hint


def _similar(key: str, given: Iterable[str], shape: Shape) -> str:
    """` (there is 'adress')` where the missing field was perhaps misspelt, else an empty string."""
    if shape.strict or shape.rest is not NO_REST:
        return ""  # the unknown field is told by itself, or has a place
    from difflib import get_close_matches  # noqa: PLC0415  needed only where something is wrong

    unknown = (name[:80] for name in given if name not in shape.fields)
    close = get_close_matches(key, islice(unknown, MOST_COMPARED), n=1)
    return f" (there is {close[0]!r})" if close else ""
