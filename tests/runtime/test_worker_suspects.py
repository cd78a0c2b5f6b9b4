"""Messages that were lost twice run alone; and the bytes a worker holds."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from aids import UnreliableServer, send

from repid import Counts, Message, Repid, Report, Router
from repid.runtime import quarantine

LEASE = 60.0


async def lose(server: UnreliableServer, count: int, times: int) -> None:
    """Lose the first messages so often, as if their worker was killed."""
    for _ in range(times):
        async with server.consume({"default": None}) as dying, server.consume({"default": frozenset()}) as other:
            got = 0
            while got < count:
                got += len(await dying.receive(count - got, max_wait=0))
            await trio.sleep(LEASE + 1)
            await other.rescue()


def counting_leases(router: Router, server: UnreliableServer) -> list[int]:
    """Declare an actor `job` that takes a second. Returns how many messages were leased when each of its runs began."""
    held: list[int] = []

    @router.actor
    async def job(data: str = "") -> None:
        held.append((await server.counts("default")).leased)
        await trio.sleep(1)

    return held


async def test_what_was_lost_twice_runs_while_nothing_else_is_held(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    held = counting_leases(router, server)
    for _ in range(5):
        await send(app, "job")
    await lose(server, 5, 2)
    for _ in range(5):
        await send(app, "job")
    report = await app.run_worker(burst=True)
    assert report == Report(processed=10, succeeded=10)
    assert sorted(held) == [1] * 5 + [5] * 5


async def test_what_was_lost_once_runs_with_others(app: Repid, router: Router, server: UnreliableServer) -> None:
    held = counting_leases(router, server)
    for _ in range(5):
        await send(app, "job")
    await lose(server, 5, 1)
    await app.run_worker(burst=True)
    assert held == [5] * 5


async def test_a_worker_that_is_never_idle_stops_claiming_to_run_a_suspect(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    ran: list[int] = []

    @router.actor
    async def busy() -> None:
        await trio.sleep(5)
        await send(app, "busy")

    @router.actor
    async def suspect() -> None:
        ran.append((await server.counts("default")).leased)

    await send(app, "suspect")
    await lose(server, 1, 2)
    await server.pause("default")  # so that the worker is busy before it learns of the suspect
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(app.run_worker)
        for _ in range(3):
            await send(app, "busy")
            await server.resume("default")
            await trio.sleep(1.7)
        await trio.sleep(2 * LEASE)
        assert ran == [1]
        assert (await server.counts("default")).leased == 3
        handle.cut_short()


async def test_a_long_run_is_not_waited_for_without_end(app: Repid, router: Router, server: UnreliableServer) -> None:
    """Others go on meanwhile, and the suspect runs when the long run is over."""
    began: dict[str, float] = {}

    @router.actor
    async def long() -> None:
        await trio.sleep(500)

    @router.actor
    async def other() -> None:
        began["other"] = trio.current_time()

    @router.actor
    async def suspect() -> None:
        began["suspect"] = trio.current_time()

    await send(app, "suspect")
    await lose(server, 1, 2)
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(app.run_worker)
        await send(app, "long")
        await trio.sleep(LEASE / 2)
        await send(app, "other")
        start = trio.current_time()
        await trio.sleep(2000)
        handle.stop()
    assert began["other"] - start <= 2 * quarantine.PATIENCE
    assert began["suspect"] - start < 1000


async def test_two_workers_of_one_process_hold_one_suspect(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    held = counting_leases(router, server)
    for _ in range(6):
        await send(app, "job")
    await lose(server, 6, 2)
    async with trio.open_nursery() as nursery:
        handles = [await nursery.start(app.run_worker) for _ in range(2)]
        await trio.sleep(10 * LEASE)
        for handle in handles:
            handle.stop()
    assert held == [1] * 6


@pytest.mark.parametrize("verdict", ["retry", "snooze", "raise"])
async def test_a_run_that_ended_clears_what_was_lost_before(
    app: Repid, router: Router, server: UnreliableServer, verdict: str
) -> None:
    @router.actor(retries=1, retry_policy=lambda _: 1000)
    async def job(message: Message) -> None:
        if verdict == "snooze":
            await message.snooze(1000)
        elif verdict == "retry":
            await message.retry(1000)
        else:
            raise ValueError("again")

    await send(app, "job")
    await lose(server, 1, 3)
    await app.run_worker(burst=True)
    [waiting] = await server.browse("default", "scheduled")
    assert waiting.lost == 0


async def test_a_worker_that_stops_clears_nothing(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def job() -> None:
        await trio.sleep_forever()

    await send(app, "job")
    await lose(server, 1, 3)
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(partial(app.run_worker, burst=True))
        await trio.sleep(5)
        handle.cut_short()
    [ready] = await server.browse("default", "ready")
    assert ready.lost == 3


async def test_a_worker_holds_no_more_bytes_than_it_may(app: Repid, router: Router, server: UnreliableServer) -> None:
    held = counting_leases(router, server)
    for _ in range(10):
        await send(app, "job", data="x" * 1000)
    assert (await app.run_worker(burst=True, claim_bytes=3100)).succeeded == 10
    assert max(held) == 3


async def test_a_message_bigger_than_the_bound_is_taken_alone(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    held = counting_leases(router, server)
    for _ in range(3):
        await send(app, "job", data="x" * 1000)
    assert (await app.run_worker(burst=True, claim_bytes=100)).succeeded == 3
    assert held == [1, 1, 1]


async def test_a_small_message_that_comes_beside_a_big_one_starts_at_once(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    started: dict[int, float] = {}

    @router.actor
    async def job(data: str) -> None:
        started[len(data)] = trio.current_time()
        await trio.sleep(100 if len(data) > 1 else 0)

    async with trio.open_nursery() as nursery:
        worker = await nursery.start(partial(app.run_worker, claim_bytes=1000))
        began = trio.current_time()
        await send(app, "job", data="x" * 600)
        await trio.sleep(1)
        await send(app, "job", data="x")
        await trio.sleep(1)
        await send(app, "job", data="x" * 700)  # has no room beside the first
        await trio.sleep(200)
        worker.stop()
    assert {size: round(at - began, 3) for size, at in started.items()} == {600: 0, 1: 1, 700: 100}


async def test_a_burst_ends_though_a_big_message_was_left_without_a_verdict(app: Repid, router: Router) -> None:
    @router.actor(confirmation_mode="manual")
    async def job(data: str) -> None: ...

    await send(app, "job", data="x" * 600)
    with trio.fail_after(1):
        assert (await app.run_worker(burst=True, claim_bytes=1000)).released == 1


async def test_what_is_lost_and_refused_frees_its_bytes(app: Repid, router: Router, server: UnreliableServer) -> None:
    ran: list[int] = []

    @router.actor
    async def job(data: str) -> None:
        ran.append(len(data))
        if len(ran) == 1:
            await trio.sleep(300)

    server.failures["extend"] = 5  # the first run loses its lease
    for _ in range(3):
        await send(app, "job", data="x" * 1000)
    report = await app.run_worker(burst=True, claim_bytes=100)
    assert (report.succeeded, report.refused) == (3, 1)  # it takes back what it lost before it ends
    assert await server.counts("default") == Counts()


async def test_a_message_that_still_runs_here_is_not_started_again(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    """Its lease ended, somebody rescued it, and the same worker claims it while the run cannot be cancelled yet."""
    spans: list[tuple[float, float]] = []

    @router.actor
    async def stubborn() -> None:
        began = trio.current_time()
        with trio.CancelScope(shield=len(spans) == 0):
            await trio.sleep(3 * LEASE if not spans else 1)
        spans.append((began, trio.current_time()))

    await send(app, "stubborn")
    server.failures["extend"] = 6
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(app.run_worker)
        await trio.sleep(6 * LEASE)
        handle.stop()
    assert len(spans) == 2
    assert spans[0][1] <= spans[1][0]
    assert await server.counts("default") == Counts()
