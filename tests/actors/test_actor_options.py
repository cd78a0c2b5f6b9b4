"""Declaring actors: every option, what is inherited from where, what is refused and how."""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest

from repid import (
    Actor,
    ConfigurationError,
    Connection,
    Depends,
    Envelope,
    InMemoryServer,
    Message,
    Queue,
    Repid,
    Router,
    Worker,
    catch_all_routing_strategy,
    default_retry_policy_factory,
    topic_based_routing_strategy,
    with_jitter,
)


async def job() -> None: ...


def only(router: Router) -> Actor:
    [actor] = router.actors()
    return actor


def declare(**options: Any) -> Actor:
    router = Router()
    router.actor(**options)(job)
    return only(router)


def test_what_holds_when_nothing_is_said() -> None:
    router = Router()
    router.actor(job)
    actor = only(router)
    assert (actor.name, actor.channel, actor.timeout, actor.retries) == ("job", "default", 600.0, 0)
    assert (actor.concurrency, actor.mode, actor.on_error, actor.run_in_process) == (None, "auto", None, False)
    assert (actor.middlewares, actor.takes) == ((), None)
    assert [actor.retry_policy(n) for n in (1, 2, 5, 100)] == [1, 2, 16, 3600]


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"name": "other"}, "name", "other"),
        ({"channel": "mails"}, "channel", "mails"),
        ({"queue": "mails"}, "channel", "mails"),
        ({"timeout": 5}, "timeout", 5.0),
        ({"timeout": timedelta(minutes=2)}, "timeout", 120.0),
        ({"timeout": math.inf}, "timeout", math.inf),
        ({"retries": 3}, "retries", 3),
        ({"concurrency": 2}, "concurrency", 2),
        ({"concurrency": math.inf}, "concurrency", None),
        ({"confirmation_mode": "manual"}, "mode", "manual"),
        ({"on_error": "ack"}, "on_error", "ack"),
    ],
)
def test_an_option_is_what_was_said(options: dict[str, Any], field: str, value: object) -> None:
    assert getattr(declare(**options), field) == value


def test_the_function_stays_what_it_was() -> None:
    router = Router()
    assert router.actor(job) is job
    assert router.actor(name="x")(job) is job


def test_options_are_inherited_from_the_nearest_router_that_says_something() -> None:
    outer = Router(timeout=1, retries=1, channel="outer", concurrency=1)
    middle = Router(timeout=2, retries=2)
    inner = Router(timeout=3)
    inner.actor(timeout=4, name="own")(job)
    inner.actor(name="inner")(job)
    middle.include_router(inner)
    outer.include_router(middle)
    own, inherited = outer.actors()
    assert (own.timeout, own.retries, own.channel, own.concurrency) == (4, 2, "outer", 1)
    assert (inherited.timeout, inherited.retries, inherited.channel) == (3, 2, "outer")
    assert [actor.channel for actor in inner.actors()] == ["default"] * 2  # by itself it inherits nothing


def test_queue_and_channel_are_one_option_also_across_routers() -> None:
    outer = Router(queue="outer")
    outer.actor(channel="mine", name="a")(job)
    outer.actor(name="b")(job)
    assert [actor.channel for actor in outer.actors()] == ["mine", "outer"]


def test_a_router_in_two_places_inherits_from_each() -> None:
    shared = Router()
    shared.actor(job)
    first, second = Router(channel="first"), Router(channel="second")
    first.include_router(shared)
    second.include_router(shared)
    assert (only(first).channel, only(second).channel) == ("first", "second")


def test_what_is_declared_after_the_router_was_included_counts_too() -> None:
    outer, inner = Router(), Router()
    outer.include_router(inner)
    inner.actor(job)
    assert only(outer).name == "job"


