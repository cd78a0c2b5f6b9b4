"""The table of fates, row by row, and what holds for all of it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repid import InternalError
from repid.delivery import (
    ACK,
    KEEP,
    MODES,
    ON_PLAIN_RETURN,
    VERBS,
    Ack,
    Cancel,
    CancelRequested,
    Crowded,
    DeadLetter,
    Disposition,
    Event,
    Expired,
    Failure,
    Keep,
    LeaseExpired,
    PayloadRefused,
    Phase,
    Raised,
    Reason,
    Release,
    Retry,
    Returned,
    Starting,
    Stopping,
    Terms,
    TimedOut,
    Unrouted,
    decide,
    disposition_for,
    disposition_on,
    unless_cancelled,
    unrouted_delay,
    with_failure,
)
from repid.delivery.fate import FATES

FAILURE = Failure("ValueError", "no", "Traceback …")
HELD, RUNNING, DECIDED = Phase.HELD, Phase.RUNNING, Phase.DECIDED


def terms(mode: Any = "auto", *, attempt: int = 1, retries: int = 0) -> Terms:
    return Terms(mode=mode, attempt=attempt, retries=retries, retry_delay=lambda number: 10.0 * number)


ROWS: list[tuple[Phase, Event, Terms, Disposition | Keep | None]] = [
    (HELD, Starting(), terms("ack_first"), ACK),
    (HELD, PayloadRefused(FAILURE), terms(retries=5), DeadLetter("payload", FAILURE)),
    (HELD, Unrouted(0, 0.5), terms(), Release(0.1, unrouted=True)),
    (HELD, Unrouted(10, 0.5), terms(), Release(10, unrouted=True)),
    (HELD, Unrouted(3599, 0.5), terms(), Release(30, unrouted=True)),
    (HELD, Unrouted(3600, 0.5), terms(retries=5), DeadLetter("unrouted")),
    (HELD, Crowded(0.5), terms(), Release(0.1)),
    (HELD, Expired(), terms(retries=5), DeadLetter("expired")),
    (HELD, Stopping(), terms(), Release()),
    (HELD, LeaseExpired(), terms(), None),
    (HELD, CancelRequested(), terms(retries=5), Cancel()),
    (RUNNING, Returned("whatever"), terms(), ACK),
    (RUNNING, Returned(None), terms("always_ack"), ACK),
    (RUNNING, Returned("nack"), terms("manual"), KEEP),
    (RUNNING, Returned("ack"), terms("manual_explicit"), ACK),
    (RUNNING, Returned("nack"), terms("manual_explicit"), DeadLetter("nacked")),
    (RUNNING, Returned("reject"), terms("manual_explicit"), Release(started=True)),
    (RUNNING, Returned("retry"), terms("manual_explicit", attempt=2, retries=2), Retry(20)),
    (RUNNING, Raised(FAILURE), terms(), DeadLetter("failed", FAILURE)),
    (RUNNING, Raised(FAILURE), terms(attempt=3, retries=3), Retry(30, FAILURE)),
    (RUNNING, Raised(FAILURE), terms(attempt=4, retries=3), DeadLetter("failed", FAILURE)),
    (RUNNING, Raised(FAILURE), terms("always_ack"), Ack(FAILURE)),
    (RUNNING, Raised(FAILURE), terms("manual", retries=1), Retry(10, FAILURE)),
    (RUNNING, Raised(FAILURE), terms("manual_explicit"), DeadLetter("failed", FAILURE)),
    (RUNNING, Raised(FAILURE, "ack"), terms(retries=1), Ack(FAILURE)),
    (RUNNING, Raised(FAILURE, "nack"), terms(retries=1), DeadLetter("nacked", FAILURE)),
    (RUNNING, Raised(FAILURE, "reject"), terms(retries=1), Release(started=True)),
    (RUNNING, Raised(FAILURE, "retry"), terms(retries=1), Retry(10, FAILURE)),
    (RUNNING, Raised(FAILURE, "retry"), terms(), DeadLetter("failed", FAILURE)),
    (RUNNING, Raised(FAILURE, "nack"), terms("always_ack"), DeadLetter("nacked", FAILURE)),
    (RUNNING, Raised(FAILURE, "retry"), terms("always_ack"), Ack(FAILURE)),
    (RUNNING, Raised(FAILURE, "mumble"), terms(retries=1), Retry(10, FAILURE)),
    (RUNNING, TimedOut(FAILURE), terms(), DeadLetter("failed", FAILURE)),
    (RUNNING, TimedOut(FAILURE), terms(retries=1), Retry(10, FAILURE)),
    (RUNNING, TimedOut(FAILURE), terms("always_ack"), Ack(FAILURE)),
    (RUNNING, TimedOut(FAILURE, "reject"), terms(), Release(started=True)),
    (RUNNING, Stopping(), terms(attempt=9), Release(started=True)),
    (RUNNING, LeaseExpired(), terms(), None),
    (RUNNING, CancelRequested(), terms(retries=5), Cancel()),
    (DECIDED, Returned("nack"), terms("manual_explicit"), None),
    (DECIDED, Raised(FAILURE, "nack"), terms(retries=1), None),
    (DECIDED, TimedOut(FAILURE, "nack"), terms(retries=1), None),
    (DECIDED, Stopping(), terms(), None),
    (DECIDED, LeaseExpired(), terms(), None),
    (DECIDED, CancelRequested(), terms(), None),
]


@pytest.mark.parametrize(("phase", "event", "given_terms", "expected"), ROWS, ids=lambda value: repr(value)[:60])
def test_the_fate_of_a_delivery(
    phase: Phase, event: Event, given_terms: Terms, expected: Disposition | Keep | None
) -> None:
    assert decide(phase, event, given_terms) == expected


def test_the_rows_above_cover_the_whole_table() -> None:
    assert {(phase, type(event)) for phase, event, _, _ in ROWS} == set(FATES)


failures = st.builds(Failure, st.text(max_size=5), st.text(max_size=5))
words = st.none() | st.sampled_from([*VERBS, "mumble"])
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Returned, words | st.integers() | st.lists(st.none(), max_size=1)),
    st.builds(Raised, failures, words),
    st.builds(TimedOut, failures, words),
    st.builds(PayloadRefused, failures),
    st.builds(Unrouted, st.floats(0, 10_000), st.floats(0, 1, exclude_max=True)),
    st.builds(Crowded, st.floats(0, 1, exclude_max=True)),
    st.just(Starting()),
    st.just(Expired()),
    st.just(Stopping()),
    st.just(LeaseExpired()),
    st.just(CancelRequested()),
)
any_terms = st.builds(terms, st.sampled_from(MODES), attempt=st.integers(1, 6), retries=st.integers(0, 5))


def test_the_strategy_knows_every_event() -> None:
    assert {event for _, event in FATES} == set(get_args(Event))


@given(st.sampled_from(Phase), events, any_terms)
def test_what_is_not_in_the_table_is_our_bug_and_says_so(phase: Phase, event: Event, given_terms: Terms) -> None:
    if (phase, type(event)) in FATES:
        decide(phase, event, given_terms)
    else:
        with pytest.raises(InternalError, match=f"{type(event).__name__} cannot happen to a delivery that is"):
            decide(phase, event, given_terms)


@given(st.sampled_from(Phase), events, any_terms)
def test_a_decision_obeys_the_rules(phase: Phase, event: Event, given_terms: Terms) -> None:
    kind = type(event)
    if (phase, kind) not in FATES:
        return
    decision = decide(phase, event, given_terms)
    if phase is DECIDED:
        assert decision is None
    if isinstance(decision, Retry):
        assert given_terms.attempt <= given_terms.retries
        assert decision.delay == 10.0 * given_terms.attempt
        assert kind in {Raised, TimedOut, Returned}
    if isinstance(decision, Keep):
        assert (given_terms.mode, kind) == ("manual", Returned)
    if kind is Stopping and phase is not DECIDED:
        assert decision == Release(started=phase is RUNNING)
    if kind is LeaseExpired:
        assert decision is None
    if decision is None:
        assert phase is DECIDED or kind is LeaseExpired
    if isinstance(decision, DeadLetter) and kind in {Raised, TimedOut}:
        assert decision.reason == ("nacked" if getattr(event, "word", None) == "nack" else "failed")
        assert decision.failure == getattr(event, "failure", None)


@given(st.text(), any_terms)
def test_only_four_words_mean_anything(word: str, given_terms: Terms) -> None:
    if word not in VERBS:
        assert disposition_for(word, given_terms) is None


def test_a_delay_that_is_given_counts_instead_of_the_policy() -> None:
    assert disposition_for("retry", terms(retries=1), delay=0.5) == Retry(0.5)
    assert disposition_for("retry", terms(retries=1)) == Retry(10)
    assert disposition_for("retry", terms(retries=0), delay=0.5) is None
    assert disposition_for("reject", terms(), delay=0.5) == Release(0.5, started=True)


def test_the_decision_made_beforehand_is_the_one_of_the_table() -> None:
    assert decide(RUNNING, Returned("whatever"), terms("auto")) is ON_PLAIN_RETURN


@pytest.mark.parametrize("event", [Raised(FAILURE), Returned()])
@pytest.mark.parametrize("phase", [HELD, DECIDED])
def test_what_depends_on_more_than_the_event_is_not_decided_by_it_alone(phase: Phase, event: Event) -> None:
    with pytest.raises(InternalError):
        disposition_on(phase, event)


dispositions: st.SearchStrategy[Disposition] = st.one_of(
    st.builds(Ack, st.none() | failures),
    st.builds(Retry, st.floats(0, 100), st.none() | failures),
    st.builds(Release, st.floats(0, 100), st.booleans(), st.booleans()),
    st.builds(DeadLetter, st.sampled_from(get_args(Reason)), st.none() | failures),
    st.just(Cancel()),
)


@given(dispositions, st.booleans())
def test_a_cancelled_message_is_never_run_again(disposition: Disposition, cancelled: bool) -> None:
    decision = unless_cancelled(disposition, cancelled=cancelled)
    if cancelled and isinstance(disposition, Retry | Release):
        assert decision == Cancel()
    else:
        assert decision is disposition


@given(dispositions)
def test_a_verdict_that_cannot_be_written_becomes_a_failure_that_says_so(disposition: Disposition) -> None:
    decision = with_failure(disposition, FAILURE)
    assert isinstance(decision, Retry | DeadLetter)
    assert decision.failure == FAILURE
    assert isinstance(decision, Retry) is isinstance(disposition, Retry)
    if isinstance(disposition, Retry | DeadLetter):
        assert decision == replace(disposition, failure=FAILURE)


@given(st.floats(0, 1e6), st.floats(0, 1, exclude_max=True))
def test_an_unrouted_message_is_looked_at_again_within_bounds(age: float, chance: float) -> None:
    assert 0.075 <= unrouted_delay(age, chance) <= 37.5


@pytest.mark.parametrize("word", ["nak", 5, None])
def test_a_wrong_word_of_manual_explicit_is_a_failure_that_names_it(word: object) -> None:
    decision = decide(RUNNING, Returned(word), terms("manual_explicit"))
    assert isinstance(decision, DeadLetter)
    assert decision.failure is not None
    assert repr(word) in decision.failure.text
