"""The verbs of a message as plain calls in the thread of a sync actor. Real time, as everything with threads."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Annotated, Any

import pytest
import trio
from aids import UnreliableServer, failure_of, send

from repid import AlreadySettled, ConfigurationError, Counts, Depends, Job, Message, Repid, Report, Router, SyncMessage
from repid import UsageError as WrongUse

pytestmark = pytest.mark.real_time


@pytest.fixture
async def app(server: UnreliableServer) -> AsyncGenerator[Repid, None]:
    app = Repid()
    app.servers.register_server("default", server)
    async with app.magic():
        await server.declare(["default", "answers"])
        yield app


def here(message: SyncMessage) -> type:
    return type(message)


async def around(message: Message) -> type:
    return type(message)


async def asks_a_sync_one(value: Annotated[type, Depends(here)]) -> type:
    return value


async def blocks(message: SyncMessage) -> type:
    return type(message)


VERBS: dict[str, tuple[Callable[[SyncMessage], None], Counts]] = {
    "ack": (lambda message: message.ack(), Counts()),
    "nack": (lambda message: message.nack(), Counts(dead=1)),
    "reject": (lambda message: message.reject(), Counts(ready=1)),
    "retry": (lambda message: message.retry(delay=60), Counts(scheduled=1)),
    "snooze": (lambda message: message.snooze(60), Counts(scheduled=1)),
    "reply": (lambda message: message.reply(payload=b"", channel="answers"), Counts()),
    "reply_json": (lambda message: message.reply_json([1], channel="answers"), Counts()),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_is_a_plain_call_in_a_sync_actor_and_the_actors_failure_comes_too_late(
    app: Repid, router: Router, server: UnreliableServer, verb: str
) -> None:
    say, fate = VERBS[verb]

    @router.actor(retries=1)
    def job(message: SyncMessage) -> None:
        message.outbox.send_message_json(channel="answers", payload="held back")
        assert say(message) is None
        with pytest.raises(AlreadySettled):
            message.nack()
        raise ValueError("too late")

    await send(app, "job")
    await app.run_worker(messages_limit=1)
    assert await server.counts("default") == fate
    answers = [each.envelope.payload for each in await server.browse("answers", "ready")]
    replies = {"reply": [b""], "reply_json": [b"[1]"]}.get(verb, [])
    assert answers == ([b'"held back"', *replies] if verb in {"ack", "reply", "reply_json"} else [])


async def test_a_verb_is_back_when_the_broker_has_answered(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    seen: list[Counts] = []

    @router.actor
    def job(message: SyncMessage) -> None:
        message.ack()
        seen.append(trio.from_thread.run(server.counts, "default"))

    await send(app, "job")
    await app.run_worker(burst=True)
    assert seen == [Counts()]


async def test_sends_return_what_was_sent_and_progress_is_told(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    told = trio.Event()
    token = trio.lowlevel.current_trio_token()

    @router.actor
    def job(message: SyncMessage) -> None:
        one = message.send_message(channel="answers", payload=b"1")
        two = message.send_message_json(channel="answers", payload=2)
        rest = message.send_messages_json(channel="answers", payloads=(n for n in (3, 4)))
        rest += message.send_messages(channel="answers", payloads=iter([b"5"]))
        assert [each.payload for each in (one, two, *rest)] == [b"1", b"2", b"3", b"4", b"5"]
        message.outbox.send_messages(channel="answers", payloads=[b"6"])
        assert len(message.outbox) == 1
        assert trio.from_thread.run(server.counts, "answers") == Counts(ready=5)
        message.progress(1, 2, "half")
        trio.from_thread.run(told.wait, trio_token=token)

    handle = await Job("job").enqueue()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: app.run_worker(burst=True))
        async for status in handle.watch():
            if status.done is not None:
                assert (status.done, status.total, status.note) == (1, 2, "half")
                told.set()
    assert await server.counts("answers") == Counts(ready=6)


async def test_the_verbs_work_in_a_parameter_that_says_message_and_in_the_actors_own_threads(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    def job(message: Message) -> None:
        thread = threading.Thread(target=message.nack)
        thread.start()
        thread.join()
        assert message.action == "nacked"
        assert message.is_acted_on
        assert isinstance(message, SyncMessage)
        assert repr(message).startswith("<SyncMessage ")

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)


async def test_sync_dependencies_of_a_sync_actor_get_the_message_for_threads_and_async_ones_the_other(
    app: Repid, router: Router
) -> None:
    seen: list[type] = []

    @router.actor
    def job(message: SyncMessage, a: Annotated[type, Depends(here)], b: Annotated[type, Depends(around)]) -> None:
        seen.extend([type(message), a, b])
        message.nack()

    await send(app, "job")
    assert (await app.run_worker(burst=True)).dead == 1
    assert seen == [SyncMessage, SyncMessage, Message]


async def test_a_thread_that_is_told_to_stop_can_still_say_what_it_has_done(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(timeout=0.05, retries=3)
    def job(message: SyncMessage) -> None:
        try:
            while True:
                trio.from_thread.check_cancelled()
        finally:
            message.ack()

    await send(app, "job")
    await app.run_worker(messages_limit=1)
    assert await server.counts("default") == Counts()


async def test_a_verb_in_a_thread_that_was_left_behind_says_that_it_comes_too_late(app: Repid, router: Router) -> None:
    go_on, raised = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    @router.actor
    def job(message: SyncMessage) -> None:
        go_on.wait(5)
        with pytest.raises(WrongUse, match="has ended"):
            message.ack()
        token.run_sync_soon(raised.set)

    await send(app, "job")
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(
            lambda *, task_status: app.run_worker(graceful_shutdown_time=0.1, task_status=task_status)
        )
        await trio.sleep(0.05)
        handle.stop()
    go_on.set()
    await raised.wait()


async def test_what_a_verb_refuses_it_refuses_in_the_thread_and_the_message_stays_open(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    def job(message: SyncMessage) -> None:
        for wrong in (message.retry, message.reply_json):
            with pytest.raises(WrongUse):
                wrong()
        with pytest.raises(ConfigurationError):
            message.snooze(-1)
        assert not message.is_acted_on

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


async def test_producer_middlewares_go_around_what_a_sync_actor_sends_and_replies(server: UnreliableServer) -> None:
    seen: list[str] = []

    async def note(call_next: Any, envelopes: Any) -> Any:
        await trio.lowlevel.checkpoint()
        seen.extend(envelope.queue for envelope in envelopes)
        return await call_next(envelopes)

    app = Repid(producer_middlewares=[note])
    app.servers.register_server("default", server)
    router = Router()

    @router.actor
    def job(message: SyncMessage) -> None:
        message.outbox.send_message_json(channel="outbox")
        message.send_message_json(channel="now")
        message.reply_json(channel="reply")
        assert message.action == "replied"

    app.include_router(router)
    async with app.magic():
        await send(app, "job")
        assert (await app.run_worker(burst=True)).succeeded == 1
    assert seen == ["default", "outbox", "now", "reply"]


async def test_a_verb_that_an_async_actor_does_not_await_takes_effect_too(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def job(message: Message) -> None:
        _ = message.progress(1, 2)
        _ = message.nack()
        await trio.lowlevel.checkpoint()

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "after the broker has answered"])
async def test_a_verb_can_be_awaited_later_and_once(app: Repid, router: Router, *, wait: bool) -> None:
    @router.actor
    async def job(message: Message) -> None:
        said: Coroutine[Any, Any, None] = message.ack()
        if wait:
            await trio.sleep(0.05)
        await said
        with pytest.raises(RuntimeError, match="already awaited"):
            await said
        assert message.action == "acked"
        raise KeyError  # heard in the log alone

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


async def test_a_verb_may_be_given_to_a_nursery(app: Repid, router: Router) -> None:
    @router.actor
    async def job(message: Message) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(message.nack)

    await send(app, "job")
    assert (await app.run_worker(burst=True)).dead == 1


async def test_a_function_on_the_event_loop_cannot_ask_for_the_message_that_blocks() -> None:
    async def with_message(message: SyncMessage) -> None: ...
    async def with_sync(value: Annotated[type, Depends(here)]) -> None: ...
    def with_async(value: Annotated[type, Depends(blocks)]) -> None: ...
    def with_sync_of_async(value: Annotated[type, Depends(asks_a_sync_one)]) -> None: ...

    for wrong in (with_message, with_sync, with_async, with_sync_of_async):
        router = Router()
        with pytest.raises(ConfigurationError, match=r"'message' of .* is a SyncMessage, whose verbs block"):
            router.actor(wrong)


async def test_the_failure_of_a_sync_actor_without_a_verb_is_what_it_was(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    def job(message: SyncMessage) -> None:
        message.outbox.send_message_json(channel="answers")
        raise ValueError(message.payload.decode())

    await send(app, "job", n=1)
    await app.run_worker(burst=True)
    assert await failure_of(server) == ("ValueError", '{"n":1}')
    assert await server.counts("answers") == Counts()
