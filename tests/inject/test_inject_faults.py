"""What is said about a payload that does not fit: every fault, with its path."""

from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NotRequired, TypedDict, TypeVar

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repid.codec import JSON_CODEC, MESSAGE_PACK_CODEC
from repid.envelope import Envelope
from repid.errors import PayloadError
from repid.inject import Message, compile_plan
from repid.inject.faults import DEEPEST
from repid.tracebacks import explain

T = TypeVar("T")

both = pytest.mark.parametrize(
    ("encode", "content_type"),
    [(JSON_CODEC.encode, "application/json"), (MESSAGE_PACK_CODEC.encode, "application/msgpack")],
    ids=["JSON", "MessagePack"],
)


class Address(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    zip_code: int
    lines: list[str] = []


@dataclass
class User:
    emails: list[str]
    address: Address | None = None
    score: float = 0.0
    history: list["User"] = field(default_factory=list)


class Settings(TypedDict):
    theme: Literal["dark", "light"]
    size: NotRequired[int]


class Tagged(msgspec.Struct, tag="t"):
    x: int


@attrs.define
class Box:
    width: int


class Page(msgspec.Struct, Generic[T]):
    items: list[T]


class Picky(msgspec.Struct):
    x: int

    def __post_init__(self) -> None:
        if self.x == 0:
            raise KeyError("zero")
        if self.x < 0:
            raise ValueError("must not be negative")


class Tree(msgspec.Struct):
    value: int
    left: "Tree | None" = None


async def actor(  # noqa: PLR0917
    count: int,
    user: User | None = None,
    users: dict[str, User] | None = None,
    settings: Settings | None = None,
    pair: tuple[int, str] = (0, ""),
    either: int | list[str] = 0,
    tagged: Tagged | None = None,
    box: Box | None = None,
    page: Page[int] | None = None,
    numbers: set[int] = frozenset(),  # type: ignore[assignment]
    by_number: dict[int, list[int]] | None = None,
    picky: list[Picky] | None = None,
    tree: Tree | None = None,
    anything: Any = None,
    *,
    message: Message,
) -> None: ...


PLAN = compile_plan(actor)


def faults_of(
    payload: bytes, content_type: str | None = "application/json", plan: Any = PLAN
) -> tuple[tuple[str, str], ...]:
    with pytest.raises(PayloadError) as caught:
        plan.bind(Envelope("1", "q", payload, content_type), None)
    return caught.value.faults


CASES: list[tuple[dict[str, Any], dict[str, str]]] = [
    (
        {"user": {"emails": ["a", 1, "b", None]}},
        {"$.user.emails[1]": "got `int`", "$.user.emails[3]": "Expected `str`"},
    ),
    ({"user": {}}, {"$.user.emails": "required, but missing"}),
    (
        {"user": {"emails": "a", "address": {"zipCode": "x", "zip_code": 1}, "score": []}},
        {
            "$.user.emails": "Expected `array`",
            "$.user.address.zipCode": "Expected `int`",
            "$.user.address.zip_code": "unknown field (did you mean 'zipCode'?)",
            "$.user.score": "Expected `float`",
        },
    ),
    ({"user": {"emails": [], "history": [{"emails": [1]}]}}, {"$.user.history[0].emails[0]": "Expected `str`"}),
    (
        {"users": {"ann": {"emails": [0]}, "b c": 3}},
        {"$.users.ann.emails[0]": "Expected `str`", '$.users["b c"]': "Expected `object`"},
    ),
    (
        {"settings": {"theme": "pink", "size": "x"}},
        {"$.settings.theme": "Not one of the values", "$.settings.size": "Expected `int`"},
    ),
    ({"settings": {}}, {"$.settings.theme": "required, but missing"}),
    ({"pair": ["a", 1]}, {"$.pair[0]": "Expected `int`", "$.pair[1]": "Expected `str`"}),
    ({"pair": [1]}, {"$.pair": "Expected `array` of length 2"}),
    ({"pair": [1, "a", 3], "box": {}}, {"$.pair": "Expected `array` of length 2", "$.box.width": "required"}),
    ({"either": ["a", 1]}, {"$.either[1]": "Expected `str`"}),
    ({"either": {}}, {"$.either": "Expected `int | array`"}),
    ({"tagged": {"type": "q", "x": "y"}}, {"$.tagged.type": "Not one of the values", "$.tagged.x": "Expected `int`"}),
    ({"box": {"width": "w"}}, {"$.box.width": "Expected `int`"}),
    ({"page": {"items": [1, "x", 2, "y"]}}, {"$.page.items[1]": "Expected `int`", "$.page.items[3]": "Expected `int`"}),
    ({"numbers": [1, "x"]}, {"$.numbers[1]": "Expected `int`"}),
    ({"picky": [{"x": 0}, {"x": 1}, {"x": -1}]}, {"$.picky[0]": "KeyError: 'zero'", "$.picky[2]": "must not be neg"}),
    ({"count": None, "user": 1}, {"$.count": "Expected `int`", "$.user": "Expected `object | null`"}),
]


@both
@pytest.mark.parametrize(("payload", "expected"), CASES, ids=lambda value: next(iter(value)))
def test_every_fault_is_listed_at_its_path(encode: Any, content_type: Any, payload: Any, expected: Any) -> None:
    faults = dict(faults_of(encode({"count": 1, **payload}), content_type))
    assert list(faults) == list(expected)
    for path, text in expected.items():
        assert text in faults[path]


def test_wrong_keys_are_faults_of_their_dict() -> None:
    assert faults_of(b'{"count":1,"by_number":{"x":[1],"2":["y"]}}') == (
        ('$.by_number["2"][0]', "Expected `int`, got `str`"),
        ("$.by_number", "Expected `int`, got `str` (as a key)"),
    )


def test_the_text_of_the_error_names_the_function_and_every_fault() -> None:
    with pytest.raises(PayloadError) as caught:
        PLAN.bind(Envelope("1", "q", b'{"count":"x","pair":1}'), None)
    assert str(caught.value) == (
        "the payload does not fit actor():\n  $.count: Expected `int`, got `str`\n  $.pair: Expected `array`, got `int`"
    )


@both
@pytest.mark.parametrize("value", [[], 1, "x", None, True, 1.5])
def test_a_payload_that_is_no_object_says_so(encode: Any, content_type: Any, value: Any) -> None:
    ((path, text),) = faults_of(encode(value), content_type)
    assert path == "$"
    assert text.startswith("the payload must be an object with the names of parameters as its keys: Expected `object`")


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b'{"count":1', "the data ends too early (byte 10)"),
        (b'{"count":,}', "JSON is malformed: invalid character (byte 9)"),
        (b'{"count":1}x', "JSON is malformed: trailing characters (byte 12)"),
        (b'{"count":1,"user":{"emails":["a\xff"]}}', "a string is not UTF-8: invalid start byte (byte 31)"),
        (b'{"count":1,"box":"\\ud800 and more"}', "unexpected end of escaped utf-16 surrogate pair"),
        (b'{"count":NaN}', "JSON is malformed: invalid character (byte 9)"),
        (b'{"count":1,"x":' + b"[" * 100_000, "nested too deeply"),
        (b'{"count":1,"anything":' + b'{"a":' * 100_000, "nested too deeply"),
    ],
    ids=["truncated", "malformed", "trailing", "UTF-8", "surrogate", "NaN", "deep surplus", "deep value"],
)
def test_undecodable_bytes_are_one_fault_with_what_and_where(payload: Any, text: Any) -> None:
    ((path, found),) = faults_of(payload)
    assert path == "$"
    assert text in found


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"\x81\xa5count", "the data ends too early (byte 7)"),
        (b"\xc1", "invalid opcode '\\xc1' (byte 0)"),
        (b"\xdf\xff\xff\xff\xff", "the data ends too early (byte 5)"),
        (b"\x81\xa5count\xa1\xff", "not UTF-8: invalid start byte (byte 8)"),
        (b"\x82\xa5count\x01\xa1x" + b"\x91" * 100_000, "nested too deeply"),
    ],
    ids=["truncated", "malformed", "bomb", "UTF-8", "deep"],
)
def test_undecodable_messagepack_is_one_fault_too(payload: Any, text: Any) -> None:
    ((path, found),) = faults_of(payload, "application/msgpack")
    assert path == "$"
    assert text in found


