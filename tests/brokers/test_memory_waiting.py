"""What the memory broker promises to those who wait, a sentence each. Time is virtual."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from repid.brokers import InMemoryServer
from repid.brokers.consumer import Consumer
from repid.delivery import ACK, DeadLetter, Release, Settlement

from .broker_aids import ids, message
from .memory_aids import consuming, driver_of, finishes, settle

# Waiting


async def test_receive_gives_up_after_max_wait(autojump_clock: MockClock, server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        before = trio.current_time()
        assert await consumer.receive(1, max_wait=3) == []
        assert trio.current_time() - before == 3


async def test_of_several_who_wait_each_gives_up_at_its_own_time(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    ended: list[tuple[float, float]] = []
    before = trio.current_time()

    async def wait(consumer: Consumer, seconds: float) -> None:
        assert await consumer.receive(1, max_wait=seconds) == []
        ended.append((seconds, trio.current_time() - before))

    async with consuming(server) as first, consuming(server) as second, consuming(server) as third:
        async with trio.open_nursery() as nursery:
            for consumer, seconds in ((first, 100), (second, 2), (third, 50)):
                nursery.start_soon(wait, consumer, seconds)
                await trio.testing.wait_all_tasks_blocked()
    assert ended == [(2, 2), (50, 50), (100, 100)]


class Turns(trio.abc.Instrument):
    """Counts the turns of trio's loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_after_a_rest_of_the_sender_whoever_waits_has_the_message_in_the_first_turn(
    server: InMemoryServer,
) -> None:
    counts: list[int] = []
    turns = Turns()

    async def wait(consumer: Consumer) -> None:
        assert ids(await consumer.receive(1, max_wait=60)) == ["a"]
        counts.append(turns.count)

    async with consuming(server) as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(wait, consumer)
        await trio.sleep(0.002)  # so that a pause is due
        trio.lowlevel.add_instrument(turns)
        await server.publish([message("a")])
        paused = turns.count
    trio.lowlevel.remove_instrument(turns)
    assert (counts, paused) == ([1], 1)


async def test_a_cancellation_in_the_pause_of_a_sender_comes_after_its_answer(server: InMemoryServer) -> None:
    outcomes: list[object] = []

    async def cancel_when_it_came(consumer: Consumer) -> None:
        await settle(consumer, (await consumer.receive(1, max_wait=60))[0], ACK)
        scope.cancel()

    for number in range(20):  # trio lets either of the two go on first
        async with consuming(server) as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_it_came, consumer)
            await trio.sleep(0.002)  # so that a pause is due
            with trio.CancelScope() as scope:
                outcomes.append(await server.publish([message(str(number))]))
                await trio.sleep_forever()
    assert outcomes == [[None]] * 20


async def test_a_waiting_consumer_is_woken_by_all_that_makes_something_ready(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("held"), message("dead")])
        held, dead = await consumer.receive(2)
        await settle(consumer, dead, DeadLetter("nacked"))
        causes: list[Callable[[], Awaitable[object]]] = [
            lambda: server.publish([message("new")]),
            lambda: settle(consumer, held, Release()),
            lambda: server.revive("q"),
        ]
        for cause in causes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(consumer.receive, 1)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(cause)
                with trio.fail_after(0.001):
                    await trio.testing.wait_all_tasks_blocked()
        assert (await server.counts("q")).leased == 3


