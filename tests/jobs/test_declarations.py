"""What starting a program changes about the schedules that are stored, and what it does not. A sentence each."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any, Unpack

import pytest
import trio
from msgspec.structs import replace

from repid import ActorOptions, ConfigurationError, Connection, InMemoryServer, Job, Queue, Repid, Router, Worker
from repid.envelope import Envelope
from repid.ports import CallRecord, Schedule, StoredSchedule
from repid.schedule import (
    DECLARE_EVERY,
    MISSED_AFTER,
    RIVAL_WAITS,
    declared,
    due_tick,
    fingerprint,
    make_schedule,
    pulled_back,
    resumed,
    schedule_name,
)

MODEL = Envelope("s", "q", b"")
HOUR = 3600.0


def rule(every: float = HOUR, payload: bytes = b"", **options: Any) -> Schedule:
    return make_schedule("s", "s", replace(MODEL, payload=payload), every=every, **options)


def stored(schedule: Schedule, now: float = 0.0) -> StoredSchedule:
    return declared(None, schedule, "actor", now)


async def run_for(seconds: float, *routers: Router, **options: Any) -> None:
    with trio.move_on_after(seconds):
        await Worker(routers=list(routers), **options).run()


def router_with(**options: Unpack[ActorOptions]) -> Router:
    router = Router()

    @router.actor(**options)
    async def sync() -> None: ...

    return router


async def look(app: Repid, name: str = "default:sync") -> StoredSchedule:
    return await app.schedules.get(name)


# Missed ticks


@pytest.mark.parametrize(
    "options", [{"every": 86400.0}, {"cron": "@daily"}, {"cron": "0 0 * * *", "timezone": "Asia/Kolkata"}]
)
def test_a_tick_is_missed_when_it_is_later_than_the_grace(options: dict[str, Any]) -> None:
    schedule = make_schedule("s", "s", MODEL, missed="none", **options)
    first = stored(schedule)
    for late, fires in ((0, True), (MISSED_AFTER, True), (MISSED_AFTER + 0.1, False), (80000, False), (9e6, False)):
        due = due_tick(first, first.next_at + late)
        assert due is not None
        assert due.fires == fires
        one = due_tick(replace(first, schedule=replace(schedule, missed="one")), first.next_at + late)
        assert one == replace(due, fires=True)


@pytest.mark.parametrize(("missed", "runs"), [("one", 1), ("none", 0)])
async def test_after_a_long_time_without_a_worker_one_tick_catches_up_or_none(
    app: Repid, missed: Any, runs: int
) -> None:
    ran: list[float] = []
    router = Router()

    @router.actor(every=86400, missed=missed)
    async def daily() -> None:
        ran.append(trio.current_time())

    await run_for(1, router)
    await trio.sleep(2 * 86400 - 120)
    await run_for(60, router)
    assert len(ran) == runs
    left = (await look(app, "default:daily")).next_at - await app.server().now()
    assert left == pytest.approx(60, abs=5)
    await run_for(90, router)
    assert len(ran) == runs + 1


@pytest.mark.parametrize(("missed", "runs"), [("one", 1), ("none", 0)])
@pytest.mark.parametrize("paused", [20, 22 * 3600, 90 * 86400])
async def test_after_a_pause_one_tick_catches_up_or_none_however_long_it_was(
    app: Repid, missed: Any, runs: int, paused: float
) -> None:
    ran: list[float] = []
    router = Router()

    @router.actor(every=86400, missed=missed)
    async def daily() -> None:
        ran.append(trio.current_time())

    await run_for(1, router)
    await trio.sleep(86400 - 10)
    await app.schedules.pause("default:daily")
    await trio.sleep(paused)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, 5, router)
        await trio.sleep(1)
        await app.schedules.resume("default:daily")
    assert len(ran) == runs
    assert (await look(app, "default:daily")).skipped == 1 - runs


async def test_resuming_what_is_not_paused_changes_nothing(app: Repid) -> None:
    await run_for(1, router_with(every=60))
    before = await look(app)
    await app.schedules.resume("default:sync")
    assert await look(app) == before
    assert resumed(replace(before, paused=True), before.next_at - 1) == before


# Clocks that are set back


def test_an_interval_is_pulled_back_when_the_clock_was_set_back_and_a_cron_expression_waits() -> None:
    interval = stored(rule(60), now=10000.0)
    assert pulled_back(interval, 10000.0) is None
    earlier = pulled_back(interval, 9000.0)
    assert earlier == replace(interval, next_at=9060.0)
    assert pulled_back(replace(interval, paused=True), 9000.0) is None
    cron = stored(make_schedule("s", "s", MODEL, cron="* * * * *"), now=10000.0)
    assert pulled_back(cron, 0.0) is None


# Starting again


async def test_a_recurring_job_that_is_enqueued_at_each_start_keeps_its_ticks(app: Repid) -> None:
    ran: list[float] = []
    router = Router()

    @router.actor
    async def report() -> None:
        ran.append(trio.current_time())

    began = trio.current_time()
    for _ in range(6):
        await Job("report", deferred_by=10).enqueue()
        await run_for(7, router)
    assert [round(each - began) for each in ran] == [10, 20, 30, 40]


async def test_a_tick_that_is_due_is_not_lost_when_the_job_is_enqueued_again(app: Repid) -> None:
    ran: list[float] = []
    router = Router()

    @router.actor
    async def report() -> None:
        ran.append(trio.current_time())

    for every in (10, 10, timedelta(seconds=20)):
        await Job("report", deferred_by=every).enqueue()
        await trio.sleep(12)
    await run_for(2, router)
    assert len(ran) == 1
    assert (await look(app, "default:report")).schedule.every == 20.0


@pytest.mark.parametrize("by", ["actor", "job", "id"])
async def test_what_an_operator_changed_lasts_until_something_else_is_declared(app: Repid, by: str) -> None:
    name = "unique" if by == "id" else "default:sync"
    router = Router()

    @router.actor
    async def sync() -> None: ...

    async def start(every: float) -> StoredSchedule:
        if by == "actor":
            await run_for(0.2, router_with(every=every))
        else:
            await Job("sync", id_="unique" if by == "id" else None, deferred_by=every).enqueue()
            await run_for(0.2, router)
        return await look(app, name)

    await start(60)
    await app.schedules.change(name, every=3600)
    changed = await look(app, name)
    assert await start(60) == changed
    await app.schedules.pause(name)
    assert (await start(60)).paused
    assert (await start(60)).schedule.every == 3600
    assert (await start(30)).schedule.every == 30


async def test_a_job_that_says_again_what_it_said_before_is_heard_at_once(app: Repid) -> None:
    for every in (60, 30, 60):
        await Job("x", id_="unique", deferred_by=every).enqueue()
        assert (await look(app, "unique")).schedule.every == every


async def test_a_worker_that_runs_does_not_bring_back_a_schedule_that_was_removed(app: Repid) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, 4 * DECLARE_EVERY, router_with(every=3600))
        await trio.sleep(1)
        await app.schedules.remove("default:sync")
    assert await app.schedules.list() == []
    await run_for(1, router_with(every=3600))
    assert len(await app.schedules.list()) == 1


async def test_a_new_cron_expression_keeps_the_time_zone_and_a_new_time_zone_the_expression(app: Repid) -> None:
    await run_for(0.2, router_with(cron="0 9 * * *", timezone="Europe/Berlin"))
    await app.schedules.change("default:sync", cron="0 10 * * *")
    assert (await look(app)).schedule.timezone == "Europe/Berlin"
    await app.schedules.change("default:sync", timezone="Asia/Tokyo")
    assert ((await look(app)).schedule.cron, (await look(app)).schedule.timezone) == ("0 10 * * *", "Asia/Tokyo")
    await app.schedules.change("default:sync", every=5)
    assert (await look(app)).schedule.cron is None
    with pytest.raises(ConfigurationError, match="neither"):
        await app.schedules.change("default:sync")
    with pytest.raises(ConfigurationError, match="schedule 'default:sync' has an invalid cron expression 'x'"):
        await app.schedules.change("default:sync", cron="x")


# Several versions of a program at once


def test_a_declaration_that_was_replaced_comes_back_only_after_the_other_one_was_silent() -> None:
    old, new = rule(60), rule(30)
    now = 1000.0
    first = stored(old, now)
    second = declared(first, new, "actor", now)
    assert second.schedule == new
    assert declared(second, new, "actor", now) is second
    third = declared(second, old, "actor", now + 1)  # a worker of the old version starts again
    assert third.schedule == new
    assert declared(third, old, "actor", now + 1 + RIVAL_WAITS - 1) is third
    answered = declared(third, new, "actor", now + 1 + DECLARE_EVERY)
    assert answered == second
    again = declared(answered, old, "actor", now + 2 + RIVAL_WAITS)
    assert again.schedule == new
    back = declared(again, old, "actor", now + 2 + 2 * RIVAL_WAITS)
    assert back.schedule == old
    assert declared(back, new, "actor", now + 3 + 2 * RIVAL_WAITS).schedule == old  # now that one is the former one


def test_a_rival_waits_anew_when_the_clock_was_set_back() -> None:
    old, new = rule(60), rule(30)
    rival = declared(declared(stored(old, 1000.0), new, "actor", 1000.0), old, "actor", 1000.0)
    later = declared(rival, old, "actor", 500.0)
    assert declared(later, old, "actor", 500.0 + RIVAL_WAITS).schedule == old


def test_what_is_kept_of_former_declarations_is_bounded() -> None:
    latest = stored(rule(1))
    for every in range(2, 100):
        latest = declared(latest, rule(every), "actor", 0.0)
    assert latest.declaration is not None
    assert len(latest.declaration.superseded) == 8


async def test_workers_of_two_versions_that_start_in_turn_do_not_take_turns_with_the_rule(app: Repid) -> None:
    rules: list[float | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, 50, router_with(every=600))
        await trio.sleep(5)
        nursery.start_soon(run_for, 500, router_with(every=900))
        await trio.sleep(1)
        started = await look(app)
        for _ in range(40):
            await run_for(10, router_with(every=600))
            rules.append((await look(app)).schedule.every)
        nursery.cancel_scope.cancel()
    assert rules == [900.0] * 40
    assert (await look(app)).next_at == started.next_at


async def test_after_a_roll_back_the_former_declaration_holds_again(app: Repid) -> None:
    await run_for(30, router_with(every=600))
    await run_for(30, router_with(every=900))
    await run_for(RIVAL_WAITS + 2 * DECLARE_EVERY, router_with(every=600))
    assert (await look(app)).schedule.every == 600


# Names


def test_no_two_pairs_of_queue_and_actor_have_one_name() -> None:
    parts = ["a", "b", "a:b", "b:c", "c", "a%3Ab", "%", ":", "a:", ":b"]
    names = {schedule_name(queue, actor) for queue in parts for actor in parts}
    assert len(names) == len(parts) ** 2
    assert schedule_name("q", "sync") == "q:sync"


async def test_actors_whose_names_and_queues_have_colons_have_schedules_of_their_own(app: Repid) -> None:
    first, second = Router(), Router()

    async def tick() -> None: ...

    first.actor(name="c", queue="a:b", every=60)(tick)
    second.actor(name="b:c", queue="a", every=70)(tick)
    await run_for(0.2, first, second)
    found = {s.schedule.envelope.queue: s.schedule.every for s in await app.schedules.list()}
    assert found == {"a:b": 60, "a": 70}


async def test_recurring_jobs_of_one_name_on_two_queues_are_two(app: Repid) -> None:
    for queue in ("eu", "us"):
        await Queue(queue).declare()
        await Job("remind", queue, args={"where": queue}, deferred_by=60).enqueue()
    assert [s.schedule.name for s in await app.schedules.list()] == ["eu:remind", "us:remind"]


async def test_a_recurring_job_without_an_id_does_not_replace_one_with_other_arguments(app: Repid) -> None:
    await Job("remind", args={"user": 1}, deferred_by=60).enqueue()
    before = await app.schedules.list()
    with pytest.raises(ConfigurationError, match=r"give each of these jobs an id_ .*remove\('default:remind'\)"):
        await Job("remind", args={"user": 2}, deferred_by=60).enqueue()
    assert await app.schedules.list() == before
    for user in (1, 2):
        await Job("remind", id_=f"remind-{user}", args={"user": user}, deferred_by=60).enqueue()
    await Job("remind", id_="remind-2", args={"user": 3}, deferred_by=60).enqueue()  # said by its id
    found = {s.schedule.name: s.schedule.envelope.payload for s in await app.schedules.list()}
    assert found == {"default:remind": b'{"user":1}', "remind-1": b'{"user":1}', "remind-2": b'{"user":3}'}


async def test_of_jobs_that_are_enqueued_at_once_with_other_arguments_one_is_taken(app: Repid) -> None:
    refused: list[int] = []

    async def enqueue(user: int) -> None:
        try:
            await Job("remind", args={"user": user}, deferred_by=60).enqueue()
        except ConfigurationError:
            refused.append(user)

    async with trio.open_nursery() as nursery:
        for user in range(10):
            nursery.start_soon(enqueue, user)
    assert len(refused) == 9


async def test_an_actor_and_jobs_never_take_each_others_schedule(app: Repid, caplog: pytest.LogCaptureFixture) -> None:
    await run_for(0.2, router_with(every=60))
    before = await app.schedules.list()
    with pytest.raises(ConfigurationError, match="'default:sync' is taken by an actor's own schedule"):
        await Job("sync", deferred_by=30).enqueue()
    with pytest.raises(ConfigurationError, match="is taken by an actor's own schedule"):
        await Job("other", id_="default:sync", deferred_by=30).enqueue()
    assert await app.schedules.list() == before
    await app.schedules.remove("default:sync")
    await Job("sync", deferred_by=30).enqueue()
    with caplog.at_level(logging.ERROR, "repid.worker"):
        await run_for(0.2, router_with(every=60))
    assert (await look(app)).schedule.every == 30
    assert "schedule of actor 'sync' is not stored" in caplog.text


# What is reported, and what is refused


async def test_a_worker_names_the_schedules_of_its_queues_whose_actor_it_does_not_have(
    app: Repid, caplog: pytest.LogCaptureFixture
) -> None:
    await run_for(0.2, router_with(every=60))
    await Queue("elsewhere").declare()
    await Job("unknown", "elsewhere", deferred_by=60).enqueue()
    await Job("unknown", id_="paused", deferred_by=60).enqueue()
    await app.schedules.pause("paused")
    router = Router()

    @router.actor(every=60)
    async def newer() -> None: ...

    with caplog.at_level(logging.WARNING, "repid.worker"):
        await run_for(0.2, router)
    [warning] = [record.getMessage() for record in caplog.records]
    assert "schedule 'default:sync'" in warning
    assert "app.schedules.remove('default:sync')" in warning


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"deferred_by": 60, "timezone": "Europe/Berlin"}, "an interval and a timezone"),
        ({"timezone": "Europe/Berlin"}, "neither an interval nor a cron expression"),
        ({"overlap": "allow"}, "neither an interval nor a cron expression"),
        ({"missed": "none"}, "neither an interval nor a cron expression"),
        ({"deferred_by": 60, "overlap": "skipp"}, "did you mean 'skip'"),
        ({"deferred_by": 60, "missed": "all"}, "missed of job 'x' must be one of"),
        ({"deferred_by": float("inf")}, "at most a hundred years"),
        ({"deferred_by": 1e-9}, "at least 0.001 seconds"),
        ({"cron": "@reboot"}, "job 'x' has an invalid cron expression '@reboot'"),
        ({"cron": "* * * * *", "timezone": "Mars"}, "job 'x' has an unknown time zone 'Mars'"),
        ({"cron": b"* * * * *"}, "cron of job 'x' must be text"),
    ],
)
def test_a_recurring_job_that_makes_no_sense_is_refused_where_it_is_made(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Job("x", **options)


async def test_a_job_hands_overlap_missed_and_timezone_on(app: Repid) -> None:
    await Job("x", id_="a", cron="0 9 * * *", timezone="Asia/Tokyo", overlap="allow", missed="none").enqueue()
    await Job("x", id_="b", cron="0 9 * * *").enqueue()
    await Job("x", id_="c", deferred_by=5, timezone=None, overlap=None, missed=None).enqueue()
    found = [(s.schedule.timezone, s.schedule.overlap, s.schedule.missed) for s in await app.schedules.list()]
    assert found == [("Asia/Tokyo", "allow", "none"), ("UTC", "skip", "one"), ("UTC", "skip", "one")]


def test_whatever_is_declared_is_in_the_fingerprint() -> None:
    same = {fingerprint(rule()), fingerprint(replace(rule(), name="other")), fingerprint(rule(every=3600))}
    assert len(same) == 1
    model = replace(MODEL, headers={"b": "1", "a": "2"})
    assert fingerprint(replace(rule(), envelope=model)) == fingerprint(
        replace(rule(), envelope=replace(MODEL, headers={"a": "2", "b": "1"}))
    )
    others = [
        rule(60),
        rule(payload=b"x"),
        rule(overlap="allow"),
        rule(missed="none"),
        make_schedule("s", "s", MODEL, cron="0 0 * * *"),
        make_schedule("s", "s", MODEL, cron="0 0 * * *", timezone="Asia/Tokyo"),
        replace(rule(), envelope=model),
        replace(rule(), envelope=replace(MODEL, queue="r")),
    ]
    assert len(same | {fingerprint(each) for each in others}) == len(others) + 1


async def test_a_schedule_that_was_put_without_a_declaration_is_adopted_as_it_is() -> None:
    server = InMemoryServer()
    app = Repid(Connection(server))
    async with app.magic():
        router = router_with(every=60)
        await run_for(0.1, router)
        [old] = await server.schedules()
        assert await server.replace_schedule(old, replace(old, declaration=None, next_at=old.next_at - 7))
        await run_for(0.1, router)
        [adopted] = await server.schedules()
    assert adopted.next_at == old.next_at - 7


async def test_a_worker_stores_all_its_new_schedules_in_one_call() -> None:
    calls: list[CallRecord] = []
    router, server = Router(), InMemoryServer(instruments=[calls.append])

    async def sync() -> None: ...

    for number in range(1, 51):
        router.actor(name=f"sync{number}", every=HOUR)(sync)
    app = Repid(Connection(server))
    app.include_router(router)
    async with app.magic():
        await app.run_worker(burst=True)
        await app.run_worker(burst=True)
    assert [call.count for call in calls if call.name == "replace_schedules"] == [50]