def test_a_huge_number_is_a_fault_at_its_path() -> None:
    assert faults_of(b'{"count":' + b"9" * 5000 + b"}") == (("$.count", "Integer value out of range"),)
    assert faults_of(b'{"count":1,"anything":1e400}') == (("$.anything", "Number out of range"),)


def test_a_field_that_is_given_twice_and_wrong_once_is_a_fault() -> None:
    assert faults_of(b'{"count":"x","count":1}') == (("$.count", "Expected `int`, got `str`"),)


def test_a_million_faults_are_not_listed() -> None:
    faults = faults_of(b'{"count":1,"numbers":[' + b",".join([b'"x"'] * 1000) + b"]}")
    assert len(faults) == 101
    assert faults[99] == ("$.numbers[99]", "Expected `int`, got `str`")
    assert faults[100] == ("$", "there may be more: the search ends after 100 faults")


def test_below_the_depth_of_the_search_msgspecs_own_text_stands_with_the_whole_path() -> None:
    tree: dict[str, Any] = {"value": "x"}
    for _ in range(50):
        tree = {"value": 1, "left": tree}
    path = "$.tree" + ".left" * 50 + ".value"
    assert faults_of(JSON_CODEC.encode({"count": 1, "tree": tree})) == ((path, "Expected `int`, got `str`"),)


