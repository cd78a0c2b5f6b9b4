"""Leases: kept while work goes on, believed lost when they could not be kept, and fenced; and a broker that goes away."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from aids import UnreliableServer, run_virtual, seed_scheduler, send
from msgspec.structs import replace

from repid import (
    INJECTED,
    Counts,
    Handle,
    LeaseLost,
    Message,
    Repid,
    Report,
    Router,
    Worker,
    catch_all_routing_strategy,
)
from repid.brokers.consumer import Consumer
from repid.delivery import Delivery
from repid.ports import LARGEST_CALL, CallRecord


@asynccontextmanager
async def another_consumer(server: UnreliableServer) -> AsyncGenerator[None, None]:
    """Somebody else who rescues: what another worker's keeper would do."""
    async with server.consume({"default": frozenset({"nothing"})}) as consumer, trio.open_nursery() as nursery:

        async def rescue() -> None:
            while True:
                await trio.sleep(1)
                await consumer.rescue()

        nursery.start_soon(rescue)
        yield
        nursery.cancel_scope.cancel()


async def test_a_lease_is_extended_for_as_long_as_the_run_takes(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    runs: list[float] = []

    @router.actor(timeout=10_000)
    async def slow() -> None:
        runs.append(trio.current_time())
        await trio.sleep(1000)

    await send(app, "slow")
    async with another_consumer(server):
        assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    assert len(runs) == 1


async def test_a_worker_of_very_many_asks_for_no_more_at_once_than_a_server_answers_in_time(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    many = 2 * LARGEST_CALL + 1
    calls: list[CallRecord] = []

    @router.actor(timeout=10_000)
    async def slow(message: Message = INJECTED) -> None:
        await trio.sleep(30)
        await message.progress(1, 2)
        await trio.sleep(30)

    await app.enqueue_many(app.job(slow) for _ in range(many))
    server.add_instrument(calls.append)
    await app.run_worker(burst=True, tasks_limit=many)
    counts = {name: [call.count for call in calls if call.name == name] for name in ("claim", "extend", "report")}
    assert {name: max(of_calls) for name, of_calls in counts.items()} == dict.fromkeys(counts, LARGEST_CALL)


async def test_a_lease_is_extended_until_its_verdict_is_settled(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def job() -> None: ...

    server.hanging.add("settle")
    await send(app, "job")
    async with another_consumer(server), trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(300)
        server.heal()
        await trio.sleep(1)
        handle.stop()
    assert await server.counts("default") == Counts()


async def test_a_lost_lease_cancels_the_actor_and_its_message_runs_again_elsewhere(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker cannot be asked to extend for longer than the lease."""
    runs: list[tuple[float, float, str]] = []

    @router.actor
    async def slow() -> None:
        began = trio.current_time()
        try:
            await trio.sleep(100)
        except trio.Cancelled:
            runs.append((began, trio.current_time(), "cancelled"))
            raise
        runs.append((began, trio.current_time(), "done"))

    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)  # so that the lease does not end at a moment when leases are extended
        zero = trio.current_time()
        await send(app, "slow")
        server.failures["extend"] = 100
        await trio.sleep(61)
        handle.stop()
    server.heal()
    assert handle.report == Report(processed=1, refused=1)
    await trio.sleep(60)
    assert await app.run_worker(messages_limit=1, graceful_shutdown_time=math.inf) == Report(processed=1, succeeded=1)
    assert [how for _, _, how in runs] == ["cancelled", "done"]
    assert runs[0][1] - zero <= 60  # before anybody else could have it
    assert runs[0][1] <= runs[1][0]
    assert "lost the lease" in caplog.text


async def test_a_lease_is_believed_lost_when_it_ends_though_the_broker_does_not_answer_just_then(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    ended: list[float] = []

    @router.actor
    async def slow() -> None:
        try:
            await trio.sleep(1000)
        finally:
            ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(103)
        server.hanging.add("extend")
        leased = trio.current_time()
        await send(app, "slow")
        await trio.sleep(100)
        assert len(ended) == 1
        assert ended[0] <= leased + 60
        server.heal()
        handle.stop()


async def test_a_lost_lease_is_counted_in_the_message_and_uses_no_attempt(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    seen: list[int] = []

    @router.actor(retries=5)
    async def job(message: Message) -> None:
        seen.append(message.attempt)
        if len(seen) == 1:
            await trio.sleep(100)

    server.failures["extend"] = 5
    await send(app, "job")
    assert await app.run_worker(messages_limit=2) == Report(processed=2, succeeded=1, refused=1)
    assert seen == [1, 1]


async def test_a_late_verdict_is_refused_and_changes_nothing(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    """The actor does not hear its cancellation, and acknowledges a message that is somebody else's by then."""
    said: list[str] = []

    @router.actor
    async def deaf(message: Message) -> None:
        if said:
            said.append("again")
            return
        said.append("first")
        with trio.CancelScope(shield=True):
            await trio.sleep(100)
            try:
                await message.ack()
            except LeaseLost:
                said.append("refused")

    server.failures["extend"] = 5
    await send(app, "deaf")
    report = await app.run_worker(messages_limit=2)
    assert sorted(said) == ["again", "first", "refused"]
    assert report == Report(processed=2, succeeded=1, refused=1)
    assert await server.counts("default") == Counts()


async def test_the_outbox_of_a_late_verdict_is_not_sent(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def deaf(message: Message) -> None:
        if started:
            return
        started.append(trio.current_time())
        await message.outbox.send_message(channel="replies", payload=b"")
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    started: list[float] = []
    await server.declare(["replies"])
    server.failures["extend"] = 5
    await send(app, "deaf")
    assert (await app.run_worker(messages_limit=2)).succeeded == 1
    assert await server.counts("replies") == Counts()


async def test_deleting_the_queue_under_a_run_cancels_it_and_refuses_its_verdict(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    ended: list[float] = []

    @router.actor
    async def slow() -> None:
        try:
            await trio.sleep(100)
        finally:
            ended.append(trio.current_time())

    await send(app, "slow")
    zero = trio.current_time()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        await server.delete("default")
        await trio.sleep(30)
        handle.stop()
    assert [time - zero for time in ended] == [15]  # a quarter of a lease: when it is extended next


async def test_a_worker_that_was_idle_runs_a_message_with_a_ttl(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    ran: list[float] = []

    @router.actor
    async def job() -> None:
        ran.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(100)
        await app.send_message_json(channel="default", headers={"topic": "job"}, ttl=30)
        await trio.sleep(1)
        handle.stop()
    assert len(ran) == 1
    assert await server.counts("default") == Counts()


async def a_fresh_lease_survives_a_failing_extension(app: Repid, router: Router, server: UnreliableServer) -> None:
    """Of a message sent to a worker that has run for a while, and whose `job` takes 40 seconds."""
    worker = Worker([router])
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        await trio.sleep(103)
        server.failures["extend"] = 2
        await send(app, "job")
        await trio.sleep(45)
        assert await server.counts("default") == Counts()
        worker.stop()


async def test_a_fresh_lease_after_an_idle_time_survives_a_failing_extension(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def job() -> None:
        await trio.sleep(40)

    await a_fresh_lease_survives_a_failing_extension(app, router, server)


async def test_asking_anew_for_an_actor_that_has_room_again_does_not_age_a_fresh_lease(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(concurrency=100)
    async def limited(seconds: float) -> None:
        await trio.sleep(seconds)

    @router.actor
    async def job() -> None:
        await trio.sleep(40)

    for n in range(1, 25):
        await send(app, "limited", seconds=5 * n)  # one ends every 5 seconds, and the broker is asked anew
    await a_fresh_lease_survives_a_failing_extension(app, router, server)


async def test_a_message_past_its_ttl_while_it_was_held_is_not_started(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    ran: list[float] = []

    @router.actor(concurrency=1, routing_strategy=catch_all_routing_strategy)
    async def slow() -> None:
        ran.append(trio.current_time())
        await trio.sleep(100)

    await send(app, "slow")
    await app.send_message_json(channel="default", ttl=30)
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1, dead=1)
    assert len(ran) == 1
    assert [m.reason for m in await server.browse("default", "dead")] == ["expired"]


async def test_a_ttl_is_no_timeout_what_was_started_in_time_may_finish(app: Repid, router: Router) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(100)

    await app.send_message_json(channel="default", headers={"topic": "slow"}, ttl=5)
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


async def test_a_dead_worker_s_message_is_rescued_by_another(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    """A worker that dies without a word: here a consumer nobody settles for."""
    seen: list[tuple[int, float]] = []

    @router.actor
    async def job(message: Message) -> None:
        seen.append((message.attempt, trio.current_time()))

    await send(app, "job")
    async with server.consume({"default": None}) as dying:
        [delivery] = await dying.receive(1)
        leased = trio.current_time()
    assert isinstance(delivery, Delivery)
    await trio.sleep(7)
    assert await app.run_worker(messages_limit=1) == Report(processed=1, succeeded=1)
    assert [attempt for attempt, _ in seen] == [1]
    assert 60 <= seen[0][1] - leased <= 60 + 15


async def test_a_message_that_kills_ten_workers_is_poison(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def job() -> None: ...

    await send(app, "job")
    for _ in range(10):
        async with server.consume({"default": None}) as dying:
            await dying.receive(1)
        await trio.sleep(61)
        async with server.consume({"default": frozenset()}) as other:
            await other.rescue()
    [dead] = await server.browse("default", "dead")
    assert (dead.reason, dead.lost, dead.attempt) == ("poison", 10, 1)


# A broker that goes away and comes back


@pytest.mark.parametrize("method", ["receive", "settle", "extend", "rescue"])
@pytest.mark.parametrize("times", [1, 3, 6])
async def test_nothing_is_lost_or_doubled_while_the_broker_is_away(
    app: Repid, router: Router, server: UnreliableServer, method: str, times: int
) -> None:
    runs: list[int] = []

    @router.actor
    async def job(i: int) -> None:
        runs.append(i)
        if i % 2:
            await trio.sleep(20)

    for i in range(20):
        await send(app, "job", i=i)
    server.failures[method] = times
    report = await app.run_worker(tasks_limit=5, messages_limit=20)
    assert replace(report, released=0) == Report(processed=20, succeeded=20)  # some are given back behind long runs
    assert sorted(runs) == list(range(20))
    assert await server.counts("default") == Counts()


async def test_a_worker_tries_again_with_growing_pauses(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def job() -> None: ...

    server.failures["receive"] = 8
    zero = trio.current_time()
    await send(app, "job")
    await app.run_worker(messages_limit=1)
    assert trio.current_time() - zero == pytest.approx(0.1 + 0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 5 + 5)
    assert server.calls["receive"] == 9


async def test_executors_wait_when_too_many_verdicts_are_unsettled(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    """At most four times tasks_limit, whatever the broker does."""
    ran: list[int] = []

    @router.actor
    async def job(i: int) -> None:
        ran.append(i)

    server.hanging.add("settle")
    for i in range(100):
        await send(app, "job", i=i)
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(partial(app.run_worker, tasks_limit=3))
        await trio.sleep(10)
        assert 12 <= len(ran) <= 15
        server.heal()
        await trio.sleep(10)
        assert len(ran) == 100
        handle.stop()
    assert await server.counts("default") == Counts()


async def test_a_limited_actor_runs_again_after_held_deliveries_of_it_were_lost(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    ran: list[float] = []

    @router.actor(concurrency=2)
    async def limited() -> None:
        ran.append(trio.current_time())

    @router.actor
    async def slow() -> None:
        await trio.sleep(150)

    @router.actor
    async def quick() -> None: ...

    for _ in range(200):
        await send(app, "quick")
    for _ in range(4):
        await send(app, "slow")
    for _ in range(2):
        await send(app, "limited")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(partial(app.run_worker, tasks_limit=4))
        await trio.sleep(10)
        server.failures["extend"] = 5  # the slow ones, and the limited ones held ahead, are lost
        await trio.sleep(1000)
        handle.stop()
    assert len(ran) == 2


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_ends_when_leases_are_extended_is_counted_once(seed: int) -> None:
    """A broker that answers `extend` after it has settled says "not yours", rightly, of a verdict on its way."""
    seed_scheduler(seed)
    app = Repid()
    app.servers.register_server("default", UnreliableServer())
    router = Router()
    app.include_router(router)
    zero = [0.0]

    @router.actor
    async def job() -> None:
        await trio.sleep_until(zero[0] + 15)

    async def main() -> Report:
        async with app.magic():
            for _ in range(5):
                await send(app, "job")
            zero[0] = trio.current_time()
            return await app.run_worker(burst=True)

    assert run_virtual(main) == Report(processed=5, succeeded=5)


async def test_short_runs_do_not_wait_for_the_broker_because_a_worker_reads_ahead(
    app: Repid, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Consumer.receive

    async def receive_late(consumer: Consumer, *arguments: Any, **options: Any) -> list[Delivery]:
        await trio.sleep(0.1)  # the trip to the broker
        return await receive(consumer, *arguments, **options)

    @router.actor
    async def job() -> None:
        await trio.sleep(0.05)

    monkeypatch.setattr(Consumer, "receive", receive_late)
    for _ in range(400):
        await send(app, "job")
    began = trio.current_time()
    await app.run_worker(burst=True, tasks_limit=10)
    assert trio.current_time() - began < 5  # 40 rounds, each of a trip and a run one after the other, would take 6
