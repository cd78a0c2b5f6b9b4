"""A driver of 150 lines that claims little, held to everything that every server promises, and to what it refuses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager

import pytest
from modest_driver import ModestDriver
from msgspec.structs import replace
from trio.testing import MockClock

from repid import BrokerRefused, DuplicateId, Envelope, InMemoryServer, Server
from repid.ports import Broker
from repid.testing import CHECKS, Check, Cut, check_broker

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


# Links that break


class UniqueDriver(ModestDriver):
    """As the modest one, with unique ids."""

    capabilities = replace(ModestDriver.capabilities, unique_ids="live")

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        live = {stored.envelope.id for stored in [*self.ready, *self.leased.values()]}
        return [
            DuplicateId(envelope.id, envelope.queue)
            if envelope.id in live
            else (await super(UniqueDriver, self).publish([envelope]))[0]
            for envelope in envelopes
        ]


class BoundDriver(ModestDriver):
    """As the modest one, with leases that end with the link: a new one takes back what was leased in the one before."""

    capabilities = replace(ModestDriver.capabilities, leases="connection")

    @asynccontextmanager
    async def link(self, watched: Collection[str]) -> AsyncGenerator[None, None]:
        leased, self.leased = self.leased, {}
        self._put(leased.values())
        async with super().link(watched):
            yield


CUT_CHECKS = [check for check in CHECKS if "cut" in check.needs]


@pytest.mark.parametrize("driver", [ModestDriver, UniqueDriver, BoundDriver])
@pytest.mark.parametrize("check", CUT_CHECKS, ids=str)
async def test_a_link_that_breaks(check: Check, driver: type[ModestDriver], autojump_clock: MockClock) -> None:
    cut = Cut()

    @asynccontextmanager
    async def open_cut() -> AsyncGenerator[Broker, None]:
        yield Server(cut(driver()))

    report = await check_broker(open_cut, only=[check], cut=cut)
    passed_by = {"unique_ids": UniqueDriver, "leases=connection": BoundDriver}
    if report.skipped and driver in [passed_by.get(need) for need in check.needs]:
        raise AssertionError(report.skipped)
