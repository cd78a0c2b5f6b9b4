"""What a run is: its own context, its place under a limit of its actor, and its messages for others."""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
import trio
from aids import UnreliableServer, send, total

from repid import Counts, Envelope, Handle, Job, Message, Repid, Report, Router, catch_all_routing_strategy
from repid.actors.routing import Predicate

word: ContextVar[str] = ContextVar("word", default="unset")


# One context per run


class Worded(partial[Any]):
    """A function that sets something when it is called, before its coroutine begins, as a wrapper may."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        word.set(f"{word.get()} and the call's")
        return super().__call__(*arguments, **keywords)


async def test_what_the_call_of_an_actor_sets_is_seen_by_its_own_run_alone(app: Repid, router: Router) -> None:
    seen: list[str] = []

    async def job() -> None:
        seen.append(word.get())

    router.actor(name="job")(Worded(job))
    word.set("worker's")
    for _ in range(3):
        await send(app, "job")
    await app.run_worker(messages_limit=3)
    assert seen == ["worker's and the call's"] * 3


@pytest.mark.parametrize("wait", ["not at all", "a checkpoint", "a while"])
async def test_what_one_run_sets_no_other_sees(app: Repid, router: Router, wait: str) -> None:
    seen: list[str] = []

    @router.actor
    async def job(i: int) -> None:
        seen.append(word.get())
        word.set(f"run {i}")
        if wait == "a checkpoint":
            await trio.lowlevel.checkpoint()
        elif wait == "a while":
            await trio.sleep(1)
        seen.append(word.get())

    word.set("worker's")
    for i in range(3):
        await send(app, "job", i=i)
    await app.run_worker(burst=True, tasks_limit=1)
    assert seen == ["worker's", "run 0", "worker's", "run 1", "worker's", "run 2"]
    assert word.get() == "worker's"


async def test_tasks_started_by_a_run_inherit_its_context(app: Repid, router: Router) -> None:
    seen: list[str] = []

    async def child() -> None:
        seen.append(word.get())
        word.set("child's")

    @router.actor
    async def job() -> None:
        await trio.lowlevel.checkpoint()
        word.set("run's")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
        seen.append(word.get())

    await send(app, "job")
    await app.run_worker(burst=True)
    assert seen == ["run's", "run's"]


async def test_a_context_survives_every_kind_of_waiting_also_through_a_failed_one(app: Repid, router: Router) -> None:
    seen: list[str] = []

    @router.actor(timeout=10)
    async def job() -> None:
        word.set("run's")
        with trio.move_on_after(1):
            await trio.sleep_forever()
        seen.append(word.get())
        send_channel, receive_channel = trio.open_memory_channel[str](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_channel.send, "x")
            await receive_channel.receive()
        seen.append(word.get())
        try:
            await trio.sleep_forever()
        finally:
            seen.append(word.get())

    await send(app, "job")
    await app.run_worker(burst=True)
    assert seen == ["run's"] * 3


# Concurrency


@pytest.mark.parametrize("limit", [1, 3])
async def test_an_actor_keeps_to_its_limit_and_holds_up_nobody_else(app: Repid, router: Router, limit: int) -> None:
    at_once: list[int] = []
    running: set[int] = set()
    others: list[float] = []

    @router.actor(concurrency=limit)
    async def limited(i: int) -> None:
        running.add(i)
        at_once.append(len(running))
        await trio.sleep(10)
        running.remove(i)

    @router.actor
    async def free() -> None:
        others.append(trio.current_time())

    for i in range(6):
        await send(app, "limited", i=i)
    for _ in range(6):
        await send(app, "free")
    started = trio.current_time()
    await app.run_worker(burst=True, tasks_limit=4)
    assert (max(at_once), trio.current_time() - started) == (limit, 10 * 6 / limit)
    assert others == [started] * 6


async def test_a_limit_with_a_custom_routing_strategy_parks_what_must_wait(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    """The broker cannot filter by what it does not know."""
    at_once: list[int] = []
    running: set[int] = set()
    free: list[float] = []

    def even(*, actor_name: str):  # type: ignore[no-untyped-def]
        return lambda envelope: int(envelope.headers["number"]) % 2 == 0

    @router.actor(concurrency=2, routing_strategy=even)
    async def limited(i: int) -> None:
        running.add(i)
        at_once.append(len(running))
        await trio.sleep(10)
        running.remove(i)

    @router.actor(routing_strategy=catch_all_routing_strategy)
    async def rest(i: int) -> None:
        free.append(trio.current_time())

    for i in range(20):
        await app.send_message_json(channel="default", payload={"i": i}, headers={"number": str(i)})
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        assert free == [started] * 10
        counts = await server.counts("default")
        assert (counts.leased, counts.leased + counts.ready + counts.scheduled) == (4, 10)  # two run, two are parked
        await trio.sleep(200)
        handle.stop()
    assert max(at_once) == 2
    assert await server.counts("default") == Counts()


async def test_parked_deliveries_are_released_by_a_stop_without_an_attempt(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(concurrency=1, routing_strategy=catch_all_routing_strategy)
    async def slow() -> None:
        await trio.sleep(10)

    for _ in range(2):
        await send(app, "slow")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        handle.stop()
        await trio.sleep(1)
        assert await server.counts("default") == Counts(ready=1, leased=1)
    [ready] = await server.browse("default", "ready")
    assert (ready.attempt, ready.lost) == (1, 0)


async def test_a_message_that_does_not_fit_makes_room_for_the_next_of_its_actor(app: Repid, router: Router) -> None:
    done: list[int] = []

    @router.actor(concurrency=1)
    async def limited(i: int) -> None:
        done.append(i)

    for i in range(5):
        await app.send_message(channel="default", payload=b"?", headers={"topic": "limited"})
        await send(app, "limited", i=i)
    assert await app.run_worker(burst=True) == Report(processed=5, succeeded=5, dead=5)
    assert done == [0, 1, 2, 3, 4]


async def test_every_way_out_of_a_run_makes_room_for_the_next(app: Repid, router: Router) -> None:
    @router.actor(concurrency=1, timeout=1)
    async def limited(message: Message, i: int) -> None:
        match i % 5:
            case 0:
                await trio.sleep_forever()
            case 1:
                raise ValueError
            case 2:
                await message.nack()
            case 3:
                await message.snooze(1000)

    for i in range(15):
        await send(app, "limited", i=i)
    report = await app.run_worker(burst=True)
    assert report == Report(processed=15, succeeded=3, failed=9, released=3, dead=9)


# Messages nobody here takes


async def test_an_unrouted_message_is_released_with_growing_pauses_and_dead_after_an_hour(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    @router.actor
    async def resize() -> None: ...

    await send(app, "rezise")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        first = server.calls["settle"]
        await trio.sleep(3000)
        later = server.calls["settle"]
        assert total(await server.counts("default")) == 1
        await trio.sleep(700)
        handle.stop()
    assert 3 <= first <= 10
    assert 80 <= later - first <= 160  # every 30 s, more or less
    [dead] = await server.browse("default", "dead")
    assert (dead.reason, dead.attempt, dead.lost) == ("unrouted", 1, 0)
    assert caplog.text.count("which no actor here takes") == 1
    assert "did you mean 'resize'?" in caplog.text


async def test_a_message_one_worker_does_not_know_reaches_the_one_that_does(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    done: list[str] = []

    @router.actor
    async def known() -> None: ...

    other = Repid()
    other.servers.register_server("default", server)
    other_router = Router()

    @other_router.actor
    async def late() -> None:
        done.append("late")

    other.include_router(other_router)
    await send(app, "late")
    async with trio.open_nursery() as nursery:
        first: Handle = await nursery.start(app.run_worker)
        await trio.sleep(100)
        second: Handle = await nursery.start(other.run_worker)
        await trio.sleep(60)
        first.stop()
        second.stop()
    assert done == ["late"]
    assert await server.counts("default") == Counts()


async def test_a_routing_strategy_that_raises_takes_nothing_and_is_logged(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*, actor_name: str):  # type: ignore[no-untyped-def]
        def predicate(envelope: Envelope) -> bool:
            raise ValueError("no idea")

        return predicate

    @router.actor(routing_strategy=broken)
    async def job() -> None: ...

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(released=1)
    assert "the routing strategy of actor 'job' failed" in caplog.text


# A start that is over when it is over


async def test_start_is_over_when_the_worker_really_consumes(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(channel="elsewhere")
    async def job() -> None: ...

    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        assert await server.counts("elsewhere") == Counts()  # declared by then
        handle.stop()


async def test_a_worker_without_actors_returns_at_once_and_says_why(
    app: Repid, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    started = trio.current_time()
    assert await app.run_worker() == Report()
    assert "the worker has no actors, so it ends at once: add them to its app" in caplog.text
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        handle.stop()
    assert trio.current_time() == started
    assert server.calls["receive"] == 0


async def test_a_worker_reads_all_channels_of_its_actors(app: Repid, server: UnreliableServer) -> None:
    done: list[str] = []
    for channel in ("a", "b", "c"):
        router = Router(channel=channel)
        router.actor(name="job")(partial(record, done, channel))
        app.include_router(router)
        await send(app, "job", channel=channel)
    assert await app.run_worker(burst=True) == Report(processed=3, succeeded=3)
    assert sorted(done) == ["a", "b", "c"]


async def record(done: list[str], channel: str) -> None:
    done.append(channel)


# The ttl


@pytest.mark.parametrize("end", ["retry", "snooze", "reject", "release", "lost"])
async def test_a_message_that_was_started_in_time_never_expires(
    app: Repid, router: Router, server: UnreliableServer, end: str
) -> None:
    starts: list[float] = []

    @router.actor(retries=1, retry_policy=lambda _: 50.0)
    async def job(message: Message) -> None:
        starts.append(trio.current_time())
        if len(starts) > 1:
            return
        if end == "retry":
            raise ValueError("not yet")
        if end == "snooze":
            await message.snooze(50)
        elif end == "reject":
            await trio.sleep(50)
            await message.reject()
        else:
            await trio.sleep_forever()

    job_ = await Job("job", ttl=20, store_result=True).enqueue()
    with trio.move_on_after(80):  # the next worker comes with a deploy, say
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.run_worker)
            await trio.sleep(10)
            if end == "lost":
                server.hanging.add("extend")
    server.heal()
    with trio.move_on_after(200):
        await app.run_worker()
    assert len(starts) == 2, starts
    result = await job_.result
    assert result is not None
    assert result.state == "success"


async def test_a_message_that_was_held_and_not_started_in_time_expires(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(concurrency=1)
    async def job() -> None:
        await trio.sleep(50)

    for _ in range(2):
        await Job("job", ttl=20).enqueue()
    with trio.move_on_after(100):
        await app.run_worker()
    [dead] = await server.browse("default", "dead")
    assert dead.reason == "expired"


async def test_an_actor_takes_its_topic_beside_one_that_has_a_routing_strategy(app: Repid, router: Router) -> None:
    ran: list[str] = []

    def odd(*, actor_name: str) -> Predicate:
        return lambda envelope: envelope.topic == f"{actor_name}!"

    @router.actor(routing_strategy=odd)
    async def picky() -> None:
        ran.append("picky")

    @router.actor
    async def plain() -> None:
        ran.append("plain")

    for topic in ("plain", "picky!"):
        await send(app, topic)
    assert (await app.run_worker(messages_limit=2)).succeeded == 2
    assert sorted(ran) == ["picky", "plain"]
