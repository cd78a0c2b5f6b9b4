"""What the memory broker promises about connections, time and runs, a sentence each."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from repid.brokers import InMemoryMessageBroker, InMemoryServer
from repid.brokers.consumer import Consumer
from repid.brokers.memory.waiting import Clock
from repid.errors import ConfigurationError, NotConnected, UsageError
from repid.ports import Counts

from .broker_aids import ids, message, now_ready
from .memory_aids import consuming

# Connection and time


def test_server_and_message_broker_are_one_class() -> None:
    assert InMemoryMessageBroker is InMemoryServer


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_lease_timeout_must_be_positive(timeout: float) -> None:
    with pytest.raises(ConfigurationError, match="lease_timeout must be positive"):
        InMemoryServer(lease_timeout=timeout)


async def test_every_call_outside_a_connection_says_what_to_do() -> None:
    server = InMemoryServer()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: server.declare(["q"]),
        lambda: server.publish([message("1")]),
        lambda: server.counts("q"),
        lambda: server.browse("q", "ready"),
        lambda: server.flush("q"),
        lambda: server.delete("q"),
        lambda: server.revive("q"),
        lambda: server.consume({"q": None}).__aenter__(),
    ]
    for call in calls:
        with pytest.raises(NotConnected, match=r"async with server\.connection\(\):"):
            await call()


async def test_connections_nest_and_the_outermost_closes() -> None:
    server = InMemoryServer()
    assert not server.is_connected
    async with server.connection():
        async with server.connection() as same:
            assert same is server
        assert server.is_connected
        await server.declare(["q"])
    assert not server.is_connected


async def test_closing_the_connection_ends_the_waiting_of_its_consumers() -> None:
    server = InMemoryServer()
    raised: list[BaseException] = []

    async def wait(consumer: Consumer) -> None:
        with pytest.raises(NotConnected) as info:
            await consumer.receive(1)
        raised.append(info.value)

    async with trio.open_nursery() as nursery, server.connection():
        await server.declare(["q"])
        left_open = server.consume({"q": None})
        nursery.start_soon(wait, await left_open.__aenter__())
        await trio.testing.wait_all_tasks_blocked()
    await left_open.__aexit__(None, None, None)
    assert len(raised) == 1


async def test_every_public_method_can_be_cancelled(server: InMemoryServer) -> None:
    async with server.consume({"q": None}) as consumer:
        await server.publish([message("1")])
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: server.declare(["q"]),
            lambda: server.publish([message("2")]),
            lambda: server.counts("q"),
            lambda: server.browse("q", "ready"),
            lambda: consumer.receive(1),
            lambda: consumer.receive(1, max_wait=0),
            lambda: consumer.settle([]),
            lambda: consumer.extend([]),
            consumer.rescue,
            lambda: server.revive("q"),
            lambda: server.flush("q"),
            lambda: server.delete("q"),
        ]
        for call in calls:
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught


async def test_calls_one_after_another_let_others_run_every_millisecond(server: InMemoryServer) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        until = time.perf_counter() + 5  # a busy machine may not let this one run for long
        while turns < 5 and time.perf_counter() < until:
            await server.publish([message("1")])
        assert turns >= 5
        nursery.cancel_scope.cancel()


async def test_cancelled_calls_change_nothing(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        with trio.CancelScope() as scope:
            scope.cancel()
            await consumer.receive(1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await server.publish([message("2")])
        assert await server.counts("q") == Counts(ready=1)


def test_messages_outlive_the_run_and_time_goes_on() -> None:
    server = InMemoryServer()

    async def first() -> None:
        async with server.connection():
            await server.declare(["q"])
            await server.publish([message("ready"), message("soon", delay=5), message("late", delay=1000)])
            await trio.sleep(4)

    async def second() -> None:
        async with server.connection(), consuming(server) as consumer:
            assert ids(await now_ready(consumer)) == ["ready"]
            before = trio.current_time()
            assert ids(await consumer.receive(10)) == ["soon"]
            assert 0 < trio.current_time() - before <= 1

    trio.run(first, clock=MockClock(autojump_threshold=0))
    trio.run(second, clock=MockClock(rate=0, autojump_threshold=0))


def test_what_is_due_at_a_time_that_the_offset_rounds_is_received_at_once() -> None:
    server = InMemoryServer()
    delays = [1.1**n / 7 for n in range(100)]

    async def first() -> None:
        async with server.connection():
            await server.declare(["q"])
            await trio.sleep(1 / 3)

    async def second() -> None:
        await trio.sleep(1e6 / 7)  # trio counts in coarser steps than the broker then
        async with server.connection(), consuming(server) as consumer:
            await server.publish([message(str(n), delay=delay) for n, delay in enumerate(delays)])
            for n in range(len(delays)):
                assert ids(await consumer.receive(1)) == [str(n)]

    trio.run(first, clock=MockClock(autojump_threshold=0))
    trio.run(second, clock=MockClock(autojump_threshold=0))


async def test_closing_and_opening_within_a_run_keeps_to_its_clock(autojump_clock: MockClock) -> None:
    server = InMemoryServer()
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("1", delay=10)])
    await trio.sleep(10)
    async with server.connection(), consuming(server) as consumer:
        assert ids(await now_ready(consumer)) == ["1"]


async def test_two_live_runs_cannot_share_one_broker(server: InMemoryServer) -> None:
    errors: list[BaseException] = []

    async def intrude() -> None:
        with pytest.raises(UsageError, match="open in another event loop") as info:
            async with server.connection():
                pass
        errors.append(info.value)
        with pytest.raises(NotConnected, match="another event loop"):
            await server.counts("q")

    thread = threading.Thread(target=trio.run, args=[intrude])
    thread.start()
    await trio.to_thread.run_sync(thread.join)
    assert len(errors) == 1
    assert await server.counts("q") == Counts()


def test_a_run_that_never_left_its_block_does_not_lock_the_broker() -> None:
    """As one that broke down. (A generator that is left open would be closed by trio at the end of its run.)"""
    server = InMemoryServer()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def crash() -> None:
        tokens.append(await server._enter())
        await server.declare(["q"])
        await server.publish([message("1")])

    async def go_on() -> None:
        async with server.connection():
            await server._leave(tokens[0])  # the first block ends late: it must not close anything any more
            assert await server.counts("q") == Counts(ready=1)
        with pytest.raises(NotConnected):
            await server.counts("q")

    trio.run(crash)
    trio.run(go_on)


async def test_every_call_is_protected_from_ctrl_c(server: InMemoryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt in the middle of a change would leave half of it."""
    look, protected = Clock.look, list[bool]()

    def noting(clock: Clock) -> float:
        protected.append(trio.lowlevel.currently_ki_protected())
        return look(clock)

    monkeypatch.setattr(Clock, "look", noting)
    async with server.consume({"q": None}) as consumer:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: server.declare(["q"]),
            lambda: server.publish([message("1")]),
            lambda: server.counts("q"),
            lambda: server.browse("q", "ready"),
            lambda: server.watch("1", "1"),
            lambda: consumer.receive(1),
            lambda: consumer.settle([]),
            lambda: consumer.extend([]),
            consumer.rescue,
            lambda: server.cancel("1"),
            lambda: server.revive("q"),
            lambda: server.flush("q"),
            lambda: server.delete("q"),
        ]
        for call in calls:
            seen = len(protected)
            await call()
            assert protected[seen:], "the call did not ask for the time"
            assert all(protected[seen:])
