"""The memory broker under the virtual clock, held to everything the port promises."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from trio.testing import MockClock

from repid import InMemoryServer
from repid.ports import Broker
from repid.testing import CHECKS, Check, check_broker

SKIPPED_FOR = {"needs dead_ttl", "needs wall_clock", "needs another, durable", "needs another, shared"}


@asynccontextmanager
async def open_broker() -> AsyncGenerator[Broker, None]:
    yield InMemoryServer()


@asynccontextmanager
async def open_forgetful() -> AsyncGenerator[Broker, None]:
    yield InMemoryServer(dead_ttl=600)


async def test_the_memory_broker_with_a_time_for_dead_letters(autojump_clock: MockClock) -> None:
    checks = [check for check in CHECKS if "dead_ttl" in check.needs]
    report = await check_broker(open_forgetful, only=checks)
    assert report.passed == tuple(check.name for check in checks) != ()


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_the_memory_broker(check: Check, autojump_clock: MockClock) -> None:
    report = await check_broker(open_broker, only=[check])
    for reason in report.skipped.values():
        assert reason in SKIPPED_FOR or reason.startswith(("needs not ", "needs cut"))
        pytest.skip(reason)
