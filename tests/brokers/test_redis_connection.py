"""A connection to Redis that is given up in the middle of a command; the server is the other end of a stream in memory."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, MockClock, memory_stream_pair

from repid import BrokerUnavailable
from repid.brokers.redis.wire import IDLE_TIME, Connection

GIVEN_UP = "a command to here was given up in the middle"


Stream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


async def give_up_in_the_middle(connection: Connection, stream: Stream) -> None:
    """Nothing is taken of what is sent any more."""
    stream.send_stream.send_all_hook = trio.sleep_forever
    with trio.move_on_after(0.1):
        await connection.ask(b"PING")


async def test_an_answer_that_comes_after_the_connection_was_given_up_is_nobodys(autojump_clock: MockClock) -> None:
    failures: list[Exception] = []

    async def ask() -> None:
        try:
            await connection.ask(b"PING")
        except Exception as error:  # noqa: BLE001  it is looked at below
            failures.append(error)

    ours, theirs = memory_stream_pair()
    connection = Connection(ours, "here")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await theirs.receive_some()
        await give_up_in_the_middle(connection, ours)
        await theirs.send_all(b"+PONG\r\n")
    assert [(type(failure), str(failure)) for failure in failures] == [(BrokerUnavailable, GIVEN_UP)]


async def test_a_connection_that_is_given_up_while_it_is_watched_ends_at_once(autojump_clock: MockClock) -> None:
    ours, _ = memory_stream_pair()
    connection = Connection(ours, "here")
    with trio.fail_after(5), pytest.RaisesGroup(pytest.RaisesExc(BrokerUnavailable, match=GIVEN_UP)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.watch)
            await trio.sleep(2 * IDLE_TIME)
            await give_up_in_the_middle(connection, ours)


async def test_an_answer_that_nobody_asked_for_ends_the_connection(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    connection = Connection(ours, "here")
    with (
        trio.fail_after(5),
        pytest.RaisesGroup(pytest.RaisesExc(BrokerUnavailable, match="answered what nobody had asked")),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.watch)
            await trio.sleep(2 * IDLE_TIME)
            await theirs.send_all(b"-ERR go away\r\n")
