"""What is wrong with a declaration is told where it is made, with file and line.

The annotations in this file are strings, as in most modules of users.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
import pytest
import trio

from repid import (
    ConfigurationError,
    Connection,
    Depends,
    InMemoryServer,
    Job,
    Payload,
    Queue,
    Repid,
    Router,
    Worker,
)
from repid.inject import UnresolvedAnnotation

Anything: Any = Router  # what a type checker would see is tested here at run time


Number = int


def doubled(number: Annotated[Number, Payload()]) -> Number:
    return 2 * number


async def job() -> None: ...


def sync_job() -> None: ...


def text_of(function: Any, **options: Any) -> str:
    """The text of the error that declaring an actor raises."""
    router = Router()
    with pytest.raises(ConfigurationError) as raised:
        router.actor(**options)(function)
    assert router.actors() == []
    return str(raised.value)


def test_the_file_and_the_line_of_the_function_are_told() -> None:
    assert text_of(job, retries=-1).endswith(f"(at {__file__}:{inspect.getsourcelines(job)[1]})")
    assert text_of(functools.partial(job), retries=-1).endswith(f":{inspect.getsourcelines(job)[1]})")
    assert f"{__file__}:" in text_of(5)


def test_what_becomes_wrong_by_another_router_is_told_with_file_and_line_too() -> None:
    router, outer = Router(), Router(run_in_process=True)
    router.actor(job)
    with pytest.raises(ConfigurationError, match=r"'job' is async: run_in_process .*test_declaring\.py:\d+\)$"):
        outer.include_router(router)


def test_a_router_s_own_option_is_held_against_the_actor_at_once() -> None:
    router = Router(run_in_process=True)
    with pytest.raises(ConfigurationError, match="give this one run_in_process=False"):
        router.actor(job)
    router.actor(run_in_process=False)(job)
    router.actor(sync_job)
    assert [actor.run_in_process for actor in router.actors()] == [False, True]


def test_a_worker_s_actor_is_refused_when_it_is_declared() -> None:
    with pytest.raises(ConfigurationError, match="'job' is async: run_in_process"):
        Worker().actor(run_in_process=True)(job)


# What can never be called


class Methods:
    def method(self, number: int) -> None: ...

    @classmethod
    def of_class(cls, number: int) -> None: ...

    @staticmethod
    def static(number: int) -> None: ...


class CallableObject:
    def __call__(self, number: int) -> None: ...


def test_a_method_without_its_object_is_refused() -> None:
    assert "'method' is a method of the class Methods, and no message can give it its 'self'" in text_of(Methods.method)


@functools.singledispatch
def chosen(number: object) -> None: ...


class Choosing:
    @functools.singledispatchmethod
    def method(self, number: object) -> None: ...


@pytest.mark.parametrize("function", [chosen, Choosing().method, functools.lru_cache(chosen)])
def test_a_function_that_is_chosen_by_an_argument_without_a_name_is_refused(function: Any) -> None:
    assert "is a function of functools.singledispatch, which chooses by the first argument without a name" in text_of(
        function
    )


async def test_a_function_around_one_that_is_chosen_by_its_argument_is_an_actor() -> None:
    got: list[Any] = []
    chosen_by_text = functools.singledispatch(got.append)
    router = Router()

    @router.actor
    @functools.wraps(chosen)
    def job(**arguments: Any) -> None:
        chosen_by_text(arguments["number"])

    router.actor(name="bound")(functools.partial(chosen, 1))
    await run_with(router, {"number": 3})
    assert got == [3]


def test_a_wrapper_that_does_not_tell_what_it_wraps_is_refused_with_what_to_do() -> None:
    def wrapper(*args: Any, **kwargs: Any) -> Any: ...

    assert "in a decorator put @functools.wraps(function) on the wrapper" in text_of(wrapper)


def test_a_class_is_refused() -> None:
    assert "actor 'CallableObject' is a class, but an actor must be a function" in text_of(CallableObject)


def test_methods_with_their_object_static_ones_and_callable_objects_are_actors() -> None:
    router = Router()
    for function in (Methods().method, Methods.of_class, Methods.static, CallableObject()):
        router.actor(function)

    class Inside:
        @staticmethod
        @router.actor
        def decorated(number: int) -> None: ...

        @router.actor
        @staticmethod
        async def decorated_outside(number: int) -> None: ...

    assert [actor.name for actor in router.actors()] == [
        "method",
        "of_class",
        "static",
        "CallableObject",
        "decorated",
        "decorated_outside",
    ]
    assert [actor.is_async for actor in router.actors()] == [False, False, False, False, False, True]


@pytest.mark.parametrize("rule", [{"every": 60}, {"cron": "0 0 * * *"}])
def test_an_actor_that_ticks_must_do_without_a_payload(rule: dict[str, Any]) -> None:
    def report(day: str, kind: str = "long") -> None: ...
    def fine(kind: str = "long", **rest: int) -> None: ...

    assert "whose messages carry no payload, but its parameter 'day' has no default" in text_of(report, **rule)
    Router().actor(**rule)(fine)


def test_a_type_to_which_nothing_can_be_decoded_is_refused() -> None:
    async def odd(lock: threading.Event) -> None: ...

    assert "nothing can be decoded to its type Event" in text_of(odd)


# Options that contradict each other


@pytest.mark.parametrize("mode", ["always_ack", "ack_first"])
@pytest.mark.parametrize("on_error", ["nack", "reject", "retry", lambda _: None])
def test_on_error_has_no_say_where_the_message_is_acknowledged_anyway(mode: Any, on_error: Any) -> None:
    assert f"and confirmation_mode={mode!r}, under which a message is ackn" in text_of(
        job, confirmation_mode=mode, on_error=on_error
    )
    Router().actor(confirmation_mode=mode, on_error="ack")(job)  # says the same
    Router(on_error=on_error).actor(confirmation_mode=mode, on_error=None)(job)


# Functions among the options


async def waits(*_: Any, **__: Any) -> Any: ...
def yields(*_: Any, **__: Any) -> Any:
    yield


async def waits_and_yields(*_: Any, **__: Any) -> Any:
    yield


def takes_nothing() -> Any: ...


@pytest.mark.parametrize("option", ["on_error", "retry_policy", "routing_strategy"])
@pytest.mark.parametrize("function", [waits, yields, waits_and_yields])
def test_a_function_that_must_answer_at_once_cannot_wait_or_yield(option: str, function: Any) -> None:
    expected = f"{option} of actor 'job' must be a plain function that returns its answer, but {function.__name__}()"
    assert expected in text_of(job, **{option: function})


@pytest.mark.parametrize(
    ("option", "call"),
    [("on_error", "(exception)"), ("retry_policy", "(retry_number)"), ("routing_strategy", "(actor_name=)")],
)
def test_a_function_that_does_not_take_what_it_is_given_is_refused(option: str, call: str) -> None:
    assert f"{option} of actor 'job' is called with {call}, but takes_nothing() cannot be" in text_of(
        job, **{option: takes_nothing}
    )


def test_a_middleware_takes_three_arguments_and_does_not_yield() -> None:
    expected = "each of the middlewares of actor 'job' is called with (call_next, message, actor), but takes_nothing()"
    assert expected in text_of(job, middlewares=[takes_nothing])
    for function in (yields, waits_and_yields):
        assert "return await call_next(message, actor) instead of a yield" in text_of(job, middlewares=[function])
    with pytest.raises(ConfigurationError, match="each of the middlewares of a router"):
        Anything(middlewares=[takes_nothing])
    with pytest.raises(ConfigurationError, match="each of the middlewares of an app"):
        Repid(middlewares=[takes_nothing])  # type: ignore[list-item]  # as users may


def test_a_producer_middleware_takes_two_arguments_and_does_not_yield() -> None:
    for function, text in ((takes_nothing, r"is called with \(call_next, envelopes\)"), (yields, "instead of a yield")):
        middlewares: Any = [function]
        with pytest.raises(ConfigurationError, match=f"each of the producer_middlewares .*{text}"):
            Repid(producer_middlewares=middlewares)


def forgot_async(call_next: Any, message: Any, actor: Any = None) -> Any:
    return None


def hands_on(call_next: Any, message: Any, actor: Any) -> Any:
    return call_next(message, actor)


async def test_a_middleware_that_gives_nothing_to_await_is_named(autojump_clock: trio.testing.MockClock) -> None:
    async with Repid(Connection(InMemoryServer()), middlewares=[hands_on, forgot_async]).magic():
        worker = Worker(burst=True)
        worker.actor(job)
        await Queue().declare()
        await Job("job").enqueue()
        assert (await worker.run()).dead == 1
        [dead] = await Queue().get_messages("dead")
    assert dead.failure is not None
    assert dead.failure.text == (
        "the middleware forgot_async() returned None, which cannot be awaited: declare it with async def, or return "
        "what call_next returned"
    )


async def forgets_message(call_next: Any, message: Any, actor: Any) -> Any:
    return await call_next(None, actor)


async def forgets_actor(call_next: Any, message: Any, actor: Any) -> Any:
    return await call_next(None)


@pytest.mark.parametrize(
    ("middleware", "call"),
    [(forgets_message, "forgets_message() called call_next(None, Actor("), (forgets_actor, "called call_next(None)")],
)
async def test_a_middleware_that_calls_the_rest_with_something_else_is_named(
    middleware: Any, call: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with Repid(Connection(InMemoryServer()), middlewares=[middleware, hands_on]).magic():
        worker = Worker(burst=True)
        worker.actor(job)
        await Queue().declare()
        await Job("job").enqueue()
        assert (await worker.run()).dead == 1
        [dead] = await Queue().get_messages("dead")
    assert dead.failure is not None
    assert dead.failure.type == "ConfigurationError"
    assert call in dead.failure.text
    assert "write `await call_next(message, actor)`, with the message and the actor that the middleware was given" in (
        dead.failure.text
    )


async def test_a_producer_middleware_that_gives_nothing_to_await_is_named() -> None:
    app = Repid(Connection(InMemoryServer()), producer_middlewares=[forgot_async])
    async with app.magic():
        with pytest.raises(ConfigurationError, match=r"the middleware forgot_async\(\) returned None"):
            await app.send_message(channel="c", payload=b"")


# Local names in annotations that are strings


async def run_with(router: Router, payload: Any) -> None:
    """Run the only actor of a router once."""
    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    async with app.magic():
        await app.send_message_json(channel="default", payload=payload, headers={"topic": router.actors()[0].name})
        assert (await app.run_worker(burst=True)).succeeded == 1


async def test_annotations_may_name_what_is_local_to_the_functions_around() -> None:
    got: list[Any] = []
    router = Router()

    def outer() -> None:
        class Args(msgspec.Struct):
            x: int

        def name() -> str:
            return "Ada"

        def greeting(name: Annotated[str, Depends(name)]) -> str:
            return f"Hello, {name}!"

        def inner() -> None:
            class Other(msgspec.Struct):
                y: int

            @router.actor
            async def local(args: list[Args], other: Other, said: Annotated[str, Depends(greeting)]) -> None:
                got.extend((args, other, said))

            _ = Args, greeting  # what a function uses, its frame knows

        inner()

    outer()
    await run_with(router, {"args": [{"x": 1}], "other": {"y": 2}})
    assert list(map(str, got)) == ["[Args(x=1)]", "Other(y=2)", "Hello, Ada!"]


async def test_the_nearest_local_name_counts_also_against_a_global_one() -> None:
    router = Router()
    got: list[Any] = []

    def declare(kind: Any) -> None:
        Job = kind  # noqa: F841, N806  the name of a global

        @router.actor(name=kind.__name__)
        async def local(x: Job) -> None:  # type: ignore[valid-type]
            got.append(x)

    declare(int)
    await run_with(router, {"x": 5})
    assert got == [5]


async def test_a_dependency_at_the_top_of_a_module_does_not_see_the_local_names_of_its_actor() -> None:
    router = Router()
    got: list[Any] = []

    def declare(kind: Any) -> None:
        Number = kind  # noqa: F841, N806  the name of a global, which the dependency means

        @router.actor
        async def local(text: Number, twice: Annotated[int, Depends(doubled)]) -> None:  # type: ignore[valid-type]
            got.extend((text, twice))

    declare(str)
    await run_with(router, {"text": "a", "number": 2})
    assert got == ["a", 4]


def test_only_the_names_that_are_mentioned_are_kept() -> None:
    import gc
    import weakref

    class Heavy:
        pass

    def declare(router: Router) -> weakref.ref[Heavy]:
        heavy = Heavy()

        class Args(msgspec.Struct):
            x: int

        @router.actor
        async def local(args: Args) -> None: ...

        return weakref.ref(heavy)

    router = Router()
    reference = declare(router)
    gc.collect()
    assert reference() is None
    assert len(router.actors()) == 1


def test_a_name_that_is_defined_later_is_found_when_the_router_is_included() -> None:
    router = Router()

    @router.actor
    async def early(x: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821  it comes later

    globals()["Later"] = int
    try:
        Repid().include_router(router)
    finally:
        del globals()["Later"]
    [actor] = router.actors()
    assert [field.hint for field in actor.plan.signature.fields] == [int]


def test_a_name_that_is_never_found_is_told_with_file_and_line() -> None:
    router = Router()

    @router.actor
    async def early(x: Never) -> None: ...  # type: ignore[name-defined]  # noqa: F821  that is the point

    with pytest.raises(UnresolvedAnnotation, match=r"the name 'Never' .* at the top of the module \(at .*\.py:\d+\)"):
        Repid().include_router(router)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(**arguments: Any) -> Any:
        return function(**arguments)

    return wrapper


async def test_local_names_are_found_behind_a_decorator() -> None:
    got: list[Any] = []
    router = Router()

    class Args(msgspec.Struct):
        x: int

    @router.actor
    @decorated
    def local(args: Args) -> None:
        got.append(args.x)

    await run_with(router, {"args": {"x": 3}})
    assert got == [3]


def rows(count: int) -> Iterator[int]:
    yield from range(count)


async def test_what_a_decorator_makes_of_a_generator_counts() -> None:
    """A wrapper may well read the generator that it wraps; one that gives it back fails when it runs."""
    got: list[Any] = []
    router = Router()

    @router.actor
    @functools.wraps(rows)
    def all_rows(**arguments: Any) -> None:
        got.extend(rows(**arguments))

    await run_with(router, {"count": 3})
    assert got == [0, 1, 2]
