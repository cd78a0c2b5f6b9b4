"""What a signature becomes. The annotations in this file are strings, as in most modules of users."""

from __future__ import annotations

import functools
import typing
from typing import TYPE_CHECKING, Annotated, Any, Optional, Protocol, runtime_checkable

import msgspec
import pytest

from repid import inject
from repid.envelope import Envelope
from repid.errors import ConfigurationError
from repid.inject import compile_plan

if TYPE_CHECKING:
    from decimal import Decimal

    from repid.inject import Message

MESSAGE: Any = object()
"""Stands for a message: binding hands it on and never looks at it."""


class Unknown:
    pass


class Holder(msgspec.Struct):
    inner: list[Unknown]


def bind(function: Any, payload: object = None, *, strict: bool = False) -> dict[str, Any]:
    plan = compile_plan(function, strict=strict)
    raw = b"" if payload is None else msgspec.json.encode(payload)
    return plan.bind(Envelope("1", "q", raw, "application/json"), MESSAGE)


def first(message: Message, a: int) -> None: ...
def last(a: int, message: Message) -> None: ...
def keyword_only(a: int, *, message: Message) -> None: ...
def by_module(a: int, message: Any) -> None: ...
def with_none(a: int, message: Message | None) -> None: ...
def with_none_and_default(a: int, message: Message | None = None) -> None: ...
def optional(a: int, message: Optional[Message]) -> None: ...  # noqa: UP045
def annotated(a: int, message: Annotated[Message, "a note"]) -> None: ...
def annotated_optional(a: int, message: Annotated[Message | None, "a note"] = None) -> None: ...
def quoted_twice(a: int, message: "Message") -> None: ...  # noqa: UP037


by_module.__annotations__["message"] = "repid.Message"

MESSAGE_FORMS = [
    first,
    last,
    keyword_only,
    by_module,
    with_none,
    with_none_and_default,
    optional,
    annotated,
    annotated_optional,
    quoted_twice,
]


@pytest.mark.parametrize("function", MESSAGE_FORMS, ids=lambda function: function.__name__)
def test_the_message_is_given_wherever_it_is_asked_for(function: Any) -> None:
    assert compile_plan(function).takes_message
    assert bind(function, {"a": 1}) == {"a": 1, "message": MESSAGE}


def test_the_message_is_recognised_in_annotations_that_are_no_strings() -> None:
    def actor(m, n, o): ...  # type: ignore[no-untyped-def]

    actor.__annotations__ = {"m": inject.Message, "n": inject.Message | None, "o": Optional["Message"]}
    assert bind(actor) == {"m": MESSAGE, "n": MESSAGE, "o": MESSAGE}


def test_a_class_of_the_user_that_is_called_message_is_a_payload_field() -> None:
    namespace: dict[str, Any] = {"msgspec": msgspec}
    exec(
        "class Message(msgspec.Struct):\n    text: str\ndef actor(message: 'Message'): ...",
        namespace,
    )
    plan = compile_plan(namespace["actor"])
    assert not plan.takes_message
    assert bind(namespace["actor"], {"message": {"text": "x"}}) == {"message": namespace["Message"]("x")}


@pytest.mark.parametrize("strict", [False, True])
def test_a_function_without_parameters_gets_none(strict: Any) -> None:
    def actor() -> None: ...

    assert not compile_plan(actor, strict=strict).takes_message
    assert bind(actor, {}, strict=strict) == {}


def test_a_parameter_without_annotation_takes_anything() -> None:
    def actor(a, b: Any, c: object): ...  # type: ignore[no-untyped-def]

    payload = {"a": [1, None], "b": {"x": "y"}, "c": "z"}
    assert bind(actor, payload) == payload


def test_bound_methods_and_callable_objects_have_no_self_to_fill() -> None:
    class Actor:
        def method(self, a: int) -> None: ...
        def __call__(self, b: int) -> None: ...
        @classmethod
        def of_class(cls, c: int) -> None: ...
        @staticmethod
        def static(d: int) -> None: ...

    assert bind(Actor().method, {"a": 1}) == {"a": 1}
    assert bind(Actor(), {"b": 1}) == {"b": 1}
    assert bind(Actor.of_class, {"c": 1}) == {"c": 1}
    assert bind(Actor.static, {"d": 1}) == {"d": 1}


