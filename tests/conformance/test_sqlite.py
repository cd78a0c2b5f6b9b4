"""The SQLite broker on a real file, with a clock that can be moved, held to everything the port promises."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from repid import Server
from repid.brokers.sqlite import SQLiteServer
from repid.brokers.sqlite.clock import MICRO, Clock
from repid.ports import Broker
from repid.testing import CHECKS, Check, Cut, check_broker


class MovableClock(Clock):
    """The real clocks, moved forward and stepped by order."""

    def __init__(self) -> None:
        super().__init__()
        self._passed = 0
        self._stepped = 0

    def wall(self) -> int:
        return super().wall() + self._passed + self._stepped

    def boot(self) -> int:
        return super().boot() + self._passed

    def advance(self, seconds: float) -> None:
        self._passed += round(seconds * MICRO)

    def step_wall(self, seconds: float) -> None:
        self._stepped += round(seconds * MICRO)


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_the_sqlite_broker(check: Check, tmp_path: Path) -> None:
    clock = MovableClock()
    path = tmp_path / "repid.db"

    @asynccontextmanager
    async def open_broker() -> AsyncGenerator[Broker, None]:
        yield SQLiteServer(path, clock=clock)

    report = await check_broker(
        open_broker, only=[check], clock=clock, another=lambda _: SQLiteServer(path, clock=clock)
    )
    assert all(reason.startswith(("needs not ", "needs cut", "needs dead_ttl")) for reason in report.skipped.values())


async def test_the_sqlite_broker_with_a_time_for_dead_letters(tmp_path: Path) -> None:
    clock = MovableClock()

    @asynccontextmanager
    async def open_broker() -> AsyncGenerator[Broker, None]:
        yield SQLiteServer(tmp_path / "repid.db", clock=clock, dead_ttl=600)

    checks = [check for check in CHECKS if "dead_ttl" in check.needs]
    report = await check_broker(open_broker, only=checks, clock=clock)
    assert report.passed == tuple(check.name for check in checks) != ()


@pytest.mark.parametrize("check", [check for check in CHECKS if "cut" in check.needs], ids=str)
async def test_the_sqlite_engine_behind_a_link_that_breaks(check: Check, tmp_path: Path) -> None:
    clock, cut = MovableClock(), Cut()

    @asynccontextmanager
    async def open_cut() -> AsyncGenerator[Broker, None]:
        yield Server(cut(SQLiteServer(tmp_path / "repid.db", clock=clock)._driver))

    report = await check_broker(open_cut, only=[check], clock=clock, cut=cut)
    assert set(report.skipped.values()) <= {"needs leases=connection"}
