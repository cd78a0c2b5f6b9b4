"""When cron expressions come, in every time zone. `REPID_CRON_WALKS=10000` walks longer than CI does."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest

from repid import ConfigurationError
from repid.cron import NAMED, check_cron, is_fixed_time, next_time
from repid.envelope import Envelope
from repid.ports import StoredSchedule
from repid.schedule import due_tick, make_schedule

WALKS = int(os.environ.get("REPID_CRON_WALKS", "150"))
SEED = os.environ.get("REPID_TEST_SEED", "0")
ZONES = sorted(available_timezones())
MODEL = Envelope("s", "q", b"")


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def times(expression: str, zone: str, start: str, end: str) -> list[str]:
    """All times from `start` to `end`, as the zone's clocks show them."""
    found, now = [], at(start) - 1
    while (now := next_time("x", expression, zone, now)) <= at(end):
        found.append(datetime.fromtimestamp(now, ZoneInfo(zone)).isoformat(timespec="minutes"))
    return found


def random_field(chance: random.Random, low: int, high: int) -> str:
    first, second = sorted(chance.choices(range(low, high + 1), k=2))
    step = chance.randint(1, 20)
    return chance.choice(
        ["*", "*", f"*/{step}", f"{first}", f"{first},{second}", f"{first}-{second}", f"{first}-{second}/{step}"]
    )


def random_expression(chance: random.Random) -> str:
    """One that comes at least every few days."""
    hours = random_field(chance, 0, 23) if chance.random() < 0.6 else f"{chance.randint(0, 3)}"
    return f"{random_field(chance, 0, 59)} {hours} * * {random_field(chance, 0, 6)}"


def offset(zone: ZoneInfo, instant: int) -> timedelta:
    found = datetime.fromtimestamp(instant, zone).utcoffset()
    assert found is not None
    return found


def a_change(chance: random.Random, zone: ZoneInfo) -> int:
    """A minute at which the zone's clocks were changed, if the days after a random one since 1973 have such a one."""
    low = chance.randrange(1600000, 35000000) * 60
    high = low + 200 * 86400
    if offset(zone, low) == offset(zone, high):
        return low
    while high - low > 60:
        middle = (low + high) // 120 * 60
        low, high = (middle, high) if offset(zone, middle) == offset(zone, low) else (low, middle)
    return high


def expected(expression: str, zone: ZoneInfo, start: int, end: int) -> list[int]:
    """By trying every minute: those from `start` to `end` at which the clock shows what matches; for fixed times,
    where what was shown before counts no more, and what was skipped is made up for."""
    found = []
    shown_until = datetime.fromtimestamp(start - 2 * 86400, zone).replace(tzinfo=None)
    for instant in range(start - 2 * 86400 + 60, end, 60):
        wall = datetime.fromtimestamp(instant, zone).replace(tzinfo=None)
        if is_fixed_time(expression):
            comes = any(matches(expression, each) for each in minutes(shown_until, wall))
            shown_until = max(shown_until, wall)
        else:
            comes = matches(expression, wall)
        if comes and instant >= start:
            found.append(instant)
    return found


def minutes(after: datetime, until: datetime) -> Iterator[datetime]:
    while after < until:
        after += timedelta(minutes=1)
        yield after


def matches(expression: str, wall: datetime) -> bool:
    minute, hour, _, _, weekday = expression.split()
    return (
        wall.minute in values(minute, 59)
        and wall.hour in values(hour, 23)
        and wall.isoweekday() % 7 in values(weekday, 6)
    )


def values(field: str, high: int) -> set[int]:
    span, _, step = field.partition("/")
    if span == "*":
        return set(range(0, high + 1, int(step or 1)))
    if "," in span:
        return {int(each) for each in span.split(",")}
    first, _, last = span.partition("-")
    return set(range(int(first), int(last or first) + 1, int(step or 1)))


@pytest.mark.parametrize(
    ("expression", "same"), [("0 4-4/19 * * *", "0 4 * * *"), ("0 1 * * tue-TUE/2,5", "0 1 * * 2,5")]
)
def test_a_range_of_one_value_is_that_value_whatever_its_step(expression: str, same: str) -> None:
    now = found = 0.0
    for _ in range(20):
        now, found = next_time("x", same, "UTC", now), next_time("x", expression, "UTC", found)
        assert found == now


