"""One connection to Redis and those who wait for its answers: who reads, and what becomes of it when a caller is cancelled."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from engines.redis import Redis

from repid import RedisServer
from repid.brokers.redis.address import parse_address
from repid.brokers.redis.driver import RedisDriver
from repid.brokers.redis.wire import IDLE_TIME, Wire, opened

from .broker_aids import message

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def wire_to(redis: Redis, prefix: str) -> AsyncGenerator[Wire, None]:
    async with opened(parse_address(redis.url), None, prefix, "test") as wire:
        with trio.fail_after(5):
            yield wire


class Steps(trio.abc.Instrument):
    """Counts how often a task goes on."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def wait_for(server: RedisServer, state: str) -> None:
    while server.link.state != state:
        await trio.sleep(0.005)


async def test_a_lone_caller_goes_on_once_for_each_message_that_it_sends(
    redis: Redis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repid.brokers.redis.wire.IDLE_TIME", 0.05)
    server, steps = RedisServer(redis.url, prefix=prefix), Steps()
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("first")])
        await trio.sleep(0.2)  # the watch begins, and is ended by the next one
        await server.publish([message("second")])
        trio.lowlevel.add_instrument(steps)
        for number in range(100):
            await server.publish([message(str(number))])
        trio.lowlevel.remove_instrument(steps)
    assert 100 <= steps.count < 125


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads but those who ask."""
    monkeypatch.setattr("repid.brokers.redis.wire.IDLE_TIME", 60.0)


@pytest.mark.usefixtures("unwatched")
async def test_the_answers_of_callers_that_wait_together_are_not_mixed_up(redis: Redis, prefix: str) -> None:
    answers: dict[int, Any] = {}
    async with wire_to(redis, prefix) as wire, trio.open_nursery() as nursery:

        async def echo(number: int) -> None:
            answers[number] = await wire.command(b"ECHO", number)

        for number in range(50):
            nursery.start_soon(echo, number)
    assert answers == {number: b"%d" % number for number in range(50)}


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("cancelled", [0, 1, 2], ids=["who reads", "who reads next", "who waits"])
async def test_a_caller_that_is_cancelled_takes_no_answer_from_the_others(
    redis: Redis, prefix: str, cancelled: int
) -> None:
    """The first answer comes after a while, and all others behind it."""
    scopes = [trio.CancelScope() for _ in range(4)]
    answers: dict[int, Any] = {}
    async with wire_to(redis, prefix) as wire, trio.open_nursery() as nursery:

        async def ask(number: int, *command: Any) -> None:
            with scopes[number]:
                answers[number] = await wire.command(*command)

        nursery.start_soon(ask, 0, b"BLPOP", f"{prefix}:nothing", 0.3)
        for number in (1, 2, 3):
            await trio.sleep(0.02)
            nursery.start_soon(ask, number, b"ECHO", number)
        await trio.sleep(0.02)
        scopes[cancelled].cancel()
    expected = {0: None, 1: b"1", 2: b"2", 3: b"3"}
    del expected[cancelled]
    assert answers == expected


@pytest.mark.usefixtures("unwatched")
async def test_an_answer_that_nobody_waited_for_is_not_that_of_the_next_caller(redis: Redis, prefix: str) -> None:
    async with wire_to(redis, prefix) as wire:
        with trio.move_on_after(0.05):
            await wire.command(b"BLPOP", f"{prefix}:nothing", 0.2)
        assert await wire.command(b"ECHO", b"next") == b"next"


async def test_the_end_of_an_idle_connection_for_calls_is_noticed(redis: Redis, prefix: str) -> None:
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        driver = server._driver
        assert isinstance(driver, RedisDriver)
        number = await driver.wire.command(b"CLIENT", b"ID")
        await trio.to_thread.run_sync(redis.execute, "CLIENT", "KILL", "ID", number)
        with trio.fail_after(4 * IDLE_TIME):
            await wait_for(server, "down")
        with trio.fail_after(5):
            await wait_for(server, "up")
        assert await server.publish([message("1")]) == [None]


async def test_a_caller_that_reads_is_told_when_the_link_is_closed_under_it(redis: Redis, prefix: str) -> None:
    failures: list[Exception] = []
    with trio.fail_after(3):
        async with trio.open_nursery() as nursery:
            async with opened(parse_address(redis.url), None, prefix, "test") as wire:

                async def ask() -> None:
                    try:
                        await wire.command(b"BLPOP", f"{prefix}:nothing", 4)
                    except Exception as error:  # noqa: BLE001  it is looked at below
                        failures.append(error)

                nursery.start_soon(ask)
                await trio.sleep(0.1)
    assert [type(failure).__name__ for failure in failures] == ["BrokerUnavailable"]
