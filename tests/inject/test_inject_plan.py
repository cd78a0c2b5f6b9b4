"""What a payload becomes: the fast path and its rules."""

from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repid.codec import JSON_CODEC, MESSAGE_PACK_CODEC
from repid.envelope import Envelope
from repid.errors import ConfigurationError, PayloadError
from repid.inject import Message, Plan, compile_plan

MESSAGE: Any = object()
"""Stands for a message: binding hands it on and never looks at it."""

both = pytest.mark.parametrize(
    ("encode", "content_type"),
    [(JSON_CODEC.encode, "application/json"), (MESSAGE_PACK_CODEC.encode, "application/msgpack")],
    ids=["JSON", "MessagePack"],
)


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclass
class Line:
    start: Point
    end: Point


def send(plan: Plan, payload: bytes, content_type: str | None = "application/json") -> dict[str, Any]:
    return plan.bind(Envelope("1", "q", payload, content_type), MESSAGE)


def faults_of(plan: Plan, payload: bytes, content_type: str | None = "application/json") -> tuple[tuple[str, str], ...]:
    with pytest.raises(PayloadError) as caught:
        send(plan, payload, content_type)
    return caught.value.faults


@both
def test_fields_fill_the_parameters_of_their_names_with_values_of_their_types(encode: Any, content_type: Any) -> None:
    def actor(count: int, *, line: Line, tags: set[str]) -> None: ...

    payload = encode({"tags": ["a"], "line": {"start": {"x": 1}, "end": {"x": 2, "y": 3}}, "count": 5})
    expected = {"count": 5, "line": Line(Point(1), Point(2, 3)), "tags": {"a"}}
    assert send(compile_plan(actor), payload, content_type) == expected


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "APPLICATION/JSON; charset=utf-8", "application/vnd.x+json"]
)
def test_json_comes_under_all_its_names(content_type: Any) -> None:
    def actor(a: int, message: Message) -> None: ...

    assert send(compile_plan(actor), b'{"a":1}', content_type) == {"a": 1, "message": MESSAGE}


def test_an_unknown_content_type_is_a_payload_error() -> None:
    def actor(a: int) -> None: ...

    with pytest.raises(PayloadError, match="unknown content type 'text/plain'"):
        send(compile_plan(actor), b'{"a":1}', "text/plain")


def test_a_missing_field_leaves_the_default_to_python() -> None:
    default: list[int] = []

    def actor(a: int, b: list[int] = default, c: str = "c") -> Any:
        return a, b, c

    arguments = send(compile_plan(actor), b'{"a":1}')
    assert arguments == {"a": 1}
    assert actor(**arguments)[1] is default


def test_null_is_not_the_default() -> None:
    def actor(a: int = 3, b: int | None = 4) -> None: ...

    plan = compile_plan(actor)
    assert send(plan, b'{"b":null}') == {"b": None}
    assert faults_of(plan, b'{"a":null}') == (("$.a", "Expected `int`, got `null`"),)


@pytest.mark.parametrize("content_type", [None, "application/json", "application/msgpack", "text/plain"])
def test_no_payload_is_an_empty_object_of_whatever_type(content_type: Any) -> None:
    def actor(a: int = 3) -> None: ...

    assert send(compile_plan(actor), b"", content_type) == {}


def test_no_payload_is_missing_what_is_required() -> None:
    def actor(a: int) -> None: ...

    assert faults_of(compile_plan(actor), b"") == (("$.a", "required, but missing"),)


def test_a_field_that_is_missing_because_it_was_misspelt_is_told_with_what_is_there() -> None:
    def actor(address: str, count: int) -> None: ...

    plan = compile_plan(actor)
    assert faults_of(plan, b'{"adress":"ada","zzz":1}') == (
        ("$.address", "required, but missing (there is 'adress')"),
        ("$.count", "required, but missing"),
    )
    (path, text), _ = faults_of(plan, b'{"address' + 10_000 * b"s" + b'":1}')
    assert (path, text) == ("$.address", "required, but missing")