def test_a_step_of_nothing_is_refused_for_one_value_too() -> None:
    with pytest.raises(ConfigurationError, match="has an invalid cron expression"):
        check_cron("x", "0 4-4/0 * * *", "UTC")


@pytest.mark.parametrize("part", range(3))
def test_around_changes_of_the_clocks_of_every_zone_ticks_come_when_a_look_at_every_minute_says(part: int) -> None:
    chance = random.Random(f"{SEED} {part}")
    for _ in range(WALKS // 10):
        name, expression = chance.choice(ZONES), random_expression(chance)
        zone = ZoneInfo(name)
        change = a_change(chance, zone)
        start, end = change - 3 * 3600, change + 30 * 3600
        found, now = [], float(start - 1)
        while (now := next_time("x", expression, name, now)) < end:
            found.append(int(now))
        assert found == expected(expression, zone, start, end), (name, expression, change)


def test_in_every_zone_each_tick_is_later_than_now_and_than_the_one_before_it() -> None:
    chance = random.Random(SEED)
    for _ in range(WALKS):
        zone, expression = chance.choice(ZONES), random_expression(chance)
        now = chance.uniform(-2e9, 4e9)
        schedule = make_schedule("s", "s", MODEL, cron=expression, timezone=zone)
        stored = StoredSchedule(schedule=schedule, next_at=next_time("s", expression, zone, now))
        for _ in range(20):
            assert stored.next_at > now, (zone, expression, now)
            now = stored.next_at + chance.choice([0, 0, 0.5, 61, 3000, 90000])
            due = due_tick(stored, now)
            assert due is not None
            assert due.next_at > now >= stored.next_at
            stored = StoredSchedule(schedule=schedule, next_at=due.next_at)
            now += chance.choice([0, 0, -7200])  # the clock is set back: what was ticked is not due again
            assert due_tick(stored, now) is None


def test_a_fixed_time_comes_once_on_a_day_whose_clocks_change() -> None:
    spring, autumn = (
        ("2026-03-28T12:00+01:00", "2026-03-30T12:00+02:00"),
        ("2026-10-24T12:00+02:00", "2026-10-26T12:00+01:00"),
    )
    assert times("30 2 * * *", "Europe/Berlin", *spring) == ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]
    assert times("30 2 * * *", "Europe/Berlin", *autumn) == ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]


def test_several_fixed_times_in_a_skipped_hour_are_one_tick_and_in_a_repeated_hour_come_once_each() -> None:
    spring, autumn = (
        ("2026-03-29T00:00+01:00", "2026-03-29T12:00+02:00"),
        ("2026-10-25T00:00+02:00", "2026-10-25T12:00+01:00"),
    )
    assert times("0,15,30,45 2 * * *", "Europe/Berlin", *spring) == ["2026-03-29T03:00+02:00"]
    assert times("0,30 2 * * *", "Europe/Berlin", *autumn) == ["2026-10-25T02:00+02:00", "2026-10-25T02:30+02:00"]


def test_other_expressions_keep_their_real_spacing_when_clocks_change() -> None:
    for start, end in (
        ("2026-03-29T00:00+01:00", "2026-03-29T06:00+02:00"),
        ("2026-10-25T00:00+02:00", "2026-10-25T06:00+01:00"),
    ):
        found = [at(each) for each in times("*/10 * * * *", "Europe/Berlin", start, end)]
        assert {later - earlier for earlier, later in itertools.pairwise(found)} == {600}
        assert len(found) == (at(end) - at(start)) / 600 + 1


def test_clocks_that_move_by_half_an_hour_lose_no_time_that_they_show() -> None:
    found = times("*/15 1,2 * * *", "Australia/Lord_Howe", "2026-04-05T00:30+11:00", "2026-04-05T12:00+10:30")
    assert [each[11:16] for each in found] == [
        "01:00",
        "01:15",
        "01:30",
        "01:45",
        "01:30",
        "01:45",
        "02:00",
        "02:15",
        "02:30",
        "02:45",
    ]


def test_a_fixed_time_on_a_day_that_a_zone_skipped_comes_when_the_day_would_have_begun() -> None:
    found = times("30 2 * * *", "Pacific/Apia", "2011-12-29T00:00-10:00", "2011-12-31T12:00+14:00")
    assert found == ["2011-12-29T02:30-10:00", "2011-12-31T00:00+14:00", "2011-12-31T02:30+14:00"]


