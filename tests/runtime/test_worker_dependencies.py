"""Dependencies of actors at work. The annotations in this file are no strings, so that they can be local."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Annotated, Any, Literal

import pytest
import trio
from aids import Log, UnreliableServer, failure_of, send

from repid import (
    Actor,
    CallNext,
    ConfigurationError,
    Counts,
    Depends,
    Job,
    Message,
    Repid,
    Report,
    Router,
)

setting: ContextVar[str] = ContextVar("setting", default="unset")


@pytest.fixture
def log() -> Log:
    return Log()


def returns() -> str:
    return "sync"


async def awaits() -> str:
    await trio.sleep(1)
    return "async"


def yields() -> Iterator[str]:
    yield "generator"


async def yields_and_awaits() -> AsyncIterator[str]:
    await trio.sleep(1)
    yield "async generator"
    await trio.sleep(1)


class Made:
    def __init__(self, word: Annotated[str, Depends(awaits)]) -> None:
        self.word = f"made of {word}"


class Calls:
    async def __call__(self) -> str:
        return "callable"


@pytest.mark.parametrize("is_async", [True, False], ids=["async actor", "sync actor"])
@pytest.mark.parametrize("surrounded", [False, True], ids=["alone", "with a middleware"])
async def test_every_kind_of_dependency_is_given_to_the_actor(
    app: Repid, router: Router, *, is_async: bool, surrounded: bool
) -> None:
    seen: list[Any] = []

    async def around(call_next: CallNext, message: Message, actor: Actor) -> Any:
        assert message.arguments == {"number": 7}
        return await call_next(message, actor)

    def note(
        a: Annotated[str, Depends(returns)],
        b: Annotated[str, Depends(awaits)],
        number: int,
        c: Annotated[str, Depends(yields)],
        d: Annotated[str, Depends(yields_and_awaits)],
        *,
        e: Annotated[Made, Depends(Made)],
        f: Annotated[str, Depends(Calls())],
    ) -> None:
        seen.extend([a, b, number, c, d, e.word, f])

    async def note_async(**keywords: Any) -> None:
        await trio.sleep(1)
        note(**keywords)

    note_async.__wrapped__ = note  # type: ignore[attr-defined] # a decorator's work
    router.actor(name="note", timeout=1e9, middlewares=[around] if surrounded else [])(note_async if is_async else note)
    await send(app, "note", number=7, a="not this")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    assert seen == ["sync", "async", 7, "generator", "async generator", "made of async", "callable"]


async def test_the_function_stays_what_it_was(router: Router) -> None:
    @router.actor
    async def double(number: int, word: Annotated[str, Depends(returns)]) -> str:
        return word * number

    assert await double(2, "a") == "aa"
    assert await double(2, word="b") == "bb"


async def test_each_function_is_called_once_for_each_run_and_shared_also_between_nested_ones(
    app: Repid, router: Router
) -> None:
    made: list[object] = []

    async def connect() -> object:
        made.append(object())
        return made[-1]

    Connected = Annotated[object, Depends(connect)]  # noqa: N806

    def nested(connection: Connected) -> object:
        return connection

    @router.actor
    async def job(a: Connected, b: Annotated[object, Depends(nested)], c: Connected) -> None:
        assert a is b is c is made[-1]

    await send(app, "job")
    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=2, succeeded=2)
    assert len(made) == 2


async def test_what_is_after_the_yield_runs_when_the_actor_has_ended_in_reverse_order(
    app: Repid, router: Router, log: Log
) -> None:
    async def outer() -> AsyncIterator[str]:
        with log.around("outer"):
            yield "outer"
            await trio.sleep(1)

    def inner(_: Annotated[str, Depends(outer)]) -> Iterator[str]:
        with log.around("inner"):
            yield "inner"

    async def last(_: Annotated[str, Depends(inner)]) -> AsyncIterator[str]:
        with log.around("last"):
            yield "last"
            await trio.sleep(1)

    @router.actor
    async def job(_: Annotated[str, Depends(last)]) -> None:
        await trio.sleep(1)
        log.append("job")

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    opened = ["outer opens", "inner opens", "last opens"]
    assert log == [*opened, "job", "last closes", "inner closes", "outer closes"]


async def test_what_the_actor_raises_is_raised_at_the_yield(
    app: Repid, router: Router, server: UnreliableServer, log: Log
) -> None:
    async def outer() -> AsyncIterator[None]:
        with log.around("outer"):
            yield

    def inner() -> Iterator[None]:
        with log.around("inner"):
            yield

    @router.actor(retries=1, retry_policy=lambda _: 1)
    async def job(_: Annotated[None, Depends(outer)], __: Annotated[None, Depends(inner)]) -> None:
        raise ValueError("of the job")

    await send(app, "job")
    assert await app.run_worker(messages_limit=2) == Report(processed=2, failed=1, retried=1, dead=1)
    assert await failure_of(server) == ("ValueError", "of the job")
    sees = ["inner sees ValueError", "inner closes", "outer sees ValueError", "outer closes"]
    assert log == ["outer opens", "inner opens", *sees] * 2


@pytest.mark.parametrize("is_async", [True, False], ids=["async actor", "sync actor"])
async def test_a_dependency_cannot_make_a_success_of_a_failure(
    app: Repid, router: Router, server: UnreliableServer, log: Log, *, is_async: bool
) -> None:
    def outer() -> Iterator[None]:
        with log.around("outer"):
            yield

    def swallows(_: Annotated[None, Depends(outer)]) -> Iterator[None]:
        try:
            yield
        except ValueError:
            log.append("rolled back")

    async def swallows_too() -> AsyncIterator[None]:
        try:
            yield
        except ValueError:
            log.append("rolled back")

    def fail(_: Annotated[None, Depends(swallows)], __: Annotated[None, Depends(swallows_too)]) -> None:
        raise ValueError("lost?")

    async def fail_async(**keywords: Any) -> None:
        fail(**keywords)

    fail_async.__wrapped__ = fail  # type: ignore[attr-defined]
    router.actor(name="fail")(fail_async if is_async else fail)
    await send(app, "fail")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    assert await failure_of(server) == ("ValueError", "lost?")
    assert sorted(log) == ["outer closes", "outer opens", "outer sees ValueError", "rolled back", "rolled back"]


async def test_a_dependency_may_raise_something_else_instead(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    async def translates() -> AsyncIterator[None]:
        try:
            yield
        except KeyError as error:
            raise LookupError("not found") from error

    @router.actor
    async def job(_: Annotated[None, Depends(translates)]) -> None:
        raise KeyError("x")

    await send(app, "job")
    await app.run_worker(burst=True)
    assert await failure_of(server) == ("LookupError", "not found")


async def test_a_dependency_that_raises_is_a_failure_of_the_actor_and_closes_what_was_open(
    app: Repid, router: Router, server: UnreliableServer, log: Log
) -> None:
    def outer() -> Iterator[None]:
        with log.around("outer"):
            yield

    attempts: list[int] = []

    async def flaky(_: Annotated[None, Depends(outer)], message: Message) -> None:
        attempts.append(message.attempt)
        await trio.sleep(1)
        if message.attempt == 1:
            raise ConnectionError("not yet")

    @router.actor(retries=1, retry_policy=lambda _: 1)
    async def job(_: Annotated[None, Depends(flaky)]) -> None:
        log.append("job")

    await send(app, "job")
    assert await app.run_worker(messages_limit=2) == Report(processed=2, succeeded=1, retried=1)
    assert attempts == [1, 2]
    failed = ["outer opens", "outer sees ConnectionError", "outer closes"]
    assert log == [*failed, "outer opens", "job", "outer closes"]


YIELDS = pytest.mark.parametrize(
    ("yields", "text"), [(0, "has ended without a yield"), (2, "yields more than once")], ids=["no yield", "two yields"]
)
"""How often a generator yields that should do so once."""


@YIELDS
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_generator_that_does_not_yield_once_is_named(
    app: Repid, router: Router, server: UnreliableServer, yields: int, text: str, fails: bool, is_async: bool
) -> None:
    def wrong() -> Iterator[int]:
        for number in range(yields):
            with suppress(ValueError):
                yield number

    async def wrong_async() -> AsyncIterator[int]:
        for number in range(yields):
            with suppress(ValueError):
                yield number

    function: Any = wrong_async if is_async else wrong

    @router.actor
    async def job(_: Annotated[int, Depends(function)]) -> None:
        if fails:
            raise ValueError("no")

    await send(app, "job")
    await app.run_worker(burst=True)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert dead.failure.type == "ConfigurationError"
    assert function.__name__ in dead.failure.text
    assert text in dead.failure.text
    assert ("ValueError: no" in dead.failure.traceback) == (fails and yields > 1)


async def test_what_a_context_manager_within_a_dependency_says_is_said_of_that_one(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @contextmanager
    def wrong() -> Iterator[int]:
        yield from ()

    def right() -> Iterator[int]:
        with wrong() as number:
            yield number

    @router.actor
    async def job(_: Annotated[int, Depends(right)]) -> None: ...

    await send(app, "job")
    await app.run_worker(burst=True)
    assert await failure_of(server) == ("RuntimeError", "generator didn't yield")


async def test_a_sync_function_that_gives_a_coroutine_is_a_failure_that_says_so(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    def forgets() -> Any:
        return awaits()

    @router.actor
    async def job(_: Annotated[str, Depends(forgets)]) -> None: ...

    await send(app, "job")
    await app.run_worker(burst=True)
    kind, text = await failure_of(server)
    assert kind == "ConfigurationError"
    assert "returned a coroutine, but is no async function" in text


@pytest.mark.parametrize("where", ["opening", "working", "closing"])
async def test_the_timeout_covers_opening_working_and_closing(
    app: Repid,
    router: Router,
    server: UnreliableServer,
    log: Log,
    where: Literal["opening", "working", "closing"],
) -> None:
    lasts = {"opening": 1.0, "working": 1.0, "closing": 1.0, where: 100.0}

    def outer() -> Iterator[None]:
        with log.around("outer"):
            yield

    async def slow(_: Annotated[None, Depends(outer)]) -> AsyncIterator[None]:
        await trio.sleep(lasts["opening"])
        yield
        await trio.sleep(lasts["closing"])

    @router.actor(timeout=10)
    async def job(_: Annotated[None, Depends(slow)]) -> None:
        await trio.sleep(lasts["working"])

    started = trio.current_time()
    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    assert trio.current_time() - started == pytest.approx(10)
    assert (await failure_of(server))[0] == "TimeoutError"
    assert log == ["outer opens", "outer sees Cancelled", "outer closes"]


async def test_a_swallowed_cancellation_is_still_one(app: Repid, router: Router) -> None:
    async def swallows() -> AsyncIterator[None]:
        with suppress(trio.Cancelled):
            yield

    @router.actor(timeout=5)
    async def job(_: Annotated[None, Depends(swallows)]) -> None:
        await trio.sleep_forever()

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)


async def test_closing_may_shield_itself_and_is_waited_for(app: Repid, router: Router, log: Log) -> None:
    async def thorough() -> AsyncIterator[None]:
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
            log.append(f"closed at {trio.current_time() - started:g}")

    @router.actor
    async def job(_: Annotated[None, Depends(thorough)]) -> None:
        await trio.sleep_forever()

    await send(app, "job")
    started = trio.current_time()
    with trio.move_on_after(2):
        await app.run_worker()
    assert log == ["closed at 5"]
    assert trio.current_time() - started == pytest.approx(5)


async def test_cancelling_a_worker_closes_dependencies_and_releases_the_message(
    app: Repid, router: Router, server: UnreliableServer, log: Log
) -> None:
    async def outer() -> AsyncIterator[None]:
        with log.around("outer"):
            yield

    @router.actor
    async def job(_: Annotated[None, Depends(outer)]) -> None:
        await trio.sleep_forever()

    await send(app, "job")
    with trio.move_on_after(1):
        await app.run_worker()
    assert log == ["outer opens", "outer sees Cancelled", "outer closes"]
    assert await server.counts("default") == Counts(ready=1)


async def test_a_cancelled_job_closes_its_dependencies(app: Repid, router: Router, log: Log) -> None:
    async def outer() -> AsyncIterator[None]:
        with log.around("outer"):
            yield

    @router.actor
    async def job(_: Annotated[None, Depends(outer)]) -> None:
        await trio.sleep_forever()

    handle = await Job("job").enqueue()
    async with trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        await trio.sleep(1)
        await handle.cancel()
        await trio.sleep(5)
        worker.stop()
    assert log == ["outer opens", "outer sees Cancelled", "outer closes"]


async def test_dependencies_run_in_the_context_and_the_task_of_their_run(app: Repid, router: Router) -> None:
    seen: list[str] = []
    tasks: list[Any] = []

    def sets(message: Message) -> None:
        seen.append(setting.get())
        setting.set(message.message_id)
        tasks.append(trio.lowlevel.current_task())

    async def reads(_: Annotated[None, Depends(sets)], message: Message) -> AsyncIterator[None]:
        assert setting.get() == message.message_id
        await trio.sleep(1)
        yield
        await trio.sleep(1)
        assert setting.get() == message.message_id
        assert trio.lowlevel.current_task() is tasks[-1]

    @router.actor
    async def job(message: Message, _: Annotated[None, Depends(reads)]) -> None:
        await trio.sleep(1)
        assert setting.get() == message.message_id
        assert trio.lowlevel.current_task() is tasks[-1]

    setting.set("the worker's")
    for _ in range(3):
        await send(app, "job")
    assert await app.run_worker(burst=True, tasks_limit=1) == Report(processed=3, succeeded=3)
    assert seen == ["the worker's"] * 3


async def test_a_dependency_may_decide_with_the_message(app: Repid, router: Router, server: UnreliableServer) -> None:
    async def acknowledges(message: Message) -> AsyncIterator[Message]:
        await message.outbox.send_message_json(channel="other", payload={})
        yield message
        await message.ack()

    @router.actor(confirmation_mode="manual")
    async def job(message: Annotated[Message, Depends(acknowledges)]) -> None:
        assert not message.is_acted_on

    await send(app, "job")
    assert await app.run_worker(messages_limit=1) == Report(processed=1, succeeded=1)
    assert await server.counts("default") == Counts()
    assert (await server.counts("other")).ready == 1


async def test_the_message_is_the_actor_s_own(app: Repid, router: Router) -> None:
    async def same(message: Message | None) -> Message | None:
        return message

    @router.actor
    async def job(message: Message, other: Annotated[Message, Depends(same)]) -> None:
        assert message is other

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


async def test_what_a_dependency_does_after_a_verdict_changes_nothing(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    def fails_at_the_end() -> Iterator[None]:
        yield
        raise ValueError("too late")

    @router.actor(retries=3)
    async def job(message: Message, _: Annotated[None, Depends(fails_at_the_end)]) -> None:
        await message.ack()

    await send(app, "job")
    with caplog.at_level(logging.ERROR):
        await app.run_worker(burst=True)
    assert await server.counts("default") == Counts()
    assert "failed after its verdict, which stands" in caplog.text


@pytest.mark.parametrize(("word", "counts"), [("ack", Counts()), ("reject", Counts(ready=1)), ("nack", Counts(dead=1))])
async def test_the_word_of_an_explicit_actor_is_its_verdict_with_dependencies_too(
    app: Repid, router: Router, server: UnreliableServer, word: Literal["ack", "reject", "nack"], counts: Counts
) -> None:
    async def outer() -> AsyncIterator[None]:
        yield

    @router.actor(confirmation_mode="manual_explicit")
    async def job(_: Annotated[None, Depends(outer)]) -> str:
        return word

    await send(app, "job")
    await app.run_worker(messages_limit=1)
    assert await server.counts("default") == counts


async def test_the_result_is_what_the_actor_returned(app: Repid, router: Router) -> None:
    async def outer() -> AsyncIterator[int]:
        yield 20

    @router.actor(store_result=True)
    async def job(more: int, number: Annotated[int, Depends(outer)]) -> int:
        return number + more

    handle = await Job("job", args={"more": 1}).enqueue()
    await app.run_worker(burst=True)
    result = await handle.result
    assert result is not None
    assert result.value == 21


async def test_an_actor_that_is_acknowledged_first_may_have_dependencies(app: Repid, router: Router) -> None:
    @router.actor(confirmation_mode="ack_first")
    async def job(word: Annotated[str, Depends(awaits)]) -> None:
        assert word == "async"

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


def test_a_router_refuses_a_wrong_dependency_where_it_is_declared() -> None:
    router = Router()

    async def job(_: Annotated[int, Depends(5)]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"parameter '_' of .*job\(\) depends on 5, which cannot be called"):
        router.actor(job)