def test_surplus_fields_are_ignored() -> None:
    def actor(a: int) -> None: ...

    assert send(compile_plan(actor), b'{"z":{"y":[1]},"a":1}') == {"a": 1}


@both
def test_a_strict_plan_lists_every_unknown_field_with_what_was_probably_meant(encode: Any, content_type: Any) -> None:
    def actor(count: int = 0, *, message: Message) -> None: ...

    plan = compile_plan(actor, strict=True)
    assert send(plan, encode({"count": 1}), content_type) == {"count": 1, "message": MESSAGE}
    assert faults_of(plan, encode({"cuont": 1, "zzz": 2, "message": 3}), content_type) == (
        ("$.cuont", "unknown field (did you mean 'count'?)"),
        ("$.zzz", "unknown field"),
        ("$.message", "unknown field"),
    )


def test_a_strict_plan_without_parameters_takes_only_an_empty_object() -> None:
    def actor() -> None: ...

    plan = compile_plan(actor, strict=True)
    assert send(plan, b"") == {}
    assert send(plan, b"{}") == {}
    assert faults_of(plan, b'{"a":1}') == (("$.a", "unknown field"),)
    assert faults_of(plan, b"[]")[0][0] == "$"


@pytest.mark.parametrize("payload", [b"\xff\xff", b"[1]", b"{}", b""])
def test_a_function_that_takes_no_payload_takes_any(payload: Any) -> None:
    def nothing() -> None: ...
    def one(message: Message) -> None: ...
    def two(message: Message, again: Message) -> None: ...

    assert send(compile_plan(nothing), payload, "text/plain") == {}
    assert send(compile_plan(one), payload, "text/plain") == {"message": MESSAGE}
    assert send(compile_plan(two), payload, "text/plain") == {"message": MESSAGE, "again": MESSAGE}


def test_every_call_gets_a_dict_of_its_own() -> None:
    def actor() -> None: ...

    plan = compile_plan(actor)
    send(plan, b"")["mine"] = 1
    assert send(plan, b"") == {}


@pytest.mark.parametrize("content_type", ["application/json", None])
def test_the_payload_never_fills_the_message(content_type: Any) -> None:
    def one(a: int, message: Message) -> None: ...
    def two(a: int, message: Message, again: Message | None = None) -> None: ...
    def rest(message: Message, **rest: Any) -> None: ...

    payload = b'{"a":1,"message":2,"again":3}'
    assert send(compile_plan(one), payload, content_type) == {"a": 1, "message": MESSAGE}
    assert send(compile_plan(two), payload, content_type) == {"a": 1, "message": MESSAGE, "again": MESSAGE}
    assert send(compile_plan(rest), payload, content_type) == {"a": 1, "message": MESSAGE, "again": 3}


@both
def test_kwargs_get_the_rest_with_their_type(encode: Any, content_type: Any) -> None:
    def actor(a: int = 0, **rest: Point) -> None: ...

    plan = compile_plan(actor)
    assert send(plan, encode({"a": 1, "b": {"x": 1}}), content_type) == {"a": 1, "b": Point(1)}
    assert faults_of(plan, encode({"a": "x", "b": {"x": "y"}, "c": {"x": 1}, "d": 3}), content_type) == (
        ("$.a", "Expected `int`, got `str`"),
        ("$.b.x", "Expected `int`, got `str`"),
        ("$.d", "Expected `object`, got `int`"),
    )


def test_with_kwargs_a_strict_plan_refuses_only_the_name_of_the_message() -> None:
    def actor(message: Message, **rest: int) -> None: ...

    plan = compile_plan(actor, strict=True)
    assert send(plan, b'{"b":1}') == {"b": 1, "message": MESSAGE}
    assert faults_of(plan, b'{"b":1,"message":2}') == (("$.message", "unknown field"),)


