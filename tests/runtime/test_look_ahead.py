"""How much a worker claims ahead follows from what it has measured; the time is passed in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repid.runtime.limits import TRIPS_AHEAD
from repid.runtime.look_ahead import HALF_LIFE, LONGEST_TRIP, LookAhead


def test_nothing_is_claimed_ahead_before_anything_was_measured() -> None:
    assert LookAhead(1000).size == 0


def test_what_ends_during_some_round_trips_is_claimed_ahead() -> None:
    look_ahead = LookAhead(1000)
    look_ahead.learn(asked=10.0, now=10.01, is_full=True, ended=5)
    assert look_ahead.size == TRIPS_AHEAD * 5


def test_it_is_never_larger_than_the_number_of_executors() -> None:
    look_ahead = LookAhead(100)
    look_ahead.learn(asked=10.0, now=10.01, is_full=True, ended=1_000_000)
    assert look_ahead.size == 100


@pytest.mark.parametrize(
    ("is_full", "took"), [(False, 0.01), (True, LONGEST_TRIP)], ids=["it gave less", "it took long"]
)
def test_a_claim_that_waited_for_messages_teaches_nothing(is_full: bool, took: float) -> None:
    look_ahead = LookAhead(1000)
    look_ahead.learn(asked=10.0, now=10.0 + took, is_full=is_full, ended=5)
    assert look_ahead.size == 0


def test_half_of_it_is_forgotten_in_each_half_life() -> None:
    look_ahead = LookAhead(1000)
    look_ahead.learn(asked=10.0, now=10.0, is_full=True, ended=100)
    sizes = []
    for number in (1, 2, 3):
        moment = 10.0 + number * HALF_LIFE
        look_ahead.learn(asked=moment, now=moment, is_full=True, ended=0)
        sizes.append(look_ahead.size)
    assert sizes == [400, 200, 100]


def test_a_wave_that_ends_is_remembered_through_the_pause_after_it() -> None:
    look_ahead = LookAhead(1000)
    look_ahead.learn(asked=10.0, now=10.01, is_full=True, ended=50)
    look_ahead.learn(asked=10.02, now=10.03, is_full=True, ended=1)
    assert look_ahead.size > TRIPS_AHEAD * 40


def test_the_shortest_round_trip_is_remembered_and_slowly_forgotten() -> None:
    look_ahead = LookAhead(1000)
    trips = []
    for took in (0.5, 0.1, 0.9, 0.9):
        look_ahead.learn(asked=0.0, now=took, is_full=True, ended=0)
        trips.append(round(look_ahead.trip, 6))
    assert trips == [0.5, 0.1, 0.11, 0.121]


def test_runs_mostly_wait_if_more_than_half_of_those_since_the_last_time_did() -> None:
    look_ahead = LookAhead(1000)
    answers = []
    for finished, suspended in ((10, 10), (20, 15), (30, 21), (30, 22)):
        look_ahead.note_runs(finished, suspended)
        answers.append(look_ahead.runs_mostly_wait)
    assert answers == [True, False, True, True]


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100), st.booleans(), st.integers(0, 10_000)), min_size=1, max_size=30
    ),
    st.integers(1, 5000),
)
def test_it_stays_within_its_bounds_whatever_happens(claims: list[tuple[float, float, bool, int]], most: int) -> None:
    look_ahead, now = LookAhead(most), 0.0
    for pause, took, is_full, ended in claims:
        asked = now + pause
        now = asked + took
        look_ahead.learn(asked=asked, now=now, is_full=is_full, ended=ended)
        assert 0 <= look_ahead.size <= most
        assert 0 <= look_ahead.trip <= LONGEST_TRIP
