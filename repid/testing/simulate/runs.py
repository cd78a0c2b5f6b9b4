"""The account of duplicates: every second run of a message must be explained by a fault of the plan, never by us.

A message that its producer had no answer for and sent again, when it had been done already, is another message of the
same id: unique ids are those of messages that are alive. A run is what an actor did, as it tells itself (`running`). A
message runs again, without a verdict that says so, only where its worker was struck by a fault or asked to stop. Two
runs of one message at the same time need a worker that is frozen: any other has ended its run before it gives the
message back, and cuts it off before its lease ends.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from ...delivery import Settlement
from ...ports import Verdict
from .account import AFTERMATH, Account, Disturbances, Entry, Violation

SOON = 0.1
"""Seconds after which a run that was cancelled must have ended, besides the time that its worker needs to
hear of it.
"""


class RunRules(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for the runs of an actor.

    at_most: how many of them there may be at once in one worker. decides_early: its verdict may come before its end, by
    a verb or by its confirmation mode; any other actor has ended before the engine hears of it. gives_back: its verdict
    may be that the same attempt is made again. once: a message has one run at most, whatever happens. swallows: it goes
    on when it is cancelled. within: the seconds after its beginning at which a run has ended, because of its timeout.
    """

    at_most: float = math.inf
    decides_early: bool = False
    gives_back: bool = False
    once: bool = False
    swallows: bool = False
    within: float = math.inf


class Run(msgspec.Struct, eq=False):
    """One run of an actor."""

    id: str
    actor: str
    process: str
    began: float
    rules: RunRules
    ended: float = math.inf
    must_end: float = math.inf
    """When another run of its message began elsewhere, by which moment this one should have ended."""


class Runs:
    """All runs of one history. `stop` is called with each violation. `hearing`: seconds until a worker has heard that a
    run was cancelled, at the most: the answer to one call and a whole other call may be under way.
    """

    def __init__(
        self, account: Account, faults: Disturbances, stop: Callable[[Violation], None], hearing: float = 0.0
    ) -> None:
        self.stops = Disturbances()
        """When workers were asked to stop."""
        self.freezes = Disturbances()
        """When none of their tasks could run."""
        self.begun: Counter[str] = Counter()
        """How many runs each process has begun."""
        self._account = account
        self._faults = faults
        self._stop = stop
        self._soon = SOON + hearing
        self._runs: dict[tuple[str, int, int], list[Run]] = {}
        self._under_way: dict[tuple[str, str], list[Run]] = {}

    def begin(self, id_: str, actor: str, process: str, now: float, rules: RunRules) -> Run:
        """A run begins."""
        run = Run(id_, actor, process, now, rules)
        self.begun[process] += 1
        entry = self._account.entries.get(id_)
        number, attempt = (0, 0) if entry is None else (entry.number, entry.attempt)
        earlier = self._runs.setdefault((id_, number, 0 if rules.once else attempt), [])
        # Of one that is over for the engine before it runs, and was published again meanwhile, nobody can say which run
        # is whose.
        is_told_apart = number <= 1 or not rules.decides_early
        try:
            for other in earlier if is_told_apart else ():
                self._check_second(id_, run, other)
            self._check_number(run)
        except Violation as violation:
            self._stop(violation)
        earlier.append(run)
        return run

    def end(self, run: Run, now: float) -> None:
        """A run has ended."""
        run.ended = now
        if now > run.began + run.rules.within and not self.freezes.excuse(run.process, run.began - AFTERMATH, now):
            self._stop(
                Violation(
                    f"{run.process} ran {run.id} from {run.began:.3f} to {now:.3f}, and its timeout is "
                    f"{run.rules.within:g} s"
                )
            )
        if now > run.must_end:
            self._stop(
                Violation(
                    f"{run.process}, which was not frozen, ran {run.id} until {now:.3f}, and another run of it had "
                    f"begun elsewhere at {run.must_end:.3f}"
                )
            )

    def settled(self, process: str, settlements: Sequence[Settlement], verdicts: Sequence[Verdict]) -> None:
        """The engine has accepted verdicts: the runs that they are about have ended, except those that decide early."""
        for settlement, verdict in zip(settlements, verdicts, strict=True):
            if not verdict.accepted:
                continue
            id_ = settlement.delivery.envelope.id
            entry = self._account.entries[id_]
            for run in self._runs.get((id_, entry.number, settlement.delivery.attempt), ()):
                if run.process != process or run.rules.decides_early:
                    continue
                if run.ended == math.inf:
                    raise Violation(f"{process} settled {id_} while its run was under way")
                self._check_cancelled(id_, entry, run)

    def _check_cancelled(self, id_: str, entry: Entry, run: Run) -> None:
        """A run that somebody has cancelled ended soon after that."""
        since = max(run.began, entry.cancelled_at)
        is_late = run.ended > since + self._soon and not run.rules.swallows
        if is_late and not self._faults.excuse(run.process, since - AFTERMATH, run.ended):
            raise Violation(f"{run.process} ran {id_} until {run.ended:.3f}, which was cancelled at {since:.3f}")

    def _check_second(self, id_: str, run: Run, other: Run) -> None:
        if run.rules.once:
            raise Violation(f"{run.process} runs {id_}, which is run once at most, and {other.process} has run it")
        overlaps = other.ended == math.inf and not other.rules.swallows
        # A worker cuts a run off when its lease ends by its own clock, which is not after anybody else may have it.
        if overlaps and not self.freezes.excuse(other.process, other.began - AFTERMATH, run.began):
            if other.process == run.process:
                raise Violation(f"{run.process} runs {id_} while it runs it already")
            other.must_end = min(other.must_end, run.began)
        if run.rules.gives_back or self._faults.excuse(other.process, other.began - AFTERMATH, run.began):
            return
        if not self.stops.excuse(other.process, other.began, run.began):
            raise Violation(
                f"{run.process} runs {id_} again, which {other.process} ran at {other.began:.3f}: no fault explains "
                "that"
            )

    def _check_number(self, run: Run) -> None:
        under_way = self._under_way.setdefault((run.process, run.actor), [])
        under_way[:] = [other for other in under_way if other.ended == math.inf]
        under_way.append(run)
        if len(under_way) > run.rules.at_most:
            raise Violation(
                f"{len(under_way)} runs of {run.actor} at once in {run.process}, which may have {run.rules.at_most:g}"
            )
