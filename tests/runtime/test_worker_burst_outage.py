"""A burst whose server is away ends with an error, in bounded time, as scripts and cron want. A sentence each."""

from __future__ import annotations

import pytest
import trio
from aids import UnreliableServer
from modest_driver import ModestDriver
from trio.testing import MockClock

from repid import BrokerUnavailable, Connection, Job, Repid, Router, Server
from repid.runtime.outage import BURST_TIME
from repid.testing import Cut


async def work(seconds: float = 0.0) -> None:
    await trio.sleep(seconds)


@pytest.mark.parametrize("call", ["connection", "declare", "consume", "receive"])
async def test_a_burst_that_finds_no_server_raises_after_half_a_minute(
    call: str, app: Repid, router: Router, server: UnreliableServer
) -> None:
    router.actor(work)
    server.failures[call] = 10**6
    start = trio.current_time()
    with pytest.raises(BrokerUnavailable, match=f"did not answer for 30 s, and a burst waits no longer: {call} is out"):
        await app.run_worker(burst=True)
    assert BURST_TIME <= trio.current_time() - start < BURST_TIME + 6
    server.failures[call] = 10
    await app.run_worker(burst=True)  # a shorter outage is waited for


async def test_a_worker_without_burst_waits_on(app: Repid, router: Router, server: UnreliableServer) -> None:
    router.actor(work)
    for call in ("connection", "receive"):
        server.failures[call] = 10**6
        with trio.move_on_after(3600) as waiting:
            await app.run_worker()
        assert waiting.cancelled_caught
        server.heal()


async def test_a_burst_without_its_server_lets_what_runs_end_first(autojump_clock: MockClock) -> None:
    cut = Cut()
    app, router = Repid(Connection(Server(cut(ModestDriver(lease_timeout=3000))))), Router()
    ended: list[float] = []

    @router.actor
    async def last(seconds: float) -> None:
        await trio.sleep(seconds)
        ended.append(trio.current_time())

    app.include_router(router)
    async with app.magic():
        await app.servers.default.declare(["default"])
        await Job("last", args={"seconds": 200}).enqueue()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def go_down() -> None:
                await trio.sleep(1)
                cut.go_down()

            with pytest.raises(BrokerUnavailable, match="a burst waits no longer"):
                await app.run_worker(burst=True)
        assert [moment - start for moment in ended] == [pytest.approx(200, abs=1)]
        assert trio.current_time() - start < 200 + 2 * BURST_TIME
