"""Schedules whose actor is in no worker any more: who ends them, who does not, and how they come back. A sentence each."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Unpack

import pytest
import trio
from aids import UnreliableServer
from msgspec.structs import replace

from repid import ActorOptions, ConfigurationError, Job, Queue, Repid, Router, Worker
from repid.envelope import Envelope
from repid.ports import Schedule, StoredSchedule
from repid.runtime.orphans import ENDS_AFTER, LOOK_EVERY
from repid.schedule import (
    DECLARE_EVERY,
    RENEW_EVERY,
    RIVAL_WAITS,
    check_same_arguments,
    declared,
    ended,
    make_schedule,
    may_end,
    paused,
    resumed,
)

NAME = "default:report"
LONG = (ENDS_AFTER + 2) * LOOK_EVERY
"""Seconds after which a worker has ended what no worker declares."""


def with_report(ran: list[float] | None = None, **options: Unpack[ActorOptions]) -> Router:
    router = Router()
    options.setdefault("every", 600)

    @router.actor(**options)
    async def report() -> None:
        if ran is not None:
            ran.append(trio.current_time())

    return router


def without_report() -> Router:
    router = Router()

    @router.actor
    async def other() -> None: ...

    return router


@asynccontextmanager
async def working(*routers: Router) -> AsyncGenerator[None]:
    """One worker for each of these, for a block."""
    async with trio.open_nursery() as nursery:
        for router in routers:
            await nursery.start(Worker(routers=[router]).run)
        yield
        nursery.cancel_scope.cancel()


async def work(seconds: float, *routers: Router) -> None:
    async with working(*routers):
        await trio.sleep(seconds)


async def look(app: Repid, name: str = NAME) -> StoredSchedule:
    return await app.schedules.get(name)


# The end


async def test_a_schedule_that_no_worker_declares_any_more_ends_and_is_named(
    app: Repid, caplog: pytest.LogCaptureFixture
) -> None:
    await work(1, with_report())
    with caplog.at_level(logging.WARNING, "repid.worker"):
        async with working(without_report(), without_report()):
            await trio.sleep(LONG)
            fired = (await look(app)).fired
            await trio.sleep(LONG)
    found = await look(app)
    assert found.ended_at is not None
    assert found.fired == fired
    [at_the_end] = [text for record in caplog.records if "has ended" in (text := record.getMessage())]
    assert f"schedule '{NAME}' of actor 'report' on queue 'default' has ended" in at_the_end
    assert f"app.schedules.resume('{NAME}')" in at_the_end
    at_the_start = caplog.records[0].getMessage()
    assert "no such actor: if no other worker has it, it ends in a while" in at_the_start


async def test_a_schedule_ends_when_its_actor_stays_without_it(app: Repid, caplog: pytest.LogCaptureFixture) -> None:
    await work(1, with_report())
    router = Router()

    @router.actor
    async def report() -> None: ...

    with caplog.at_level(logging.WARNING, "repid.worker"):
        await work(LONG, router)
    assert (await look(app)).ended_at is not None
    assert "has that actor without the schedule" in caplog.records[0].getMessage()


@pytest.mark.parametrize("old", [with_report(), with_report(every=700)], ids=["the same rule", "another rule"])
async def test_a_schedule_goes_on_while_one_worker_with_its_actor_lives(app: Repid, old: Router) -> None:
    await work(1, with_report())
    async with working(old, without_report()):
        for _ in range(8):
            await trio.sleep(LOOK_EVERY)
            assert (await look(app)).ended_at is None
    assert (await look(app)).fired >= 8 * LOOK_EVERY // 700 - 1


async def test_a_schedule_goes_on_while_workers_with_its_actor_come_and_go(app: Repid) -> None:
    async with working(without_report()):
        for _ in range(8):
            await work(DECLARE_EVERY / 2, with_report())
            await trio.sleep(LOOK_EVERY)
    assert (await look(app)).ended_at is None


async def test_a_time_without_workers_ends_nothing(app: Repid) -> None:
    await work(1, with_report())
    for _ in range(4):
        await trio.sleep(LONG)
        await work(ENDS_AFTER * LOOK_EVERY, without_report())
    assert (await look(app)).ended_at is None


async def test_a_worker_that_does_not_read_the_queue_ends_nothing_there(app: Repid) -> None:
    await work(1, with_report(queue="reports"))
    await work(LONG, without_report())
    assert (await look(app, "reports:report")).ended_at is None


async def test_what_a_program_enqueued_by_hand_never_ends(app: Repid) -> None:
    await Job("report", deferred_by=600).enqueue()
    await Job("report", id_="unique", cron="@daily").enqueue()
    await work(LONG, without_report())
    assert [stored.ended_at for stored in await app.schedules.list()] == [None, None]
    assert not any(may_end(stored) for stored in await app.schedules.list())


async def test_what_an_operator_has_paused_does_not_end(app: Repid) -> None:
    await work(1, with_report())
    await app.schedules.pause(NAME)
    await work(LONG, without_report())
    assert (await look(app)).ended_at is None


async def test_what_an_older_repid_declared_does_not_end(app: Repid, server: UnreliableServer) -> None:
    await work(1, with_report())
    [stored] = await server.schedules()
    assert stored.declaration is not None
    older = replace(stored, declaration=replace(stored.declaration, declared_at=None))
    assert await server.replace_schedule(stored, older)
    await work(LONG, without_report())
    assert (await look(app)).ended_at is None


async def test_a_store_that_was_away_proves_nothing(app: Repid, server: UnreliableServer) -> None:
    await work(1, with_report())
    async with working(without_report()):
        await trio.sleep(10)
        for _ in range(3):
            await trio.sleep(ENDS_AFTER * LOOK_EVERY)
            server.failures["schedules"] = 1
            await trio.sleep(LOOK_EVERY)
    assert (await look(app)).ended_at is None


async def test_a_schedule_that_is_resumed_gets_its_time_anew(app: Repid) -> None:
    await work(1, with_report())
    async with working(without_report()):
        await trio.sleep((ENDS_AFTER + 1) * LOOK_EVERY + 1)
        assert (await look(app)).ended_at is not None
        await app.schedules.resume(NAME)
        await trio.sleep(ENDS_AFTER * LOOK_EVERY)
        found = await look(app)
        assert (found.paused, found.ended_at) == (False, None)
        await trio.sleep(LONG)
    assert (await look(app)).ended_at is not None


# The way back


async def test_a_worker_that_starts_brings_back_what_has_ended_as_it_was(
    app: Repid, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[float] = []
    await work(1, with_report())
    await app.schedules.change(NAME, every=5000)
    await work(LONG, without_report())
    with caplog.at_level(logging.INFO, "repid.worker"):
        await work(1, with_report(ran))
    found = await look(app)
    assert (found.ended_at, found.paused, found.schedule.every) == (None, False, 5000)
    assert f"schedule '{NAME}' had ended and ticks again" in caplog.text


async def test_a_worker_that_runs_takes_back_an_end_that_was_wrong(app: Repid, server: UnreliableServer) -> None:
    async with working(with_report()):
        [stored] = await server.schedules()
        assert await server.replace_schedule(stored, ended(stored, await server.now()))
        await trio.sleep(DECLARE_EVERY + 1)
        assert (await look(app)).ended_at is None


@pytest.mark.parametrize(("missed", "runs"), [("one", 1), ("none", 0)])
async def test_what_comes_back_catches_up_as_after_a_pause(app: Repid, missed: Any, runs: int) -> None:
    ran: list[float] = []
    await work(1, with_report(ran, every=3600, missed=missed))
    await work(LONG, without_report())
    await trio.sleep(7200)
    await work(5, with_report(ran, every=3600, missed=missed))
    assert len(ran) == runs


async def test_pausing_what_has_ended_is_a_pause_that_holds(app: Repid) -> None:
    await work(1, with_report())
    await work(LONG, without_report())
    await app.schedules.pause(NAME)
    await work(2 * DECLARE_EVERY, with_report())
    found = await look(app)
    assert (found.paused, found.ended_at) == (True, None)


async def test_the_name_of_what_has_ended_is_free_for_a_job(app: Repid) -> None:
    await work(1, with_report())
    with pytest.raises(ConfigurationError, match="is taken by an actor's own schedule"):
        await Job("report", deferred_by=30).enqueue()
    await work(LONG, without_report())
    await Queue().declare()
    await Job("report", args={"other": 1}, deferred_by=30).enqueue()
    found = await look(app)
    assert (found.ended_at, found.paused, found.schedule.every) == (None, False, 30)


# The rules alone

MODEL = Envelope("s", "q", b"")


def rule(every: float = 3600.0, payload: bytes = b"") -> Schedule:
    return make_schedule("s", "s", replace(MODEL, payload=payload), every=every)


def declared_at(stored: StoredSchedule) -> float | None:
    assert stored.declaration is not None
    return stored.declaration.declared_at


def test_that_a_schedule_is_declared_is_noted_now_and_then() -> None:
    first = declared(None, rule(), "actor", 1000.0)
    assert declared_at(first) == 1000.0
    assert declared(first, rule(), "actor", 1000.0 + RENEW_EVERY - 1) is first
    assert declared_at(declared(first, rule(), "actor", 1000.0 + RENEW_EVERY)) == 1000.0 + RENEW_EVERY
    assert declared_at(declared(first, rule(), "actor", 500.0)) == 500.0  # the clock was set back
    assert declared_at(declared(None, rule(), "job", 1000.0)) is None


def test_a_rival_notes_it_too() -> None:
    second = declared(declared(None, rule(60), "actor", 1000.0), rule(30), "actor", 1000.0)
    assert declared_at(second) == 1000.0
    rival = declared(second, rule(60), "actor", 1000.0 + RENEW_EVERY)
    assert rival.schedule.every == 30
    assert declared_at(rival) == 1000.0 + RENEW_EVERY


def test_a_former_declaration_takes_over_at_once_what_has_ended() -> None:
    second = declared(declared(None, rule(60), "actor", 1000.0), rule(30), "actor", 1000.0)
    back = declared(ended(second, 1010.0), rule(60), "actor", 1000.0 + RIVAL_WAITS / 2)
    assert (back.schedule.every, back.paused, back.ended_at) == (60, False, None)


def test_an_end_is_taken_back_by_resuming_and_by_pausing() -> None:
    first = declared(None, rule(), "actor", 1000.0)
    gone = ended(first, 1010.0)
    assert (gone.paused, gone.ended_at) == (True, 1010.0)
    assert resumed(gone, 1020.0) == first
    assert paused(gone) == replace(first, paused=True)
    assert paused(first) == replace(first, paused=True)
    check_same_arguments(gone, rule(payload=b"x"))
    with pytest.raises(ConfigurationError, match="with other arguments"):
        check_same_arguments(first, rule(payload=b"x"))


# What is reported


async def test_a_schedule_whose_actor_another_worker_has_is_reported_when_that_worker_is_gone(
    app: Repid, caplog: pytest.LogCaptureFixture
) -> None:
    await Job("report", id_="by hand", deferred_by=600).enqueue()
    old = Router()

    @old.actor
    async def report() -> None: ...

    def reports() -> list[str]:
        return [text for record in caplog.records if "no such actor" in (text := record.getMessage())]

    async with trio.open_nursery() as nursery:
        async with working(old):
            await nursery.start(Worker(routers=[without_report()]).run)
            await trio.sleep(2 * LOOK_EVERY + 1)
            assert reports() == []
        await trio.sleep(2 * LOOK_EVERY)
        nursery.cancel_scope.cancel()
    [text] = reports()
    assert "schedule 'by hand' sends messages for actor 'report' to queue 'default'" in text
    assert "if no other worker has it, remove the schedule: app.schedules.remove('by hand')" in text
