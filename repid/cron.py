"""The times of a cron expression in a time zone: pure, the time comes in.

The rule is that of Debian's cron (its manual page cron(8), "Notes"), which tells two kinds of expressions apart:

* A fixed-time expression has a star at the start of neither its minute nor its hour, such as `30 2 * * *`. It names
  times of the day, and each of them comes once a day. In an hour that is repeated it comes the first time only; if
  its hour is skipped, it comes at the moment at which the clock jumps. Several such times that fall into one gap are
  one tick.
* Any other expression, such as `*/10 * * * *` or `0 * * * *`, is about spacing. It comes whenever the clock shows a
  time that matches: in a repeated hour each time, in a skipped hour not at all, so that the real spacing stays.

Debian's cron takes a jump of more than three hours for a correction of the clock. Here the zone itself says what was a
jump, so jumps of every size are treated alike (Samoa skipped a whole day in 2011).

cronsim knows expressions but its own arithmetic with zones can give a time that is over, and it miscounts in zones
whose clocks move by half an hour. So it only enumerates matching wall-clock times here, which need no zone. The
instants are ours: an instant that is returned is later than the one that was given by construction, whatever the zone
does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from .errors import ConfigurationError, MissingExtra, did_you_mean

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
"""Names for expressions, as crontab(5) has them."""

_ONE_VALUE = re.compile(r"(?<![\w-])(\w+)-\1/0*[1-9]\d*(?!\w)", re.IGNORECASE)
"""A range of one value with a step, such as `4-4/19`. It is that value; cronsim takes it for `4/19`, which goes on."""

_FIELDS = (
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31, L (the last) or LW (the last weekday)"),
    ("month", "1 to 12 or JAN to DEC"),
    ("day of the week", "0 to 7 (0 and 7 are Sunday) or SUN to SAT, 5L (the last Friday), 5#1 (the first)"),
)
"""What the fields are called, and their values. The first one is given seldom."""

_EXAMPLE = "a right one is '30 4 * * MON-FRI', at 4:30 on working days"

_LONGEST_FIELD = 40
"""Characters of a field that an error shows."""

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  a wall-clock time, as all naive ones here
_DAY = 86400
_SECOND = timedelta(seconds=1)


def check_cron(what: str, expression: str, timezone: str) -> str:
    """The expression with single spaces. Raises `ConfigurationError`, beginning with `what`, for a bad one or zone."""
    if not isinstance(expression, str):
        raise ConfigurationError(f"cron of {what} must be text such as '30 4 * * *', but is {expression!r}")
    tidy = " ".join(expression.split())
    _find_zone(what, timezone)
    _first(what, tidy, _matches(what, tidy, datetime(2000, 1, 1)))  # noqa: DTZ001  any wall-clock time
    return tidy


def next_time(what: str, expression: str, timezone: str, after: float) -> float:
    """The first time later than `after`, both in seconds since 1970. Raises `ConfigurationError` as `check_cron`."""
    zone = _find_zone(what, timezone)
    try:
        find = _by_calendar if is_fixed_time(expression) else _by_clock
        return float(find(what, expression, zone, int(after // 1)))
    except (OverflowError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise _never(what, expression) from None  # past the year 9999


def is_fixed_time(expression: str) -> bool:
    """Whether it names times of the day: neither its minute nor its hour starts with a star."""
    fields = NAMED.get(expression.lower(), expression).split()
    return not any(field.startswith("*") for field in fields[-5:-3])


def _by_calendar(what: str, expression: str, zone: ZoneInfo, after: int) -> int:
    """The first instant later than `after` that a fixed time of the day has."""
    walls = _matches(what, expression, _wall(zone, after))
    while True:  # in a repeated hour, over the times which came in its first half
        instant = _instant(zone, _first(what, expression, walls))
        if instant > after:
            return instant


def _by_clock(what: str, expression: str, zone: ZoneInfo, after: int) -> int:
    """The first instant later than `after` at which the clock shows a time that matches.

    Between two changes of the zone's offset, clock and instants go along with each other. So what matches is looked
    for up to the next change, and from there on again.
    """
    while True:
        offset = _offset(zone, after + 1)
        wall = _EPOCH + timedelta(seconds=after) + offset
        match = _first(what, expression, _matches(what, expression, wall))
        instant = (match - offset - _EPOCH) // _SECOND
        change = _next_change(zone, after + 1, instant)
        if change is None:
            return instant
        after = change - 1


def _instant(zone: ZoneInfo, wall: datetime) -> int:
    """When the clock shows this time first; if it never does, when it jumps over it."""
    first, second = ((wall - _offset_of(zone, wall, fold) - _EPOCH) // _SECOND for fold in (0, 1))
    if _wall(zone, first) == wall:
        return first
    change = _next_change(zone, min(first, second), max(first, second))
    return max(first, second) if change is None else change


def _next_change(zone: ZoneInfo, first: int, last: int) -> int | None:
    """The first instant after `first`, and not after `last`, with another offset than at `first`.

    It is looked for day by day: two changes within one day which cancel each other out are not seen.
    """
    offset = _offset(zone, first)
    before = first
    while before < last:
        probe = min(before + _DAY, last)
        if _offset(zone, probe) != offset:
            while probe - before > 1:
                middle = (before + probe) // 2
                if _offset(zone, middle) == offset:
                    before = middle
                else:
                    probe = middle
            return probe
        before = probe
    return None


def _wall(zone: ZoneInfo, instant: int) -> datetime:
    return _EPOCH + timedelta(seconds=instant) + _offset(zone, instant)


def _offset(zone: ZoneInfo, instant: int) -> timedelta:
    moment = (_EPOCH + timedelta(seconds=instant)).replace(tzinfo=UTC).astimezone(zone)
    return _offset_of(zone, moment.replace(tzinfo=None), moment.fold)


def _offset_of(zone: ZoneInfo, wall: datetime, fold: int) -> timedelta:
    offset = zone.utcoffset(wall.replace(fold=fold))
    assert offset is not None  # those of the database always have one
    return offset


def _matches(what: str, expression: str, after: datetime) -> Iterator[datetime]:
    """The wall-clock times later than `after` that match, in order."""
    expanded = _ONE_VALUE.sub(r"\1", _expand(what, expression))
    walls = _enumerated(expanded, after.replace(microsecond=0))
    if walls is None:
        raise ConfigurationError(f"{what} has an invalid cron expression {expression!r}: {_why(expanded)}; {_EXAMPLE}")
    return walls


def _enumerated(expression: str, after: datetime) -> Iterator[datetime] | None:
    """The times that match an expression in which no name such as @daily is left; None if it is invalid."""
    try:
        from cronsim import CronSim, CronSimError  # noqa: PLC0415  an extra
    except ImportError:
        raise MissingExtra("a cron schedule", "cron") from None
    try:
        walls: Iterator[datetime] = iter(CronSim(expression, after))
    except (CronSimError, ValueError):
        return None
    return walls


def _why(expression: str) -> str:
    """What is wrong with an expression. Each field is tried alone; if none of them is wrong, their combination is."""
    fields = expression.split()
    if len(fields) not in {5, 6}:
        names = ", ".join(name for name, _ in _FIELDS[1:])
        return f"it must have five fields ({names}), and has {len(fields)}"
    for place, (field, (name, values)) in enumerate(zip(fields, _FIELDS[-len(fields) :], strict=True)):
        alone = ["*"] * len(fields)
        alone[place] = field
        if _enumerated(" ".join(alone), _EPOCH) is None:
            shown = field if len(field) <= _LONGEST_FIELD else f"{field[:_LONGEST_FIELD]}…"
            return f"its {name} is {shown!r}, but must be {values}, or such values as in 1,3 or 1-5 or */2"
    return "no date has that day of the month in that month"


def _first(what: str, expression: str, walls: Iterator[datetime]) -> datetime:
    try:
        return next(walls).replace(fold=0)
    except StopIteration:
        raise _never(what, expression) from None


def _never(what: str, expression: str) -> ConfigurationError:
    return ConfigurationError(f"{what} has a cron expression that never matches: {expression!r}")


def _expand(what: str, expression: str) -> str:
    if not expression.startswith("@"):
        return expression
    name = expression.lower()
    if name == "@reboot":
        raise ConfigurationError(
            f"{what} has an invalid cron expression {expression!r}: a schedule does not know when a machine starts; "
            "enqueue a job where your program starts instead"
        )
    if name not in NAMED:
        raise ConfigurationError(
            f"{what} has an invalid cron expression {expression!r}{did_you_mean(name, NAMED)}: "
            f"the names are {', '.join(sorted(NAMED))}"
        )
    return NAMED[name]


def _find_zone(what: str, name: str) -> ZoneInfo:
    if not isinstance(name, str):
        raise ConfigurationError(f"timezone of {what} must be text such as 'Europe/Berlin', but is {name!r}")
    from zoneinfo import ZoneInfo  # noqa: PLC0415  few programs have a cron, and it reads how Python was built

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ConfigurationError(
            f"{what} has an unknown time zone {name!r}: give a name such as 'Europe/Berlin' "
            "(on a system without time zones, install the extra 'cron')"
        ) from None