def test_what_a_partial_has_bound_is_not_filled_by_the_payload() -> None:
    def actor(connection: Unknown, a: int, *, b: int = 2, **rest: Any) -> None: ...

    payload = {"connection": 1, "a": 2, "b": 3, "c": 4}
    partial = functools.partial(actor, Unknown(), b=5)
    assert bind(partial, payload) == {"a": 2, "c": 4}
    assert bind(functools.partial(partial, a=1), payload) == {"c": 4}


def test_a_payload_field_called_self_does_not_collide_with_the_methods_own() -> None:
    class Actor:
        def method(self, **rest: Any) -> None: ...

    assert bind(Actor().method, {"self": 1, "a": 2}) == {"a": 2}


def test_a_wrapped_function_has_the_signature_and_the_names_of_what_it_wraps() -> None:
    def actor(a: int, message: Message) -> None: ...

    @functools.wraps(actor)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    assert bind(wrapper, {"a": 1}) == {"a": 1, "message": MESSAGE}


def test_annotations_mean_what_they_mean_where_the_wrapped_function_was_written() -> None:
    elsewhere: dict[str, Any] = {"Count": int}
    exec("def actor(a: 'Count'): ...", elsewhere)

    @functools.wraps(elsewhere["actor"])
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    assert bind(wrapper, {"a": 1}) == {"a": 1}


def positional(a: int, /) -> None: ...
def variadic(*values: int) -> None: ...
def type_checking_only(a: int, b: Decimal) -> None: ...
def nested_missing(a: list[Decimal | None]) -> None: ...
def undecodable(a: Unknown) -> None: ...
def undecodable_inside(a: dict[str, list[Unknown]]) -> None: ...
def undecodable_in_a_struct(a: Holder) -> None: ...
def undecodable_rest(**rest: Unknown) -> None: ...
def ambiguous(a: list[int] | set[int]) -> None: ...
def message_or_int(a: Message | int) -> None: ...
def no_type(a: 3) -> None: ...  # type: ignore[valid-type]
def no_expression(a: "3 +") -> None: ...  # type: ignore[valid-type] # noqa: F722


WRONG = [
    (positional, "'a'", "remove the '/'"),
    (variadic, "'values'", "replace '*values'"),
    (type_checking_only, "'b'", "'Decimal'"),
    (nested_missing, "'a'", "'Decimal'"),
    (undecodable, "'a'", "its type Unknown"),
    (undecodable_inside, "'a'", "Unknown, a part of its type dict["),
    (undecodable_in_a_struct, "'a'", "Unknown, a part of its type Holder"),
    (undecodable_rest, "'rest'", "its type Unknown"),
    (ambiguous, "'a'", "list[int] | set[int]"),
    (message_or_int, "'a'", "Message"),
    (no_type, "'a'", "3"),
    (no_expression, "'a'", "3 +"),
]


@pytest.mark.parametrize(("function", "parameter", "text"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_declaration_names_function_parameter_and_reason(function: Any, parameter: Any, text: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compile_plan(function)
    assert str(caught.value).startswith(f"parameter {parameter} of {function.__name__}()")
    assert text in str(caught.value)


def test_a_name_that_is_local_to_a_function_is_named() -> None:
    class Local(msgspec.Struct):
        a: int

    def actor(value: Local) -> None: ...

    with pytest.raises(ConfigurationError, match="the name 'Local'"):
        compile_plan(actor)


def test_what_has_no_signature_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"dict\(\) has no signature"):
        compile_plan(dict)


def test_an_abstract_class_that_decoded_values_belong_to_is_no_fault() -> None:
    def actor(value: typing.Hashable) -> None: ...

    assert bind(actor, {"value": "x"}) == {"value": "x"}


class Sized(Protocol):
    size: int


@runtime_checkable
class Asked(Protocol):
    size: int


@pytest.mark.parametrize("hint", [Sized, Asked, list[Sized]])
def test_a_protocol_of_data_is_refused_by_its_name(hint: Any) -> None:
    def actor(item: Any) -> None: ...

    actor.__annotations__["item"] = hint
    with pytest.raises(ConfigurationError, match=r"parameter 'item' .* nothing can be decoded to .*(Sized|Asked)"):
        compile_plan(actor)