@pytest.mark.parametrize(("levels", "found"), [(DEEPEST - 1, 2), (DEEPEST, 1)])
def test_the_search_ends_at_its_depth(levels: int, found: int) -> None:
    """Below it there is one fault, the first one, which is msgspec's own."""
    tree: dict[str, Any] = {"value": "x", "left": {"value": "y"}}
    for _ in range(levels):
        tree = {"value": 1, "left": tree}
    assert len(faults_of(JSON_CODEC.encode({"count": 1, "tree": tree}))) == found


@both
@given(st.data())
def test_the_search_finds_exactly_what_was_broken(encode: Any, content_type: Any, data: Any) -> None:
    emails = data.draw(st.lists(st.booleans(), max_size=5))
    users = data.draw(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.booleans(), max_size=4))
    count_is_there = data.draw(st.booleans())
    payload: dict[str, Any] = {
        "user": {"emails": [1 if broken else "x" for broken in emails]},
        "users": {name: {"emails": [], "score": "x" if broken else 1.0} for name, broken in users.items()},
    }
    if count_is_there:
        payload["count"] = 1
    expected = {f"$.user.emails[{index}]" for index, broken in enumerate(emails) if broken}
    expected |= {f"$.users.{name}.score" for name, broken in users.items() if broken}
    expected |= set() if count_is_there else {"$.count"}
    found: list[str] = []
    try:
        PLAN.bind(Envelope("1", "q", encode(payload), content_type), None)
    except PayloadError as error:
        found = [path for path, _ in error.faults]
    assert sorted(found) == sorted(expected)


SEEDS = [
    JSON_CODEC.encode(
        {"count": 1, "user": {"emails": ["é"], "score": 1.5}, "pair": [1, "x"], "anything": {"a": [None]}}
    ),
    MESSAGE_PACK_CODEC.encode(
        {"count": 1, "user": {"emails": ["é"]}, "by_number": {1: [2]}, "anything": {(1, 2): b"x"}}
    ),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    payload = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(payload)))
        payload[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(payload)


@settings(max_examples=300)
@given(
    payload=st.binary(max_size=40) | mutated(),
    content_type=st.sampled_from(["application/json", "application/msgpack", None]),
    strict=st.booleans(),
    with_rest=st.booleans(),
)
def test_random_bytes_are_bound_or_refused_with_faults(
    payload: Any, content_type: Any, strict: Any, with_rest: Any
) -> None:
    def rest(count: int, **rest: list[int] | dict[str, User]) -> None: ...

    plan = compile_plan(rest if with_rest else actor, strict=strict)
    try:
        assert isinstance(plan.bind(Envelope("1", "q", payload, content_type), None), dict)
    except PayloadError as error:
        assert error.faults  # noqa: PT017
        assert all(path.startswith("$") and text for path, text in error.faults)  # noqa: PT017


class Positive(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("it is negative")


@pytest.mark.parametrize("with_message", [False, True])
def test_an_error_of_a_payload_shows_what_the_program_raised_and_no_steps_of_the_search(*, with_message: bool) -> None:
    def plain(one: Positive) -> None: ...

    def telling(one: Positive, message: Message) -> None: ...

    plan = compile_plan(telling if with_message else plain)
    with pytest.raises(PayloadError) as caught:
        plan.bind(Envelope("1", "q", b'{"one":{"number":"x"}}'), None)
    assert "Traceback" not in explain(caught.value).removeprefix("Traceback")
    with pytest.raises(PayloadError) as caught:
        plan.bind(Envelope("1", "q", b'{"one":{"number":-1}}'), None)
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(caught.value.__cause__) == "it is negative"
    assert explain(caught.value).count("Traceback") == 2
