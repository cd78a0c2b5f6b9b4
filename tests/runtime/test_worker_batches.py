"""Batch actors: one run of many messages, each with a fate of its own."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import aids_processes
import msgspec
import pytest
import trio
import trio.testing
from aids import UnreliableServer, send

from repid import (
    INJECTED,
    Actor,
    AlreadySettled,
    CallNext,
    ConfigurationError,
    Connection,
    Counts,
    Depends,
    Handle,
    Header,
    InMemoryServer,
    Message,
    Payload,
    PayloadError,
    Repid,
    Report,
    Router,
    SQLiteServer,
    SyncMessage,
    catch_all_routing_strategy,
)
from repid.brokers.consumer import Consumer
from repid.delivery import Delivery
from repid.testing import TestClient


class Row(msgspec.Struct):
    id: int
    text: str = ""


async def fill(app: Repid, count: int, *, actor: str = "write", channel: str = "default", **options: Any) -> list[str]:
    """Send rows; their ids."""
    rows = [{"id": number} for number in range(count)]
    options.setdefault("headers", {"topic": actor})
    return [each.id for each in await app.send_messages_json(channel=channel, payloads=rows, **options)]


async def work(app: Repid, **options: Any) -> Report:
    return await app.run_worker(**{"burst": True, **options})


async def start(nursery: trio.Nursery, app: Repid, **options: Any) -> Handle:
    handle: Handle = await nursery.start(partial(app.run_worker, **options))
    return handle


# What a batch is


async def test_a_run_gets_as_many_messages_as_the_batch_takes(app: Repid, router: Router) -> None:
    batches: list[list[int]] = []

    @router.actor(batch=4)
    async def write(rows: list[Row]) -> None:
        batches.append([row.id for row in rows])

    await fill(app, 10)
    assert await work(app) == Report(processed=10, succeeded=10)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_a_batch_that_does_not_fill_starts_when_its_first_message_has_waited(app: Repid, router: Router) -> None:
    batches: list[tuple[float, int]] = []

    @router.actor(batch=100, batch_wait=2)
    async def write(rows: list[Row]) -> None:
        batches.append((trio.current_time() - began, len(rows)))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await fill(app, 3)
        await trio.sleep(1.5)
        await fill(app, 2)
        await trio.sleep(5)
        await fill(app, 1)
        await trio.sleep(1)
        assert worker.statistics().waiting_for_batch == 1
        await trio.sleep(5)
        worker.stop()
    assert [(round(at, 3), size) for at, size in batches] == [(2, 5), (8.5, 1)]
    assert worker.report == Report(processed=6, succeeded=6)


async def test_batches_of_several_actors_start_each_when_its_own_has_waited(app: Repid, router: Router) -> None:
    batches: list[tuple[float, str]] = []

    def declare(seconds: int) -> None:
        @router.actor(name=f"after_{seconds}", batch=100, batch_wait=seconds)
        async def write(rows: list[Row]) -> None:
            batches.append((round(trio.current_time() - began, 3), f"after_{seconds}"))

    for seconds in (2, 1, 4, 3):
        declare(seconds)
        await fill(app, 1, actor=f"after_{seconds}")
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(10)
        worker.stop()
    assert batches == [(1, "after_1"), (2, "after_2"), (3, "after_3"), (4, "after_4")]


async def test_what_a_full_batch_leaves_behind_starts_when_it_has_waited(app: Repid, router: Router) -> None:
    batches: list[tuple[float, int]] = []

    @router.actor(batch=4, batch_wait=2)
    async def write(rows: list[Row]) -> None:
        batches.append((round(trio.current_time() - began, 3), len(rows)))

    await fill(app, 5)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(10)
        worker.stop()
    assert batches == [(0, 4), (2, 1)]


async def test_without_a_wait_a_batch_is_what_is_there(app: Repid, router: Router) -> None:
    batches: list[int] = []

    @router.actor(batch=100, batch_wait=0)
    async def write(rows: list[Row]) -> None:
        batches.append(len(rows))

    await fill(app, 7)
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.testing.wait_all_tasks_blocked()
        assert batches == [7]
        worker.stop()


async def test_a_burst_worker_waits_for_no_more_when_nothing_is_left(app: Repid, router: Router) -> None:
    @router.actor(batch=100, batch_wait=1000)
    async def write(rows: list[Row]) -> None: ...

    await fill(app, 3)
    began = trio.current_time()
    assert await work(app) == Report(processed=3, succeeded=3)
    assert trio.current_time() == began


async def test_a_burst_worker_waits_for_what_a_run_may_send(app: Repid, router: Router) -> None:
    batches: list[int] = []

    @router.actor(batch=100, batch_wait=1000)
    async def write(rows: list[Row]) -> None:
        batches.append(len(rows))

    @router.actor
    async def produce() -> None:
        await trio.sleep(5)
        await fill(app, 2)

    await send(app, "produce")
    await fill(app, 3)
    assert (await work(app)).succeeded == 6
    assert batches == [5]


async def test_messages_limit_counts_messages_and_is_exact(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    batches: list[int] = []

    @router.actor(batch=4, batch_wait=1000)
    async def write(rows: list[Row]) -> None:
        batches.append(len(rows))

    await fill(app, 10)
    began = trio.current_time()
    assert await work(app, burst=False, messages_limit=6) == Report(processed=6, succeeded=6)
    assert batches == [4, 2]
    assert trio.current_time() == began
    assert await server.counts("default") == Counts(ready=4)


async def test_a_batch_never_mixes_channels_or_actors(app: Repid) -> None:
    batches: list[tuple[str, list[int]]] = []
    for channel in ("one", "two"):
        router = Router(channel=channel)

        @router.actor(batch=100)
        async def write(rows: list[Row], messages: list[Message]) -> None:
            assert len({message.channel for message in messages}) == 1
            batches.append((messages[0].channel, [row.id for row in rows]))

        @router.actor(batch=100)
        async def read(rows: list[Row]) -> None:
            batches.append(("read", [row.id for row in rows]))

        app.include_router(router)
        await fill(app, 3, channel=channel)
        await fill(app, 2, channel=channel, actor="read")
    assert (await work(app)).succeeded == 10
    assert sorted(batches) == [("one", [0, 1, 2]), ("read", [0, 1]), ("read", [0, 1]), ("two", [0, 1, 2])]


async def test_single_actors_run_beside_batches(app: Repid, router: Router) -> None:
    ran: list[str] = []

    @router.actor(batch=3)
    async def write(rows: list[Row]) -> None:
        ran.append("batch")
        await trio.sleep(1)

    @router.actor
    async def single() -> None:
        ran.append("single")

    await fill(app, 6)
    await fill(app, 3, actor="single")
    assert (await work(app)).succeeded == 9
    assert ran.count("batch") == 2
    assert ran.count("single") == 3


async def test_one_batch_runs_at_a_time_and_the_next_one_fills_meanwhile(app: Repid, router: Router) -> None:
    present = most = 0
    seen: list[tuple[int, int]] = []

    @router.actor(batch=10)
    async def write(rows: list[Row]) -> None:
        nonlocal present, most
        present += 1
        most = max(most, present)
        await trio.sleep(1)
        statistics = worker.statistics()
        seen.append((statistics.running, statistics.waiting_for_batch))
        present -= 1

    await fill(app, 50)
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(10)
        worker.stop()
    assert most == 1
    assert seen == [(10, 10)] * 4 + [(10, 0)]


async def test_concurrency_counts_batches(app: Repid, router: Router) -> None:
    present = most = 0

    @router.actor(batch=10, concurrency=3)
    async def write(rows: list[Row]) -> None:
        nonlocal present, most
        present += 1
        most = max(most, present)
        await trio.sleep(1)
        present -= 1

    await fill(app, 100)
    began = trio.current_time()
    assert (await work(app)).succeeded == 100
    assert most == 3
    assert trio.current_time() - began == pytest.approx(4, abs=0.5)


async def test_a_batch_is_one_of_the_tasks_of_its_worker(app: Repid, router: Router) -> None:
    batches: list[int] = []

    @router.actor(batch=20)
    async def write(rows: list[Row]) -> None:
        batches.append(len(rows))
        await trio.sleep(1)

    await fill(app, 60)
    assert (await work(app, tasks_limit=2)).succeeded == 60
    assert batches == [20, 20, 20]


async def test_a_batch_that_has_ended_leaves_no_room_for_more_than_the_worker_may_run(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(batch=20)
    async def write(rows: list[Row]) -> None: ...

    @router.actor
    async def single() -> None:
        await trio.sleep(100)

    await fill(app, 20)
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app, tasks_limit=2)
        await trio.sleep(1)
        await fill(app, 50, actor="single")
        await trio.sleep(50)
        assert (await server.counts("default")).leased <= 4  # two run, and as many are claimed ahead at the most
        worker.stop()


async def test_a_burst_worker_waits_again_for_what_comes_after_it_waited_for_no_more(
    app: Repid, router: Router
) -> None:
    batches: list[int] = []

    @router.actor(batch=100, batch_wait=10)
    async def write(rows: list[Row], messages: list[Message]) -> None:
        batches.append(len(rows))
        if len(batches) == 1:
            await messages[0].outbox.enqueue(produce)

    @router.actor
    async def produce() -> None:
        for _ in range(3):
            await fill(app, 1)
            await trio.sleep(1)

    await fill(app, 2)
    assert (await work(app)).succeeded == 6
    assert batches == [2, 3]


async def test_more_than_is_waited_for_is_given_back_where_claims_cannot_be_limited(app: Repid, router: Router) -> None:
    @router.actor(batch=5, routing_strategy=catch_all_routing_strategy)
    async def write(rows: list[Row]) -> None:
        await trio.sleep(1)

    await fill(app, 100)
    report = await work(app, messages_limit=100)
    assert report.succeeded == 100
    assert report.released


# What each message is given


async def test_the_whole_payload_of_a_message_is_an_element(app: Repid, router: Router) -> None:
    got: list[Any] = []

    @router.actor(batch=10)
    async def numbers(values: list[Annotated[int, msgspec.Meta(ge=0)]]) -> None:
        got.extend(values)

    @router.actor(batch=10)
    async def anything(values: list) -> None:  # type: ignore[type-arg]
        got.extend(values)

    for payload in (5, "five", -1):
        await app.send_message_json(channel="default", payload=payload, headers={"topic": "numbers"})
    await app.send_message_json(channel="default", payload={"a": [1]}, headers={"topic": "anything"})
    report = await work(app)
    assert got in ([5, {"a": [1]}], [{"a": [1]}, 5])
    assert (report.succeeded, report.dead) == (2, 2)


async def test_a_message_that_does_not_fit_ends_alone(app: Repid, router: Router, server: UnreliableServer) -> None:
    got: list[int] = []

    @router.actor(batch=10, retries=5)
    async def write(rows: list[Row]) -> None:
        got.extend(row.id for row in rows)

    await fill(app, 2)
    await app.send_message_json(channel="default", payload={"id": "x"}, headers={"topic": "write"})
    await app.send_message(channel="default", payload=b"{", headers={"topic": "write"})
    await fill(app, 1)
    assert await work(app) == Report(processed=3, succeeded=3, dead=2)
    assert got == [0, 1, 0]
    [first, second] = await server.browse("default", "dead")
    assert first.failure is not None
    assert first.reason == second.reason == "payload"
    assert "$.id: Expected `int`, got `str`" in first.failure.text


async def test_a_list_in_the_place_of_an_element_is_told_of_before_anything_is_sent(app: Repid, router: Router) -> None:
    @router.actor(batch=10)
    async def write_texts(texts: list[str]) -> None: ...

    calls: list[Callable[[], Any]] = [
        lambda: app.enqueue(write_texts, ["a", "b"]),
        lambda: app.call(write_texts, ["a", "b"]),
        lambda: app.enqueue_many(write_texts, cast("Any", [["a"], ["b"]])),
        lambda: app.job(write_texts, ["a", "b"]),
    ]
    for call in calls:
        with pytest.raises(PayloadError, match=r"is no element of the list 'texts' of .*write_texts") as caught:
            await call()
        assert "a call gives one element of it: app.enqueue(actor, element); for many" in caught.value.__notes__[-1]
    assert (await app.server().counts("default")).ready == 0
    with pytest.raises(PayloadError) as caught:
        await app.enqueue(write_texts, cast("Any", 1))
    assert not hasattr(caught.value, "__notes__")


async def test_a_job_of_a_batch_actor_has_any_element(app: Repid, router: Router) -> None:
    seen: list[object] = []

    @router.actor(batch=10)
    async def write_any(items: list[str | int | list[int] | None]) -> None:
        seen.extend(items)

    elements: list[str | int | list[int] | None] = ["a", 1, [2], None]
    jobs = [app.job(write_any, element) for element in elements]
    assert [job.args for job in jobs] == elements
    await app.enqueue_many(jobs)
    await app.run_worker(burst=True)
    assert seen == elements


async def test_a_batch_of_nothing_but_misfits_is_no_run(app: Repid, router: Router) -> None:
    @router.actor(batch=10)
    async def write(rows: list[int]) -> None:
        pytest.fail("there is nothing to write")

    await fill(app, 3)
    assert await work(app) == Report(dead=3)


async def test_a_misfit_is_released_where_another_version_may_take_it(app: Repid, router: Router) -> None:
    @router.actor(batch=10, on_misfit="release")
    async def write(rows: list[int]) -> None: ...

    await fill(app, 3)
    assert await work(app, messages_limit=3) == Report(released=3)


async def test_dependencies_and_middlewares_are_called_once_for_a_batch(app: Repid, router: Router) -> None:
    seen: list[Any] = []

    def connect() -> str:
        seen.append("connected")
        return "connection"

    async def around(call_next: CallNext, message: Message, actor: Actor) -> Any:
        seen.append((actor.name, len(message.batch), [row.id for row in message.arguments["rows"]]))
        return await call_next(message, actor)

    @router.actor(batch=10, middlewares=[around])
    async def write(rows: list[Row], connection: Annotated[str, Depends(connect)]) -> None:
        seen.append(connection)

    await fill(app, 3)
    assert (await work(app)).succeeded == 3
    assert seen == [("write", 3, [0, 1, 2]), "connected", "connection"]


# Verdicts


async def test_a_returned_list_has_the_result_of_each_message(app: Repid, router: Router) -> None:
    @router.actor(batch=10, store_result=True)
    async def double(numbers: list[int]) -> list[int]:
        return [2 * number for number in numbers]

    handles = await app.enqueue_many(double, range(5))
    await work(app)
    assert await app.gather(handles) == [0, 2, 4, 6, 8]


async def test_a_list_of_which_only_that_is_said_gives_each_message_its_element_too(app: Repid, router: Router) -> None:
    @router.actor(batch=10, store_result=True)
    async def double(numbers: list[int]) -> list:  # type: ignore[type-arg]  # as people write it
        return [2 * number for number in numbers]

    handles = [await app.enqueue(double, number) for number in range(3)]
    await app.run_worker(burst=True)
    assert [(await handle.wait()).value for handle in handles] == [0, 2, 4]


async def test_an_error_in_the_list_is_the_failure_of_its_message_alone(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[list[int]] = []

    @router.actor(batch=10, retries=1, retry_policy=lambda _: 1, store_result=True)
    async def halve(numbers: list[int]) -> list[int | Exception]:
        runs.append(numbers)
        return [ValueError(f"{number} is odd") if number % 2 else number // 2 for number in numbers]

    handles = await app.enqueue_many(halve, range(4))
    report = await work(app, burst=False, messages_limit=6)
    assert runs == [[0, 1, 2, 3], [1, 3]]
    assert report == Report(processed=6, succeeded=2, failed=2, retried=2, dead=2)
    assert [result.failure and result.failure.text for result in await app.gather(handles, on_error="return")] == [
        None,
        "1 is odd",
        None,
        "3 is odd",
    ]
    assert len([record for record in caplog.records if "failed on message" in record.getMessage()]) == 4


async def work_on(number: int) -> int:
    return number


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (lambda: work_on(1), "returned a coroutine that nobody has awaited"),
        (lambda: (number for number in range(3)), "returned a generator, of which nothing has been run"),
        (lambda: ValueError, "returned the class ValueError for a message, which is neither a result nor an error"),
    ],
)
@pytest.mark.parametrize("store_result", [True, False])
async def test_an_entry_that_can_be_no_result_is_the_failure_of_its_message_alone(
    app: Repid, router: Router, server: UnreliableServer, entry: Callable[[], Any], text: str, store_result: bool
) -> None:
    @router.actor(batch=10, store_result=store_result)
    async def write(rows: list[Row]) -> list[Any]:
        return [None, entry(), 3]

    await fill(app, 3)
    assert await work(app) == Report(processed=3, succeeded=2, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert text in dead.failure.text
    gc.collect()  # a coroutine that nobody has awaited would be warned of, which is an error here


async def test_on_error_is_asked_of_each_error_in_the_list(app: Repid, router: Router) -> None:
    def word(error: BaseException) -> Any:
        return "ack" if isinstance(error, KeyError) else None

    @router.actor(batch=10, on_error=word)
    async def write(rows: list[Row]) -> list[Exception | None]:
        return [KeyError("x"), ValueError("y"), None]

    await fill(app, 3)
    assert await work(app) == Report(processed=3, succeeded=1, failed=2, dead=1)


@pytest.mark.parametrize("value", [[], [None], [None] * 4, {"a": 1}, "yes!", 3])
async def test_what_is_no_list_with_an_entry_for_each_message_is_the_failure_of_all(
    app: Repid, router: Router, server: UnreliableServer, value: object
) -> None:
    async def write(rows: list[Row]) -> Any:
        return value

    router.actor(batch=10)(write)
    await fill(app, 3)
    assert await work(app) == Report(processed=3, failed=3, dead=3)
    for dead in await server.browse("default", "dead"):
        assert dead.failure is not None
        assert dead.failure.type == "UsageError"
        assert "a list with one entry for each of its 3 messages" in dead.failure.text
        assert dead.failure.traceback == f"repid.UsageError: {dead.failure.text}\n"  # no line of it is the actor's


async def test_what_the_actor_raises_is_the_failure_of_all_and_logged_once(
    app: Repid, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[list[int]] = []

    @router.actor(batch=10, retries=1, retry_policy=lambda _: 1)
    async def write(rows: list[Row]) -> None:
        runs.append([row.id for row in rows])
        if len(runs) == 1:
            raise OSError("the disk is full")

    await fill(app, 3)
    report = await work(app, burst=False, messages_limit=6)
    assert report == Report(processed=6, succeeded=3, retried=3)
    assert runs == [[0, 1, 2], [0, 1, 2]]
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.getMessage() == "actor 'write' failed on a batch of 3 messages: 3 again in 1 s"


async def test_verbs_work_one_by_one(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor(batch=10, retries=5, retry_policy=lambda _: 1000)
    async def write(rows: list[Row], messages: list[Message]) -> None:
        acked, nacked, retried, snoozed, rejected, _ = messages
        await acked.ack()
        await nacked.nack()
        await retried.retry(delay=100)
        await snoozed.snooze(100)
        await rejected.reject()
        with pytest.raises(AlreadySettled):
            await acked.nack()
        raise ValueError("the last one has no verdict yet")

    await fill(app, 6)
    report = await work(app, messages_limit=6)
    assert report == Report(processed=6, succeeded=1, failed=1, dead=1, retried=2, released=2)
    assert await server.counts("default") == Counts(ready=1, scheduled=3, dead=1)


async def test_a_verdict_stands_whatever_is_returned_for_its_message(app: Repid, router: Router) -> None:
    @router.actor(batch=10)
    async def write(rows: list[Row], messages: list[Message]) -> list[Exception | None]:
        await messages[0].nack()
        await messages[1].ack()
        return [None, ValueError("too late"), None]

    await fill(app, 3)
    assert await work(app) == Report(processed=3, succeeded=2, failed=1, dead=1)


async def test_each_message_has_an_outbox_of_its_own(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor(batch=10)
    async def write(rows: list[Row], messages: list[Message]) -> list[Exception | None]:
        for row, message in zip(rows, messages, strict=True):
            await message.outbox.send_message_json(channel="told", payload=row.id)
            await message.progress(1, 2)
        return [None, ValueError("no"), None]

    await server.declare(["told"])
    await fill(app, 3)
    await work(app)
    assert [each.envelope.payload for each in await server.browse("told", "ready")] == [b"0", b"2"]


async def test_the_modes_of_confirmation_hold_for_each_message(app: Repid, router: Router) -> None:
    async def raising(rows: list[Row]) -> None:
        raise ValueError

    async def wording(rows: list[Row]) -> list[str]:
        return ["ack", "nack", "reject"]

    async def keeping(rows: list[Row], messages: list[Message]) -> None:
        await messages[1].ack()

    for mode, actor, expected in (
        ("always_ack", raising, Report(processed=3, failed=3)),
        ("manual_explicit", wording, Report(processed=3, succeeded=1, failed=1, dead=1, released=1)),
        ("manual", keeping, Report(processed=3, succeeded=1, released=2)),
    ):
        options: Any = {"confirmation_mode": mode, "batch": 10, "name": mode}
        router.actor(**options)(actor)
        await fill(app, 3, actor=mode)
        assert await work(app, messages_limit=3) == expected
        await app.server().flush("default")


async def test_a_batch_leaves_no_more_messages_without_a_verdict_than_the_worker_may_keep(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    kept: list[Message] = []
    sizes: list[int] = []

    @router.actor(batch=4, batch_wait=1, confirmation_mode="manual")
    async def keep(rows: list[Row], messages: list[Message]) -> None:
        sizes.append(len(rows))
        kept.extend(messages)

    await fill(app, 30, actor="keep")
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app, tasks_limit=6)
        await trio.sleep(60)
        assert (sizes, worker.statistics().kept) == ([4, 2], 6)
        assert await server.counts("default") == Counts(ready=24, leased=6)
        await kept[0].ack()
        await kept[1].ack()
        await trio.sleep(60)
        assert (sum(sizes), worker.statistics().kept) == (8, 6)
        worker.stop()
    assert worker.report == Report(processed=8, succeeded=2, released=worker.report.released)
    assert await server.counts("default") == Counts(ready=28)


async def test_a_batch_of_more_messages_than_may_be_kept_starts_when_there_are_as_many(
    app: Repid, router: Router
) -> None:
    began: list[tuple[float, int]] = []

    @router.actor(batch=500, batch_wait=10, confirmation_mode="manual")
    async def settle(rows: list[Row], messages: list[Message]) -> None:
        began.append((trio.current_time() - sent_at, len(rows)))
        for message in messages:
            await message.ack()

    await fill(app, 9, actor="settle")
    sent_at = trio.current_time()
    assert (await work(app, tasks_limit=3, messages_limit=9)).succeeded == 9
    assert began == [(0, 3), (0, 3), (0, 3)]


# Timeouts, cancelling, leases, shutdown


async def test_a_timeout_is_the_failure_of_all_that_have_no_verdict(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    cleaned: list[float] = []

    @router.actor(batch=10, timeout=5)
    async def write(rows: list[Row], messages: list[Message]) -> None:
        await messages[0].ack()
        try:
            await trio.sleep_forever()
        finally:
            cleaned.append(trio.current_time() - began)

    await fill(app, 3)
    began = trio.current_time()
    assert await work(app) == Report(processed=3, succeeded=1, failed=2, dead=2)
    assert cleaned == [5]
    assert {dead.failure and dead.failure.type for dead in await server.browse("default", "dead")} == {"TimeoutError"}


async def test_no_message_runs_for_longer_than_its_sender_allows(app: Repid, router: Router) -> None:
    @router.actor(batch=10, timeout=50)
    async def write(rows: list[Row]) -> None:
        await trio.sleep_forever()

    await fill(app, 2)
    await fill(app, 1, timeout=3)
    began = trio.current_time()
    assert (await work(app)).dead == 3
    assert trio.current_time() - began == 3


@pytest.mark.parametrize("how", ["while it waits for more", "while it runs"])
async def test_cancelling_one_message_leaves_the_others_alone(app: Repid, router: Router, how: str) -> None:
    got: list[int] = []

    @router.actor(batch=10, batch_wait=1, retries=3, store_result=True)
    async def write(numbers: list[int]) -> list[Exception | None]:
        got.extend(numbers)
        await trio.sleep(10)
        return [ValueError("this one would be tried again") if number == 1 else None for number in numbers]

    handles = await app.enqueue_many(write, range(3))
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(0.5 if how == "while it waits for more" else 5)
        assert await handles[1].cancel()
        await trio.sleep(20)
        worker.stop()
    assert got == ([0, 2] if how == "while it waits for more" else [0, 1, 2])
    results = await app.gather(handles, on_error="return")
    assert [result.state for result in results] == ["success", "cancelled", "success"]


async def test_a_batch_of_which_every_message_is_cancelled_is_cancelled(app: Repid, router: Router) -> None:
    ended: list[float] = []

    @router.actor(batch=3, batch_wait=1)
    async def write(numbers: list[int]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time() - began)

    handles = await app.enqueue_many(write, range(3))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        for second, handle in enumerate(handles, 1):
            await trio.sleep_until(began + second)
            assert await handle.cancel()
        await trio.sleep(1)
        worker.stop()
    assert ended == [3]
    assert worker.report == Report(processed=3, cancelled=3)


def losing(monkeypatch: pytest.MonkeyPatch, lost: set[str]) -> None:
    """Have the server say of these messages that their leases are lost, when it is asked to extend them."""
    extend = Consumer.extend

    async def extend_some(self: Consumer, deliveries: Sequence[Delivery]) -> list[bool]:
        answers = await extend(self, deliveries)
        return [answer and each.envelope.id not in lost for each, answer in zip(deliveries, answers, strict=True)]

    monkeypatch.setattr(Consumer, "extend", extend_some)


async def test_the_lost_lease_of_one_message_does_not_end_the_others(
    app: Repid, router: Router, server: UnreliableServer, monkeypatch: pytest.MonkeyPatch
) -> None:

    @router.actor(batch=3)
    async def write(rows: list[Row]) -> None:
        await trio.sleep(50)

    ids = await fill(app, 3)
    losing(monkeypatch, {ids[1]})
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(51)
        worker.stop()
    assert worker.report == Report(processed=3, succeeded=2, refused=1)
    assert await server.counts("default") == Counts(leased=1)


async def test_a_batch_that_has_lost_every_lease_is_cancelled(
    app: Repid, router: Router, server: UnreliableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[float] = []

    @router.actor(batch=3)
    async def write(rows: list[Row]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time() - began)

    losing(monkeypatch, set(await fill(app, 3)))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(20)
        worker.stop()
    assert ended == [15]
    assert worker.report == Report(processed=3, refused=3)


async def test_a_batch_ends_when_some_are_cancelled_and_the_others_lost(
    app: Repid, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:

    @router.actor(batch=3, batch_wait=1)
    async def write(numbers: list[int]) -> None:
        await trio.sleep_forever()

    handles = await app.enqueue_many(write, range(3))
    losing(monkeypatch, {handles[2].id})
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(5)
        for handle in handles[:2]:
            assert await handle.cancel()
        await trio.sleep(15)
        assert worker.statistics().running == 0
        worker.stop()
    assert worker.report == Report(processed=3, cancelled=2, refused=1)


async def test_two_runs_of_one_message_never_overlap_in_batches(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    present = Counter[int]()
    most = Counter[int]()

    @router.actor(batch=3, concurrency=3)
    async def write(rows: list[Row]) -> None:
        for row in rows:
            present[row.id] += 1
            most[row.id] = max(most[row.id], present[row.id])
        try:
            with trio.CancelScope(shield=True):
                await trio.sleep(150)
        finally:
            present.subtract(row.id for row in rows)

    await fill(app, 3)
    server.hanging.add("extend")
    async with server.consume({"default": frozenset()}) as other, trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        for _ in range(20):
            await trio.sleep(20)
            await other.rescue()
        server.heal()
        await trio.sleep(1000)
        assert await server.counts("default") == Counts()
        worker.stop()
    assert set(most.values()) == {1}


async def test_what_comes_again_while_its_batch_runs_is_run_when_that_has_ended(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    began: list[float] = []

    @router.actor(batch=3, concurrency=3)
    async def write(rows: list[Row]) -> None:
        began.append(round(trio.current_time() - start_time))
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    await fill(app, 3, ttl=30)  # a start ends the ttl, also if the lease is lost
    start_time = trio.current_time()
    server.hanging.add("extend")
    async with server.consume({"default": frozenset()}) as other, trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(62)
        server.heal()
        await other.rescue()
        await trio.sleep(300)
        assert await server.counts("default") == Counts()
        worker.stop()
    assert began == [0, 100]


async def test_a_stop_lets_a_batch_end_and_gives_back_what_gathers(
    app: Repid, router: Router, server: UnreliableServer
) -> None:

    @router.actor(batch=3)
    async def write(rows: list[Row]) -> None:
        await trio.sleep(5)

    await fill(app, 5)
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(1)
        worker.stop()
        await trio.sleep(1)
        assert await server.counts("default") == Counts(ready=2, leased=3)
    assert worker.report == Report(processed=3, succeeded=3, released=2)


async def test_a_batch_that_outlives_the_grace_is_cancelled_and_released(
    app: Repid, router: Router, server: UnreliableServer
) -> None:

    @router.actor(batch=3)
    async def write(rows: list[Row], messages: list[Message]) -> None:
        await messages[2].ack()
        await trio.sleep_forever()

    await fill(app, 3)
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app, graceful_shutdown_time=2)
        await trio.sleep(1)
        worker.stop()
    assert worker.report == Report(processed=3, succeeded=1, released=2)
    assert await server.counts("default") == Counts(ready=2)
    assert [each.attempt for each in await server.browse("default", "ready")] == [1, 1]


async def test_a_cancelled_worker_releases_everything(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor(batch=3, batch_wait=100)
    async def write(rows: list[Row]) -> None:
        await trio.sleep_forever()

    await fill(app, 8)
    with trio.move_on_after(5):
        await work(app, burst=False)
    assert await server.counts("default") == Counts(ready=8)


async def test_a_message_whose_ttl_ends_while_it_waits_for_more_is_a_dead_letter(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    got: list[int] = []

    @router.actor(batch=10, batch_wait=10)
    async def write(rows: list[Row]) -> None:
        got.append(len(rows))

    await fill(app, 1, ttl=5)
    await fill(app, 2)
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(20)
        worker.stop()
    assert got == [2]
    [dead] = await server.browse("default", "dead")
    assert dead.reason == "expired"


async def test_leases_are_renewed_while_a_batch_waits_and_runs(app: Repid, router: Router) -> None:
    @router.actor(batch=10, batch_wait=200)
    async def write(rows: list[Row]) -> None:
        await trio.sleep(200)

    await fill(app, 3)
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(500)
        worker.stop()
    assert worker.report == Report(processed=3, succeeded=3)


@pytest.mark.parametrize(("losses", "expected"), [(1, [[0, 1, 2]]), (2, [[0], [1], [2]])])
async def test_what_was_lost_once_runs_in_a_batch_and_a_suspect_alone_and_at_once(
    app: Repid, router: Router, server: UnreliableServer, losses: int, expected: list[list[int]]
) -> None:
    batches: list[list[int]] = []

    @router.actor(batch=10, batch_wait=50)
    async def write(rows: list[Row]) -> None:
        batches.append([row.id for row in rows])

    await fill(app, 3)
    for _ in range(losses):
        async with server.consume({"default": None}) as dying, server.consume({"default": frozenset()}) as other:
            got = 0
            while got < 3:
                got += len(await dying.receive(3 - got, max_wait=0))
            await trio.sleep(61)
            await other.rescue()
    async with trio.open_nursery() as nursery:
        worker = await start(nursery, app)
        await trio.sleep(49 if losses > 1 else 51)
        worker.stop()
    assert sorted(batches) == expected


# Threads, processes, logs, clients


@pytest.mark.real_time
async def test_a_sync_actor_gets_its_batch_in_a_thread() -> None:
    app = Repid()
    router = Router()
    threads: set[int] = set()

    @router.actor(batch=3, store_result=True)
    def double(numbers: list[int], messages: list[SyncMessage]) -> list[int]:
        threads.add(threading.get_ident())
        messages[0].progress(1)
        messages[0].outbox.send_message_json(channel="default", payload=1, headers={"topic": "tell"})
        return [2 * number for number in numbers]

    @router.actor
    def tell() -> None: ...

    app.include_router(router)
    async with TestClient(app) as client:
        handles = await app.enqueue_many(double, range(7))
        runs = await client.drain()
        assert await app.gather(handles) == [0, 2, 4, 6, 8, 10, 12]
    assert [run.value for run in runs if run.actor == "double"] == [0, 2, 4, 6, 8, 10, 12]
    assert threading.get_ident() not in threads


@pytest.mark.real_time
async def test_batches_and_single_runs_share_threads_in_turn() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()
    ran: list[str] = []

    @router.actor(batch=2)
    def write(numbers: list[int]) -> None:
        ran.append("batch")

    @router.actor
    def single(number: int) -> None:
        ran.append("single")

    app.include_router(router)
    async with app.magic():
        await app.enqueue_many(write, range(10))
        await app.enqueue_many(single, range(10))
        report = await app.run_worker(burst=True, threads_limit=1)
    assert report.succeeded == 20
    assert ran.count("single") == 10
    assert 5 <= ran.count("batch") <= 10


@pytest.mark.real_time
async def test_batches_of_which_nothing_fits_take_no_threads() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()

    @router.actor(batch=2)
    def write(rows: list[Row]) -> None: ...

    @router.actor
    def single(number: int) -> None: ...

    app.include_router(router)
    async with app.magic():
        payloads = [{"id": "x"}] * 20
        await app.send_messages_json(channel="default", payloads=payloads, headers={"topic": "write"})
        await app.run_worker(burst=True, threads_limit=1)
        await app.send_messages_json(channel="default", payloads=payloads, headers={"topic": "write"})
        await app.using(delay=0.2).enqueue_many(single, range(5))
        with trio.move_on_after(20):
            assert (await app.run_worker(messages_limit=25, threads_limit=1)).succeeded == 5
            return
    pytest.fail("the single runs got no thread")


@pytest.mark.real_time
async def test_a_batch_runs_in_a_process() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()
    double_each = router.actor(batch=3, run_in_process=True, store_result=True)(aids_processes.double_each)
    app.include_router(router)
    async with app.magic():
        handles = await app.enqueue_many(double_each, range(4))
        assert (await app.run_worker(burst=True)).processed == 4
        results = await app.gather(handles, on_error="return")
    assert [result.state for result in results] == ["success", "failure", "success", "failure"]


async def test_a_batch_is_one_line_of_the_logged_runs(
    app: Repid, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "repid.worker")

    @router.actor(batch=10)
    async def write(rows: list[Row]) -> list[Exception | None]:
        return [None, ValueError("no"), None]

    await fill(app, 3)
    await work(app, log_runs=True)
    [record] = [each for each in caplog.records if "ended after" in each.getMessage()]
    assert record.getMessage().endswith("a batch of 3 messages of 'default', 1 dead letter (failed), 2 succeeded")
    assert record.__dict__["batch"] == 3
    assert record.__dict__["actor"] == "write"


async def test_a_test_client_tells_the_fate_of_each_message(app: Repid, router: Router) -> None:
    @router.actor(batch=3, batch_wait=1000)
    async def halve(numbers: list[int]) -> list[int | Exception]:
        return [ValueError(f"{number} is odd") if number % 2 else number // 2 for number in numbers]

    async with TestClient(app) as client:
        await app.enqueue_many(halve, range(4))
        first = await client.process_next()
        assert first is not None
        assert (first.actor, first.value, first.fate) == ("halve", 0, "acked")
        rest = await client.drain()
        assert [(run.fate, run.value) for run in rest] == [("dead", None), ("acked", 1), ("dead", None)]
        with pytest.raises(ValueError, match="1 is odd"):
            rest[0].raise_error()
        client.assert_enqueued(halve, numbers=2)


# What is refused


async def test_a_call_takes_one_element(app: Repid, router: Router) -> None:
    @router.actor(batch=3)
    async def write(rows: list[Row]) -> None: ...

    sent = await app.enqueue(write, Row(1))
    assert sent.envelope.payload == b'{"id":1,"text":""}'
    with pytest.raises(PayloadError, match=r"no element of the list 'rows' of .*write\(\):\n  \$: Expected `object`"):
        await app.enqueue(write, [Row(1)])
    with pytest.raises(PayloadError, match="an element of its list is missing"):
        await app.enqueue(write)  # type: ignore[call-overload]
    assert (await app.job(write, Row(2)).enqueue()).envelope.payload == b'{"id":2,"text":""}'


def fetch(message: Message) -> int:
    return message.attempt


def read(order: Annotated[int, Payload()]) -> int:
    return order


async def no_list(row: Row) -> None: ...


async def two_lists(rows: list[Row], others: list[Row]) -> None: ...


async def none() -> None: ...


async def one_message(rows: list[Row], message: Message) -> None: ...


async def one_injected_message(rows: list[Row], message: Message = INJECTED) -> None: ...


def one_sync_message(rows: list[Row], message: SyncMessage = INJECTED) -> None: ...


async def injected_by_none(rows: list[Row], pool: dict[str, int] = INJECTED) -> None: ...


async def with_header(rows: list[Row], tenant: Annotated[str, Header("x-tenant")]) -> None: ...


async def asks_for_message(rows: list[Row], attempt: Annotated[int, Depends(fetch)]) -> None: ...


async def asks_for_payload(rows: list[Row], order: Annotated[int, Depends(read)]) -> None: ...


async def foreign(rows: list[threading.Thread]) -> None: ...


async def on_the_loop(rows: list[Row], messages: list[SyncMessage]) -> None: ...


async def write_rows(rows: list[Row]) -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "text"),
    [
        (no_list, {}, r"annotate it as a list of them, as in row: list\[Row\]"),
        (two_lists, {}, "it has 2: 'rows', 'others'"),
        (none, {}, "it has none"),
        (one_message, {}, r"is one message, but a batch has many: annotate it with list\[Message\]"),
        (one_injected_message, {}, r"is one message, but a batch has many: annotate it with list\[Message\]"),
        (one_sync_message, {}, r"is one message, but a batch has many: annotate it with list\[SyncMessage\]"),
        (injected_by_none, {}, "has the default INJECTED, but no worker fills it"),
        (with_header, {}, "each message of a batch has its own"),
        (asks_for_message, {}, "dependencies are called once for a whole batch"),
        (asks_for_payload, {}, r"Payload\(.*called once for a whole batch"),
        (foreign, {}, "nothing can be decoded to its type Thread"),
        (on_the_loop, {}, "SyncMessage, whose verbs block"),
        (write_rows, {"confirmation_mode": "ack_first"}, "under which each message is acknowledged before its run"),
        (write_rows, {"strict": True}, "forbid_unknown_fields"),
        (write_rows, {"every": 5}, "whose messages carry no payload"),
        (write_rows, {"batch": 0}, "must be a whole number of at least 1"),
        (write_rows, {"batch": float("inf")}, "must be finite"),
        (write_rows, {"batch_wait": float("inf")}, "must be finite"),
        (write_rows, {"batch_wait": -1}, "batch_wait"),
    ],
)
def test_what_cannot_be_a_batch_actor_is_refused_with_file_and_line(
    function: Callable[..., Any], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigurationError, match=text) as caught:
        Router().actor(**{"batch": 5, **options})(function)
    assert f"{__file__}:{function.__code__.co_firstlineno}" in str(caught.value)


def test_batch_wait_and_a_list_of_messages_need_a_batch() -> None:
    with pytest.raises(ConfigurationError, match="has batch_wait, but no batch"):
        Router().actor(batch_wait=5)(write_rows)  # type: ignore[call-overload]

    async def greedy(messages: list[Message]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"only an actor that is declared with batch=\.\.\. is given several"):
        Router().actor(greedy)

    async def greedy_for_type_checkers(messages: list[Message] = INJECTED) -> None: ...

    with pytest.raises(ConfigurationError, match=r"only an actor that is declared with batch=\.\.\. is given several"):
        Router().actor(greedy_for_type_checkers)


@pytest.mark.real_time
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_batches_run_under_asyncio(kind: str, tmp_path: Path) -> None:
    server = InMemoryServer() if kind == "memory" else SQLiteServer(tmp_path / "jobs.db", synchronous="NORMAL")
    app, router = Repid(Connection(server)), Router(store_result=True)
    seen: list[int] = []

    async def around(call_next: CallNext, message: Message, actor: Actor) -> Any:
        seen.append(len(message.batch))
        return await call_next(message, actor)

    @router.actor(batch=4, middlewares=[around])
    async def double(numbers: list[int], messages: list[Message] = INJECTED) -> list[int | Exception]:
        await asyncio.sleep(0.01)
        await messages[0].progress(1, 2)
        return [ValueError("odd") if number == 5 else 2 * number for number in numbers]

    @router.actor(batch=4, timeout=0.1)
    async def hang(numbers: list[int]) -> None:
        await asyncio.sleep(60)

    app.include_router(router)

    async def main() -> None:
        async with app.magic():
            doubled = await app.enqueue_many(double, range(10))
            hanging = await app.enqueue_many(hang, range(3))
            report = await app.run_worker(burst=True)
            assert (report.processed, report.succeeded, report.dead) == (13, 9, 4)
            results = await app.gather(doubled, on_error="return")
            assert [each.state for each in results].count("success") == 9
            assert {each.state for each in await app.gather(hanging, on_error="return")} == {"failure"}

    asyncio.run(main())
    assert sum(seen) == 10
