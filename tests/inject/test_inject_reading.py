"""`Header` and `Payload`: what is read from the message. The annotations here are no strings, as they may be local."""

import enum
from datetime import date
from typing import Annotated, Any

import msgspec
import pytest
from aids import UnreliableServer, failure_of

from repid import (
    INJECTED,
    ConfigurationError,
    Depends,
    Header,
    Message,
    Payload,
    PayloadError,
    Repid,
    Router,
    UsageError,
)
from repid.codec import JSON, MESSAGE_PACK, MESSAGE_PACK_CODEC
from repid.envelope import Envelope
from repid.inject import compile_plan


class Color(enum.Enum):
    RED = "red"


def bound(function: Any, payload: bytes = b"{}", content_type: str = JSON, **headers: str) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return compile_plan(function).bind(Envelope("id", "queue", payload, content_type, named), None)


async def of_headers(
    number: int,
    tenant: Annotated[str, Header("x-tenant")],
    count: Annotated[int, Header("x-count")] = 3,
    color: Annotated[Color | None, Header("x-color")] = None,
    day: Annotated[date | None, Header("x-day")] = None,
    dry: Annotated[bool, Header("x-dry")] = False,
) -> None: ...


def test_a_header_is_converted_to_the_type_of_its_parameter() -> None:
    arguments = bound(
        of_headers, b'{"number": 1}', x_tenant="a", x_count="5", x_color="red", x_day="2026-01-31", x_dry="true"
    )
    assert arguments == {
        "number": 1,
        "tenant": "a",
        "count": 5,
        "color": Color.RED,
        "day": date(2026, 1, 31),
        "dry": True,
    }


def test_a_default_stands_for_a_header_that_is_not_there() -> None:
    assert bound(of_headers, b'{"number": 1, "tenant": "b"}', x_tenant="a") == {
        "number": 1,
        "tenant": "a",  # and the payload does not touch it
        "count": 3,
        "color": None,
        "day": None,
        "dry": False,
    }


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({}, r"the message has no header 'x-tenant' for the parameter 'tenant'"),
        ({"x_tenant": "a", "x_count": "many"}, "the header 'x-count' of the message does not fit"),
        ({"x_tenant": "a", "x_color": "blue"}, "the header 'x-color' of the message does not fit"),
    ],
)
def test_a_message_with_another_header_does_not_fit(headers: dict[str, str], text: str) -> None:
    with pytest.raises(PayloadError, match=text):
        bound(of_headers, b'{"number": 1}', **headers)


async def tenant_of(
    tenant: Annotated[str, Header("x-tenant")], order: Annotated[int, msgspec.Meta(gt=0), Payload()]
) -> str:
    return f"order {order} of {tenant}"


async def renamed(order: Annotated[int, Payload("order-id")] = 7) -> int:
    return order


Tenant = Annotated[str, Depends(tenant_of)]


async def test_dependencies_read_headers_and_the_payload(app: Repid, router: Router) -> None:
    seen: list[object] = []

    @router.actor
    async def work(order: int, tenant: Tenant, other: Annotated[int, Depends(renamed)], message: Message) -> None:
        seen.append((order, tenant, other, message.headers["x-tenant"]))

    def read(tenant: Annotated[str, Header("x-tenant")], order: Annotated[int, Payload("order-id")]) -> str:
        return f"{order} of {tenant}"

    @router.actor
    def in_a_thread(read: Annotated[str, Depends(read)]) -> None:
        seen.append(read)

    for topic, payload in (("work", {"order": 1}), ("in_a_thread", {"order-id": 2})):
        await app.send_message_json(channel="default", payload=payload, headers={"topic": topic, "x-tenant": "a"})
    assert (await app.run_worker(burst=True)).succeeded == 2
    assert sorted(map(str, seen)) == ["(1, 'order 1 of a', 7, 'a')", "2 of a"]


