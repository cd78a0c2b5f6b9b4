"""What a worker counts, and what it does when the clock says that it is too late."""

from __future__ import annotations

import functools
import gc
import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from textwrap import dedent
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from aids import UnreliableServer, send

from repid import Connection, Counts, InMemoryServer, Message, Repid, Report, Router


class Leaving(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        raise SystemExit


async def test_a_payload_that_does_not_fit_counts_for_the_messages_limit(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def job(n: int) -> None: ...

    await send(app, "job", n="no number")
    await send(app, "job", n=1)
    with trio.fail_after(100):
        assert await app.run_worker(messages_limit=1) == Report(dead=1)
        assert await app.run_worker(messages_limit=1) == Report(processed=1, succeeded=1)


async def test_what_is_only_released_does_not_count_for_the_messages_limit(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def job() -> None: ...

    await send(app, "nobody")
    await send(app, "job")
    report = await app.run_worker(messages_limit=1)
    assert (report.processed, report.succeeded) == (1, 1)


async def test_what_is_held_when_its_lease_ends_by_the_clock_of_the_worker_is_not_started(
    app: Repid, router: Router, server: UnreliableServer, autojump_clock: trio.testing.MockClock
) -> None:
    ran: list[int] = []

    @router.actor
    async def job(i: int) -> None:
        ran.append(i)
        if len(ran) == 1:
            autojump_clock.jump(61)  # as if the loop had been blocked for longer than the lease of 60 s

    for i in range(5):
        await send(app, "job", i=i)
    server.failures["extend"] = 100  # an extended lease would be ours again
    server.failures["rescue"] = 100  # and what was taken back would be run under a new lease
    report = await app.run_worker(burst=True)
    assert (report.processed, report.succeeded) == (1, 1)
    assert report.refused >= 4
    assert len(ran) == 1
    assert await server.counts("default") == Counts(leased=4)


async def test_a_run_beside_one_that_blocked_the_loop_past_their_lease_goes_on_if_the_broker_says_that_it_may(
    app: Repid, router: Router, server: UnreliableServer, autojump_clock: trio.testing.MockClock
) -> None:
    @router.actor
    async def waits() -> None:
        await trio.sleep(100)

    @router.actor
    async def blocks() -> None:
        await trio.sleep(1)
        autojump_clock.jump(3 * 60)  # as if the loop had been blocked for three leases

    await send(app, "waits")
    await send(app, "blocks")
    assert await app.run_worker(burst=True) == Report(processed=2, succeeded=2)


@pytest.mark.parametrize("wait", [True, False])
async def test_a_timeout_counts_from_the_start_and_who_blocks_past_it_is_named(
    app: Repid,
    router: Router,
    server: UnreliableServer,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    wait: bool,
) -> None:
    @router.actor(timeout=5)
    async def blocks() -> None:
        autojump_clock.jump(8)  # as time.sleep(8) would
        if wait:
            await trio.sleep(1)

    @router.actor(timeout=5)
    async def innocent() -> None:
        await trio.sleep(4)

    await send(app, "innocent")
    await send(app, "blocks")
    await app.run_worker(burst=True)
    named = [record.getMessage() for record in caplog.records if "blocked the event loop" in record.getMessage()]
    assert len(named) == 1
    assert "actor 'blocks'" in named[0]
    assert "for 8 s, past its timeout of 5 s" in named[0]
    dead = {m.envelope.topic for m in await server.browse("default", "dead")}
    assert ("blocks" in dead) is wait  # what returned counts, though it was late


@pytest.mark.parametrize("wait", [True, False])
async def test_who_blocks_for_a_second_is_named_once_also_within_its_timeout(
    app: Repid,
    router: Router,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    wait: bool,
) -> None:
    @router.actor(timeout=100)
    async def blocks() -> None:
        if wait:
            await trio.sleep(1)
        autojump_clock.jump(2)
        await trio.sleep(1)

    @router.actor(timeout=100)
    async def fine() -> None:
        autojump_clock.jump(0.9)

    for actor in ("fine", "blocks"):
        await send(app, actor)
    await app.run_worker(burst=True)
    named = [record.getMessage() for record in caplog.records if "blocked the event loop" in record.getMessage()]
    assert len(named) == 1
    assert "actor 'blocks' (message" in named[0]
    assert "for 2 s: nothing else" in named[0]


class BusyMachine(trio.abc.Clock):
    """Whenever somebody looks, two milliseconds have passed; while nobody has anything to do, no time is lost."""

    now = 0.0

    def start_clock(self) -> None: ...

    def current_time(self) -> float:
        self.now += 0.002
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if math.isfinite(deadline):
            self.now = max(self.now, deadline)
        return 0.0


def test_who_waited_for_long_is_not_taken_for_one_that_blocked_the_loop_on_a_busy_machine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()

    @router.actor
    async def waits() -> None:
        await trio.sleep(10)

    app.include_router(router)

    async def main() -> Report:
        async with app.servers.default.connection():
            await send(app, "waits")
            return await app.run_worker(burst=True)

    assert trio.run(main, clock=BusyMachine()).succeeded == 1
    assert "blocked the event loop" not in caplog.text


async def test_what_was_done_before_the_first_wait_uses_the_timeout(
    app: Repid, router: Router, autojump_clock: trio.testing.MockClock
) -> None:
    ended: list[float] = []

    @router.actor(timeout=5)
    async def job() -> None:
        started = trio.current_time()
        autojump_clock.jump(3)
        try:
            await trio.sleep(100)
        finally:
            ended.append(trio.current_time() - started)

    await send(app, "job")
    await app.run_worker(burst=True)
    assert ended == [5]


def hidden(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def wrapper(**arguments: Any) -> Any:
        return function(**arguments)

    return wrapper


async def never_awaited() -> None: ...


async def forgetful() -> Any:
    return never_awaited()


def generator() -> Any:
    yield 1


async def async_generator() -> Any:
    yield 1


def submit() -> Any:
    return Future[None]()


def threaded() -> Any:
    return never_awaited()


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (forgetful, "a coroutine"),
        (hidden(never_awaited), "a coroutine"),
        (hidden(generator), "a generator"),
        (hidden(async_generator), "an async generator"),
        (contextmanager(generator), "a context manager"),
        (asynccontextmanager(async_generator), "a context manager"),
        (submit, "a future"),
        (threaded, "a coroutine"),
    ],
)
@pytest.mark.parametrize("surrounded", [True, False])
async def test_what_returns_something_that_nobody_would_run_is_a_failure_that_says_so(
    app: Repid, router: Router, server: UnreliableServer, function: Any, kind: str, surrounded: bool
) -> None:
    async def around(call_next: Any, message: Message, actor: Any) -> Any:
        return await call_next(message, actor)

    router.actor(name="job", middlewares=[around] if surrounded else [])(function)
    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert f"returned {kind}" in dead.failure.text
    gc.collect()  # a coroutine that nobody has awaited would be warned of, which is an error here


def test_futures_are_noticed_whose_module_is_imported_late() -> None:
    code = """
        import sys
        from repid.inject import is_unfinished

        assert not is_unfinished(object())
        assert not {"asyncio", "concurrent.futures"} & set(sys.modules)
        import concurrent.futures
        assert is_unfinished(concurrent.futures.Future())
        import asyncio
        assert is_unfinished(asyncio.Future(loop=asyncio.new_event_loop()))
        assert not is_unfinished(object())
    """
    subprocess.run([sys.executable, "-c", dedent(code)], check=True, timeout=30)


async def test_a_middleware_that_forgets_to_await_the_call_fails_its_runs(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    async def around(call_next: Any, message: Message, actor: Any) -> Any:
        return call_next(message, actor)

    @router.actor(middlewares=[around])
    async def job() -> None: ...

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)


async def test_a_type_whose_own_code_exits_is_the_failure_of_its_job(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(retries=1, retry_policy=lambda _: 0.0)
    async def job(n: Leaving) -> None: ...

    await send(app, "job", n={"n": 1})
    await app.run_worker(burst=True)
    assert await server.counts("default") == Counts(dead=1)