def test_constraints_in_annotations_hold() -> None:
    def actor(a: Annotated[int, msgspec.Meta(ge=3)]) -> None: ...

    plan = compile_plan(actor)
    assert send(plan, b'{"a":3}') == {"a": 3}
    assert faults_of(plan, b'{"a":2}') == (("$.a", "Expected `int` >= 3"),)


names = st.sampled_from(["a", "b", "c", "message", "other"])
values = st.integers(-9, 9) | st.text(max_size=2) | st.none() | st.lists(st.integers(0, 9), max_size=2)


@both
@given(payload=st.dictionaries(names, values))
def test_what_is_bound_can_be_called_and_nothing_else_is_bound(encode: Any, content_type: Any, payload: Any) -> None:
    def actor(a: int, b: str = "b", *, message: Message, c: list[int] | None = None) -> Any:
        return a, b, c, message

    fits = (
        isinstance(payload.get("a"), int)
        and isinstance(payload.get("b", ""), str)
        and isinstance(payload.get("c"), list | None)
    )
    plan = compile_plan(actor)
    if fits:
        arguments = send(plan, encode(payload), content_type)
        assert actor(**arguments) == (payload["a"], payload.get("b", "b"), payload.get("c"), MESSAGE)
    else:
        assert faults_of(plan, encode(payload), content_type)


ONE = msgspec.Raw(b"1")


class Around(msgspec.Struct):
    content: msgspec.Raw


@both
def test_a_raw_parameter_is_given_its_value_as_it_was_sent(encode: Any, content_type: Any) -> None:
    def alone(body: msgspec.Raw) -> None: ...
    def annotated(body: Annotated[msgspec.Raw, "a note"]) -> None: ...
    def optional(body: msgspec.Raw = ONE) -> None: ...
    def within(body: Around, bodies: list[msgspec.Raw]) -> None: ...

    value = {"a": [1, None]}
    for actor in (alone, annotated, optional):
        bound = send(compile_plan(actor), encode({"body": value}), content_type)
        assert bytes(bound["body"]) == encode(value)
    assert send(compile_plan(optional), encode({}), content_type) == {}
    assert bytes(send(compile_plan(alone), encode({"body": None}), content_type)["body"]) == encode(None)
    bound = send(compile_plan(within), encode({"body": {"content": 1}, "bodies": [2]}), content_type)
    assert (bytes(bound["body"].content), [bytes(each) for each in bound["bodies"]]) == (encode(1), [encode(2)])
    assert faults_of(compile_plan(alone), encode({}), content_type) == (("$.body", "required, but missing"),)


@pytest.mark.parametrize("strict", [False, True])
def test_every_fault_is_told_beside_a_raw_parameter_that_is_missing(strict: bool) -> None:
    def actor(count: int, body: msgspec.Raw) -> None: ...

    plan = compile_plan(actor, strict=strict)
    assert faults_of(plan, b'{"count":"x"}') == (
        ("$.count", "Expected `int`, got `str`"),
        ("$.body", "required, but missing"),
    )
    assert faults_of(plan, b'{"count":1}') == (("$.body", "required, but missing"),)


class Keyed(TypedDict):
    content: msgspec.Raw


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (msgspec.Raw | None, "has msgspec.Raw beside other types, but Raw takes any value, also null"),
        (list[msgspec.Raw | int], "has msgspec.Raw beside other types"),
        (Keyed, r"the key 'content' of Keyed is a msgspec.Raw: make that NotRequired\[msgspec.Raw\]"),
        (list[Keyed], "the key 'content' of Keyed is a msgspec.Raw"),
    ],
)
def test_a_raw_where_no_value_is_taken_for_one_is_refused_where_the_actor_is_declared(hint: Any, told: str) -> None:
    def actor(body: Any) -> None: ...

    actor.__annotations__["body"] = hint
    with pytest.raises(ConfigurationError, match=told):
        compile_plan(actor)
