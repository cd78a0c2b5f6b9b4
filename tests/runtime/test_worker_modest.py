"""Workers and facades on a server that claims little: what works, and what says plainly that it does not."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from modest_driver import ModestDriver
from trio.testing import MockClock

from repid import (
    Connection,
    InMemoryServer,
    Job,
    Message,
    NotSupported,
    PrioritiesT,
    Queue,
    Repid,
    Router,
    SQLiteServer,
)
from repid.brokers import Server
from repid.delivery import Delivery, Retry, Settlement
from repid.envelope import Envelope
from repid.ports import ResultStore
from repid.runtime.postponed import MOST, Postponed


def make_app(driver: ModestDriver, *, state: Server | None = None, store: ResultStore | None = None) -> Repid:
    return Repid(Connection(Server(driver, state=state)), result_store=store)


async def run(app: Repid, *, seconds: float = 100, **options: object) -> None:
    with trio.move_on_after(seconds):
        await app.run_worker(**options)  # type: ignore[arg-type]  # as given


async def test_a_worker_runs_on_a_server_that_claims_little(autojump_clock: MockClock) -> None:
    app, router, seen = make_app(ModestDriver()), Router(), []

    @router.actor
    async def greet(name: str) -> None:
        seen.append(name)

    app.include_router(router)
    async with app.magic():
        for name in ("Ada", "Bob"):
            await Job("greet", args={"name": name}).enqueue()
        await run(app, messages_limit=2)
    assert seen == ["Ada", "Bob"]


async def test_a_retry_keeps_its_delay_where_the_server_cannot_delay(autojump_clock: MockClock) -> None:
    driver = ModestDriver(lease_timeout=4)
    app, router, times = make_app(driver), Router(), []

    @router.actor(retries=2, retry_policy=lambda _: 30.0)
    async def fail() -> None:
        times.append(trio.current_time())
        raise ValueError

    app.include_router(router)
    async with app.magic():
        await Job("fail").enqueue()
        async with trio.open_nursery() as nursery:  # the other worker must not get it meanwhile
            nursery.start_soon(run, app)
            nursery.start_soon(run, app)
    start = times[0]
    assert [moment - start for moment in times] == pytest.approx([0, 30, 60], abs=0.1)
    assert [stored.lost for stored in driver.dead] == [0]


async def test_a_worker_that_stops_hands_over_the_retries_it_held_back(autojump_clock: MockClock) -> None:
    driver = ModestDriver()
    app, router = make_app(driver), Router()

    @router.actor(retries=2, retry_policy=lambda _: 3600.0)
    async def fail() -> None:
        raise ValueError

    app.include_router(router)
    async with app.magic():
        await Job("fail").enqueue()
        await run(app, messages_limit=1)
    assert [stored.attempt for stored in driver.ready] == [2]
    assert driver.leased == {}


async def test_of_more_verdicts_than_can_be_held_back_the_first_due_is_handed_over_early() -> None:
    handed: list[Settlement] = []
    postponed = Postponed(lambda settlement, _: handed.append(settlement))
    delivery = Delivery(Envelope("a", "q", b""), attempt=1, lost=0, token=b"t")
    for number in range(MOST):
        assert postponed.hold_back(Settlement(delivery, Retry(60.0 + number)), None)
    assert not handed
    postponed.hold_back(Settlement(delivery, Retry(30.0)), None)
    assert [settlement.disposition for settlement in handed] == [Retry(0.0)]


async def test_a_message_for_nobody_does_not_go_round_without_a_pause(autojump_clock: MockClock) -> None:
    class Counting(ModestDriver):
        claims = 0

        async def claim(self, *arguments: object) -> object:  # type: ignore[override]  # passed on
            self.claims += 1
            return await super().claim(*arguments)  # type: ignore[arg-type]

    driver = Counting()
    app, router = make_app(driver), Router()

    @router.actor
    async def another() -> None: ...

    app.include_router(router)
    async with app.magic():
        await Job("nobody").enqueue()
        await run(app, seconds=10)
    assert driver.claims < 50
    assert len(driver.ready) == 1


async def test_snoozing_works_without_delays(autojump_clock: MockClock) -> None:
    app, router, times = make_app(ModestDriver()), Router(), []

    @router.actor
    async def later(message: Message) -> None:
        times.append(trio.current_time())
        if len(times) == 1:
            await message.snooze(20)

    app.include_router(router)
    async with app.magic():
        await Job("later").enqueue()
        await run(app, seconds=30)
    assert times[1] - times[0] == pytest.approx(20, abs=0.1)


async def test_progress_is_passed_over_where_nobody_can_look(autojump_clock: MockClock) -> None:
    app, router, seen = make_app(ModestDriver()), Router(), []

    @router.actor
    async def work(message: Message) -> None:
        await message.progress(1, 2)
        await trio.sleep(1)
        seen.append("done")

    app.include_router(router)
    async with app.magic():
        await Job("work").enqueue()
        await run(app, messages_limit=1)
    assert seen == ["done"]


# What is refused


def _with_priority() -> Job:
    return Job("a", priority=PrioritiesT.HIGH)


JOBS: dict[str, tuple[Callable[[], Job], str]] = {
    "priority": (_with_priority, r"option 'priority', which Server\(ModestDriver\) does not support"),
    "delay": (lambda: Job("a", delay=5), r"option 'delay', which Server\(ModestDriver\) does not support"),
    "deferred_until": (
        lambda: Job("a", deferred_until=datetime.now(UTC) + timedelta(hours=1)),
        r"option 'delay', which Server\(ModestDriver\) does not support",
    ),
    "ttl": (lambda: Job("a", ttl=5), r"option 'ttl', which Server\(ModestDriver\) does not support"),
    "store_result": (
        lambda: Job("a", store_result=True),
        r"store_result=True, but Server\(ModestDriver\) keeps no results",
    ),
    "id_": (
        lambda: Job("a", id_="x"),
        r"job 'a' has id_='x', which makes it unique, but Server\(ModestDriver\) does not compare ids",
    ),
    "deferred_by": (
        lambda: Job("a", deferred_by=5),
        r"job 'a' is recurring, but Server\(ModestDriver\) keeps no schedules",
    ),
}


@pytest.mark.parametrize("option", JOBS)
async def test_a_job_that_asks_for_more_than_the_server_claims_is_refused(
    option: str, autojump_clock: MockClock
) -> None:
    driver = ModestDriver()
    make, text = JOBS[option]
    async with make_app(driver).magic():
        await Queue().declare()
        with pytest.raises(NotSupported, match=text):
            await make().enqueue()
    assert driver.ready == []


CALLS: dict[str, tuple[Callable[[], Awaitable[object]], str]] = {
    "pause": (lambda: Queue().pause(), "cannot pause queues"),
    "resume": (lambda: Queue().resume(), "cannot resume queues"),
    "counts": (lambda: Queue().counts(), "cannot count messages"),
    "size": (lambda: Queue().size(), "cannot count messages"),
    "get_messages": (lambda: Queue().get_messages(), "cannot show messages"),
    "flush": (lambda: Queue().flush(), "cannot flush queues"),
    "delete": (lambda: Queue().delete(), "cannot delete queues"),
    "requeue": (lambda: Queue().requeue(), "cannot revive dead messages"),
    "delete_messages": (lambda: Queue().delete_messages(), "cannot delete dead messages"),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_queue_says_what_its_server_cannot_do(call: str, autojump_clock: MockClock) -> None:
    make, text = CALLS[call]
    async with make_app(ModestDriver()).magic():
        with pytest.raises(
            NotSupported, match=rf"Server\(ModestDriver\) {text}.*use a server that has it, such as SQLiteServer"
        ):
            await make()


async def test_a_handle_says_what_its_server_cannot_do(autojump_clock: MockClock) -> None:
    app = make_app(ModestDriver())
    async with app.magic():
        await Queue().declare()
        handle = await Job("a").enqueue()
        with pytest.raises(NotSupported, match="cannot cancel messages"):
            await handle.cancel()
        with pytest.raises(NotSupported, match="cannot watch messages"):
            await handle.status()
        with pytest.raises(NotSupported, match=r"cannot fetch results.*or give it one as state="):
            await handle.result
        with pytest.raises(NotSupported, match="keeps no schedules"):
            await app.schedules.list()


async def test_an_actor_with_a_schedule_is_refused_when_the_worker_starts(autojump_clock: MockClock) -> None:
    app, router = make_app(ModestDriver()), Router()

    @router.actor(every=5)
    async def tick() -> None: ...

    app.include_router(router)
    async with app.magic():
        with pytest.raises(
            NotSupported, match=r"actor 'tick' has a schedule, but Server\(ModestDriver\) keeps no schedules"
        ):
            await run(app)


async def test_an_actor_that_stores_results_is_refused_when_the_worker_starts(autojump_clock: MockClock) -> None:
    app, router = make_app(ModestDriver()), Router()

    @router.actor(store_result=True)
    async def compute() -> int:
        return 1

    app.include_router(router)
    async with app.magic():
        with pytest.raises(
            NotSupported, match=r"actor 'compute' has store_result=True, but Server\(ModestDriver\) keeps no results"
        ):
            await run(app)


async def test_a_result_that_nobody_keeps_is_left_out_with_a_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    driver, store, router = ModestDriver(), InMemoryServer(), Router()

    @router.actor
    async def compute() -> int:
        return 1

    async with store.connection():
        sender = make_app(driver, store=store)
        async with sender.magic():
            await sender.servers.get_server().declare(["default"])
            for _ in range(2):
                await Job("compute", store_result=True, app=sender).enqueue()
    with caplog.at_level(logging.WARNING, "repid.worker"):
        worker = make_app(driver)
        worker.include_router(router)
        async with worker.magic():
            await run(worker, messages_limit=2)
    assert driver.dead == driver.ready == []
    assert [record.getMessage().partition(", but ")[2] for record in caplog.records] == [
        "Server(ModestDriver) keeps no results: it is left out, and so are all others"
    ]


async def test_ids_that_the_sender_chose_are_refused_where_ids_are_not_compared(autojump_clock: MockClock) -> None:
    driver = ModestDriver()
    app, router, refused = make_app(driver), Router(), []
    app.servers.register_server("other", InMemoryServer())

    @router.actor
    async def send(message: Message) -> None:
        for producer in (message, message.outbox):
            with pytest.raises(
                NotSupported, match=r"message_id was given, .* does not compare ids: leave message_id out"
            ):
                await producer.send_message(channel="replies", payload=b"", message_id="1")
            refused.append(producer)
        await message.send_message(channel="replies", payload=b"", message_id="1", server_name="other")
        await message.outbox.send_message(channel="replies", payload=b"")

    app.include_router(router)
    async with app.magic():
        with pytest.raises(NotSupported, match="message_id was given"):
            await app.send_message_json(channel="default", message_id="1", headers={"topic": "send"})
        await app.send_message_json(channel="default", headers={"topic": "send"})
        await run(app, messages_limit=1)
        counts = await app.server("other").counts("replies")
    assert len(refused) == 2
    assert counts.ready == 1
    assert [stored.envelope.queue for stored in driver.ready] == ["replies"]


# With the help of another server


async def test_results_and_schedules_may_be_kept_by_another_server(autojump_clock: MockClock) -> None:
    state = InMemoryServer()
    app, router, ticks = make_app(ModestDriver(), state=state), Router(), []

    @router.actor(store_result=True)
    async def compute(number: int) -> int:
        return 2 * number

    @router.actor(every=5)
    async def tick() -> None:
        ticks.append(trio.current_time())

    app.include_router(router)
    async with app.magic():
        await Queue().declare()
        handle = await Job("compute", args={"number": 4}).enqueue()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, app)
            nursery.start_soon(run, app)
            await trio.sleep(32)
            nursery.cancel_scope.cancel()
        result = await handle.result
        [schedule] = await app.schedules.list()
        counts = await state.counts_of(await state.queues())
    assert result is not None
    assert result.value == 8
    assert [later - sooner for sooner, later in pairwise(ticks)] == pytest.approx([5] * 5, abs=1.1)
    assert (schedule.fired, schedule.skipped) == (len(ticks), 0)
    assert counts == [], "the server that keeps the schedules gets none of their messages"


async def test_the_app_may_have_a_store_of_schedules_of_its_own_which_is_opened_with_it(
    autojump_clock: MockClock,
) -> None:
    store, driver = InMemoryServer(), ModestDriver()
    app = Repid(Connection(Server(driver)), schedule_store=store)
    router, ticks, others = Router(), [], []

    @router.actor(every=5)
    async def tick() -> None:
        ticks.append(trio.current_time())

    @router.actor
    async def other() -> None:
        others.append(trio.current_time())

    app.include_router(router)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, app)  # outside `magic()`: workers open the store too
        nursery.start_soon(run, app)
        await trio.sleep(1)
        async with app.magic():
            await Job("other", every=10).enqueue()
            await trio.sleep(31)
            [of_job, of_actor] = await app.schedules.list()
            await app.schedules.remove("default:tick")
        nursery.cancel_scope.cancel()
    assert [later - sooner for sooner, later in pairwise(ticks)] == pytest.approx([5] * 5, abs=1.1)
    assert (of_actor.fired, of_job.fired) == (len(ticks), len(others)) == (6, 3)
    assert not store.is_connected


async def test_a_store_of_schedules_serves_the_default_server_only(autojump_clock: MockClock) -> None:
    store, main, other = InMemoryServer(), InMemoryServer(), Server(ModestDriver())
    app, router, ticks = Repid(Connection(main), schedule_store=store), Router(), []
    app.servers.register_server("other", other)

    @router.actor(every=5)
    async def tick(message: Message) -> None:
        ticks.append(message.message_id)

    app.include_router(router)
    async with app.magic():
        with pytest.raises(NotSupported, match=r"actor 'tick' has a schedule, but .* keeps no schedules"):
            await app.run_worker(server_name="other")
        with pytest.raises(NotSupported, match=r"job 'a' is recurring, but .* keeps no schedules"):
            await Job("a", every=5, server_name="other").enqueue()
        job = Job("absent", every=10)
        await job.enqueue()
        await run(app, seconds=11)
        assert (await job.status()).state in {"ready", "scheduled"}
        assert await main.schedules() == []
        [_, kept] = await store.schedules()
    assert (kept.schedule.name, kept.fired) == ("default:tick", 2)
    assert len(set(ticks)) == 2


async def test_a_file_keeps_results_and_schedules_of_a_server_that_cannot(tmp_path: Path) -> None:
    driver, path = ModestDriver(), tmp_path / "state.db"
    app, router, seen = make_app(driver, state=SQLiteServer(path)), Router(), []

    @router.actor(store_result=True)
    async def compute() -> str:
        return "kept"

    @router.actor(every=0.05)
    async def tick() -> None:
        seen.append(1)
        if len(seen) == 3:
            worker.stop()

    app.include_router(router)
    async with app.magic():
        handle = await Job("compute").enqueue()
        async with trio.open_nursery() as nursery:
            worker = await nursery.start(app.run_worker)
    again = make_app(driver, state=SQLiteServer(path))
    async with again.magic():
        [stored] = await again.schedules.list()
        assert stored.fired >= 3
        [result] = await again.server().fetch_results([handle.id])
    assert result is not None
    assert result.payload == b'"kept"'


async def test_the_app_may_have_a_store_of_results_of_its_own(autojump_clock: MockClock) -> None:
    store = InMemoryServer()
    app, router = make_app(ModestDriver(), store=store), Router()

    @router.actor
    async def compute() -> int:
        return 7

    app.include_router(router)
    async with store.connection(), app.magic():
        await Queue().declare()
        handle = await Job("compute", store_result=True).enqueue()
        await run(app, messages_limit=1)
        result = await handle.result
    assert result is not None
    assert result.value == 7