def test_seconds_may_be_given_in_front() -> None:
    start = at("2026-01-01T00:00:00+00:00")
    assert next_time("x", "*/20 * * * * *", "UTC", start) == start + 20
    assert is_fixed_time("10 30 2 * * *")
    assert not is_fixed_time("10 */5 2 * * *")


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("@hourly", "2026-05-06T08:00"),
        ("@daily", "2026-05-07T00:00"),
        ("@midnight", "2026-05-07T00:00"),
        ("@weekly", "2026-05-10T00:00"),
        ("@monthly", "2026-06-01T00:00"),
        ("@yearly", "2027-01-01T00:00"),
        ("@annually", "2027-01-01T00:00"),
        ("@Daily", "2026-05-07T00:00"),
    ],
)
def test_names_stand_for_expressions(name: str, first: str) -> None:
    schedule = make_schedule("s", "s", MODEL, cron=name)
    assert schedule.cron == name
    moment = datetime.fromtimestamp(next_time("s", name, "UTC", at("2026-05-06T07:08:09+00:00")), UTC)
    assert moment.isoformat(timespec="minutes") == f"{first}+00:00"


def test_every_name_is_tested_and_daily_is_a_fixed_time() -> None:
    assert len(NAMED) == 7
    assert is_fixed_time("@daily")
    assert not is_fixed_time("@hourly")


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("@reboot", "a schedule does not know when a machine starts"),
        ("@dayly", r"invalid cron expression '@dayly' \(did you mean '@daily'\?\)"),
        ("", "invalid cron expression ''"),
        ("61 * * * *", "invalid cron expression '61"),
        ("* * * *", "invalid cron expression"),
        ("*/0 * * * *", "invalid cron expression"),
        ("9" * 5000 + " * * * *", "invalid cron expression"),
        ("\ud800 * * * *", "invalid cron expression"),
        ("0 0 LW * */7", "never matches"),
        (5, "must be text"),
    ],
)
def test_a_bad_expression_is_refused_by_name(expression: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        check_cron("job 'x'", expression, "UTC")


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("61 * * * *", "its minute is '61', but must be 0 to 59, or such values as in 1,3 or 1-5 or */2"),
        ("* 24 * * *", "its hour is '24', but must be 0 to 23, or"),
        ("* * 0 * *", "its day of the month is '0', but must be 1 to 31, L (the last) or LW (the last weekday), or"),
        ("* * * FEV *", "its month is 'FEV', but must be 1 to 12 or JAN to DEC, or"),
        ("* * * * 8", "its day of the week is '8', but must be 0 to 7 (0 and 7 are Sunday) or SUN to SAT"),
        ("* * * * FRI-MON", "its day of the week is 'FRI-MON', but"),
        ("99 * * * * *", "its second is '99', but must be 0 to 59"),
        ("*/0 * * * *", "its minute is '*/0'"),
        ("0 0 30 2 *", "no date has that day of the month in that month"),
        ("every day", "it must have five fields (minute, hour, day of the month, month, day of the week), and has 2"),
        ("", "it must have five fields (minute, hour, day of the month, month, day of the week), and has 0"),
        ("9" * 5000 + " * * * *", f"its minute is '{'9' * 40}…', but"),
    ],
)
def test_the_error_of_a_bad_expression_names_the_field_and_shows_a_right_one(expression: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_cron("job 'x'", expression, "UTC")
    text = str(caught.value)
    assert text.startswith(f"job 'x' has an invalid cron expression {expression!r}: {why}")
    assert text.endswith("; a right one is '30 4 * * MON-FRI', at 4:30 on working days")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../../etc/passwd", "Europe", "a\0b", "\ud800", 5])
def test_a_bad_zone_is_refused_by_name(zone: str) -> None:
    with pytest.raises(ConfigurationError, match=r"time zone|timezone"):
        check_cron("job 'x'", "0 0 * * *", zone)


def test_an_expression_is_kept_with_single_spaces_so_that_spaces_are_no_change() -> None:
    assert check_cron("x", " 0  0 * *\t* ", "UTC") == "0 0 * * *"
