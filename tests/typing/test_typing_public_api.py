"""What a type checker makes of the public API. `mypy --strict` is the test; pytest only sees that it can be run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any, assert_type

from repid import (
    Actor,
    BrowsedMessage,
    CallNext,
    Counts,
    Depends,
    Envelope,
    Handle,
    InMemoryServer,
    Job,
    JobHandle,
    Message,
    Outcomes,
    PrioritiesT,
    Publish,
    Queue,
    Repid,
    Report,
    Router,
    SyncMessage,
    Worker,
)

router = Router(timeout=5)
worker = Worker([router], burst=True)


async def add(x: int, y: int = 0) -> int:
    return x + y


def sync(text: str) -> bytes:
    return text.encode()


def test_the_decorator_keeps_the_type_of_the_function_bare_and_with_arguments() -> None:
    local = Router()

    @local.actor
    async def bare(x: int, *, y: str = "") -> list[int]:
        return [x]

    @local.actor(name="other", retries=3)
    async def with_options(x: int) -> list[int]:
        return [x]

    @local.actor()
    def empty(x: int) -> str:
        return str(x)

    @worker.actor(name="of_worker")
    def of_worker(x: int) -> str:
        return str(x)

    async def use() -> None:
        assert_type(await bare(1, y="y"), list[int])
        assert_type(await with_options(1), list[int])

    assert_type(empty(1), str)
    assert_type(of_worker(1), str)
    as_int_to_list: Callable[[int], Awaitable[list[int]]] = with_options
    assert (empty(1), of_worker(2)) == ("1", "2")
    assert callable(use)
    assert callable(as_int_to_list)
    assert local.actor(add) is add
    assert local.actor(name="sync")(sync) is sync


def test_a_dependency_is_of_the_type_it_is_annotated_with_and_may_be_given_by_hand() -> None:
    async def count(message: Message) -> AsyncIterator[int]:
        yield message.attempt

    @Router().actor
    def repeat(text: str, times: Annotated[int, Depends(count)]) -> str:
        assert_type(times, int)
        return text * times

    assert_type(repeat("a", times=2), str)
    as_plain_function: Callable[[str, int], str] = repeat
    assert as_plain_function("a", 2) == "aa"


def test_wrong_options_are_errors_of_the_checker_too() -> None:
    """Each ignore below is needed: mypy reports those that are not."""

    def wrong() -> None:
        router.actor(retires=3)  # type: ignore[call-overload]
        router.actor(confirmation_mode="no")  # type: ignore[call-overload]
        Router(timeout="5")  # type: ignore[arg-type]
        Router(name="x")  # type: ignore[call-arg]
        Worker(tasks=5)  # type: ignore[call-arg]
        Job("x", retires=5)  # type: ignore[call-arg]

    assert callable(wrong)


def test_the_verbs_of_a_message_for_threads_are_plain_calls() -> None:
    def of_a_message_for_threads(message: SyncMessage) -> None:
        assert_type(message.payload, bytes)
        assert_type(message.attempt, int)
        assert_type(message.is_acted_on, bool)
        message.ack()
        message.nack()
        message.reject()
        message.retry()
        message.snooze(1)
        message.progress(1, 2, "half")
        message.reply(payload=b"")
        message.reply_json({})
        message.outbox.send_message_json(channel="c", payload=1)
        assert_type(message.send_message(channel="c", payload=b""), Envelope)
        assert_type(message.send_message_json(channel="c", priority=PrioritiesT.HIGH), Envelope)
        assert_type(message.outbox.send_messages_json(channel="c", payloads=[1]), list[Envelope])
        message.send_message_json(channel="c", prioritty=1)  # type: ignore[call-arg]

    assert callable(of_a_message_for_threads)


def test_what_things_are() -> None:
    async def of_a_message(message: Message) -> None:
        assert_type(message.payload, bytes)
        assert_type(message.headers, Mapping[str, str])
        assert_type(message.channel, str)
        assert_type(message.message_id, str)
        assert_type(message.content_type, str | None)
        assert_type(message.reply_to, str | None)
        assert_type(message.attempt, int)
        assert_type(message.is_acted_on, bool)
        assert_type(await message.ack(), None)
        said: Coroutine[Any, Any, None] = message.reply_json({})
        await said
        message.nack()  # type: ignore[unused-coroutine] # it takes effect, but does not wait for the broker
        assert_type(await message.send_message(channel="c", payload=b""), Envelope)
        assert_type(await message.outbox.send_messages_json(channel="c", payloads=[1]), list[Envelope])

    async def of_the_apis(app: Repid, server: InMemoryServer) -> None:
        assert_type(await app.run_worker(burst=True), Report)
        assert_type(await worker.run(), Report)
        assert_type(await Job("x", args={"x": 1}).enqueue(), JobHandle)
        assert_type((await Job("x").enqueue()).id, str)
        assert_type(Job("x").is_unique, bool)
        assert_type(Job("x").id_, str | None)
        assert_type(await Queue("q").counts(), Counts)
        assert_type(await Queue("q").size(), int)
        assert_type(await Queue("q").flush(), int)
        assert_type(await Queue("q").requeue(), int)
        assert_type(await Queue("q").get_messages("dead"), list[BrowsedMessage])
        assert_type((await worker.run()).processed, int)
        app.servers.register_server("default", server, is_default=True)
        async with app.magic() as current:
            assert_type(current, Repid)

    def of_a_handle(handle: Handle) -> None:
        handle.stop()

    assert callable(of_a_message)
    assert callable(of_the_apis)
    assert callable(of_a_handle)


def test_middlewares_are_what_the_protocols_say() -> None:
    async def around(call_next: CallNext, message: Message, actor: Actor) -> object:
        result: object = await call_next(message, actor)
        return result

    async def sending(call_next: Publish, envelopes: Sequence[Envelope]) -> Outcomes:
        return await call_next(envelopes)

    app = Repid(middlewares=[around], producer_middlewares=[sending])
    assert_type(Router(middlewares=[around]), Router)
    assert app.title == "repid"
