"""A driver of 150 lines that claims little, held to everything that every server promises, and to what it refuses."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from modest_driver import ModestDriver
from trio.testing import MockClock

from repid import InMemoryServer, Server
from repid.ports import Broker
from repid.testing import CHECKS, Check, check_broker

LEAST = 45
"""Checks that the modest profile has at least."""


@asynccontextmanager
async def open_modest() -> AsyncGenerator[Broker, None]:
    yield Server(ModestDriver())


@asynccontextmanager
async def open_with_state() -> AsyncGenerator[Broker, None]:
    yield Server(ModestDriver(), state=InMemoryServer())


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_a_modest_server(check: Check, autojump_clock: MockClock) -> None:
    report = await check_broker(open_modest, only=[check])
    for reason in report.skipped.values():
        assert reason.startswith("needs "), reason


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_a_modest_server_with_the_help_of_another(check: Check, autojump_clock: MockClock) -> None:
    await check_broker(open_with_state, only=[check])


async def test_the_modest_profile_proves_the_main_promises(autojump_clock: MockClock) -> None:
    report = await check_broker(open_modest)
    assert len(report.passed) >= LEAST
    assert {"results_are_refused", "what_was_accepted_is_handed_out_once"} <= set(report.passed)
    with_state = await check_broker(open_with_state, only=["a_result_expires", "results_are_refused"])
    assert with_state.passed == ("a_result_expires",)
