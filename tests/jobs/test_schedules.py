from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from repid import ConfigurationError, Job, QueueNotDeclared, Repid, Router, Worker
from repid.envelope import Envelope
from repid.ports import StoredSchedule
from repid.schedule import due_tick, first_tick, make_schedule, tick_envelope

MODEL = Envelope("s", "default", b"")


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def stored(next_at: float, **rule: Any) -> StoredSchedule:
    return StoredSchedule(schedule=make_schedule("schedule 's'", "s", MODEL, **rule), next_at=next_at)


async def run_for(seconds: float, worker: Worker) -> None:
    with trio.move_on_after(seconds):
        await worker.run()


def test_an_interval_is_reckoned_from_tick_to_tick_and_does_not_drift() -> None:
    due = due_tick(stored(100.0, every=10.0), 100.7)
    assert due is not None
    assert (due.next_at, due.fires) == (110.0, True)


def test_one_tick_catches_up_for_all_that_were_missed() -> None:
    due = due_tick(stored(100.0, every=10.0), 155.0)
    assert due is not None
    assert (due.next_at, due.fires) == (160.0, True)


def test_missed_ticks_are_passed_over_where_that_was_asked_for() -> None:
    due = due_tick(stored(100.0, every=10.0, missed="none"), 155.0)
    assert due is not None
    assert (due.next_at, due.fires) == (160.0, False)
    on_time = due_tick(stored(100.0, every=10.0, missed="none"), 105.0)
    assert on_time is not None
    assert on_time.fires


def test_a_clock_that_steps_back_makes_nothing_due() -> None:
    assert due_tick(stored(100.0, every=10.0), 40.0) is None


def test_cron_keeps_the_wall_clock_over_daylight_saving() -> None:
    schedule = make_schedule("s", "s", MODEL, cron="0 9 * * *", timezone="Europe/Berlin")
    before = first_tick(schedule, at("2026-03-28T12:00:00+01:00"))
    assert before == at("2026-03-29T09:00:00+02:00")
    assert first_tick(schedule, at("2026-10-24T12:00:00+02:00")) == at("2026-10-25T09:00:00+01:00")


@given(
    every=st.floats(0.5, 1e6),
    next_at=st.floats(0, 2e9),
    late=st.floats(0, 1e8),
)
def test_the_next_tick_is_always_in_the_future(every: float, next_at: float, late: float) -> None:
    due = due_tick(stored(next_at, every=every), next_at + late)
    assert due is not None
    assert next_at + late < due.next_at <= next_at + late + every * (1 + 1e-6) + 1e-6


