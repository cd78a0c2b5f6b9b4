"""Declaring bounded queues, and sending into them."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import Any

import pytest
import trio
from modest_driver import ModestDriver
from trio.testing import MockClock

from repid import (
    Bounds,
    ConfigurationError,
    Connection,
    InMemoryServer,
    Job,
    NotSupported,
    Queue,
    QueueFull,
    Repid,
    Router,
    Server,
    SomeRefused,
    Worker,
)


def make_app(*routers: Router, server: Server | None = None) -> Repid:
    app = Repid(Connection(server or InMemoryServer()))
    for router in routers:
        app.include_router(router)
    return app


def test_bounds_of_a_router_that_names_no_channel_are_not_dropped_in_silence() -> None:
    bounded = Router(max_size=5)
    with pytest.raises(ConfigurationError, match="'lines', which max_size=5 of its router does not bound"):

        @bounded.actor(queue="lines")
        async def parse() -> None: ...

    with pytest.raises(ConfigurationError, match="an included router names the channel 'lines'"):
        bounded.include_router(Router(channel="lines"))
    bounded.include_router(Router(channel="lines", max_size=7))

    @bounded.actor(queue="lines", max_size=7)
    async def parse_more() -> None: ...

    @bounded.actor
    async def count() -> None: ...

    assert [actor.bounds.max_size for actor in bounded.actors()] == [7, 5]
    named = Router(channel="lines", max_size=5)

    @named.actor(queue="other")
    async def look() -> None: ...

    assert [actor.bounds.max_size for actor in named.actors()] == [None]


async def test_a_queue_tells_and_stores_its_bounds() -> None:
    queue = Queue("q", max_size=3, max_bytes=100, when_full="raise")
    assert (queue.max_size, queue.max_bytes, queue.when_full) == (3, 100, "raise")
    async with make_app().magic():
        await queue.declare()
        await Queue("q").declare()
        assert (await Queue("q").counts()).bounds == Bounds(max_size=3, max_bytes=100, when_full="raise")
        await Queue("q").remove_bounds()
        assert (await Queue("q").counts()).bounds is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_size": 0}, "max_size of .* must be a whole number of at least 1"),
        ({"max_bytes": 1.5}, "max_bytes of .* must be a whole number"),
        ({"max_size": float("inf")}, "must be finite"),
        ({"max_size": 1, "when_full": "block"}, "when_full of .* must be one of 'wait', 'raise', 'drop_oldest'"),
        ({"when_full": "raise"}, "has when_full='raise', but no bound"),
    ],
)
def test_bounds_that_make_no_sense_are_refused_at_once(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Queue("q", **options)
    with pytest.raises(ConfigurationError, match=text):
        Router(channel="q", **options)


async def test_a_router_bounds_its_channel_and_no_other() -> None:
    router = Router(channel="lines", max_size=5)

    @router.actor
    async def read() -> None: ...

    @router.actor(channel="others")
    async def other() -> None: ...

    assert (router.max_size, router.max_bytes, router.when_full) == (5, None, "wait")
    async with make_app(router).magic():
        assert (await Queue("lines").counts()).bounds == Bounds(max_size=5)
        assert (await Queue("others").counts()).bounds is None


async def test_a_worker_stores_the_bounds_of_its_own_routers() -> None:
    router = Router(channel="lines", max_size=5)

    @router.actor
    async def read() -> None: ...

    async with make_app().magic():
        await Worker([router], burst=True).run()
        assert (await Queue("lines").counts()).bounds == Bounds(max_size=5)


async def test_two_bounds_of_one_channel_are_refused() -> None:
    one, two = Router(channel="lines", max_size=5), Router(channel="lines", max_size=6)

    @one.actor
    async def first() -> None: ...

    @two.actor
    async def second() -> None: ...

    with pytest.raises(ConfigurationError, match="'second' bounds channel 'lines' by max_size=6"):
        async with make_app(one, two).magic():
            pass


async def test_a_server_that_cannot_bound_queues_says_so() -> None:
    router = Router(channel="lines", max_size=5)

    @router.actor
    async def read() -> None: ...

    with pytest.raises(NotSupported, match="cannot bound queues"):
        async with make_app(router, server=Server(ModestDriver())).magic():
            pass


async def test_a_full_queue_raises_from_every_way_to_send() -> None:
    router = Router(channel="q", max_size=1, when_full="raise")

    @router.actor
    async def take(number: int = 0) -> None: ...

    app = make_app(router)
    async with app.magic():
        await app.send_message_json(channel="q")
        for send in (
            partial(app.send_message_json, channel="q"),
            partial(app.send_message, channel="q", payload=b""),
            partial(app.enqueue, take),
            Job("take", "q").enqueue,
        ):
            with pytest.raises(QueueFull, match="queue 'q' is full"):
                await send()
        await Queue("q").flush()
        with pytest.raises(SomeRefused) as refused:
            await app.enqueue_many(take, [1, 2])
        assert [type(outcome).__name__ for outcome in refused.value.outcomes] == ["JobHandle", "QueueFull"]
        await Queue("q").flush()
        with pytest.raises(ExceptionGroup, match="1 of 2 messages were refused; the others are sent"):
            await app.send_messages_json(channel="q", payloads=[1, 2])
        with pytest.raises(ExceptionGroup, match="2 of 2 messages were refused; none is sent"):
            await app.send_messages_json(channel="q", payloads=[1, 2])


async def test_a_map_goes_through_a_queue_that_is_smaller_than_its_limit(autojump_clock: MockClock) -> None:
    router = Router(channel="q", max_size=3, store_result=True)

    @router.actor
    async def double(number: int) -> int:
        await trio.sleep(1)
        return 2 * number

    app = make_app(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(partial(app.run_worker, tasks_limit=2))
        async with app.map(double, range(50), limit=20) as results:
            assert [each async for each in results] == [2 * number for number in range(50)]
        worker.stop()


async def test_a_map_that_was_cancelled_while_it_sent_calls_nothing_twice(autojump_clock: MockClock) -> None:
    router = Router(channel="q", max_size=2, store_result=True)
    calls: list[int] = []

    @router.actor
    async def note(number: int) -> int:
        calls.append(number)
        await trio.sleep(1)
        return number

    app = make_app(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(partial(app.run_worker, tasks_limit=1))
        got: list[int] = []
        async with app.map(note, range(12), limit=12) as results:
            while len(got) < 12:
                with trio.move_on_after(3.5):
                    got.append(await anext(results))
        worker.stop()
    assert got == list(range(12))
    assert calls == list(range(12))


async def test_a_sender_keeps_to_its_own_deadline(autojump_clock: MockClock) -> None:
    async with make_app().magic() as app:
        await Queue("q", max_size=1).declare()
        await app.send_message_json(channel="q")
        with trio.move_on_after(5) as scope:
            await app.send_message_json(channel="q")
        assert scope.cancelled_caught
        assert await Queue("q").size() == 1


@pytest.mark.real_time
def test_threads_that_send_wait_for_room() -> None:
    router = Router(channel="q", max_size=2)
    taken: list[int] = []

    @router.actor
    async def take(number: int) -> None:
        taken.append(number)

    app = make_app(router)
    with app.sync() as client:
        for number in range(2):
            client.enqueue(take, number)
        threads = [threading.Thread(target=client.enqueue, args=(take, number)) for number in range(2, 6)]
        for thread in threads:
            thread.start()
        threads[0].join(0.1)
        assert all(thread.is_alive() for thread in threads)
        with client.worker():
            for thread in threads:
                thread.join(10)
            while len(taken) < 6:
                time.sleep(0.01)
    assert sorted(taken) == list(range(6))


def test_a_sender_under_asyncio_waits_and_can_be_cancelled() -> None:
    async def main() -> None:
        async with make_app().magic() as app:
            await Queue("q", max_size=2).declare()
            for _ in range(2):
                await app.send_message_json(channel="q")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(app.send_message_json(channel="q"), 0.05)
            sender = asyncio.create_task(app.send_message_json(channel="q", payload="late"))
            await asyncio.sleep(0.05)
            assert not sender.done()
            await Queue("q").flush()
            await asyncio.wait_for(sender, 5)
            assert await Queue("q").size() == 1

    asyncio.run(main())


async def test_a_send_that_waits_where_no_worker_reads_is_told_after_seconds_and_then_each_minute(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router(queue="lines", max_size=1)

    @router.actor
    async def parse(line: str) -> None: ...

    app = make_app(router)
    async with app.magic():
        await app.enqueue(parse, "first")
        with trio.move_on_after(80):
            await app.enqueue(parse, "second")
    told = [record.getMessage() for record in caplog.records]
    assert [each[:37] for each in told] == [
        "a call has waited for 5 s for room: q",
        "a call has waited for 65 s for room: ",
    ]
    assert all("No worker reads that queue now: the call waits until one does" in each for each in told)
    assert all("wait until workers have taken others" in each and "send again" not in each for each in told)


async def test_a_send_that_waits_for_a_busy_worker_is_not_told_within_the_first_minute(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router(queue="lines", max_size=1)

    @router.actor(concurrency=1)
    async def parse(line: str) -> None:
        await trio.sleep(30)

    app = make_app(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        for line in "abc":
            await app.enqueue(parse, line)
        worker.stop()
    assert "for room" not in caplog.text
