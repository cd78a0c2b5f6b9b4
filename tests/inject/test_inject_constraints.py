"""Constraints in annotations are checked with the payload, or refused when the actor is declared; never passed over."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import annotated_types as at
import msgspec
import pydantic
import pytest

from repid.envelope import Envelope
from repid.errors import ConfigurationError, PayloadError
from repid.inject import compile_plan

Number = Annotated[int, at.Gt(0)]


def function_of(hint: Any) -> Any:
    def actor(x: Any) -> None: ...

    actor.__annotations__["x"] = hint
    return actor


@pytest.mark.parametrize(
    ("hint", "good", "bad", "path"),
    [
        (Number, 1, 0, "$.x"),
        (Annotated[int, at.Ge(1), at.Lt(5)], 4, 5, "$.x"),
        (Annotated[float, at.Le(1.5)], 1.5, 2.0, "$.x"),
        (Annotated[int, at.MultipleOf(3)], 6, 7, "$.x"),
        (Annotated[int, at.Interval(gt=1, le=3)], 3, 1, "$.x"),
        (Annotated[str, at.Len(2, 3)], "ab", "a", "$.x"),
        (Annotated[str, at.MinLen(1)], "a", "", "$.x"),
        (Annotated[list[int], at.MaxLen(1)], [1], [1, 2], "$.x"),
        (Annotated[int, "a note", at.Gt(0), at.doc("what it is")], 1, 0, "$.x"),
        (list[Number], [1], [1, 0], "$.x[1]"),
        (dict[str, list[Number]], {"a": [1]}, {"a": [0]}, "$.x.a[0]"),
        (Number | None, 1, 0, "$.x"),
        (tuple[str, Number], ["a", 1], ["a", 0], "$.x[1]"),
        (Annotated[dt.datetime, at.Timezone(...)], "2026-01-02T03:04:05Z", "2026-01-02T03:04:05", "$.x"),
        (Annotated[int, pydantic.Field(gt=0)], 1, 0, "$.x"),
        (Annotated[int, msgspec.Meta(gt=0)], 1, 0, "$.x"),
    ],
    ids=str,
)
def test_a_constraint_is_checked_with_the_payload(hint: Any, good: Any, bad: Any, path: str) -> None:
    bind = compile_plan(function_of(hint)).bind

    def call(value: Any) -> Any:
        return bind(Envelope("1", "q", msgspec.json.encode({"x": value}), "application/json"), None)["x"]

    assert msgspec.to_builtins(call(good)) == msgspec.to_builtins(msgspec.convert(good, hint))
    with pytest.raises(PayloadError) as raised:
        call(bad)
    assert [where for where, _ in raised.value.faults] == [path]


class Struct(msgspec.Struct):
    number: Annotated[int, at.Gt(0)]


@dataclass
class Outer:
    inner: list[Struct]


class Typed(TypedDict):
    number: Annotated[int, at.Gt(0)]


class Fine(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(gt=0)]
    other: Fine | None = None


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (Annotated[int, at.Predicate(bool)], "its constraint Predicate"),
        (list[Annotated[int, at.Predicate(bool)]], "its constraint Predicate"),
        (Annotated[dt.date, at.Gt(dt.date(2026, 1, 1))], "its constraint Gt(gt=datetime.date(2026, 1, 1))"),
        (Annotated[dt.datetime, at.Timezone("UTC")], "its constraint Timezone"),
        (Annotated[str, pydantic.Field(pattern="a")], "its constraint "),
        (Struct, "the field 'number' of Struct: its constraint Gt(gt=0) would not be checked"),
        (list[Struct], "the field 'number' of Struct: its constraint Gt(gt=0) would not be checked"),
        (Outer, "the field 'number' of Struct"),
        (Typed, "the field 'number' of Typed"),
        (Annotated[str, at.Gt(0)], "nothing can be decoded to its type"),
    ],
    ids=str,
)
def test_a_constraint_that_cannot_be_checked_is_refused(hint: Any, told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        compile_plan(function_of(hint))
    assert str(raised.value).startswith("parameter 'x' of ")
    assert told in str(raised.value)


def test_msgspec_s_own_constraints_may_stand_in_fields() -> None:
    compile_plan(function_of(Fine))
