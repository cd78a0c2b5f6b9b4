"""A memory driver with one defect fails the suite, in the check that was made for it, behind a link that can be cut."""

from __future__ import annotations

import pickle
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace
from trio.testing import MockClock

from repid import Server
from repid.brokers.memory.driver import MemoryDriver
from repid.delivery import Delivery
from repid.ports import Broker, BrowsedMessage, Category, LeaseEvent
from repid.testing import CHECKS, BrokerFailure, Cut, check_broker


class TellsEachCancellationOnce(MemoryDriver):
    async def events(self, consumer: str) -> list[LeaseEvent]:
        events = await super().events(consumer)
        self._subscriptions[consumer].requests.clear()
        return events


class KeepsTheDead(MemoryDriver):
    def __init__(self, lease_timeout: float, dead_ttl: float | None = None) -> None:
        super().__init__(lease_timeout)
        self.capabilities = replace(self.capabilities, dead_ttl=dead_ttl)


class ForgetsTheDeadAtOnce(MemoryDriver):
    def __init__(self, lease_timeout: float, dead_ttl: float | None = None) -> None:
        super().__init__(lease_timeout, 0.5 * (dead_ttl or 0))
        self.capabilities = replace(self.capabilities, dead_ttl=dead_ttl)


class DatesTheLeaseFromItsExtension(MemoryDriver):
    async def extend(self, consumer: str, deliveries: Sequence[Delivery]) -> list[bool]:
        answers = await super().extend(consumer, deliveries)
        for channel in self.store.channels.values():
            for record in channel.leases.values():
                record.place = replace(record.place, since=self.store._now)  # type: ignore[type-var]  # it is a lease
        return answers


class DatesNothing(MemoryDriver):
    async def browse(self, queue: str, category: Category, limit: int, after: str | None) -> list[BrowsedMessage]:
        shown = await super().browse(queue, category, limit, after)
        return [replace(one, enqueued_at=None) for one in shown]


CAUGHT_BY: dict[type[MemoryDriver], str] = {
    TellsEachCancellationOnce: "a_cancellation_whose_answer_was_lost_is_told",
    KeepsTheDead: "dead_letters_go_when_their_time_is_over",
    ForgetsTheDeadAtOnce: "dead_letters_go_when_their_time_is_over",
    DatesTheLeaseFromItsExtension: "browsed_messages_tell_since_when",
    DatesNothing: "browsed_messages_tell_since_when",
}


@pytest.mark.parametrize("defect", [MemoryDriver, *CAUGHT_BY], ids=lambda defect: defect.__name__)
async def test_a_defect_of_a_driver_is_caught(defect: type[MemoryDriver], autojump_clock: MockClock) -> None:
    cut = Cut()

    @asynccontextmanager
    async def open_server() -> AsyncGenerator[Broker, None]:
        yield Server(cut(defect(60.0, 600.0)))

    if defect is MemoryDriver:
        report = await check_broker(open_server, only=set(CAUGHT_BY.values()), cut=cut)
        assert not report.skipped
        return
    with pytest.RaisesGroup(BrokerFailure):
        await check_broker(open_server, only=[CAUGHT_BY[defect]], cut=cut)


def test_the_failure_of_a_check_survives_being_pickled() -> None:
    failure = BrokerFailure(CHECKS[0], ValueError("no"))
    again = pickle.loads(pickle.dumps(failure))
    assert (type(again), str(again), again.check, again.what) == (
        BrokerFailure,
        str(failure),
        CHECKS[0].name,
        "ValueError: no",
    )
