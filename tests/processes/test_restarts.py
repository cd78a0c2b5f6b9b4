"""When a crashed process is started again: the rule, without processes."""

from __future__ import annotations

from repid.supervisor.restarts import Restarts


def test_the_delay_doubles_and_the_sixth_crash_within_a_minute_is_one_too_many() -> None:
    restarts = Restarts()
    assert [restarts.after_crash(now) for now in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.6, None]


def test_a_crash_is_forgotten_after_a_minute() -> None:
    restarts = Restarts()
    assert [restarts.after_crash(now) for now in (0, 1, 61, 200)] == [0.1, 0.2, 0.1, 0.1]
