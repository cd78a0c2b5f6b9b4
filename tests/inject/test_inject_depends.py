"""`Depends` in signatures: where it is read, what it may hold, and what is refused when the actor is compiled."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from repid import ConfigurationError, Depends, Message, PayloadError
from repid.envelope import Envelope
from repid.inject import Kind, compile_plan, kind_of

if TYPE_CHECKING:
    import decimal

MESSAGE: Any = object()
"""Stands for a message: binding hands it on and never looks at it."""


class Session:
    """Nothing can be decoded to it."""


def open_session() -> Session:
    return Session()


def first(session: Annotated[Session, Depends(open_session)], a: int) -> None: ...
def last(a: int, session: Annotated[Session, Depends(open_session)]) -> None: ...
def keyword_only(a: int, *, session: Annotated[Session, Depends(open_session)]) -> None: ...
def with_default(a: int, session: Annotated[Session | None, Depends(open_session)] = None) -> None: ...
def among_notes(a: int, session: Annotated[Session, "a note", Depends(open_session), 3]) -> None: ...
def by_alias(a: int, session: Alias) -> None: ...
def by_annotated_alias(a: int, session: Annotated[Alias, "a note"]) -> None: ...
def quoted_twice(a: int, session: "Annotated[Session, Depends(open_session)]") -> None: ...  # noqa: UP037
def of_a_decodable_type(a: int, session: Annotated[int, Depends(open_session)]) -> None: ...


Alias = Annotated[Session, Depends(open_session)]

FORMS = [
    first,
    last,
    keyword_only,
    with_default,
    among_notes,
    by_alias,
    by_annotated_alias,
    quoted_twice,
    of_a_decodable_type,
]


def bind(function: Any, payload: object, *, strict: bool = False) -> dict[str, Any]:
    plan = compile_plan(function, strict=strict)
    return plan.bind(Envelope("1", "q", msgspec.json.encode(payload), "application/json"), MESSAGE)


def steps_of(function: Any) -> list[Any]:
    dependencies = compile_plan(function).dependencies
    assert dependencies is not None
    return [step.function for step in (*dependencies.outer, *dependencies.inner.steps)]


@pytest.mark.parametrize("function", FORMS, ids=lambda function: function.__name__)
def test_a_dependency_is_found_wherever_it_stands_and_is_no_part_of_the_payload(function: Any) -> None:
    assert steps_of(function) == [open_session]
    assert bind(function, {"a": 1, "session": 2}) == {"a": 1}


def test_a_dependency_is_found_in_annotations_that_are_no_strings() -> None:
    def actor(session): ...  # type: ignore[no-untyped-def]

    actor.__annotations__ = {"session": Alias}
    assert steps_of(actor) == [open_session]


def test_a_strict_plan_refuses_a_payload_that_would_fill_a_dependency() -> None:
    with pytest.raises(PayloadError) as caught:
        bind(last, {"a": 1, "session": 2}, strict=True)
    assert caught.value.faults == (("$.session", "unknown field"),)


def test_the_rest_of_a_payload_does_not_hold_a_dependency() -> None:
    def actor(session: Alias, **rest: Any) -> None: ...

    assert bind(actor, {"a": 1, "session": 2}) == {"a": 1}


def test_what_a_partial_has_bound_is_no_dependency_any_more() -> None:
    plan = compile_plan(functools.partial(last, session=Session()))
    assert plan.dependencies is None


def test_a_plan_without_dependencies_has_none() -> None:
    def actor(a: int, message: Message) -> None: ...

    assert compile_plan(actor).dependencies is None


class Repository:
    def __init__(self, session: Alias, table: str = "jobs") -> None: ...


class Struct(msgspec.Struct):
    session: Alias


class Callable:
    def __call__(self, repository: Annotated[Repository, Depends(Repository)]) -> int:
        return 1

    def method(self, session: Alias) -> int:
        return 1


async def fetch(session: Alias, message: Message) -> int:
    return 1


async def stream() -> AsyncIterator[int]:
    yield 1


def iterate() -> Iterator[int]:
    yield 1


class AsyncCallable:
    async def __call__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (open_session, Kind.SYNC),
        (Repository, Kind.SYNC),
        (Callable(), Kind.SYNC),
        (Callable().method, Kind.SYNC),
        (fetch, Kind.ASYNC),
        (AsyncCallable(), Kind.ASYNC),
        (functools.partial(fetch), Kind.ASYNC),
        (iterate, Kind.GENERATOR),
        (stream, Kind.ASYNC_GENERATOR),
        (functools.partial(functools.partial(stream)), Kind.ASYNC_GENERATOR),
    ],
)
def test_every_kind_of_function_is_recognised(function: Any, kind: Kind) -> None:
    assert kind_of(function) is kind


def test_dependencies_of_dependencies_come_before_them_and_each_function_once() -> None:
    called = Callable()

    def actor(c: Annotated[int, Depends(called)], s: Alias, r: Annotated[Repository, Depends(Repository)]) -> None: ...

    actor.__annotations__["c"] = Annotated[int, Depends(called)]
    assert steps_of(actor) == [open_session, Repository, called]


def test_a_method_is_one_function_however_often_it_is_looked_up() -> None:
    called = Callable()

    def actor(a, b): ...  # type: ignore[no-untyped-def]

    actor.__annotations__ = {name: Annotated[int, Depends(called.method)] for name in "ab"}
    assert steps_of(actor) == [open_session, called.method]


def test_a_struct_is_filled_like_any_class() -> None:
    def actor(s: Annotated[Struct, Depends(Struct)]) -> None: ...

    assert steps_of(actor) == [open_session, Struct]


def test_a_message_asked_for_by_a_dependency_is_asked_for() -> None:
    async def actor(a: int, n: Annotated[int, Depends(fetch)]) -> None: ...

    assert compile_plan(actor).takes_message
    assert not compile_plan(last).takes_message
    assert bind(actor, {"a": 1}) == {"a": 1}


async def find(repository: Annotated[Repository, Depends(Repository)]) -> int:
    return 1


def test_what_async_dependencies_of_a_sync_actor_want_is_outside_of_it_with_them() -> None:
    def actor(
        own: Annotated[int, Depends(Callable().method)],
        found: Annotated[int, Depends(find)],
        number: Annotated[int, Depends(iterate)],
    ) -> None: ...

    method = Callable().method
    actor.__annotations__["own"] = Annotated[int, Depends(method)]
    dependencies = compile_plan(actor).dependencies
    assert dependencies is not None
    assert [step.function for step in dependencies.outer] == [open_session, Repository, find]
    assert [step.function for step in dependencies.inner.steps] == [method, iterate]


def test_nothing_is_outside_of_an_async_actor() -> None:
    async def actor(found: Annotated[int, Depends(find)]) -> None: ...

    dependencies = compile_plan(actor).dependencies
    assert dependencies is not None
    assert dependencies.outer == ()


def defaulted(a: int = 1, *args: str, b: decimal.Decimal | None = None, **kwargs: Any) -> int:
    return a


def test_parameters_of_a_dependency_that_have_a_default_are_left_to_it_even_if_unreadable() -> None:
    def actor(n: Annotated[int, Depends(defaulted)]) -> None: ...

    assert steps_of(actor) == [defaulted]


# What is refused. Functions at the top level: their annotations are strings.


def given_5(n: Annotated[int, Depends(5)]) -> None: ...
def given_as_default(n: int = Depends(open_session)) -> None: ...  # type: ignore[assignment]
def given_without_a_function(n: Annotated[int, Depends]) -> None: ...
def given_beside(n: Depends(open_session)) -> None: ...  # type: ignore[valid-type]
def given_inside(n: Annotated[int, Depends(open_session)] | None) -> None: ...
def given_deep_inside(n: list[dict[str, Alias]]) -> None: ...
def given_twice(n: Annotated[Alias, Depends(fetch)]) -> None: ...
def given_to_the_rest(**n: Annotated[int, Depends(open_session)]) -> None: ...
def given_by_position(n: Annotated[int, Depends(open_session)], /) -> None: ...
def given_a_builtin(n: Annotated[Any, Depends(dict)]) -> None: ...


def wants_payload(x: int) -> int:
    return x


def wants_by_position(m: Message, /) -> None: ...
def wants_default(n: int = Depends(open_session)) -> None: ...  # type: ignore[assignment]
def wants_unknown(n: Unknown) -> None: ...  # type: ignore[name-defined] # noqa: F821
def wants_unknown_dependency(n: Annotated[decimal.Decimal | None, Depends(open_session)] = None) -> None: ...
def asks_for_payload(n: Annotated[int, Depends(wants_payload)]) -> None: ...
def asks_by_position(n: Annotated[int, Depends(wants_by_position)]) -> None: ...
def asks_for_default(n: Annotated[int, Depends(wants_default)]) -> None: ...
def asks_for_unknown(n: Annotated[int, Depends(wants_unknown)]) -> None: ...
def asks_for_unknown_dependency(n: Annotated[int, Depends(wants_unknown_dependency)]) -> None: ...
@functools.singledispatch
def wants_a_choice(message: object = None) -> None: ...
def asks_for_a_choice(n: Annotated[int, Depends(wants_a_choice)]) -> None: ...
def hen(egg: Annotated[int, Depends(lay)]) -> None: ...
def lay(bird: Annotated[int, Depends(brood)]) -> None: ...
def brood(egg: Annotated[int, Depends(lay)]) -> None: ...


REFUSED = [
    (given_5, "parameter 'n' of given_5() depends on 5, which cannot be called"),
    (given_as_default, "parameter 'n' of given_as_default() has a Depends as its default: write n: Annotated["),
    (given_without_a_function, "parameter 'n' of given_without_a_function(): its Depends cannot be read"),
    (given_beside, "parameter 'n' of given_beside(): its "),
    (given_inside, "parameter 'n' of given_inside(): its Depends cannot be read"),
    (given_deep_inside, "parameter 'n' of given_deep_inside(): its Depends cannot be read"),
    (given_twice, "parameter 'n' of given_twice(): its Depends cannot be read"),
    (given_to_the_rest, "parameter 'n' of given_to_the_rest() takes the rest of the payload, but a Depends gives one"),
    (given_by_position, "parameter 'n' of given_by_position() is positional-only"),
    (given_a_builtin, "dict() has no signature that can be read"),
    (asks_for_payload, "parameter 'x' of wants_payload(), a dependency of asks_for_payload(), cannot be filled"),
    (asks_by_position, "parameter 'm' of wants_by_position(), a dependency of asks_by_position() is positional-only"),
    (asks_for_default, "parameter 'n' of wants_default(), a dependency of asks_for_default() has a Depends as its def"),
    (asks_for_unknown, "parameter 'n' of wants_unknown(), a dependency of asks_for_unknown(): the name 'Unknown'"),
    (asks_for_a_choice, "wants_a_choice() is a function of functools.singledispatch, which chooses by"),
    (
        asks_for_unknown_dependency,
        "a dependency of asks_for_unknown_dependency(): the name 'decimal' in its annotation",
    ),
    (hen, "parameter 'egg' of brood(), a dependency of hen() depends on itself: lay() → brood() → lay()"),
]


@pytest.mark.parametrize(("function", "text"), REFUSED, ids=[function.__name__ for function, _ in REFUSED])
def test_what_cannot_be_a_dependency_is_refused_by_name(function: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compile_plan(function)
    assert text in str(caught.value)


def test_aliases_of_python_3_12_are_followed() -> None:
    extensions = pytest.importorskip("typing_extensions")  # the same before 3.12
    session = extensions.TypeAliasType("session", Alias)

    def actor(s): ...  # type: ignore[no-untyped-def]

    actor.__annotations__ = {"s": session}
    assert steps_of(actor) == [open_session]
    actor.__annotations__ = {"s": session | None}
    with pytest.raises(ConfigurationError, match="its Depends cannot be read"):
        compile_plan(actor)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="has no type statement")
def test_an_alias_that_contains_itself_is_an_error_and_no_endless_search() -> None:
    names: dict[str, Any] = {}
    exec("type Tree = list[Tree]", names)

    def actor(tree): ...  # type: ignore[no-untyped-def]

    trees = names["Tree"]
    for hint in (trees, dict.__class_getitem__((str, trees))):
        actor.__annotations__ = {"tree": hint}
        with pytest.raises(
            ConfigurationError, match=r"'tree'.*its type .*Tree.*, as an alias in it contains itself; make"
        ):
            compile_plan(actor)
