"""A broker with one defect fails the suite, and the check that was made for it is among those that say so."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import following_defects
import message_defects
import pytest
import verdict_defects
from broken import BrokenServer
from trio.testing import MockClock

from repid.ports import Broker
from repid.testing import BrokerFailure, check_broker

CAUGHT_BY: dict[type[BrokenServer], str] = {
    message_defects.AcceptsBeforeItStores: "what_publish_accepted_is_there_when_it_returns",
    message_defects.AcceptsDuplicates: "concurrent_publishers_do_not_disturb_each_other",
    message_defects.LetsADuplicateSpoilTheBatch: "a_refused_message_does_not_harm_its_neighbours",
    message_defects.FreesAnIdAtItsLease: "a_live_id_is_refused_in_every_queue",
    message_defects.PublishesOneByOne: "a_cancelled_publish_published_nothing",
    message_defects.PublishesBackwards: "a_batch_keeps_its_order",
    message_defects.KeepsOldResults: "publishing_an_id_again_removes_its_old_result",
    message_defects.IgnoresTtl: "a_message_past_its_ttl_is_dead",
    message_defects.IgnoresPriority: "high_goes_before_medium_before_low",
    message_defects.IgnoresDelay: "a_delayed_message_is_scheduled_until_it_is_due",
    message_defects.ForgetsOptions: "an_envelope_arrives_as_it_was_sent",
    message_defects.LosesACancelledClaim: "a_cancelled_receive_loses_nothing",
    message_defects.ForgetsALease: "an_expired_lease_is_rescued_by_anybody",
    message_defects.WaitsForPublishersOnly: "a_waiting_receive_is_woken_when_a_message_is_due",
    message_defects.RescuesLiveLeases: "a_live_lease_is_not_rescued",
    message_defects.RescuesNobody: "an_expired_lease_is_rescued_by_anybody",
    message_defects.LiesAboutExtending: "extend_tells_what_is_lost",
    message_defects.ExtendsNothing: "an_extended_lease_starts_anew",
    message_defects.HandsBackWhatWasReceived: "a_closed_consumer_keeps_only_what_it_handed_over",
    message_defects.IgnoresTopics: "a_consumer_gets_its_topics_and_not_those_of_others",
    message_defects.IgnoresAtMost: "at_most_limits_a_topic_of_a_queue",
    message_defects.ForgetsBetweenConnections: "messages_outlive_a_connection",
    message_defects.KnowsOnlyTrio: "every_call_may_be_made_under_asyncio",
    verdict_defects.IgnoresTheFence: "a_stale_lease_settles_nothing",
    verdict_defects.LosesTheOutbox: "an_outbox_is_published_with_every_disposition",
    verdict_defects.PublishesARefusedOutbox: "a_stale_lease_settles_nothing",
    verdict_defects.StoresARefusedResult: "a_refused_settlement_stores_no_result",
    verdict_defects.LosesResults: "a_settlement_stores_its_result",
    verdict_defects.SettlesInTwoSteps: "a_cancelled_settle_did_all_or_nothing",
    verdict_defects.FreesIdsTooEarly: "an_outbox_cannot_use_an_id_that_is_settled_behind_it",
    verdict_defects.MixesUpVerdicts: "verdicts_come_in_the_order_of_the_settlements",
    verdict_defects.ChargesReleases: "a_retry_uses_an_attempt_and_a_release_does_not",
    verdict_defects.KeepsTheTtlOfWhatWasStarted: "a_start_ends_the_ttl",
    verdict_defects.RetriesForFree: "a_retry_uses_an_attempt_and_a_release_does_not",
    verdict_defects.CountsLeasedAsReady: "counts_tell_what_browse_shows",
    verdict_defects.FlushesLeases: "flush_removes_what_waits",
    verdict_defects.DeletesWhatIsAlive: "dead_messages_can_be_removed_for_good",
    verdict_defects.IgnoresBrowseLimits: "browse_keeps_its_limit_and_the_order_of_handling",
    verdict_defects.PausesInNameOnly: "a_paused_queue_hands_out_nothing",
    verdict_defects.ForgetsToTellTheRun: "cancelling_a_run_reaches_the_consumer_that_has_it",
    verdict_defects.RetriesTheCancelled: "a_cancelled_message_is_never_made_ready_again",
    verdict_defects.KeepsResultsForEver: "a_result_expires",
    verdict_defects.KeepsNoProgress: "watch_shows_progress_and_cancelling",
    verdict_defects.WatchesImpatiently: "watch_shows_each_state",
    following_defects.TellsAnEndAgain: "each_end_is_told_once_and_with_its_result",
    following_defects.ForgetsResults: "each_end_is_told_once_and_with_its_result",
    following_defects.TakesALeaseForAnEnd: "what_goes_on_is_no_end",
    following_defects.TellsOneRequestsWorth: "any_number_that_ends_at_once_is_told",
    following_defects.IsDeafWhileItWaits: "who_waits_is_told_of_what_another_task_adds",
    following_defects.CannotBeWoken: "a_task_that_follows_can_be_woken",
    following_defects.ForgetsAWakeThatCameEarly: "a_task_that_follows_can_be_woken",
    following_defects.LosesACancelledEnd: "cancelling_who_follows_loses_no_end",
    following_defects.SleepsOverATtl: "an_end_that_comes_by_itself_is_told",
    following_defects.WaitsOnWithoutAConnection: "following_ends_with_the_connection",
    verdict_defects.ForgetsThatReadersGo: "open_consumers_are_readers",
    verdict_defects.TellsQueuesAlone: "open_consumers_are_readers",
    verdict_defects.TellsReadersThatAreAlikeOnce: "open_consumers_are_readers",
    verdict_defects.TicksTwice: "one_of_many_tickers_fires",
    verdict_defects.ReplacesBlindly: "a_schedule_is_replaced_only_if_nothing_has_changed",
    verdict_defects.NeverSkips: "a_tick_is_skipped_while_the_former_message_lives",
}


async def failures(server: type[BrokenServer]) -> dict[str, BrokerFailure]:
    @asynccontextmanager
    async def open_broker() -> AsyncGenerator[Broker, None]:
        yield server()

    try:
        await check_broker(open_broker)
    except ExceptionGroup as group:
        return {failure.check: failure for failure in group.exceptions if isinstance(failure, BrokerFailure)}
    return {}


async def test_without_a_defect_the_suite_passes(autojump_clock: MockClock) -> None:
    assert await failures(BrokenServer) == {}


@pytest.mark.parametrize("defect", CAUGHT_BY, ids=lambda defect: defect.__name__)
async def test_a_defect_is_caught(defect: type[BrokenServer], autojump_clock: MockClock) -> None:
    failure = (await failures(defect))[CAUGHT_BY[defect]]
    assert failure.expected != failure.actual  # it was caught doing something wrong, not raising
