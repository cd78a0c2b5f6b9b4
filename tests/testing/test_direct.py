"""`DirectMessage`: calling an actor without a worker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from repid import (
    AlreadySettled,
    ConfigurationError,
    Connection,
    InMemoryServer,
    Message,
    Repid,
    Router,
    SyncMessage,
    UsageError,
)
from repid.delivery import Ack, Progress, Retry
from repid.testing import DirectMessage


async def work(number: int, message: Message) -> None:
    await message.progress(1, 2, "half")
    await message.outbox.send_message_json(channel="next", payload=number)
    await message.send_message_json(channel="log", payload="begun")
    if number < 0:
        await message.retry(5)
    elif message.reply_to is not None:
        await message.reply_json(number)


def work_in_a_thread(message: SyncMessage) -> None:
    message.progress(1)
    message.outbox.send_message_json(channel="next")
    assert message.send_message_json(channel="log").queue == "log"
    message.ack()


async def test_what_an_actor_says_to_its_message_is_kept() -> None:
    message = DirectMessage(reply_to="answers", attempt=2)
    await work(1, message)
    assert message.verdict == Ack()
    assert [(each.queue, each.payload) for each in message.sent] == [
        ("log", b'"begun"'),
        ("next", b"1"),
        ("answers", b"1"),
    ]
    assert message.told == (Progress(1, 2, "half"),)
    assert message.attempt == 2
    with pytest.raises(AlreadySettled):
        await message.nack()


async def test_without_a_verb_the_outbox_is_shown() -> None:
    message = DirectMessage(json={"a": 1}, headers={"x": "y"})
    await work(1, message)
    assert message.verdict is None
    assert [each.queue for each in message.held] == ["next"]
    assert (message.payload, message.headers) == (b'{"a":1}', {"x": "y"})


async def test_the_last_attempt_cannot_be_retried() -> None:
    with pytest.raises(UsageError, match="is the last"):
        await work(-1, DirectMessage())
    message = DirectMessage(retries=1)
    await work(-1, message)
    assert message.verdict == Retry(5)


def test_a_sync_actor_gets_the_message_for_threads() -> None:
    message = DirectMessage()
    work_in_a_thread(message.for_threads)
    assert message.verdict == Ack()
    assert [each.queue for each in message.sent] == ["log", "next"]


def test_it_needs_no_loop_of_trio() -> None:
    message = DirectMessage(reply_to="answers")
    asyncio.run(work(1, message))
    assert message.verdict == Ack()


async def test_calls_that_an_actor_enqueues_are_kept_and_need_the_app_that_has_their_actors() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router(queue="steps")

    @router.actor
    async def ends(number: int) -> None: ...

    @router.actor
    async def begins(message: Message) -> None:
        await message.enqueue(ends, 1)
        await message.outbox.enqueue(ends, 2)

    app.include_router(router)
    message = DirectMessage(app=app)
    await begins(message)
    assert [(each.queue, each.payload) for each in message.sent] == [("steps", b'{"number":1}')]
    assert [each.payload for each in message.held] == [b'{"number":2}']
    with pytest.raises(UsageError, match=r"DirectMessage\(app=app\)"):
        await begins(DirectMessage())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"attempt": 0}, "attempt must be a whole number of at least 1, but is 0"),
        ({"retries": -1}, "retries must be a whole number of at least 0"),
        ({"payload": {"a": 1}}, r"payload must be bytes, but is \{'a': 1\}: give json=\.\.\. in its place"),
        ({"channel": ""}, "not a valid channel name"),
        ({"headers": {"a": 1}}, "headers must map text to text"),
    ],
)
def test_what_no_message_could_have_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        DirectMessage(**options)
