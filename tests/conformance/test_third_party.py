"""How somebody else's broker is tried: here a trivial one, a wrapper that logs what is published."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
from trio.testing import MockClock

from repid import BrokerRefused, ConfigurationError, Envelope, InMemoryServer
from repid.ports import Broker, Counts
from repid.testing import CHECKS, BrokerFailure, check_broker


class LoggingBroker(InMemoryServer):
    def __init__(self, *, lease_timeout: float = 60) -> None:
        super().__init__(lease_timeout=lease_timeout)
        self.log: list[str] = []

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        outcomes = await super().publish(envelopes)
        self.log += [envelope.id for envelope in envelopes]
        return outcomes


@asynccontextmanager
async def open_broker() -> AsyncGenerator[Broker, None]:
    """A new and empty broker, not connected yet; after the block is the place to clean up."""
    yield LoggingBroker(lease_timeout=0.2)


async def test_a_broker_on_trios_clock_is_tried_in_virtual_time(autojump_clock: MockClock) -> None:
    report = await check_broker(open_broker)
    assert len(report.passed) + len(report.skipped) == len(CHECKS)
    assert report.skipped["two_clients_share_one_broker"] == "needs another, shared"


async def test_any_other_broker_is_tried_in_real_time() -> None:
    some = [
        "a_delayed_message_is_scheduled_until_it_is_due",
        "an_expired_lease_is_rescued_by_anybody",
        "nothing_starves",
    ]
    report = await check_broker(open_broker, only=some)
    assert report.passed == tuple(some[:2])
    assert report.skipped == {"nothing_starves": "needs clock"}


async def test_long_leases_need_a_clock() -> None:
    @asynccontextmanager
    async def open_patient() -> AsyncGenerator[Broker, None]:
        yield LoggingBroker(lease_timeout=60)

    report = await check_broker(open_patient, only=["an_expired_lease_is_rescued_by_anybody"])
    assert list(report.skipped.values()) == [
        "leases of 60.0 s outlast our patience: open the broker with at most 5, or a clock"
    ]


async def test_what_is_not_claimed_is_skipped_and_listed(autojump_clock: MockClock) -> None:
    modest = msgspec.structs.replace(InMemoryServer().capabilities, filters_topics=False, outbox="publish_first")
    report = await check_broker(open_broker, modest)
    assert report.skipped["strays_go_to_whoever_is_there"] == "needs filters_topics"
    assert report.skipped["a_cancelled_settle_did_all_or_nothing"] == "needs outbox=atomic"


class ForgetfulBroker(InMemoryServer):
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        return [None for _ in envelopes]


async def test_a_failure_names_the_check_and_what_differed(autojump_clock: MockClock) -> None:
    @asynccontextmanager
    async def open_forgetful() -> AsyncGenerator[Broker, None]:
        yield ForgetfulBroker()

    with pytest.raises(ExceptionGroup, match="1 checks failed") as info:
        await check_broker(open_forgetful, only=["declaring_is_idempotent"])
    [failure] = info.value.exceptions
    assert isinstance(failure, BrokerFailure)
    assert failure.check == "declaring_is_idempotent"
    assert str(failure.expected) == str(Counts(ready=1))
    assert str(failure.actual) == str(Counts())
    assert "the counts after declaring it again: expected Counts(ready=1" in str(failure)


async def test_an_unknown_check_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no check 'nothing_starve' .did you mean 'nothing_starves'"):
        await check_broker(open_broker, only=["nothing_starve"])