def test_each_tick_has_an_id_of_its_own() -> None:
    assert tick_envelope(stored(0.0, every=1.0)).id == "s@1970-01-01T00:00:00.000+00:00"


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({}, "neither"),
        ({"every": 1.0, "cron": "* * * * *"}, "both"),
        ({"cron": "every day"}, "invalid cron expression 'every day'"),
        ({"cron": "0 0 30 2 *"}, "invalid cron expression"),
        ({"cron": "* * * * *", "timezone": "Mars/Olympus"}, "Mars/Olympus"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        make_schedule("job 'x'", "x", MODEL, **rule)


async def test_an_actor_may_have_an_interval(app: Repid) -> None:
    runs: list[float] = []
    worker = Worker()

    @worker.actor(every=timedelta(seconds=10))
    async def beat() -> None:
        runs.append(trio.current_time())

    began = trio.current_time()
    await run_for(35, worker)
    assert [round(run - began) for run in runs] == [10, 20, 30]


async def test_an_actor_may_have_a_cron_expression(app: Repid) -> None:
    runs: list[int] = []
    worker = Worker()

    @worker.actor(cron="*/5 * * * *")
    async def tidy() -> None:
        runs.append(1)

    await run_for(1201, worker)
    assert len(runs) == 4


async def test_any_number_of_workers_yields_one_message_per_tick(app: Repid) -> None:
    runs: list[float] = []

    def worker() -> Worker:
        worker = Worker()

        @worker.actor(every=10)
        async def beat() -> None:
            runs.append(trio.current_time())

        return worker

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(run_for, 55, worker())
    assert len(runs) == 5


async def test_a_tick_is_skipped_while_the_former_one_is_running(app: Repid) -> None:
    runs: list[float] = []
    worker = Worker()

    @worker.actor(every=10)
    async def slow() -> None:
        runs.append(trio.current_time())
        await trio.sleep(25)

    await run_for(75, worker)
    assert len(runs) == 3
    schedule = await app.schedules.get("default:slow")
    assert (schedule.fired, schedule.skipped) == (3, 4)


async def test_ticks_may_overlap_where_that_was_asked_for(app: Repid) -> None:
    runs: list[float] = []
    worker = Worker()

    @worker.actor(every=10, overlap="allow")
    async def slow() -> None:
        runs.append(trio.current_time())
        await trio.sleep(25)

    await run_for(45, worker)
    assert len(runs) == 4


@pytest.mark.parametrize(("options", "expected"), [({}, 2), ({"overlap": "skip"}, 2), ({"overlap": "allow"}, 4)])
async def test_a_recurring_job_overlaps_only_where_that_was_asked_for(
    app: Repid, options: dict[str, Any], expected: int
) -> None:
    runs: list[float] = []
    worker = Worker()

    @worker.actor
    async def slow() -> None:
        runs.append(trio.current_time())
        await trio.sleep(25)

    await Job("slow", deferred_by=10, **options).enqueue()
    await run_for(45, worker)
    assert len(runs) == expected


async def test_what_a_recurring_job_is_declared_with_is_its_schedules_rule(app: Repid) -> None:
    await Job("plain", cron="0 3 * * *").enqueue()
    await Job("special", cron="0 3 * * *", timezone="Asia/Tokyo", overlap="allow", missed="none").enqueue()
    rules = [
        (rule.cron, rule.timezone, rule.overlap, rule.missed)
        for name in ("default:plain", "default:special")
        for rule in [(await app.schedules.get(name)).schedule]
    ]
    assert rules == [("0 3 * * *", "UTC", "skip", "one"), ("0 3 * * *", "Asia/Tokyo", "allow", "none")]


async def test_a_recurring_job_is_stored_and_ticks(app: Repid) -> None:
    seen: list[int] = []
    worker = Worker()

    @worker.actor
    async def count(x: int) -> int:
        seen.append(x)
        return x

    job = Job("count", args={"x": 7}, deferred_by=timedelta(minutes=1), store_result=True)
    await job.enqueue()
    await run_for(150, worker)
    assert seen == [7, 7]
    result = await job.result
    assert result is not None
    assert result.value == 7
    assert [s.schedule.name for s in await app.schedules.list()] == ["default:count"]


async def test_schedules_are_paused_changed_and_removed_at_run_time(app: Repid) -> None:
    runs: list[float] = []
    worker = Worker()

    @worker.actor
    async def beat() -> None:
        runs.append(trio.current_time())

    await Job("beat", deferred_by=10).enqueue()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await trio.sleep(15)
        await app.schedules.pause("default:beat")
        await trio.sleep(50)
        assert len(runs) == 1
        await app.schedules.resume("default:beat")
        await trio.sleep(2)
        assert len(runs) == 2  # one catches up
        await app.schedules.change("default:beat", every=1)
        await trio.sleep(5.5)
        assert len(runs) == 7
        await app.schedules.remove("default:beat")
        await trio.sleep(50)
        assert len(runs) == 7
        worker.stop()
    with pytest.raises(ConfigurationError, match="no schedule named 'default:beat'"):
        await app.schedules.get("default:beat")


async def test_a_schedule_named_without_its_queue_is_told_by_its_whole_name(app: Repid) -> None:
    await Job("beat", every=10).enqueue()
    with pytest.raises(ConfigurationError, match=r"no schedule named 'beat' \(did you mean 'default:beat'\?\)"):
        await app.schedules.pause("beat")


async def test_restarting_workers_neither_repeats_nor_delays_ticks(app: Repid) -> None:
    runs: list[float] = []
    worker = Worker()

    @worker.actor(every=10)
    async def beat() -> None:
        runs.append(trio.current_time())

    began = trio.current_time()
    for _ in range(15):
        await run_for(3, worker)
    assert [round(run - began) for run in runs] == [10, 20, 30, 40]


async def test_a_job_may_be_delayed_or_deferred_to_a_moment(app: Repid) -> None:
    runs: list[tuple[str, float]] = []
    worker = Worker(messages_limit=2)

    @worker.actor
    async def note(name: str) -> None:
        runs.append((name, trio.current_time()))

    began = trio.current_time()
    until = datetime.fromtimestamp(await app.server().now(), UTC) + timedelta(seconds=30)
    await Job("note", args={"name": "until"}, deferred_until=until).enqueue()
    await Job("note", args={"name": "delay"}, delay=20).enqueue()
    await worker.run()
    assert [(name, round(when - began)) for name, when in runs] == [("delay", 20), ("until", 30)]


async def test_contradictory_times_are_refused(app: Repid) -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    with pytest.raises(ConfigurationError, match="both"):
        Job("x", deferred_by=1, cron="* * * * *")
    with pytest.raises(ConfigurationError, match="recurring and delayed"):
        Job("x", deferred_by=1, deferred_until=moment)
    with pytest.raises(ConfigurationError, match="both delay and deferred_until"):
        Job("x", delay=1, deferred_until=moment)
    with pytest.raises(ConfigurationError, match="time zone"):
        Job("x", deferred_until=datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(ConfigurationError, match="did you mean 'deferred_by'"):
        Job("x", defered_by=1)  # type: ignore[call-arg]
    with pytest.raises(QueueNotDeclared, match="nowhere"):
        await Job("x", "nowhere", deferred_by=1).enqueue()


async def test_a_router_cannot_have_a_schedule() -> None:
    with pytest.raises(ConfigurationError, match="no option 'every'"):
        Router(every=1)  # type: ignore[call-arg]
