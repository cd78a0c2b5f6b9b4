"""A modest driver with one defect fails its profile, in the check that was made for it: no roles are needed to see it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from modest_driver import ModestDriver, Stored
from msgspec.structs import replace
from trio.testing import MockClock

from repid import BrokerRefused, Envelope, Server
from repid.delivery import ACK, Delivery, Release, Retry, Settlement
from repid.ports import SETTLED, AtMost, Broker, Claimed, News, Topics, Verdict
from repid.testing import BrokerFailure, Cut, check_broker


class HandsOutTwice(ModestDriver):
    def _lease(self, stored: Stored) -> Delivery:
        delivery = super()._lease(stored)
        if stored.envelope.id == "m3" and delivery.token < 100:
            self._put([stored])
        return delivery


class ForgetsAMessage(ModestDriver):
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        await super().publish(envelopes[:9])
        return [None for _ in envelopes]


class LastInFirstOut(ModestDriver):
    async def claim(self, consumer: str, limit: int, at_most: AtMost) -> Claimed:
        self.ready.reverse()
        return await super().claim(consumer, limit, at_most)


class RetriesForFree(ModestDriver):
    def _settle(self, settlement: Settlement) -> Verdict:
        if isinstance(settlement.disposition, Retry):
            settlement = Settlement(settlement.delivery, Release(), settlement.outbox)
        return super()._settle(settlement)


class IgnoresTheFence(ModestDriver):
    def _settle(self, settlement: Settlement) -> Verdict:
        super()._settle(settlement)
        return SETTLED


class PublishesARefusedOutbox(ModestDriver):
    def _settle(self, settlement: Settlement) -> Verdict:
        for envelope in settlement.outbox:
            self.queues.add(envelope.queue)
            self._add(envelope)
        return super()._settle(Settlement(settlement.delivery, settlement.disposition))


class LosesTheOutbox(ModestDriver):
    def _settle(self, settlement: Settlement) -> Verdict:
        return super()._settle(Settlement(settlement.delivery, settlement.disposition))


class CountsNoLoss(ModestDriver):
    async def rescue(self) -> int:
        found = await super().rescue()
        for stored in self.ready:
            stored.lost = 0
        return found


class RescuesLiveLeases(ModestDriver):
    async def rescue(self) -> int:
        for stored in self.leased.values():
            stored.lease_ends -= 0.5 * self.lease_timeout
        return await super().rescue()


class ExtendsNothing(ModestDriver):
    async def extend(self, consumer: str, deliveries: Sequence[Delivery]) -> list[bool]:
        return [delivery.token in self.leased for delivery in deliveries]


class ReleasesWithItsConsumer(ModestDriver):
    async def unsubscribe(self, consumer: str) -> None:
        await super().unsubscribe(consumer)
        leased, self.leased = self.leased, {}
        self._put(leased.values())


class TellsNoNews(ModestDriver):
    async def news(self, wait: float) -> News | None:
        await trio.sleep(wait)
        return None


class ConsumesWhatIsNotThere(ModestDriver):
    async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
        self._consumers[consumer] = frozenset(queues)


class PublishesInTwoSteps(ModestDriver):
    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        half = await super().publish(envelopes[:1])
        if envelopes and envelopes[0].id.endswith("a"):
            raise BrokerRefused("half of it is done")
        return half + await super().publish(envelopes[1:])


class AcknowledgesNothing(ModestDriver):
    def _settle(self, settlement: Settlement) -> Verdict:
        stored = self.leased.get(settlement.delivery.token)
        verdict = super()._settle(settlement)
        if stored is not None and settlement.disposition is ACK:
            self._put([stored])
        return verdict


CAUGHT_BY: dict[type[ModestDriver], str] = {
    HandsOutTwice: "what_was_accepted_is_handed_out_once",
    ForgetsAMessage: "what_was_accepted_is_handed_out_once",
    AcknowledgesNothing: "what_was_accepted_is_handed_out_once",
    LastInFirstOut: "the_order_of_sending_is_the_order_of_receiving",
    RetriesForFree: "a_retry_counts_and_a_release_does_not",
    IgnoresTheFence: "a_stale_verdict_is_refused",
    PublishesARefusedOutbox: "a_stale_verdict_is_refused",
    LosesTheOutbox: "an_outbox_goes_with_its_settlement",
    CountsNoLoss: "a_lost_lease_is_handed_out_again",
    RescuesLiveLeases: "a_lost_lease_is_handed_out_again",
    ExtendsNothing: "a_lost_lease_is_handed_out_again",
    ReleasesWithItsConsumer: "closing_a_consumer_releases_nothing_that_was_handed_over",
    TellsNoNews: "whatever_makes_a_message_ready_wakes_who_waits",
    ConsumesWhatIsNotThere: "only_declared_queues_are_published_to_and_consumed",
    PublishesInTwoSteps: "a_cancelled_publish_is_all_or_nothing",
}


@pytest.mark.parametrize("defect", CAUGHT_BY, ids=lambda defect: defect.__name__)
async def test_a_defect_of_a_modest_driver_is_caught(defect: type[ModestDriver], autojump_clock: MockClock) -> None:
    @asynccontextmanager
    async def open_server() -> AsyncGenerator[Broker, None]:
        yield Server(defect())

    with pytest.RaisesGroup(BrokerFailure):
        await check_broker(open_server, only=[CAUGHT_BY[defect]])


class SharesItsStorage(ModestDriver):
    """One client of several of one storage. Whatever makes a message ready wakes all of them."""

    capabilities = replace(ModestDriver.capabilities, shared=True)

    def __init__(self, first: SharesItsStorage | None = None) -> None:
        super().__init__()
        self.clients: list[SharesItsStorage] = [] if first is None else first.clients
        self.clients.append(self)
        if first is not None:
            self.queues, self.ready, self.leased = first.queues, first.ready, first.leased
            self._numbers = first._numbers

    def _put(self, messages: Iterable[Stored]) -> None:
        super()._put(messages)
        self.wake()

    def wake(self) -> None:
        for client in self.clients:
            client._has_news.set()


class WakesWhoeverHasFoundNothing(SharesItsStorage):
    """It wakes the client whose claim was the first one to find nothing, whether it waits or not."""

    def __init__(self, first: WakesWhoeverHasFoundNothing | None = None) -> None:
        super().__init__(first)
        self.asleep: list[SharesItsStorage] = [] if first is None else first.asleep

    async def claim(self, consumer: str, limit: int, at_most: AtMost) -> Claimed:
        claimed = await super().claim(consumer, limit, at_most)
        if not claimed.deliveries and self not in self.asleep:
            self.asleep.append(self)
        return claimed

    def wake(self) -> None:
        if self.asleep:
            self.asleep.pop(0)._has_news.set()


@pytest.mark.parametrize("driver", [SharesItsStorage, WakesWhoeverHasFoundNothing], ids=lambda driver: driver.__name__)
async def test_a_wake_up_that_is_spent_on_who_waits_no_more_is_caught(
    driver: type[SharesItsStorage], autojump_clock: MockClock
) -> None:
    drivers: list[SharesItsStorage] = []

    @asynccontextmanager
    async def open_server() -> AsyncGenerator[Broker, None]:
        drivers.append(driver())
        yield Server(drivers[-1])

    def another(_: Broker) -> Server:
        return Server(driver(drivers[-1]))

    wanted = "a_client_that_has_stopped_waiting_is_not_woken_in_place_of_another"
    if driver is SharesItsStorage:
        report = await check_broker(open_server, only=[wanted], another=another)
        assert report.passed == (wanted,)
        return
    with pytest.RaisesGroup(BrokerFailure):
        await check_broker(open_server, only=[wanted], another=another)


class ForgetsItsConsumers(Server):
    """A door that does not subscribe its consumers again."""

    async def _subscribe_again(self) -> None:
        self._hub.tell_all()


async def test_a_door_that_does_not_subscribe_again_is_caught(autojump_clock: MockClock) -> None:
    cut = Cut()

    @asynccontextmanager
    async def open_server() -> AsyncGenerator[Broker, None]:
        yield ForgetsItsConsumers(cut(ModestDriver()))

    with pytest.RaisesGroup(BrokerFailure):
        await check_broker(open_server, only=["a_consumer_survives_a_broken_link"], cut=cut)
