"""Looking after dead letters: removing them for good, on every server and under every facade."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from repid import ConfigurationError, Connection, Counts, InMemoryServer, Job, Queue, Repid, Router, SQLiteServer

router = Router(queue="mail")


@router.actor
async def fails(number: int) -> None:
    raise ValueError(number)


def make_app(kind: str, folder: Path) -> Repid:
    app = Repid(Connection(InMemoryServer() if kind == "memory" else SQLiteServer(folder / "jobs.db")))
    app.include_router(router)
    return app


@pytest.fixture(params=["memory", "sqlite"])
async def queue(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Queue, None]:
    """A queue with five dead letters and one that is scheduled."""
    app = make_app(request.param, tmp_path)
    async with app.magic():
        for number in range(5):
            await Job("fails", queue="mail", id_=str(number), args={"number": number}).enqueue()
        await app.run_worker(burst=True)
        await Job("fails", queue="mail", args={"number": 5}, delay=1000).enqueue()
        yield Queue("mail")


async def dead_ids(queue: Queue) -> list[str]:
    return [message.envelope.id for message in await queue.get_messages("dead")]


async def test_chosen_dead_letters_are_removed_for_good(queue: Queue) -> None:
    dead = await queue.get_messages("dead")
    assert await queue.delete_messages(dead[1:3]) == 2
    assert await dead_ids(queue) == ["0", "3", "4"]
    assert await queue.delete_messages(dead[:2]) == 1  # one of them was removed before
    assert await queue.delete_messages([]) == 0
    assert await queue.counts() == Counts(scheduled=1, dead=2)


async def test_all_dead_letters_are_removed_and_nothing_else(queue: Queue) -> None:
    assert await queue.delete_messages() == 5
    assert await queue.delete_messages() == 0
    assert await queue.counts() == Counts(scheduled=1)


async def test_more_than_one_transaction_s_worth_is_removed(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repid.brokers.sqlite.views.BITE", 2)
    dead = await queue.get_messages("dead")
    assert await queue.delete_messages(dead[:3]) == 3
    assert await queue.delete_messages() == 2


async def test_what_was_requeued_meanwhile_is_left_alone(queue: Queue) -> None:
    dead = await queue.get_messages("dead")
    assert await queue.requeue(dead[:1]) == 1
    assert await queue.delete_messages(dead) == 4
    assert await queue.counts() == Counts(ready=1, scheduled=1)


async def test_only_dead_messages_can_be_deleted_or_requeued(queue: Queue) -> None:
    [waiting] = await queue.get_messages("scheduled")
    anything: Any = queue
    with pytest.raises(ConfigurationError, match=r"only dead messages can be deleted, but '.*' is scheduled"):
        await queue.delete_messages([waiting])
    with pytest.raises(ConfigurationError, match=r"only dead messages can be requeued, but '.*' is scheduled"):
        await queue.requeue([waiting])
    with pytest.raises(ConfigurationError, match=r'only what get_messages\("dead"\) gives can be deleted'):
        await anything.delete_messages(["0"])
    with pytest.raises(ConfigurationError, match="the messages to be deleted must be a list of several"):
        await anything.delete_messages("dead")


async def test_the_job_of_a_removed_dead_letter_is_gone_without_trace(queue: Queue) -> None:
    with trio.fail_after(5):
        assert [status.state async for status in Job("fails", queue="mail", id_="0").watch()] == ["dead"]
        await queue.delete_messages()
        assert [status.state async for status in Job("fails", queue="mail", id_="0").watch()] == ["unknown"]


def test_the_blocking_client_removes_them_too(tmp_path: Path) -> None:
    app = make_app("sqlite", tmp_path)
    with app.sync() as client:
        client.enqueue(Job("fails", queue="mail", args={"number": 1}))
    app.run(burst=True)
    queue = Queue("mail")
    with app.sync() as client:
        dead = client.run(partial(queue.get_messages, "dead"))
        assert client.run(partial(queue.delete_messages, dead)) == 1
        assert client.run(queue.delete_messages) == 0