def test_middlewares_add_up_from_the_outside_in() -> None:
    def middleware(name: str) -> Any:
        async def around(call_next: Any, message: Any, actor: Any) -> None: ...

        around.__name__ = name
        return around

    outer, inner = Router(middlewares=[middleware("a"), middleware("b")]), Router(middlewares=[middleware("c")])
    inner.actor(middlewares=[middleware("d")])(job)
    outer.include_router(inner)
    assert [m.__name__ for m in only(outer).middlewares] == ["a", "b", "c", "d"]  # type: ignore[attr-defined]  # functions


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"timout": 5}, "actor 'job' has no option 'timout' (did you mean 'timeout'?); the options are: "),
        ({"retires": 5}, "did you mean 'retries'?"),
        ({"channel": "a", "queue": "b"}, "actor 'job' has both channel and queue"),
        ({"timeout": -1}, "timeout of actor 'job' must be positive, but is -1"),
        ({"timeout": 0}, "must be positive"),
        ({"timeout": None}, "but is None: math.inf stands for no limit"),
        ({"timeout": math.nan}, "must be positive"),
        ({"timeout": "5"}, "timeout of actor 'job' must be seconds or a timedelta, but is '5'"),
        ({"timeout": True}, "must be seconds or a timedelta"),
        ({"timeout": None}, "must be seconds or a timedelta"),
        ({"retries": -1}, "retries of actor 'job' must be a whole number of at least 0, but is -1"),
        ({"retries": 1.5}, "must be a whole number"),
        ({"retries": True}, "must be a whole number"),
        ({"retries": math.inf}, "retries of actor 'job' must be finite"),
        ({"concurrency": 0}, "concurrency of actor 'job' must be a whole number of at least 1"),
        (
            {"confirmation_mode": "autoo"},
            "must be one of 'auto', 'always_ack', 'ack_first', 'manual', 'manual_explicit'",
        ),
        ({"confirmation_mode": "autoo"}, "(did you mean 'auto'?)"),
        ({"confirmation_mode": []}, "must be one of"),
        ({"on_error": "retri"}, "on_error of actor 'job' must be one of 'ack', 'nack', 'reject', 'retry'"),
        ({"on_error": 5}, "on_error of actor 'job' must be one of"),
        ({"retry_policy": 5}, "retry_policy of actor 'job' must be callable, but is 5"),
        ({"routing_strategy": "topic"}, "must be callable"),
        ({"strict": 1}, "strict of actor 'job' must be True or False"),
        ({"run_in_process": "yes"}, "run_in_process of actor 'job' must be True or False"),
        ({"middlewares": [5]}, "each of the middlewares of actor 'job' must be callable, but is 5"),
        ({"name": "my job"}, "'my job' is not a valid actor name"),
        ({"channel": "mails!"}, "'mails!' is not a valid channel name"),
        ({"channel": "x" * 256}, "is not a valid channel name"),
        ({"channel": 5}, "5 is not a valid channel name"),
        ({"confirmation_mode": "always_ack", "retries": 1}, "under which no message is ever retried"),
        ({"confirmation_mode": "ack_first", "retries": 1}, "under which no message is ever retried"),
        ({"run_in_process": True}, "actor 'job' is async: run_in_process is for sync functions"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        declare(**options)
    assert text in str(raised.value)


@pytest.mark.parametrize("middlewares", [5, None])
def test_middlewares_that_are_no_sequence_are_refused(middlewares: Any) -> None:
    with pytest.raises(ConfigurationError, match="middlewares"):
        Router(middlewares=middlewares)
    with pytest.raises(ConfigurationError, match="middlewares"):
        Repid(middlewares=middlewares)


def test_a_router_has_no_name_and_says_what_it_has() -> None:
    options: dict[str, Any] = {"name": "x"}
    with pytest.raises(ConfigurationError, match="a router has no option 'name'"):
        Router(**options)


def test_retries_inherited_conflict_with_a_mode_of_the_actor_s_own() -> None:
    with pytest.raises(ConfigurationError, match="actor 'job' has retries=3 and confirmation_mode='always_ack'"):
        Router(retries=3).actor(confirmation_mode="always_ack")(job)
    router, outer = Router(), Router(retries=3)
    router.actor(confirmation_mode="always_ack")(job)
    with pytest.raises(ConfigurationError, match="actor 'job' has retries=3 and confirmation_mode='always_ack'"):
        outer.include_router(router)  # on its own it is fine


@pytest.mark.parametrize("thing", [5, None, "job"])
def test_only_functions_can_be_actors(thing: Any) -> None:
    if thing is None:
        return  # that is the form with options
    with pytest.raises(ConfigurationError, match="an actor must be a function"):
        Router().actor(thing)


async def async_generator() -> AsyncIterator[int]:
    yield 1


def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("function", [generator, async_generator])
def test_generators_are_refused(function: Any) -> None:
    with pytest.raises(ConfigurationError, match="is a generator function"):
        Router().actor(function)


def test_a_routing_strategy_must_give_a_predicate() -> None:
    def forgetful(*, actor_name: str) -> Any: ...

    router = Router(routing_strategy=forgetful)
    with pytest.raises(ConfigurationError, match="the routing strategy of actor 'job' must return a predicate"):
        router.actor(job)


IN_A_PROMPT = """
from typing import Annotated
from repid import ConfigurationError, Depends, Router

def one() -> int:
    return 1

def job() -> None: ...

def depending(number: Annotated[int, Depends(one)]) -> None: ...

for function in job, depending:
    try:
        Router().actor(run_in_process=True)(function)
        print("declared")
    except ConfigurationError as error:
        print(error)
"""


def test_a_function_without_a_file_runs_in_a_process_only_with_cloudpickle(tmp_path: Path) -> None:
    """So it is in a notebook, too: another process cannot import the main module."""

    def run(*arguments: str) -> list[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", check=True
        ).stdout.splitlines()

    refused = run("-c", IN_A_PROMPT)
    assert ["it belongs to a program without a file" in line for line in refused] == [True, True]
    (tmp_path / "program.py").write_text(IN_A_PROMPT)
    assert run(str(tmp_path / "program.py")) == run("-m", "program") == ["declared"] * 2
    (tmp_path / "cloudpickle.py").touch()
    assert run("-c", IN_A_PROMPT) == ["declared"] * 2


def test_a_lambda_or_local_function_cannot_run_in_a_process() -> None:
    def local() -> None: ...

    with pytest.raises(ConfigurationError, match="at the top level of a module"):
        Router().actor(run_in_process=True)(local)


def takes_message(i: int, message: Message | None = None) -> None: ...


def channel_of(handle: Message) -> str:
    return handle.channel


async def attempt_of(message: Message) -> int:
    return message.attempt


def depends_on_message(channel: Annotated[str, Depends(channel_of)]) -> None: ...


def depends_beside_the_worker(attempt: Annotated[int, Depends(attempt_of)]) -> None: ...


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (depends_on_message, "'depends_on_message' cannot run in a process with the parameter 'handle' of its dep"),
    ],
)
def test_a_dependency_in_a_process_gets_no_message(function: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Router(run_in_process=True).actor(function)
    assert text in str(raised.value)


def test_an_actor_in_a_process_gets_its_message() -> None:
    router = Router()
    router.actor(run_in_process=True)(takes_message)
    assert only(router).plan.takes_message


def test_what_is_taken_from_a_message_beside_the_worker_can_go_to_a_process() -> None:
    router = Router()
    router.actor(run_in_process=True)(depends_beside_the_worker)
    assert only(router).plan.takes_message


class CallableObject:
    async def __call__(self, i: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "name", "is_async"),
    [
        (functools.partial(job), "job", True),
        (CallableObject(), "CallableObject", True),
        (functools.partial(functools.partial(default_retry_policy_factory)), "default_retry_policy_factory", False),
    ],
)
def test_partials_and_callable_objects_have_names_and_kinds(function: Any, name: str, is_async: bool) -> None:
    router = Router()
    router.actor(function)
    actor = only(router)
    assert (actor.name, actor.is_async) == (name, is_async)


