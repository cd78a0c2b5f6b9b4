"""A broker with one defect fails the suite, and the check that was made for it is among those that say so."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import defects
import pytest
from trio.testing import MockClock

from repid.ports import Broker
from repid.testing import BrokerFailure, check_broker

CAUGHT_BY: dict[type[defects.BrokenServer], str] = {
    defects.AcceptsBeforeItStores: "what_publish_accepted_is_there_when_it_returns",
    defects.AcceptsDuplicates: "concurrent_publishers_do_not_disturb_each_other",
    defects.LetsADuplicateSpoilTheBatch: "a_refused_message_does_not_harm_its_neighbours",
    defects.FreesAnIdAtItsLease: "a_live_id_is_refused_in_every_queue",
    defects.PublishesOneByOne: "a_cancelled_publish_published_nothing",
    defects.IgnoresTtl: "a_message_past_its_ttl_is_dead",
    defects.IgnoresPriority: "high_goes_before_medium_before_low",
    defects.IgnoresDelay: "a_delayed_message_is_scheduled_until_it_is_due",
    defects.ForgetsOptions: "an_envelope_arrives_as_it_was_sent",
    defects.LosesACancelledClaim: "a_cancelled_receive_loses_nothing",
    defects.ForgetsALease: "an_expired_lease_is_rescued_by_anybody",
    defects.WaitsForPublishersOnly: "a_waiting_receive_is_woken_when_a_message_is_due",
    defects.RescuesLiveLeases: "a_live_lease_is_not_rescued",
    defects.RescuesNobody: "an_expired_lease_is_rescued_by_anybody",
    defects.LiesAboutExtending: "extend_tells_what_is_lost",
    defects.ExtendsNothing: "an_extended_lease_starts_anew",
    defects.IgnoresTheFence: "a_stale_lease_settles_nothing",
    defects.LosesTheOutbox: "an_outbox_is_published_with_every_disposition",
    defects.PublishesARefusedOutbox: "a_stale_lease_settles_nothing",
    defects.StoresARefusedResult: "a_refused_settlement_stores_no_result",
    defects.LosesResults: "a_settlement_stores_its_result",
    defects.SettlesInTwoSteps: "a_cancelled_settle_did_all_or_nothing",
    defects.ChargesReleases: "a_retry_uses_an_attempt_and_a_release_does_not",
    defects.RetriesForFree: "a_retry_uses_an_attempt_and_a_release_does_not",
    defects.CountsLeasedAsReady: "counts_tell_what_browse_shows",
    defects.FlushesLeases: "flush_removes_what_waits",
    defects.IgnoresBrowseLimits: "browse_keeps_its_limit_and_the_order_of_handling",
    defects.PausesInNameOnly: "a_paused_queue_hands_out_nothing",
    defects.ForgetsToTellTheRun: "cancelling_a_run_reaches_the_consumer_that_has_it",
    defects.RetriesTheCancelled: "a_cancelled_message_is_never_made_ready_again",
    defects.KeepsResultsForEver: "a_result_expires",
    defects.KeepsNoProgress: "watch_shows_progress_and_cancelling",
    defects.TicksTwice: "one_of_many_tickers_fires",
    defects.NeverSkips: "a_tick_is_skipped_while_the_former_message_lives",
}


async def failures(server: type[defects.BrokenServer]) -> dict[str, BrokerFailure]:
    @asynccontextmanager
    async def open_broker() -> AsyncGenerator[Broker, None]:
        yield server()

    try:
        await check_broker(open_broker)
    except ExceptionGroup as group:
        return {failure.check: failure for failure in group.exceptions if isinstance(failure, BrokerFailure)}
    return {}


async def test_without_a_defect_the_suite_passes(autojump_clock: MockClock) -> None:
    assert await failures(defects.BrokenServer) == {}


@pytest.mark.parametrize("defect", CAUGHT_BY, ids=lambda defect: defect.__name__)
async def test_a_defect_is_caught(defect: type[defects.BrokenServer], autojump_clock: MockClock) -> None:
    failure = (await failures(defect))[CAUGHT_BY[defect]]
    assert failure.expected != failure.actual  # it was caught doing something wrong, not raising
