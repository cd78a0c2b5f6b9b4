"""How a worker ends: stop gives the grace, cancelling does not, and either way every message is accounted for."""

from __future__ import annotations

import asyncio
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from aids import UnreliableServer, run_virtual, send
from msgspec.structs import replace

from repid import Connection, Counts, Handle, InMemoryServer, Message, Repid, Report, Router, UsageError, Worker
from repid.ctrl_c import comes_from_ctrl_c


async def test_stop_lets_running_actors_finish(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(20)

    await send(app, "slow")
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        handle.stop()
    assert trio.current_time() - started == 20
    assert await server.counts("default") == Counts()


async def test_what_outlives_the_grace_is_cancelled_and_released(
    app: Repid, router: Router, server: UnreliableServer
) -> None:

    @router.actor
    async def slow() -> None:
        await trio.sleep(500)

    await send(app, "slow")
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        handle.stop()
    assert trio.current_time() - started == 26
    assert handle.report == Report(processed=1, released=1)
    assert [(m.attempt, m.lost) for m in await server.browse("default", "ready")] == [(1, 0)]


@pytest.mark.parametrize("grace", [0, 0.5, 60])
async def test_the_grace_is_what_was_asked_for(app: Repid, router: Router, grace: float) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(500)

    await send(app, "slow")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(partial(app.run_worker, graceful_shutdown_time=grace))
        await trio.sleep(1)
        handle.stop()
        stopped = trio.current_time()
    assert trio.current_time() - stopped == grace


async def test_cancelling_takes_no_grace(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(500)

    await send(app, "slow")
    started = trio.current_time()
    with trio.move_on_after(1):
        await app.run_worker()
    assert trio.current_time() - started == 1
    assert await server.counts("default") == Counts(ready=1)


async def test_cancelling_during_the_grace_ends_the_grace(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(500)

    await send(app, "slow")
    started = trio.current_time()
    with trio.move_on_after(3):
        async with trio.open_nursery() as nursery:
            handle: Handle = await nursery.start(app.run_worker)
            await trio.sleep(1)
            handle.stop()
    assert trio.current_time() - started == 3
    assert await server.counts("default") == Counts(ready=1)


async def test_held_and_not_started_deliveries_are_released_by_a_stop(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    """A look-ahead has leased more than runs."""
    ran: list[int] = []

    @router.actor
    async def job(i: int) -> None:
        ran.append(i)
        if i >= 50:
            await trio.sleep(10)

    for i in range(60):
        await send(app, "job", i=i)
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(partial(app.run_worker, tasks_limit=2))
        await trio.sleep(1)
        handle.stop()
    assert sorted(ran) == list(range(52))
    assert await server.counts("default") == Counts(ready=8)


async def test_a_stop_inside_an_actor_starts_nothing_more(app: Repid, router: Router, server: UnreliableServer) -> None:
    handle: Handle | None = None
    ran: list[int] = []

    @router.actor
    async def job(i: int) -> None:
        ran.append(i)
        assert handle is not None
        handle.stop()

    for i in range(40):
        await send(app, "job", i=i)
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(app.run_worker)
    assert ran == [0]
    assert await server.counts("default") == Counts(ready=39)


async def test_stopping_twice_is_stopping_once(app: Repid, router: Router) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(20)

    await send(app, "slow")
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        handle.stop()
        handle.stop()
    assert trio.current_time() - started == 20


async def test_a_worker_is_stopped_by_its_own_method_and_can_run_again(app: Repid, server: UnreliableServer) -> None:
    worker = Worker()
    ran: list[str] = []

    @worker.actor
    async def job() -> None:
        ran.append("job")

    worker.stop()  # nothing runs: nothing happens
    for _ in range(2):
        await send(app, "job")
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await trio.testing.wait_all_tasks_blocked()
            worker.stop()
    assert ran == ["job", "job"]
    assert await server.counts("default") == Counts()


async def test_a_stop_before_the_worker_consumes_takes_effect(app: Repid, router: Router) -> None:
    @router.actor
    async def job() -> None: ...

    with trio.fail_after(0.5):
        async with trio.open_nursery() as nursery:
            worker = Worker([router])
            nursery.start_soon(worker.run)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            worker.stop()


async def test_starting_and_stopping_many_times_leaks_no_task(app: Repid, router: Router) -> None:
    @router.actor
    async def job() -> None:
        await trio.sleep(0.1)

    before = trio.lowlevel.current_statistics().tasks_living
    for _ in range(30):
        await send(app, "job")
        async with trio.open_nursery() as nursery:
            handle: Handle = await nursery.start(app.run_worker)
            await trio.lowlevel.checkpoint()
            handle.stop()
        assert trio.lowlevel.current_statistics().tasks_living == before


@pytest.mark.parametrize("checkpoints", range(0, 40, 2))
async def test_cancelled_at_any_moment_nothing_is_left_leased(
    app: Repid, router: Router, server: UnreliableServer, checkpoints: int
) -> None:
    @router.actor
    async def quick() -> None: ...

    @router.actor
    async def slow() -> None:
        await trio.sleep(5)

    for _ in range(5):
        await send(app, "quick")
        await send(app, "slow")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(app.run_worker, tasks_limit=3))
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    counts = await server.counts("default")
    assert counts == Counts(ready=counts.ready)
    assert counts.ready >= 5


# The broker does not answer


async def test_a_broker_that_hangs_gets_five_seconds_for_the_last_verdicts(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    @router.actor
    async def job() -> None: ...

    server.hanging.add("settle")
    await send(app, "job")
    started = trio.current_time()

    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        handle.stop()
    assert trio.current_time() - started == 6
    assert handle.report == Report(processed=1, unsettled=1)
    assert await server.counts("default") == Counts(leased=1)
    assert "could not be settled within 5 s" in caplog.text


async def test_cancelling_with_a_broker_that_hangs_takes_five_seconds_too(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(100)

    server.hanging.add("settle")
    await send(app, "slow")
    started = trio.current_time()
    with trio.move_on_after(1):
        await app.run_worker()
    assert trio.current_time() - started == 6


async def test_a_verdict_that_hangs_and_is_answered_in_time_is_settled(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def job() -> None: ...

    server.hanging.add("settle")
    await send(app, "job")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        handle.stop()
        await trio.sleep(4)
        server.heal()
    assert await server.counts("default") == Counts()


async def test_a_worker_stops_while_the_broker_is_away(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def job() -> None: ...

    server.failures["receive"] = 10**6
    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            handle: Handle = await nursery.start(app.run_worker)
            await trio.sleep(1)
            handle.stop()


# Actors that fail, or will not stop, while being cancelled


async def test_an_error_beside_the_cancellation_is_logged_and_the_message_released(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A nursery in the actor gives a group of both: `Cancelled` of one child, the error of the other."""

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in the clean-up")

    @router.actor(retries=3)
    async def family() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.sleep_forever()

    await send(app, "family")
    with trio.move_on_after(1) as scope:
        await app.run_worker()
    assert scope.cancelled_caught
    assert await server.counts("default") == Counts(ready=1)
    assert [m.attempt for m in await server.browse("default", "ready")] == [1]
    assert "failed while it was being cancelled" in caplog.text
    assert "in the clean-up" in caplog.text


async def test_an_actor_that_swallows_the_cancellation_is_believed(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    await send(app, "stubborn")
    started = trio.current_time()

    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(partial(app.run_worker, graceful_shutdown_time=5))
        await trio.sleep(1)
        handle.stop()
    assert trio.current_time() - started == 100
    assert handle.report == Report(processed=1, succeeded=1)
    assert await server.counts("default") == Counts()


async def test_a_foreign_cancelled_error_is_a_failure(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def job() -> None:
        raise asyncio.CancelledError

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert dead.failure.type == "CancelledError"


async def test_a_cancellation_that_was_kept_and_is_raised_again_is_a_failure(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    kept: list[BaseException] = []

    @router.actor(retries=1, retry_policy=lambda _: 0.0)
    async def remember() -> None:
        with trio.move_on_after(1):
            try:
                await trio.sleep_forever()
            except trio.Cancelled as error:
                kept.append(error)
                raise
        raise kept[0]

    @router.actor
    async def innocent() -> None:
        await trio.sleep(10)

    await send(app, "remember")
    await send(app, "innocent")
    assert await app.run_worker(burst=True) == Report(processed=3, succeeded=1, retried=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert dead.failure.type == "Cancelled"
    assert "nothing had cancelled it" in dead.failure.text


@pytest.mark.parametrize("cause", ["the end of the grace", "a cancelled run()", "its timeout", "cancel()"])
@pytest.mark.parametrize("style", ["finally", "from", "from None", "group"])
async def test_who_cancelled_decides_and_what_the_clean_up_raised_is_logged(
    app: Repid,
    router: Router,
    server: UnreliableServer,
    caplog: pytest.LogCaptureFixture,
    cause: str,
    style: str,
) -> None:
    @router.actor(timeout=5 if cause == "its timeout" else 100, retries=1, retry_policy=lambda _: 1000.0)
    async def job() -> None:
        try:
            await trio.sleep(30)
        except trio.Cancelled as cancelled:
            if style == "from":
                raise ConnectionError("rollback failed") from cancelled
            if style == "from None" and cause != "its timeout":
                raise ConnectionError("rollback failed") from None
            if style == "group":
                raise BaseExceptionGroup("two", [ConnectionError("rollback failed"), cancelled])  # noqa: B904
            raise ConnectionError("rollback failed")  # noqa: B904

    sent = await send(app, "job")
    with trio.move_on_after(10) as scope:
        async with trio.open_nursery() as nursery:
            handle: Handle = await nursery.start(partial(app.run_worker, graceful_shutdown_time=1))
            await trio.sleep(1)
            if cause == "the end of the grace":
                handle.stop()
            elif cause == "a cancelled run()":
                scope.cancel()
            elif cause == "cancel()":
                await server.cancel(sent.id)
    expected = Counts(scheduled=1) if cause == "its timeout" else Counts() if cause == "cancel()" else Counts(ready=1)
    assert await server.counts("default") == expected
    assert "rollback failed" in caplog.text
    attempts = [m.attempt for state in ("ready", "scheduled") for m in await server.browse("default", state)]
    assert attempts == ([] if cause == "cancel()" else [2] if cause == "its timeout" else [1])


@pytest.mark.parametrize("order", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("place", ["at once", "after a wait", "in a child", "in a thread", "in a middleware"])
async def test_an_order_to_exit_that_an_actor_raises_is_the_failure_of_its_job_alone(
    app: Repid, router: Router, server: UnreliableServer, order: type[BaseException], place: str
) -> None:
    async def leave() -> None:
        raise order(3)

    async def around(call_next: Any, message: Message, actor: Any) -> Any:
        if place == "in a middleware":
            raise order(3)
        return await call_next(message, actor)

    @router.actor(retries=1, retry_policy=lambda _: 0.0, middlewares=[around])
    async def fatal() -> None:
        if place == "after a wait":
            await trio.sleep(1)
        if place == "in a child":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave)
                await trio.sleep(1)
        raise order(3)

    @router.actor(retries=1, retry_policy=lambda _: 0.0, name="fatal_thread")
    def in_a_thread() -> None:
        raise order(3)

    @router.actor
    async def innocent() -> None:
        await trio.sleep(100)

    for _ in range(3):
        await send(app, "innocent")
    for _ in range(20):
        await send(app, "fatal_thread" if place == "in a thread" else "fatal")
    expected = Report(processed=43, succeeded=3, failed=20, retried=20, dead=20)
    report = await app.run_worker(burst=True, tasks_limit=8)
    assert replace(report, released=0) == expected  # the clock jumps while a thread runs, so some may be given back
    dead = await server.browse("default", "dead", limit=100)
    kind = "BaseExceptionGroup" if place == "in a child" else order.__name__
    assert {(m.failure.type, m.attempt) for m in dead if m.failure is not None} == {(kind, 2)}


@pytest.mark.parametrize("wait", [False, True])
async def test_ctrl_c_in_the_middle_of_an_actor_releases_what_runs_and_stops_a_worker_without_signals(
    app: Repid, router: Router, server: UnreliableServer, wait: bool
) -> None:
    @router.actor(retries=3, on_error="ack")
    async def fatal() -> None:
        if wait:
            await trio.sleep(1)
        signal.raise_signal(signal.SIGINT)

    @router.actor
    async def slow() -> None:
        await trio.sleep(100)

    for _ in range(3):
        await send(app, "slow")
    for _ in range(20):
        await send(app, "fatal")
    with pytest.raises(KeyboardInterrupt):
        await app.run_worker(tasks_limit=8, handle_signals=[])
    assert await server.counts("default") == Counts(ready=23)
    assert {(m.attempt, m.lost) for m in await server.browse("default", "ready")} == {(1, 0)}


def test_an_interrupt_is_told_from_a_raise_whatever_handler_is_set() -> None:
    def raising() -> None:
        raise KeyboardInterrupt

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)

    def handler(*_: object) -> None:
        raising()

    class Object:
        def method(self, _: str, *__: object) -> None:
            raise KeyboardInterrupt

    found = signal.getsignal(signal.SIGINT)
    try:
        for each in (signal.default_int_handler, handler, partial(Object().method, "of asyncio's kind")):
            signal.signal(signal.SIGINT, each)
            for function, expected in ((interrupted, True), (raising, False)):
                with pytest.raises(KeyboardInterrupt) as raised:
                    function()
                assert comes_from_ctrl_c(raised.value) is expected
                assert comes_from_ctrl_c(BaseExceptionGroup("", [ValueError(), raised.value])) is expected
    finally:
        signal.signal(signal.SIGINT, found)
    assert not comes_from_ctrl_c(SystemExit())


async def test_an_order_to_exit_does_not_hide_the_timeout_that_led_to_it(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise SystemExit(3)

    @router.actor(timeout=1)
    async def family() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.sleep_forever()

    await send(app, "family")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert dead.failure.type == "TimeoutError"
    assert "SystemExit: 3" in dead.failure.traceback


async def test_an_error_in_one_run_leaves_its_neighbours_alone(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    done: list[int] = []

    @router.actor
    async def job(i: int) -> None:
        await trio.sleep(i / 10)
        if i % 2:
            raise ValueError(i)
        done.append(i)

    for i in range(10):
        await send(app, "job", i=i)
    assert await app.run_worker(burst=True) == Report(processed=10, succeeded=5, failed=5, dead=5)
    assert done == [0, 2, 4, 6, 8]


# Verbs and the end


async def test_a_verdict_given_before_the_cancellation_stands(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def job(message: Message) -> None:
        await message.ack()
        await trio.sleep_forever()

    await send(app, "job")
    with trio.move_on_after(1):
        await app.run_worker()
    assert await server.counts("default") == Counts()


async def test_a_verb_whose_await_is_cancelled_is_not_recalled(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    seen: list[str | None] = []

    @router.actor
    async def job(message: Message) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await message.nack()
        seen.append(message.action)

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    assert seen == ["nacked"]


@pytest.mark.parametrize("method", ["stop", "cut_short"])
async def test_a_handle_ends_a_worker_either_way(
    app: Repid, router: Router, server: UnreliableServer, method: str
) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(10)

    await send(app, "slow")
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        getattr(handle, method)()
    assert (trio.current_time() - started, await server.counts("default")) == {
        "stop": (10, Counts()),
        "cut_short": (1, Counts(ready=1)),
    }[method]


# Signals within one process


async def test_the_first_signal_stops_and_the_second_ends_the_grace(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(20)

    found = signal.getsignal(signal.SIGTERM)
    for signals, duration, left in ((1, 20, 0), (2, 3, 1)):
        await send(app, "slow")
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.run_worker)
            for _ in range(signals):
                await trio.sleep(1.5)
                signal.raise_signal(signal.SIGTERM)
        assert (trio.current_time() - started, (await server.counts("default")).ready) == (duration, left)
        assert signal.getsignal(signal.SIGTERM) is found


async def test_one_signal_reaches_all_workers_of_the_process(app: Repid, router: Router) -> None:
    @router.actor
    async def job() -> None: ...

    found = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(app.run_worker)
            await trio.sleep(1)
            signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == found


async def test_an_embedded_worker_touches_no_signals_unless_asked(app: Repid, router: Router) -> None:
    @router.actor
    async def job() -> None: ...

    found = signal.getsignal(signal.SIGTERM)
    for options, untouched in (
        ({}, True),
        ({"handle_signals": []}, True),
        ({"handle_signals": [signal.SIGTERM]}, False),
    ):
        async with trio.open_nursery() as nursery:
            handle: Handle = await nursery.start(partial(app.run_worker, **options))
            assert (signal.getsignal(signal.SIGTERM) is found) is untouched
            handle.stop()
        assert signal.getsignal(signal.SIGTERM) is found


async def test_a_worker_that_ended_by_itself_has_restored_the_signals(app: Repid, router: Router) -> None:
    @router.actor
    async def job() -> None: ...

    found = signal.getsignal(signal.SIGTERM)
    await app.run_worker(burst=True)
    assert signal.getsignal(signal.SIGTERM) is found


def test_a_worker_in_another_thread_cannot_have_signals() -> None:
    app = Repid()
    app.servers.register_server("default", UnreliableServer())
    router = Router()
    app.include_router(router)

    @router.actor
    async def job() -> None: ...

    with ThreadPoolExecutor(1) as thread:
        report = thread.submit(run_virtual, partial(app.run_worker, burst=True))  # it asks for none by itself
        assert report.result(10) == Report()
        asked = thread.submit(run_virtual, partial(app.run_worker, burst=True, handle_signals=[signal.SIGTERM]))
        with pytest.raises(UsageError, match="main thread"):
            asked.result(10)


async def test_the_log_names_who_was_left_without_a_verdict(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    @router.actor(confirmation_mode="manual")
    async def forgetful() -> None: ...

    envelope = await send(app, "forgetful")
    with caplog.at_level(logging.WARNING):
        assert await app.run_worker(burst=True) == Report(processed=1, released=1)
    assert f"message {envelope.id!r} was left without a verdict" in caplog.text
    assert await server.counts("default") == Counts(ready=1)


# A broker that is not there yet


@pytest.mark.parametrize("step", ["connection", "declare", "consume"])
async def test_a_worker_waits_for_a_broker_that_is_away_when_it_starts(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    ran: list[float] = []

    @router.actor
    async def job() -> None:
        ran.append(trio.current_time())

    await send(app, "job")
    server.failures[step] = 10
    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        assert 5 < trio.current_time() - before < 12.5  # ten pauses, each of which grows to 1.25 seconds at the most
        await trio.sleep(1)
        handle.stop()
    assert len(ran) == 1
    [record] = caplog.records
    assert record.getMessage() == f"cannot start yet, and tries until the server answers: {step} is out of order"


@pytest.mark.parametrize("step", ["connection", "declare", "consume"])
@pytest.mark.parametrize("how", ["failures", "hanging"])
async def test_a_worker_that_waits_for_its_broker_stops_when_told_to(
    app: Repid, server: UnreliableServer, step: str, how: str
) -> None:
    worker = Worker(app=app)

    @worker.actor
    async def job() -> None: ...

    if how == "failures":
        server.failures[step] = 10**9
    else:
        server.hanging.add(step)
    reports: list[Report] = []

    async def work() -> None:
        reports.append(await worker.run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await trio.sleep(100)
        assert not reports
        before = trio.current_time()
        worker.stop()
    assert trio.current_time() == before
    assert reports == [Report()]


async def test_a_worker_that_was_stopped_before_its_broker_came_counts_as_started(
    app: Repid, server: UnreliableServer
) -> None:
    worker = Worker(app=app)

    @worker.actor
    async def job() -> None: ...

    server.hanging.add("consume")
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_later, worker)
        handle: Handle = await nursery.start(worker.run)
    assert trio.current_time() - started == 10
    assert handle.report == Report()
    server.heal()
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(worker.run)
        handle.stop()


async def _stop_later(worker: Worker) -> None:
    await trio.sleep(10)
    worker.stop()


# Draining


async def test_a_drain_finishes_what_is_there_and_ends(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def slow(depth: int) -> None:
        await trio.sleep(10)
        if depth:
            await app.enqueue(slow, depth - 1)

    for _ in range(3):
        await app.enqueue(slow, 1)
    await app.using(delay=1000).enqueue(slow, 0)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(partial(app.run_worker, tasks_limit=2))
        await trio.sleep(1)
        handle.drain()
        handle.drain()
    assert handle.report == Report(processed=6, succeeded=6)
    assert trio.current_time() - started == 30
    assert await server.counts("default") == Counts(scheduled=1)
    handle.drain()  # of one that has ended


async def test_an_idle_worker_that_is_drained_ends_at_once(app: Repid, router: Router) -> None:
    router.actor(nothing)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(5)
        handle.drain()
    assert trio.current_time() - started == 5


async def nothing() -> None: ...


async def test_a_worker_is_drained_by_its_own_actor(app: Repid, router: Router) -> None:
    handles: list[Handle] = []

    @router.actor
    async def last(number: int) -> None:
        handles[0].drain()

    async with trio.open_nursery() as nursery:
        handles.append(await nursery.start(app.run_worker))
        await app.enqueue_many(last, range(100))
    assert handles[0].report.succeeded == 100


async def test_a_drain_starts_the_batch_that_would_wait_for_more(app: Repid, router: Router) -> None:
    @router.actor(batch=10, batch_wait=1000)
    async def write(rows: list[int]) -> None: ...

    await app.enqueue_many(write, range(3))
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(5)
        handle.drain()
    assert trio.current_time() - started == 5
    assert handle.report.succeeded == 3


async def test_a_stop_ends_a_drain(app: Repid, router: Router) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(10)

    for _ in range(3):
        await app.enqueue(slow)
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(partial(app.run_worker, tasks_limit=1))
        handle.drain()
        await trio.sleep(1)
        handle.stop()
    assert (handle.report.succeeded, handle.report.processed) == (1, 1)


async def test_a_drain_runs_those_alone_that_must_run_alone(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    at_once: list[int] = []
    running = 0

    @router.actor
    async def slow() -> None:
        nonlocal running
        running += 1
        at_once.append(running)
        await trio.sleep(10)
        running -= 1

    await app.enqueue(slow)
    for _ in range(2):
        async with server.consume({"default": None}) as dying, server.consume({"default": frozenset()}) as other:
            assert await dying.receive(1)
            await trio.sleep(100)
            await other.rescue()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(5)
        await app.enqueue(slow)
        handle.drain()
    assert at_once == [1, 1]
    assert handle.report.succeeded == 2


def test_a_worker_under_asyncio_is_drained() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()

    @router.actor
    async def slow() -> None:
        await asyncio.sleep(0.01)

    app.include_router(router)

    async def main() -> Report:
        started: asyncio.Future[Handle] = asyncio.get_running_loop().create_future()

        class Status:
            def started(self, value: Handle | None = None) -> None:
                if value is not None:
                    started.set_result(value)

        async with app.magic(), asyncio.TaskGroup() as group:
            work = group.create_task(app.run_worker(task_status=Status()))
            handle = await started
            for _ in range(3):
                await app.enqueue(slow)
            asyncio.get_running_loop().call_soon(handle.drain)
            return await work

    assert asyncio.run(main()).succeeded == 3
