"""The rules for stored messages, one by one."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repid.delivery import MOST_LOST, Ack, Cancel, DeadLetter, Disposition, Failure, Reason, Release, Retry
from repid.delivery.results import result_state
from repid.delivery.shelf import (
    CANCELLED,
    EXPIRED,
    REMOVED,
    End,
    Shelved,
    Stored,
    after_cancellation_request,
    after_lost_lease,
    after_publishing,
    after_reviving,
    after_start,
    after_verdict,
    has_expired,
    is_stray,
    result_of_end,
    takes,
)
from repid.envelope import NO_OPTIONS, Options, PrioritiesT

NOW = 1000.0
FAILURE = Failure("ValueError", "no")
POISONED = Failure("WorkerLost", "ten times")
PLAIN = Stored(rank=900.0, offset=60.0)
WITH_TTL = Stored(rank=900.0, offset=60.0, expires_at=1100.0)
TOO_LATE = Stored(rank=900.0, offset=60.0, expires_at=NOW)
TO_CANCEL = Stored(rank=900.0, offset=60.0, expires_at=NOW, lost=MOST_LOST, is_cancelled=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (NO_OPTIONS, Shelved(Stored(rank=1060.0, offset=60.0), is_last=True)),
        (Options(priority=PrioritiesT.HIGH), Shelved(Stored(rank=1000.0, offset=0.0), is_last=True)),
        (Options(delay=5.0), Shelved(Stored(rank=1065.0, offset=60.0), 1005.0, is_last=True)),
        (Options(delay=-5.0), Shelved(Stored(rank=1060.0, offset=60.0), is_last=True)),
        (Options(ttl=9.0), Shelved(Stored(rank=1060.0, offset=60.0, expires_at=1009.0), is_last=True)),
        (
            Options(ttl=9.0, delay=5.0),
            Shelved(Stored(rank=1065.0, offset=60.0, expires_at=1014.0), 1005.0, is_last=True),
        ),
    ],
)
def test_where_a_new_message_goes(options: Options, expected: Shelved[float]) -> None:
    assert after_publishing(options, NOW, float) == expected


def test_a_revived_message_does_not_wait_for_its_delay_again() -> None:
    assert after_reviving(Options(ttl=9.0, delay=5.0), NOW, float) == after_publishing(Options(ttl=9.0), NOW, float)


@pytest.mark.parametrize(
    ("stored", "disposition", "expected"),
    [
        (PLAIN, Ack(), Shelved(PLAIN, end=REMOVED)),
        (PLAIN, Cancel(), Shelved(PLAIN, end=CANCELLED)),
        (PLAIN, DeadLetter("failed", FAILURE), Shelved(PLAIN, end=End("failed", FAILURE))),
        (PLAIN, Release(), Shelved(PLAIN)),
        (PLAIN, Release(7.0), Shelved(PLAIN, 1007.0)),
        (PLAIN, Release(unrouted=True), Shelved(Stored(rank=900.0, offset=60.0, unrouted_at=NOW))),
        (
            Stored(rank=900.0, offset=60.0, unrouted_at=1.0),
            Release(unrouted=True),
            Shelved(Stored(rank=900.0, offset=60.0, unrouted_at=1.0)),
        ),
        (WITH_TTL, Release(), Shelved(WITH_TTL)),
        (WITH_TTL, Release(started=True), Shelved(PLAIN)),
        (TOO_LATE, Release(), Shelved(TOO_LATE, end=EXPIRED)),
        (TOO_LATE, Release(7.0), Shelved(TOO_LATE, end=EXPIRED)),
        (TOO_LATE, Release(started=True), Shelved(PLAIN)),
        (TOO_LATE, Ack(), Shelved(TOO_LATE, end=REMOVED)),
        (
            TOO_LATE,
            Retry(7.0, FAILURE),
            Shelved(Stored(rank=1067.0, offset=60.0, attempt=2), 1007.0, is_last=True, failure=FAILURE),
        ),
        (TO_CANCEL, Retry(7.0), Shelved(TO_CANCEL, end=CANCELLED)),
        (TO_CANCEL, Release(), Shelved(TO_CANCEL, end=CANCELLED)),
        (TO_CANCEL, Ack(), Shelved(TO_CANCEL, end=REMOVED)),
        (TO_CANCEL, DeadLetter("nacked"), Shelved(TO_CANCEL, end=End("nacked"))),
    ],
)
def test_where_a_message_goes_after_its_verdict(
    stored: Stored[float], disposition: Disposition, expected: Shelved[float]
) -> None:
    assert after_verdict(stored, disposition, NOW, float) == expected


def test_a_verdict_that_was_survived_forgives_the_lost_leases() -> None:
    often_lost = Stored(rank=900.0, offset=60.0, lost=5)
    assert after_verdict(often_lost, Release(), NOW, float, survived=True) == Shelved(PLAIN)
    assert after_verdict(often_lost, Release(), NOW, float) == Shelved(often_lost)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (PLAIN, Shelved(Stored(rank=900.0, offset=60.0, lost=1))),
        (WITH_TTL, Shelved(Stored(rank=900.0, offset=60.0, expires_at=1100.0, lost=1))),
        (TOO_LATE, Shelved(Stored(rank=900.0, offset=60.0, expires_at=NOW, lost=1), end=EXPIRED)),
        (
            Stored(rank=900.0, offset=60.0, expires_at=NOW, lost=MOST_LOST - 1),
            Shelved(
                Stored(rank=900.0, offset=60.0, expires_at=NOW, lost=MOST_LOST), end=End("poison", POISONED, "dead")
            ),
        ),
        (TO_CANCEL, Shelved(TO_CANCEL, end=CANCELLED)),
    ],
)
def test_where_a_message_goes_after_a_lost_lease(stored: Stored[float], expected: Shelved[float]) -> None:
    assert after_lost_lease(stored, NOW, lambda _: POISONED) == expected


def test_a_cancellation_request_removes_what_waits_and_marks_what_is_leased() -> None:
    assert after_cancellation_request(PLAIN, leased=False) == Shelved(PLAIN, end=CANCELLED)
    marked = after_cancellation_request(PLAIN, leased=True)
    assert marked == Shelved(Stored(rank=900.0, offset=60.0, is_cancelled=True))


def test_a_start_ends_the_ttl() -> None:
    assert has_expired(TOO_LATE.expires_at, NOW)
    assert not has_expired(WITH_TTL.expires_at, NOW)
    assert after_start(TOO_LATE) == PLAIN
    assert not has_expired(after_start(TOO_LATE).expires_at, NOW)


@pytest.mark.parametrize(
    "end", [CANCELLED, EXPIRED, End("poison", POISONED, "dead"), End("payload", FAILURE, "failure")]
)
def test_the_result_of_an_end_says_what_that_of_a_verdict_would(end: End) -> None:
    result = result_of_end("m", Options(result_ttl=7.0), end)
    assert result is not None
    assert (result.id, result.failure, result.ttl) == ("m", end.failure, 7.0)
    assert result.state == result_state(Cancel() if end.reason is None else DeadLetter(end.reason))
    assert result_of_end("m", Options(store_result=False), end) is None


@given(st.sampled_from(get_args(Reason)), st.floats(0, 100))
def test_the_broker_stores_no_result_where_the_verdict_brings_one(reason: Reason, now: float) -> None:
    for disposition in (Ack(), DeadLetter(reason)):
        end = after_verdict(PLAIN, disposition, now, float).end
        assert end is not None
        assert result_of_end("m", NO_OPTIONS, end) is None


def test_a_stray_is_what_nobody_asked_for() -> None:
    assert takes(None, "a")
    assert takes(None, None)
    assert takes({"a"}, "a")
    assert not takes({"a"}, None)
    assert is_stray("b", [{"a"}, set()])
    assert not is_stray("b", [{"a"}, {"b"}])
    assert not is_stray("b", [{"a"}, None])
    assert is_stray(None, [])