async def test_a_message_that_lacks_what_a_dependency_reads_is_a_dead_letter_at_once(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(retries=5)
    async def work(tenant: Tenant) -> None:
        raise AssertionError("it must not be called")

    await app.send_message_json(channel="default", payload={"order": 0}, headers={"topic": "work", "x-tenant": "a"})
    await app.run_worker(burst=True)
    assert await failure_of(server) == (
        "PayloadError",
        "these bytes cannot be decoded from JSON:\n  $.order: Expected `int` >= 1",
    )


def test_a_strict_actor_knows_the_fields_that_its_dependencies_read() -> None:
    async def work(a: int, tenant: Tenant, **rest: int) -> None: ...
    async def strictly(a: int, tenant: Tenant) -> None: ...

    payload = b'{"a": 1, "order": 2}'
    envelope = Envelope("id", "queue", payload, JSON, {"x-tenant": "a"})
    assert compile_plan(strictly, strict=True).bind(envelope, None) == {"a": 1}
    assert compile_plan(work).bind(envelope, None) == {"a": 1}
    with pytest.raises(PayloadError, match="other"):
        compile_plan(strictly, strict=True).bind(
            Envelope("id", "queue", b'{"a": 1, "order": 2, "other": 3}', JSON, {"x-tenant": "a"}), None
        )


def test_other_encodings_are_read_too() -> None:
    payload = MESSAGE_PACK_CODEC.encode({"order": 0})
    with pytest.raises(PayloadError, match=">= 1"):
        bound(lambda_of_tenant, payload, MESSAGE_PACK, x_tenant="a")
    assert bound(lambda_of_tenant, MESSAGE_PACK_CODEC.encode({"order": 1}), MESSAGE_PACK, x_tenant="a") == {}


async def lambda_of_tenant(tenant: Tenant) -> None: ...


async def payload_of_an_actor(a: Annotated[int, Payload()]) -> None: ...
async def a_header_without_a_name(a: Annotated[str, Header("")]) -> None: ...
async def a_bare_header(a: Annotated[str, Header]) -> None: ...
async def a_header_as_default(a: str = Header("x")) -> None: ...  # type: ignore[assignment]
async def a_header_inside(a: list[Annotated[str, Header("x")]]) -> None: ...
async def two_markers(a: Annotated[str, Header("x"), Depends(renamed)]) -> None: ...
async def the_rest(**rest: Annotated[str, Header("x")]) -> None: ...
async def undecodable(a: Annotated[object, Header("x")], b: Annotated[Router, Header("y")]) -> None: ...


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (payload_of_an_actor, "has a Payload, but what an actor is given comes from the payload anyway"),
        (a_header_without_a_name, "Header takes the name of a header"),
        (a_bare_header, r"its Header cannot be read from .*: write Annotated\[T, Header\('name'\)\]"),
        (a_header_as_default, r"has a Header as its default: write a: Annotated\[T, Header\('name'\)\]"),
        (a_header_inside, "its Header cannot be read"),
        (two_markers, "with one of Depends, Header and Payload"),
        (the_rest, "takes the rest of the payload, but a Header gives one value"),
        (undecodable, "nothing can be decoded to its type .*Router"),
    ],
)
def test_what_means_nothing_is_refused(function: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        compile_plan(function)


def reads_a_header(tenant: Annotated[str, Header("x-tenant")]) -> str:
    return tenant


def in_a_process(tenant: Annotated[str, Depends(reads_a_header)]) -> None: ...


def test_a_dependency_in_a_process_cannot_read_the_message() -> None:
    with pytest.raises(ConfigurationError, match=r"a dependency that has a Header\(name='x-tenant'\)"):
        Router().actor(run_in_process=True)(in_a_process)


def test_headers_of_one_name_are_the_same_annotation() -> None:
    assert len({Header("x-tenant"), Header("x-tenant"), Header("x-other")}) == 2


def test_what_nobody_has_filled_has_no_special_methods_that_others_could_take_for_true() -> None:
    assert not hasattr(INJECTED, "__fspath__")
    with pytest.raises(UsageError, match="a worker fills it"):
        INJECTED.headers  # noqa: B018  reading it is the test
