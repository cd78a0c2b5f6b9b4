"""Running the checks on a broker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import msgspec
import trio

from ..errors import ConfigurationError, did_you_mean
from ..ports import ROLES, Broker, Capabilities
from .checks import CHECKS
from .cutting import Cut
from .expecting import differences
from .judging import BrokerFailure, Check
from .lab import Lab
from .timing import Clock, Skipped, Time

OpenBroker: TypeAlias = Callable[[], AbstractAsyncContextManager[Broker]]
"""Gives, for a block, a new and empty broker that is not connected yet."""


class ConformanceReport(msgspec.Struct, frozen=True):
    """Which checks were passed, and why others were skipped, by name."""

    passed: tuple[str, ...]
    skipped: dict[str, str]


async def check_broker(
    open_broker: OpenBroker,
    capabilities: Capabilities | None = None,
    *,
    only: Iterable[str | Check] | None = None,
    clock: Clock | None = None,
    another: Callable[[Broker], Broker] | None = None,
    cut: Cut | None = None,
) -> ConformanceReport:
    """Try a broker for everything the port promises and, beyond that, for what its capabilities claim.

    Each check gets a fresh broker. Raises one `ExceptionGroup` with a `BrokerFailure` for each check that failed.

    `capabilities`: what to hold it to, if not what it says itself. `only`: the checks to make, of `CHECKS`. `clock`
    moves the time of a broker that does not follow trio's; without it, and without trio's `MockClock`, checks take
    short real waits, and those that need long ones are skipped. `another` makes, of the broker under test, a second
    client of the same storage, not connected: what `durable` and `shared` claim cannot be tried without. `cut` is what
    the driver under test was wrapped with (`Cut`): without it nothing is tried of links that break.
    """
    runner = _Runner(open_broker, capabilities, Time(clock), another, cut)
    for check in _choose(only):
        await runner.run(check)
    if runner.failures:
        raise ExceptionGroup(f"{len(runner.failures)} checks failed", runner.failures)
    return ConformanceReport(tuple(runner.passed), runner.skipped)


class _Runner:
    def __init__(
        self,
        open_broker: OpenBroker,
        capabilities: Capabilities | None,
        time: Time,
        another: Callable[[Broker], Broker] | None,
        cut: Cut | None,
    ) -> None:
        self._cut = cut
        self._open_broker = open_broker
        self._capabilities = capabilities
        self._time = time
        self._another = another
        self.passed: list[str] = []
        self.skipped: dict[str, str] = {}
        self.failures: list[BrokerFailure] = []

    async def run(self, check: Check) -> None:
        try:
            with trio.fail_after(self._time.limit):
                async with self._open_broker() as broker:
                    await self._try(check, broker)
            self.passed.append(check.name)
        except Exception as error:  # noqa: BLE001  whatever it was, the check failed, and the others go on
            skip = _skip_in(error)
            if skip is not None and not any(differences(error)):
                self.skipped[check.name] = str(skip)
                return
            failure = BrokerFailure(check, error)
            failure.__cause__ = error
            self.failures.append(failure)

    async def _try(self, check: Check, broker: Broker) -> None:
        claimed = self._capabilities or broker.capabilities
        around = {
            "clock": self._time.jumps,
            "wall_clock": self._time.clock is not None,
            "another": self._another is not None,
            "cut": self._cut is not None,
        }
        missing = sorted(need for need in check.needs if not _is_met(need, claimed, around))
        if missing:
            raise Skipped(f"needs {', '.join(missing)}")
        if self._cut is not None:
            self._cut.reset()
        lab = Lab(broker, claimed, self._time, self._another, self._cut)
        async with lab.open():
            await check(lab)


def _is_met(need: str, claimed: Capabilities, around: Mapping[str, bool]) -> bool:
    """Whether the server claims, or the surroundings have, what a check cannot do without."""
    if need.startswith("not "):
        return not _is_met(need.removeprefix("not "), claimed, around)
    if need in around:
        return around[need]
    if need in ROLES:
        return need in claimed.roles
    name, _, value = need.partition("=")
    found = getattr(claimed, name)
    return bool(found == value) if value else bool(found) and found != "none"


def _choose(only: Iterable[str | Check] | None) -> list[Check]:
    if only is None:
        return list(CHECKS)
    by_name = {check.name: check for check in CHECKS}
    names = [str(name) for name in only]
    for name in names:
        if name not in by_name:
            raise ConfigurationError(f"there is no check {name!r}{did_you_mean(name, by_name)}")
    return [by_name[name] for name in names]


def _skip_in(error: BaseException) -> Skipped | None:
    """The `Skipped` that this is, or that is in it."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for one in error.exceptions if (found := _skip_in(one))), None)
    return error if isinstance(error, Skipped) else None
