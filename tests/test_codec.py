from __future__ import annotations

import datetime as dt
import enum
import math
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repid.codec import JSON, JSON_CODEC, MESSAGE_PACK_CODEC, codec_for, encode_json
from repid.errors import PayloadError

CODECS = [JSON_CODEC, MESSAGE_PACK_CODEC]
both = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)

text = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


class Color(enum.Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: int
    y: Any = None


@dataclass
class Line:
    start: Any
    end: Any = None


@attrs.define
class Circle:
    center: Any
    radius: float = 1.0


class Unknown:
    pass


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "Application/JSON", "application/json; charset=utf-8", "application/vnd.api+json ;v=1"],
)
def test_json_is_known_by_its_names_and_suffix(content_type: Any) -> None:
    assert codec_for(content_type) is JSON_CODEC


@pytest.mark.parametrize(
    "content_type",
    ["application/msgpack", "application/x-msgpack", "APPLICATION/vnd.msgpack", "application/msgpack;a=b"],
)
def test_messagepack_is_known_by_its_names(content_type: Any) -> None:
    assert codec_for(content_type) is MESSAGE_PACK_CODEC


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/jsonp", "json", "application/json+xml", ";"])
def test_an_unknown_content_type_is_named_with_the_known_ones(content_type: Any) -> None:
    with pytest.raises(PayloadError) as caught:
        codec_for(content_type)
    assert repr(content_type) in str(caught.value)
    assert "application/json, application/msgpack" in str(caught.value)


@both
@given(value=json_values)
def test_any_json_value_comes_back_as_it_was(codec: Any, value: Any) -> None:
    assert codec.decoder(Any)(codec.encode(value)) == value


@both
@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Point, Point(1)),
        (Line, Line(1, "x")),
        (Circle, Circle(1, 2.5)),
        (dt.datetime, dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)),
        (dt.timedelta, dt.timedelta(hours=3)),
        (uuid.UUID, uuid.UUID(int=7)),
        (Decimal, Decimal("1.50")),
        (Color, Color.RED),
        (set[int], {1, 2}),
        (bytes, b"\xff\x00"),
        (dict[int, str], {1: "a"}),
        (tuple[int, str], (1, "a")),
    ],
    ids=str,
)
def test_what_msgspec_knows_comes_back_with_its_type(codec: Any, type_: Any, value: Any) -> None:
    assert codec.decoder(type_)(codec.encode(value)) == value


class NotANumber(enum.Enum):
    ONE = math.nan


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (math.nan, "$: nan is"),
        ([None, 1.0, -math.inf], "$[2]: -inf is"),
        ({"a": {"b c": (1, math.inf)}}, '$.a["b c"][1]: inf is'),
        ({"null": None, "a": [{math.nan: 1}]}, "$.a[0][nan]: nan is"),
        ({math.inf: 1}, "$[inf]: inf is"),
        ({"x": NotANumber.ONE}, "$.x: nan is"),
        (Point(1, math.inf), "$.y: inf is"),
    ],
)
def test_numbers_that_json_does_not_have_are_refused_with_their_path(value: object, fault: str) -> None:
    with pytest.raises(PayloadError) as raised:
        encode_json(value)
    assert fault in str(raised.value)
    assert len(raised.value.faults) == 1


def test_what_only_looks_like_such_a_number_is_encoded() -> None:
    assert encode_json({"info": None, "a": "nan", "nan": "null"}) == b'{"info":null,"a":"nan","nan":"null"}'


@given(
    st.recursive(st.floats() | st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_json_gives_back_what_was_given_or_it_was_refused(value: object) -> None:
    try:
        payload = encode_json(value)
    except PayloadError:
        assert "nan" in repr(value) or "inf" in repr(value)
    else:
        assert JSON_CODEC.decoder(Any)(payload) == value


def test_messagepack_keeps_infinity() -> None:
    assert MESSAGE_PACK_CODEC.decoder(float)(MESSAGE_PACK_CODEC.encode(math.inf)) == math.inf


def test_numbers_as_keys_become_strings_in_json() -> None:
    assert encode_json({1: 2, 1.5: 3}) == b'{"1":2,"1.5":3}'


def test_other_keys_are_refused_by_json_at_their_dict() -> None:
    with pytest.raises(PayloadError) as caught:
        encode_json({"a": [{(1, 2): 3}]})
    assert caught.value.faults == (
        ("$.a[0]", "this dict cannot be encoded: Only dicts with str-like or number-like keys are supported"),
    )


@both
@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Unknown(), "$"),
        ({"a": [1, {"odd key": Unknown()}]}, '$.a[1]["odd key"]'),
        (Point(1, Line(Circle(Unknown()))), "$.y.start.center"),
        ([{1: Unknown()}], "$[0][1]"),
    ],
    ids=str,
)
def test_what_cannot_be_encoded_is_named_with_its_path(codec: Any, value: Any, path: Any) -> None:
    with pytest.raises(PayloadError) as caught:
        codec.encode(value)
    assert caught.value.faults == ((path, "objects of type Unknown cannot be encoded"),)
    assert f"cannot encode a value of type {type(value).__name__} as {codec.name}" in str(caught.value)


@both
def test_a_value_that_contains_itself_is_refused(codec: Any) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(PayloadError) as caught:
        codec.encode({"a": value})
    assert caught.value.faults == (("$", "this dict contains itself or is nested too deeply"),)


@both
def test_a_lone_surrogate_is_refused_with_its_path(codec: Any) -> None:
    with pytest.raises(PayloadError) as caught:
        codec.encode({"a": ["fine", "\ud800"]})
    assert caught.value.faults == (("$.a[1]", "this str holds a lone surrogate, which UTF-8 cannot write"),)


@both
def test_a_decoder_names_the_place_of_a_wrong_value(codec: Any) -> None:
    with pytest.raises(PayloadError) as caught:
        codec.decoder(list[Point])(codec.encode([{"x": 1}, {"x": "one"}]))
    assert caught.value.faults == (("$[1].x", "Expected `int`, got `str`"),)


@both
@given(payload=st.binary())
@pytest.mark.parametrize("type_", [Any, dict[str, int], list[Point]], ids=str)
def test_random_bytes_raise_nothing_but_payload_errors(codec: Any, type_: Any, payload: Any) -> None:
    try:
        codec.decoder(type_)(payload)
    except PayloadError as error:
        assert error.faults  # noqa: PT017


@pytest.mark.parametrize(
    ("codec", "payload"),
    [(JSON_CODEC, b"[" * 100_000), (JSON_CODEC, b'{"a":' * 100_000), (MESSAGE_PACK_CODEC, b"\x91" * 100_000)],
    ids=["arrays", "objects", "MessagePack"],
)
def test_deeply_nested_bytes_are_refused(codec: Any, payload: Any) -> None:
    with pytest.raises(PayloadError, match="nested too deeply"):
        codec.decoder(Any)(payload)


def test_encode_json_is_the_encoder_of_json() -> None:
    assert JSON == "application/json"
    assert encode_json({"a": 1}) == b'{"a":1}'


def test_a_key_that_cannot_even_be_shown_does_not_hide_the_fault() -> None:
    with pytest.raises(PayloadError) as caught:
        encode_json({10**5000: Unknown()})
    assert caught.value.faults == (("$[…]", "objects of type Unknown cannot be encoded"),)