async def test_receive_wakes_exactly_when_a_scheduled_message_is_due(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("late", delay=50)])
        received: list[tuple[float, str]] = []

        async def receive() -> None:
            [delivery] = await consumer.receive(1)
            received.append((trio.current_time(), delivery.envelope.id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(receive)
            await trio.sleep(1)
            await server.publish([message("soon", delay=2)])
        assert received == [(3, "soon"), (50, "late")]


async def test_closing_a_consumer_hands_its_topics_to_those_who_wait(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server, frozenset("a")) as one, trio.open_nursery() as nursery:
        async with consuming(server, frozenset("b")):
            await server.publish([message("b", topic="b")])
            nursery.start_soon(one.receive, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert (await server.counts("q")).leased == 0
        with trio.fail_after(0.001):
            await trio.testing.wait_all_tasks_blocked()
        assert (await server.counts("q")).leased == 1


def test_an_interrupt_in_the_closing_of_a_consumer_leaves_nobody_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        server = InMemoryServer()
        async with server.connection(), trio.open_nursery() as nursery:
            await server.declare(["q"])
            async with consuming(server, frozenset("a")) as one:
                nursery.start_soon(one.receive, 1)
                with pytest.raises(KeyboardInterrupt):  # noqa: PT012  where in the block it comes is the question
                    async with consuming(server, frozenset("b")):
                        await server.publish([message("b", topic="b")])
                        await trio.testing.wait_all_tasks_blocked()
                        wake_all = driver_of(server)._waiting.wake_all

                        def interrupted() -> None:  # called on closing
                            monkeypatch.undo()
                            signal.raise_signal(signal.SIGINT)
                            wake_all()

                        monkeypatch.setattr(driver_of(server)._waiting, "wake_all", interrupted)
                    await trio.lowlevel.checkpoint()
                assert await finishes(trio.testing.wait_all_tasks_blocked)
                assert (await server.counts("q")).leased == 1

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_one_message_wakes_one_of_many_waiting_consumers(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    woken = 0

    async def receive(consumer: Consumer) -> None:
        nonlocal woken
        await consumer.receive(5, max_wait=100)
        woken += 1

    async with consuming(server) as consumer, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(receive, consumer)
        await trio.testing.wait_all_tasks_blocked()
        steps = trio.lowlevel.current_statistics().tasks_living
        await server.publish([message("1")])
        await trio.testing.wait_all_tasks_blocked()
        assert (woken, trio.lowlevel.current_statistics().tasks_living) == (1, steps - 1)
        assert len(driver_of(server)._waiting.waiters) == 19
        nursery.cancel_scope.cancel()
    assert len(driver_of(server)._waiting.waiters) == 0


async def test_who_waits_longest_is_served_first(autojump_clock: MockClock, server: InMemoryServer) -> None:
    served: list[int] = []

    async def receive(consumer: Consumer, number: int) -> None:
        await consumer.receive(1)
        served.append(number)

    async with consuming(server) as consumer, trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(receive, consumer, number)
            await trio.testing.wait_all_tasks_blocked()
        for n in range(4):
            await server.publish([message(str(n))])
            await trio.testing.wait_all_tasks_blocked()
    assert served == [0, 1, 2, 3]


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_a_message_and_a_cancellation_at_one_moment_lose_nothing(
    autojump_clock: MockClock, server: InMemoryServer, cancelled_first: bool
) -> None:
    got: dict[int, list[str]] = {}

    async def receive(consumer: Consumer, number: int, scope: trio.CancelScope) -> None:
        with scope:
            got[number] = ids(await consumer.receive(1))

    async with consuming(server) as consumer, trio.open_nursery() as nursery:
        scopes = [trio.CancelScope(), trio.CancelScope()]
        for number, scope in enumerate(scopes):
            nursery.start_soon(receive, consumer, number, scope)
            await trio.testing.wait_all_tasks_blocked()
        if cancelled_first:
            scopes[0].cancel()
        driver = driver_of(server)
        driver._step(lambda now: driver.store.publish([message("1")], now))  # the first is served, and has not run yet
        scopes[0].cancel()
        assert await finishes(trio.testing.wait_all_tasks_blocked)
        assert got == {1 if cancelled_first else 0: ["1"]}
        nursery.cancel_scope.cancel()


async def test_ten_thousand_empty_topics_cost_nothing(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message(str(n), topic=str(n)) for n in range(10_000)])
        await consumer.settle([Settlement(d, ACK) for d in await consumer.receive(10_000)])
        assert driver_of(server).store.channels["q"].lanes == {}
        assert driver_of(server).store.channels["q"].strays == {}
