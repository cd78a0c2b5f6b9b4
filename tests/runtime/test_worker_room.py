"""Actors that send into bounded queues: backpressure, refusals, and workers that only wait for themselves."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Literal

import pytest
import trio
from modest_driver import ModestDriver
from trio.testing import MockClock

from repid import (
    INJECTED,
    Connection,
    Counts,
    InMemoryServer,
    Message,
    NotSupported,
    Queue,
    QueueFull,
    Repid,
    Report,
    Router,
    Server,
    SyncMessage,
)


def make_app(*routers: Router) -> Repid:
    app = Repid(Connection(InMemoryServer()))
    for router in routers:
        app.include_router(router)
    return app


async def test_a_pipeline_holds_no_more_than_its_bounds(autojump_clock: MockClock) -> None:
    first, second = Router(channel="lines", max_size=50), Router(channel="parsed", max_size=20)
    most = most_parsed = total = 0

    @first.actor
    async def parse(number: int, message: Message = INJECTED) -> None:
        await message.outbox.enqueue(store, number)

    @second.actor
    async def store(number: int) -> None:
        nonlocal total, most, most_parsed
        total += number
        most = max(most, await Queue("lines").size())
        most_parsed = max(most_parsed, await Queue("parsed").size())
        if number % 100 == 0:
            await trio.sleep(0.01)

    app = make_app(first, second)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        await app.enqueue_many(parse, range(3000))
        while worker.report.succeeded < 6000:
            await trio.sleep(0.1)
        worker.stop()
    assert total == sum(range(3000))
    assert most <= 50
    assert most_parsed <= 20


@pytest.mark.parametrize("slowness", [0.001, 1.0])
@pytest.mark.parametrize("tasks_limit", [1, 5, 20])
@pytest.mark.parametrize("stages", [2, 4, 6])
async def test_a_pipeline_of_full_queues_in_one_worker_refuses_nothing(
    autojump_clock: MockClock, stages: int, tasks_limit: int, slowness: float
) -> None:
    """Each stage has more in hand than the next queue has room for, and the last one is slow."""
    router, done, count = Router(), 0, 40 * tasks_limit

    def add_stage(number: int) -> None:
        @router.actor(queue=f"q{number}", max_size=5 * tasks_limit, name=f"stage{number}")
        async def stage(item: int, message: Message = INJECTED) -> None:
            await message.outbox.send_message_json(
                channel=f"q{number + 1}", payload={"item": item}, headers={"topic": f"stage{number + 1}"}
            )

    @router.actor(queue=f"q{stages - 1}", max_size=5 * tasks_limit, name=f"stage{stages - 1}", concurrency=1)
    async def last(item: int) -> None:
        nonlocal done
        await trio.sleep(slowness)
        done += 1

    for number in range(stages - 1):
        add_stage(number)
    app = make_app(router)

    async def feed() -> None:
        for item in range(count):
            await app.send_message_json(channel="q0", payload={"item": item}, headers={"topic": "stage0"})

    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(partial(app.run_worker, tasks_limit=tasks_limit))
        nursery.start_soon(feed)
        with trio.fail_after(10 * count):
            while done + worker.report.dead < count:
                await trio.sleep(1)
        assert worker.report.dead == 0
        worker.stop()


async def test_what_waits_for_room_leaves_claim_bytes_to_those_who_make_it(autojump_clock: MockClock) -> None:
    first, second = Router(channel="lines"), Router(channel="parsed", max_size=1)

    @first.actor
    async def parse(data: str, message: Message = INJECTED) -> None:
        await message.outbox.enqueue(store, data)

    @second.actor
    async def store(data: str) -> None:
        await trio.sleep(1)

    app = make_app(first, second)
    async with app.magic():
        await app.enqueue_many(parse, ["x" * 100] * 10)
        report = await app.run_worker(burst=True, claim_bytes=150)
    assert report == Report(processed=20, succeeded=20)


async def test_a_call_that_waits_for_room_is_seen_in_the_statistics(autojump_clock: MockClock) -> None:
    router = Router(channel="in")

    @router.actor
    async def send(message: Message = INJECTED) -> None:
        await message.send_message_json(channel="out", payload=1)

    @router.actor
    async def put(message: Message = INJECTED) -> None:
        await message.outbox.send_message_json(channel="out", payload=2)

    app = make_app(router)
    async with app.magic(), trio.open_nursery() as nursery:
        await Queue("out", max_size=1).declare()
        await app.send_message_json(channel="out")
        worker = await nursery.start(app.run_worker)
        await app.enqueue(send)
        await app.enqueue(put)
        await trio.sleep(100)
        assert worker.statistics().waiting_to_send == 2
        for _ in range(2):
            await Queue("out").flush()
            await trio.sleep(2)
        assert worker.statistics().waiting_to_send == 0
        assert worker.report.succeeded == 2
        worker.stop()


@pytest.mark.parametrize("concurrency", [math.inf, 1])
@pytest.mark.parametrize("way", ["message", "app", "thread"])
async def test_a_worker_that_only_waits_for_itself_is_told_so(
    way: str, concurrency: float, autojump_clock: MockClock
) -> None:
    if way == "thread":  # whose work the clock would not wait for
        autojump_clock.autojump_threshold = math.inf
        autojump_clock.rate = 10.0
    router = Router(channel="q", max_size=2)
    errors: list[str] = []

    @router.actor(concurrency=concurrency)
    async def spread(depth: int, message: Message = INJECTED) -> None:
        for _ in range(2 if depth else 0):
            try:
                await (message if way == "message" else app).enqueue(spread, depth - 1)
            except QueueFull as error:
                errors.append(str(error))

    @router.actor(concurrency=concurrency)
    def spread_in_threads(depth: int, message: SyncMessage = INJECTED) -> None:
        for _ in range(2 if depth else 0):
            try:
                message.enqueue(spread_in_threads, depth - 1)
            except QueueFull as error:
                errors.append(str(error))

    app = make_app(router)
    async with app.magic():
        await app.enqueue(spread_in_threads if way == "thread" else spread, 5)
        report = await app.run_worker(burst=True, tasks_limit=2)
    assert errors
    assert "nothing can make room" in errors[0]
    assert report.processed > len(errors)
    assert report.succeeded == report.processed


async def test_a_worker_whose_only_batch_waits_for_itself_is_told_so(autojump_clock: MockClock) -> None:
    router = Router(channel="q", max_size=2)
    errors: list[str] = []

    @router.actor(batch=2, batch_wait=0)
    async def spread(depths: list[int], messages: list[Message] = INJECTED) -> None:
        for depth, message in zip(depths, messages, strict=True):
            for _ in range(3 if depth else 0):
                try:
                    await message.enqueue(spread, depth - 1)
                except QueueFull as error:
                    errors.append(str(error))

    app = make_app(router)
    async with app.magic(), trio.open_nursery() as nursery:
        await app.enqueue(spread, 4)
        worker = await nursery.start(app.run_worker)
        with trio.fail_after(100):
            while not errors:
                await trio.sleep(1)
        worker.stop()
    assert "nothing can make room" in errors[0]


async def test_a_batch_that_waits_for_room_leaves_its_worker_able_to_make_some(autojump_clock: MockClock) -> None:
    first, second = Router(channel="in"), Router(channel="out", max_size=1)

    @first.actor(batch=5)
    async def put(numbers: list[int], messages: list[Message] = INJECTED) -> None:
        await messages[0].enqueue(take)

    @second.actor
    async def take() -> None: ...

    app = make_app(first, second)
    async with app.magic():
        await app.using(delay=10).enqueue(take)
        await app.enqueue_many(put, range(5))
        with trio.fail_after(100):
            report = await app.run_worker(messages_limit=7, tasks_limit=2)
    assert (report.succeeded, report.failed) == (7, 0)


async def test_an_outbox_into_its_own_queue_makes_no_worker_stand_still(autojump_clock: MockClock) -> None:
    router = Router(channel="q", max_size=2, retries=1)

    @router.actor
    async def spread(depth: int, message: Message = INJECTED) -> None:
        for _ in range(2 if depth else 0):
            await message.outbox.enqueue(spread, depth - 1)

    app = make_app(router)
    async with app.magic():
        await app.enqueue(spread, 6)
        with trio.fail_after(10_000):
            report = await app.run_worker(burst=True, tasks_limit=1)
        assert report.unsettled == 0
        counts = await Queue("q").counts()
    assert (counts.ready, counts.scheduled, counts.leased) == (0, 0, 0)
    assert report.succeeded + report.dead + report.retried == report.processed


async def test_two_workers_that_wait_for_each_other_are_told_so(autojump_clock: MockClock) -> None:
    left, right = Router(channel="left", max_size=1), Router(channel="right", max_size=1)
    errors: list[QueueFull] = []

    @left.actor
    async def ping(message: Message = INJECTED) -> None:
        await send(message, "right", "pong")

    @right.actor
    async def pong(message: Message = INJECTED) -> None:
        await send(message, "left", "ping")

    async def send(message: Message, channel: str, topic: str) -> None:
        try:
            for _ in range(3):
                await message.send_message(channel=channel, payload=b"", headers={"topic": topic})
        except QueueFull as error:
            errors.append(error)

    server = InMemoryServer()
    apps = [Repid(Connection(server)), Repid(Connection(server))]
    for app, router in zip(apps, (left, right), strict=True):
        app.include_router(router)
    async with apps[0].magic(), apps[1].magic(), trio.open_nursery() as nursery:
        for app in apps:
            await nursery.start(lambda app=app, **options: app.run_worker(tasks_limit=1, **options))
        await apps[0].enqueue(ping)
        await apps[1].enqueue(pong)
        with trio.fail_after(100):
            while not errors:
                await trio.sleep(1)
        nursery.cancel_scope.cancel()


async def test_a_worker_whose_only_run_waits_in_a_verb_for_itself_is_told_so(autojump_clock: MockClock) -> None:
    router = Router(channel="q", max_size=1)

    @router.actor
    async def again(depth: int, message: Message = INJECTED) -> None:
        if depth:
            await trio.sleep(1)
            await message.outbox.enqueue(again, 0)
            await message.ack()

    app = make_app(router)
    async with app.magic(), trio.open_nursery() as nursery:
        await app.enqueue(again, 1)
        worker = await nursery.start(lambda **options: app.run_worker(tasks_limit=1, **options))
        await app.using(delay=1e6).enqueue(again, 0)  # into the room that the first one has left
        await trio.sleep(100)
        [dead] = await Queue("q").get_messages("dead")
        worker.stop()
    assert dead.failure is not None
    assert dead.failure.type == "QueueFull"


async def test_a_worker_that_waits_for_one_elsewhere_which_makes_no_room_is_told_so_after_a_minute(
    autojump_clock: MockClock,
) -> None:
    """As where that one waits for this one in turn, which no engine can tell."""
    router = Router(channel="q", max_size=1)
    began: list[float] = []
    errors: list[tuple[float, str]] = []

    @router.actor
    async def spread(depth: int, message: Message = INJECTED) -> None:
        began.append(trio.current_time())
        for _ in range(2 if depth else 0):
            try:
                await message.enqueue(spread, depth - 1)
            except QueueFull as error:
                errors.append((trio.current_time(), str(error)))

    app = make_app(router)
    async with app.magic(), app.server().consume({"q": None}):  # which never receives
        await app.enqueue(spread, 1)
        report = await app.run_worker(burst=True, tasks_limit=1)
    [(when, text)] = errors
    assert 60 <= when - began[0] < 63
    assert "queue 'q' is full, and there was no room in it for 60 s: this worker, which reads it, waits itself" in text
    assert report.succeeded == report.processed == 2


async def test_a_sender_waits_as_long_as_another_worker_may_make_room(autojump_clock: MockClock) -> None:
    router = Router(channel="in")
    slow = Router(channel="out", max_size=1)

    @router.actor
    async def send(message: Message = INJECTED) -> None:
        for _ in range(3):
            await message.enqueue(take)

    @slow.actor(concurrency=1)
    async def take() -> None:
        await trio.sleep(100)

    app, other = make_app(router, slow), Repid()
    other.servers.register_server("default", app.server())
    other.include_router(slow)
    sender = Repid(Connection(app.server()))
    sender.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        await app.enqueue(send)
        workers = [await nursery.start(other.run_worker), await nursery.start(app.run_worker)]
        await trio.sleep(1000)
        for worker in workers:
            worker.stop()
    reports = [worker.report for worker in workers]
    assert sum(report.succeeded for report in reports) == 4
    assert sum(report.failed for report in reports) == 0


async def test_a_full_queue_that_raises_fails_the_run_whose_outbox_it_refuses(autojump_clock: MockClock) -> None:
    router = Router(channel="in")
    runs = 0

    @router.actor(retries=3, retry_policy=lambda _: 10.0, store_result=True)
    async def put(message: Message = INJECTED) -> str:
        nonlocal runs
        runs += 1
        await message.outbox.send_message_json(channel="out", payload=runs)
        return "put"

    app = make_app(router)
    async with app.magic(), trio.open_nursery() as nursery:
        await Queue("out", max_size=1, when_full="raise").declare()
        await app.send_message_json(channel="out")
        worker = await nursery.start(app.run_worker)
        handle = await app.enqueue(put)
        await trio.sleep(15)
        assert (runs, worker.report.retried) == (2, 2)
        await Queue("out").flush()
        assert (await handle.wait()).value == "put"
        [sent] = await Queue("out").get_messages()
        assert sent.envelope.payload == b"3"
        worker.stop()


@pytest.mark.parametrize("when_full", ["raise", "wait"])
async def test_a_verb_whose_outbox_is_refused_says_so(
    when_full: Literal["raise", "wait"], autojump_clock: MockClock
) -> None:
    router = Router(channel="q", max_size=1, when_full=when_full)
    errors: list[QueueFull] = []

    @router.actor
    async def again(depth: int, message: Message = INJECTED) -> None:
        if depth:
            await trio.sleep(1)
            await message.outbox.enqueue(again, 0)
            try:
                await message.ack()
            except QueueFull as error:
                errors.append(error)

    app = make_app(router)
    async with app.magic(), trio.open_nursery() as nursery:
        await app.enqueue(again, 1)
        worker = await nursery.start(lambda **options: app.run_worker(tasks_limit=1, **options))
        await trio.sleep(0.5)
        await app.using(delay=1e6).enqueue(again, 0)  # into the room that the first one has left
        await trio.sleep(100)
        worker.stop()
    [error] = errors
    assert error.queue == "q"
    assert worker.report.dead == 1


async def test_a_verb_whose_outbox_cannot_be_written_says_so(autojump_clock: MockClock) -> None:
    router = Router(channel="in")
    errors: list[str] = []

    @router.actor
    async def put(message: Message = INJECTED) -> None:
        await message.outbox.send_message_json(channel="missing", payload=1, delay=5)
        try:
            await message.ack()
        except NotSupported as error:
            errors.append(str(error))

    app = Repid(Connection(Server(ModestDriver())))
    app.include_router(router)
    async with app.magic():
        await app.enqueue(put)
        await app.run_worker(burst=True)
    assert len(errors) == 1


async def test_a_verb_that_waits_for_room_ends_waiting_at_the_timeout_of_its_actor_and_stays_given(
    autojump_clock: MockClock,
) -> None:
    router = Router(channel="in")

    @router.actor(timeout=5, retries=3)
    async def put(message: Message = INJECTED) -> None:
        await message.outbox.send_message_json(channel="out", payload=1)
        await message.ack()

    app = make_app(router)
    async with app.magic(), trio.open_nursery() as nursery:
        await Queue("out", max_size=1).declare()
        await app.send_message_json(channel="out")
        worker = await nursery.start(app.run_worker)
        await app.enqueue(put)
        await trio.sleep(100)
        assert (worker.statistics().running, worker.statistics().waiting_to_send) == (0, 1)
        await Queue("out").flush()
        await trio.sleep(2)
        assert worker.report == Report(processed=1, succeeded=1)
        assert (await Queue("out").counts()).ready == 1
        worker.stop()


async def test_an_outbox_that_can_never_fit_makes_a_dead_letter(autojump_clock: MockClock) -> None:
    router = Router(channel="in")

    @router.actor
    async def put(message: Message = INJECTED) -> None:
        await message.outbox.send_messages_json(channel="out", payloads=range(3))

    app = make_app(router)
    async with app.magic():
        await Queue("out", max_size=2).declare()
        await app.enqueue(put)
        report = await app.run_worker(burst=True)
        [dead] = await Queue("in").get_messages("dead")
    assert report.dead == 1
    assert dead.failure is not None
    assert dead.failure.type == "QueueFull"
    assert "can never hold 3 messages in one step" in dead.failure.text


async def test_a_worker_that_ends_releases_what_waits_for_room(autojump_clock: MockClock) -> None:
    router = Router(channel="in")

    @router.actor
    async def put(message: Message = INJECTED) -> None:
        await message.outbox.send_message_json(channel="out", payload=1)

    app = make_app(router)
    async with app.magic(), trio.open_nursery() as nursery:
        await Queue("out", max_size=1).declare()
        await app.send_message_json(channel="out")
        for _ in range(5):
            await app.enqueue(put)
        worker = await nursery.start(app.run_worker)
        await trio.sleep(10)
        began = trio.current_time()
        worker.stop()
        report: Report = await worker.wait()
        assert trio.current_time() - began < 1
        counts = await Queue("in").counts()
        browsed = await Queue("in").get_messages()
    assert (report.released, report.succeeded, report.unsettled) == (5, 0, 0)
    assert counts == Counts(ready=5)
    assert {(message.attempt, message.lost) for message in browsed} == {(1, 0)}


def test_a_run_under_asyncio_that_waits_for_its_own_worker_is_told_so() -> None:
    router = Router(channel="q", max_size=1)
    errors: list[QueueFull] = []

    @router.actor
    async def spread(depth: int, message: Message = INJECTED) -> None:
        await asyncio.sleep(0)
        for _ in range(3 if depth else 0):
            try:
                await app.enqueue(spread, depth - 1)
            except QueueFull as error:
                errors.append(error)

    app = make_app(router)

    async def main() -> None:
        async with app.magic():
            await app.enqueue(spread, 2)
            await asyncio.wait_for(app.run_worker(burst=True, tasks_limit=1), 30)

    asyncio.run(main())
    assert errors
