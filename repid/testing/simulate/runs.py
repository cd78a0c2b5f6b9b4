"""The account of duplicates: every second run of a message must be explained by a fault of the plan, never by us.

A message that its producer had no answer for and sent again, when it had been done already, is another message of the same
id: unique ids are those of messages that are alive. A run is what an actor did, as it tells itself (`running`). A message runs again, without a verdict that says so, only
where its worker was struck by a fault or asked to stop. Two runs of one message at the same time need a fault: a worker
that stops has ended its run before it gives the message back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from ...delivery import Settlement
from .account import Account, Disturbances, Violation


class Run(msgspec.Struct, eq=False):
    """One run of an actor."""

    actor: str
    process: str
    began: float
    ended: float = math.inf
    decides_early: bool = False


class Runs:
    """All runs of one history. `stop` is called with each violation."""

    def __init__(self, account: Account, faults: Disturbances, stop: Callable[[Violation], None]) -> None:
        self.stops = Disturbances()
        """When workers were asked to stop."""
        self._account = account
        self._faults = faults
        self._stop = stop
        self._runs: dict[tuple[str, int, int], list[Run]] = {}
        self._under_way: dict[tuple[str, str], list[Run]] = {}

    def begin(self, id_: str, actor: str, process: str, now: float, at_most: float) -> Run:
        """A run begins. Whoever made it sets `ended`."""
        run = Run(actor, process, now)
        entry = self._account.entries.get(id_)
        key = (id_, 0, 0) if entry is None else (id_, entry.number, entry.attempt)
        earlier = self._runs.setdefault(key, [])
        try:
            for other in earlier:
                self._check_second(id_, run, other)
            self._check_number(run, at_most)
        except Violation as violation:
            self._stop(violation)
        earlier.append(run)
        return run

    def settled(self, process: str, settlements: Sequence[Settlement]) -> None:
        """Verdicts have reached the engine: the runs that they are about have ended, but for those that decide early."""
        for settlement in settlements:
            id_ = settlement.delivery.envelope.id
            entry = self._account.entries[id_]
            for run in self._runs.get((id_, entry.number, settlement.delivery.attempt), ()):
                if run.process == process and run.ended == math.inf and not run.decides_early:
                    raise Violation(f"{process} settled {id_} while its run was under way")

    def _check_second(self, id_: str, run: Run, other: Run) -> None:
        if self._faults.excuse(other.process, other.began - 10.0, run.began):
            return
        if other.ended == math.inf:
            raise Violation(f"{run.process} runs {id_} while {other.process}, which no fault has struck, runs it too")
        if not self.stops.excuse(other.process, other.began, run.began):
            raise Violation(
                f"{run.process} runs {id_} again, which {other.process} ran at {other.began:.3f}: no fault explains that"
            )

    def _check_number(self, run: Run, at_most: float) -> None:
        under_way = self._under_way.setdefault((run.process, run.actor), [])
        under_way[:] = [other for other in under_way if other.ended == math.inf]
        under_way.append(run)
        if len(under_way) > at_most:
            raise Violation(
                f"{len(under_way)} runs of {run.actor} at once in {run.process}, which may have {at_most:g}"
            )
