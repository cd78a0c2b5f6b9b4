"""Timeouts: exact on the virtual clock, and harmless to the run that comes next on the same executor."""

from __future__ import annotations

import math
from datetime import timedelta
from functools import partial

import pytest
import trio
import trio.testing
from aids import UnreliableServer, send

from repid import Counts, Job, Message, Repid, Report, Router


@pytest.mark.parametrize("timeout", [0.25, 5, timedelta(seconds=7)])
async def test_a_run_is_cancelled_exactly_at_its_timeout(
    app: Repid,
    router: Router,
    server: UnreliableServer,
    timeout: float | timedelta,  # noqa: ASYNC109  that of the actor
) -> None:
    lasted: list[float] = []

    @router.actor(timeout=timeout)
    async def slow() -> None:
        started = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            lasted.append(trio.current_time() - started)

    await send(app, "slow")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    assert lasted == [pytest.approx(seconds, abs=1e-6)]
    [dead] = await server.browse("default", "dead")
    assert (dead.reason, dead.attempt) == ("failed", 1)
    assert dead.failure is not None
    assert (dead.failure.type, dead.failure.text) == (
        "TimeoutError",
        f"actor 'slow' ran longer than its timeout of {seconds:g} s",
    )


async def test_the_default_timeout_is_ten_minutes(app: Repid, router: Router) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep_forever()

    await send(app, "slow")
    started = trio.current_time()
    await app.run_worker(burst=True)
    assert trio.current_time() - started == 600


async def test_no_timeout_at_all(app: Repid, router: Router) -> None:
    @router.actor(timeout=math.inf)
    async def slow() -> None:
        await trio.sleep(5_000)

    await send(app, "slow")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


async def test_the_timeout_of_the_job_wins_over_the_actor_s(app: Repid, router: Router) -> None:
    @router.actor(timeout=50)
    async def slow() -> None:
        await trio.sleep_forever()

    await Job("slow", timeout=3).enqueue()
    started = trio.current_time()
    await app.run_worker(burst=True)
    assert trio.current_time() - started == 3


async def test_a_timeout_uses_an_attempt_and_is_retried(app: Repid, router: Router) -> None:
    starts: list[float] = []

    @router.actor(timeout=2, retries=1, retry_policy=lambda _: 10)
    async def slow() -> None:
        starts.append(trio.current_time())
        await trio.sleep_forever()

    await send(app, "slow")
    report = await app.run_worker(messages_limit=2)
    assert report == Report(processed=2, failed=1, retried=1, dead=1)
    assert starts[1] - starts[0] == pytest.approx(12)


async def test_the_run_after_a_timeout_is_unharmed(app: Repid, router: Router) -> None:
    """The executor's cancel scope is used up and must have been replaced."""
    done: list[int] = []

    @router.actor(timeout=1)
    async def job(i: int) -> None:
        if i % 2 == 0:
            await trio.sleep_forever()
        await trio.sleep(0.9)
        done.append(i)

    for i in range(10):
        await send(app, "job", i=i)
    assert await app.run_worker(tasks_limit=1, burst=True) == Report(processed=10, succeeded=5, failed=5, dead=5)
    assert done == [1, 3, 5, 7, 9]


async def test_a_long_idle_time_after_a_run_does_not_trip_its_deadline(app: Repid, router: Router) -> None:
    done: list[float] = []

    @router.actor(timeout=1)
    async def job() -> None:
        await trio.sleep(0.5)
        done.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        handle = await nursery.start(partial(app.run_worker, tasks_limit=1))
        for _ in range(3):
            await send(app, "job")
            await trio.sleep(50)
        handle.stop()
    assert len(done) == 3


async def test_a_run_that_ends_exactly_at_its_deadline_is_counted_once(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    """Both outcomes are right, each message has one of them, and the runs that follow are unharmed."""
    done: list[int] = []

    @router.actor(timeout=1)
    async def exact(i: int) -> None:
        await trio.sleep(1)
        done.append(i)

    @router.actor(timeout=1)
    async def quick() -> None:
        await trio.sleep(0.5)

    for i in range(40):
        await send(app, "exact", i=i)
        await send(app, "quick")
    report = await app.run_worker(tasks_limit=4, burst=True)
    assert (report.processed, report.succeeded + report.dead) == (80, 80)
    assert report.succeeded == 40 + len(done)
    assert await server.counts("default") == Counts(dead=40 - len(done))


async def test_time_spent_without_waiting_does_not_count_and_does_not_harm(app: Repid, router: Router) -> None:
    """A run that never waits cannot be cancelled: it has ended before anybody could look."""

    @router.actor(timeout=1e-9)
    async def busy() -> None:
        sum(range(1000))

    await send(app, "busy")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


async def test_an_actor_that_answers_its_timeout_with_an_error_of_its_own_is_believed(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(timeout=1)
    async def job() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise ValueError("mine") from None

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert (dead.failure.type, dead.failure.text) == ("ValueError", "mine")


async def test_an_actor_that_cleans_up_for_long_is_waited_for_and_named(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    @router.actor(timeout=1)
    async def tidy() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(100)

    await send(app, "tidy")
    started = trio.current_time()
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    assert trio.current_time() - started == pytest.approx(101)
    assert "actor 'tidy'" in caplog.text
    assert "it is waited for" in caplog.text


async def test_an_actor_that_swallows_its_timeout_has_succeeded(app: Repid, router: Router) -> None:
    @router.actor(timeout=1)
    async def job() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)

    await send(app, "job")
    await send(app, "job")
    assert await app.run_worker(tasks_limit=1, burst=True) == Report(processed=2, succeeded=2)


async def test_a_timeout_and_a_stop_at_the_same_moment_count_once(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(timeout=10)
    async def slow() -> None:
        await trio.sleep_forever()

    for _ in range(20):
        await send(app, "slow")
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(partial(app.run_worker, graceful_shutdown_time=5))
        await trio.sleep(5)
        handle.stop()
    counts = await server.counts("default")
    assert counts == Counts(ready=counts.ready, dead=20 - counts.ready)


async def test_a_timeout_after_the_verdict_changes_nothing(app: Repid, router: Router) -> None:
    @router.actor(timeout=1)
    async def job(message: Message) -> None:
        await message.ack()
        await trio.sleep_forever()

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


async def test_each_of_many_runs_has_its_own_timeout(app: Repid, router: Router) -> None:
    lasted: dict[int, float] = {}

    @router.actor
    async def slow(i: int) -> None:
        started = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            lasted[i] = trio.current_time() - started

    for i in (5, 3, 8, 1, 3):
        await Job("slow", args={"i": i}, timeout=i).enqueue()
    await app.run_worker(burst=True)
    assert lasted == {i: pytest.approx(i) for i in (1, 3, 5, 8)}


async def test_the_timeout_includes_checkpoints_that_wait_for_nothing(app: Repid, router: Router) -> None:
    """A run that only ever lets others run is cancelled all the same."""

    @router.actor(timeout=1)
    async def spinning() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            if trio.current_time() - started > 3:
                raise AssertionError
            await trio.sleep(0.01)

    await send(app, "spinning")
    started = trio.current_time()
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    assert trio.current_time() - started == pytest.approx(1, abs=0.02)
