"""The Redis broker on real servers, with a clock that can be moved, held to everything the port promises."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from engines.redis import WANTED, Redis, ServersClock, running

from repid import Server
from repid.brokers.redis import RedisServer, wire
from repid.ports import Broker
from repid.testing import CHECKS, Check, ConformanceReport, Cut, check_broker

FOLLOWS_THE_WALL_CLOCK = "a_step_of_the_wall_clock_ends_no_lease"
"""A server has no other clock, so this one promise is not kept: docs/redis.md says so."""

KEPT = [check for check in CHECKS if str(check) != FOLLOWS_THE_WALL_CLOCK]


@pytest.fixture(scope="module", params=WANTED)
def redis(request: pytest.FixtureRequest) -> Iterator[Redis]:
    with running(request.param) as server:
        yield server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ServersClock:
    clock = ServersClock()
    monkeypatch.setattr(wire, "script", clock.script)
    return clock


@pytest.mark.parametrize("check", KEPT, ids=str)
async def test_the_redis_broker(check: Check, redis: Redis, prefix: str, clock: ServersClock) -> None:
    await hold_to([check], redis, prefix, clock)


async def test_the_redis_broker_with_a_time_for_dead_letters(redis: Redis, prefix: str, clock: ServersClock) -> None:
    checks = [check for check in CHECKS if "dead_ttl" in check.needs]
    report = await hold_to(checks, redis, prefix, clock, dead_ttl=600)
    assert report.passed == tuple(check.name for check in checks) != ()


async def hold_to(
    checks: list[Check], redis: Redis, prefix: str, clock: ServersClock, dead_ttl: float | None = None
) -> ConformanceReport:
    def make(_: Any = None) -> RedisServer:
        server = RedisServer(redis.url, prefix=prefix, dead_ttl=dead_ttl)
        clock.drivers.append(server._driver)  # type: ignore[arg-type]
        return server

    @asynccontextmanager
    async def open_broker() -> AsyncGenerator[Broker, None]:
        yield make()

    report = await check_broker(open_broker, only=checks, clock=clock, another=make)
    needs = ("needs not ", "needs cut", "needs leases=", "needs dead_ttl")
    assert all(reason.startswith(needs) for reason in report.skipped.values())
    return report


@pytest.mark.parametrize("check", [check for check in CHECKS if "cut" in check.needs], ids=str)
async def test_the_redis_engine_behind_a_link_that_breaks(
    check: Check, redis: Redis, prefix: str, clock: ServersClock
) -> None:
    cut = Cut()

    @asynccontextmanager
    async def open_cut() -> AsyncGenerator[Broker, None]:
        driver = RedisServer(redis.url, prefix=prefix)._driver
        clock.drivers.append(driver)  # type: ignore[arg-type]
        yield Server(cut(driver))

    report = await check_broker(open_cut, only=[check], clock=clock, cut=cut)
    assert set(report.skipped.values()) <= {"needs leases=connection"}