def test_positional_only_parameters_are_refused_when_they_are_declared() -> None:
    async def job(x: int, /) -> None: ...

    with pytest.raises(ConfigurationError, match=r"parameter 'x' of .*job\(\) is positional-only"):
        Router().actor(job)


def test_string_annotations_are_resolved_and_unknown_names_are_named() -> None:
    router = Router()

    @router.actor
    async def job(x: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821  that is the point

    with pytest.raises(ConfigurationError, match="Nowhere"):
        router.actors()


@pytest.mark.parametrize("thing", [5, None, Repid, "router"])
def test_only_routers_can_be_included(thing: Any) -> None:
    with pytest.raises(ConfigurationError, match="only a Router can be included"):
        Router().include_router(thing)


def test_a_router_cannot_contain_itself() -> None:
    a, b, c = Router(), Router(), Router()
    a.include_router(b)
    b.include_router(c)
    for outer, inner in ((a, a), (b, a), (c, a)):
        with pytest.raises(ConfigurationError, match="cannot include itself"):
            outer.include_router(inner)


def twice() -> tuple[list[str], Router]:
    """Two functions of one name and channel, and one of this name in another channel."""
    ran: list[str] = []
    router = Router()
    for channel, word in (("a", "first"), ("a", "second"), ("b", "other")):

        def job(word: str = word) -> None:
            ran.append(word)

        router.actor(name="x", channel=channel)(job)
    return ran, router


@pytest.mark.parametrize("by_worker", [True, False])
async def test_an_actor_is_known_by_its_channel_and_name_and_the_first_gets_the_messages(
    caplog: pytest.LogCaptureFixture, by_worker: bool
) -> None:
    ran, router = twice()
    app = Repid(Connection(InMemoryServer()))
    if not by_worker:
        app.include_router(router)
    async with app.magic():
        for channel in ("a", "b"):
            await Queue(channel).declare()
            await app.send_message_json(channel=channel, headers={"topic": "x"})
        await (Worker([router], burst=True).run() if by_worker else app.run_worker(burst=True))
    assert sorted(ran) == ["first", "other"]
    [warning] = caplog.records
    places = re.findall(rf"{re.escape(__file__)}:\d+", warning.getMessage())
    assert len(places) == 2
    assert "channel 'a'" in warning.getMessage()


async def test_actors_with_a_routing_strategy_of_their_own_may_have_one_name(caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []
    router = Router()
    for number in range(2):

        def job(number: int = number) -> None:
            ran.append(number)

        def strategy(*, actor_name: str, number: int = number) -> Callable[[Envelope], bool]:
            return lambda envelope: envelope.topic == f"{actor_name} {number}"

        router.actor(name="x", routing_strategy=strategy)(job)
    app = Repid(Connection(InMemoryServer()))
    async with app.magic():
        await Queue("default").declare()
        for number in range(2):
            await app.send_message_json(channel="default", headers={"topic": f"x {number}"})
        await Worker([router], burst=True).run()
    assert (sorted(ran), caplog.records) == ([0, 1], [])


# Routing


def envelope(**headers: str) -> Envelope:
    return Envelope("id", "default", b"", headers=headers)


def test_the_topic_names_the_actor_by_default() -> None:
    takes = topic_based_routing_strategy(actor_name="job")
    assert [takes(envelope(topic="job")), takes(envelope(topic="jobs")), takes(envelope())] == [True, False, False]


def test_catch_all_takes_everything() -> None:
    takes = catch_all_routing_strategy(actor_name="job")
    assert [takes(envelope(topic="x")), takes(envelope())] == [True, True]


# Retry policies


def test_the_default_policy_doubles_between_its_bounds() -> None:
    policy = default_retry_policy_factory(min_backoff=2, max_backoff=50, multiplier=1.5, max_exponent=4)
    assert [policy(n) for n in range(1, 8)] == [2, 3, 6, 12, 24, 24, 24]
    assert [default_retry_policy_factory(max_backoff=5)(n) for n in range(1, 6)] == [1, 2, 4, 5, 5]
    assert default_retry_policy_factory()(10_000) == 3600


@pytest.mark.parametrize("max_exponent", [5000, math.inf, 10**30, 1e30])
@pytest.mark.parametrize("multiplier", [1.0, 10**300, 1e-300, 0, math.inf])
def test_the_default_policy_bears_any_exponent(max_exponent: Any, multiplier: float) -> None:
    policy = default_retry_policy_factory(multiplier=multiplier, max_exponent=max_exponent)
    assert policy(10**9) == (1 if multiplier == 0 else 3600)
    unbounded = default_retry_policy_factory(max_backoff=math.inf, max_exponent=max_exponent)
    assert float(unbounded(10**9)) >= 2.0**1023  # type: ignore[arg-type]  # gives a float


def test_every_number_of_the_default_policy_may_be_zero() -> None:
    policy = default_retry_policy_factory(0, 0, 0, 0)
    assert [policy(n) for n in (1, 2, 10**9)] == [0, 0, 0]


@pytest.mark.parametrize(
    "options",
    [
        {"min_backoff": -1},
        {"max_backoff": math.nan},
        {"multiplier": -1},
        {"min_backoff": 5, "max_backoff": 4},
        {"min_backoff": timedelta(seconds=1)},
        {"max_exponent": "3"},
        {"multiplier": True},
        {"multiplier": 10**400},
    ],
)
def test_a_policy_of_wrong_numbers_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        default_retry_policy_factory(**options)


def test_jitter_moves_a_delay_both_ways_within_its_fraction() -> None:
    for chance, expected in ((0.0, 8.0), (0.5, 10.0), (1.0, 12.0)):
        assert with_jitter(lambda _: 10, 0.2, chance=lambda value=chance: value)(1) == pytest.approx(expected)  # type: ignore[misc]  # a default in a lambda
    assert with_jitter(lambda _: timedelta(seconds=10), 0.0)(1) == 10
    assert 9 <= float(with_jitter(lambda _: 10)(1)) <= 11  # type: ignore[arg-type]  # gives a float


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan, "0.5"])
def test_a_jitter_outside_its_bounds_is_refused(fraction: Any) -> None:
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        with_jitter(lambda _: 1, fraction)
