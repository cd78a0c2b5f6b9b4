"""The virtual clock of a history: when every task waits, it is the moment of the next deadline.

trio asks its clock how long it may sleep only when no task can run. This one makes it that moment at once, and answers
0. So nothing ever waits in real time, and what must wait for something else than trio, as a thread, has no place here.

It also notices a fleet that is busy for ever: tasks run and run, no time passes, and no timeout would end that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count

import trio
from trio.lowlevel import Abort, Task, checkpoint, current_task, reschedule, wait_task_rescheduled

from .account import Violation

MOST_LOOKS = 20_000
"""How often the time may be asked for at one moment of virtual time: once in each turn of trio's, and by tasks."""

LONGEST = 2_000.0
"""Seconds of virtual time that a history may take: none is that long unless something goes on for ever."""

MOST_BLANKS = 1_000
"""How often in a row trio may find no task and no deadline; a few times it does so at the end of a run, for its own
wake-up call.
"""


class VirtualClock(trio.abc.Clock):
    """Seconds from the start of a history. `stop` is called with what is wrong, once a fleet spins or waits for
    nothing.
    """

    def __init__(self, stop: Callable[[Violation], None]) -> None:
        self._now = 0.0
        self._looks = 0
        self._blanks = 0
        self._ends = 0
        self._sleepers: list[tuple[float, int, Task]] = []
        """A heap: when to wake which task, those of one moment in the order in which they began to sleep."""
        self._numbers = count()
        self._stop = stop

    def start_clock(self) -> None:
        """The history begins."""

    def current_time(self) -> float:
        """The present moment."""
        self._looks += 1
        if self._looks >= MOST_LOOKS:
            self._end("tasks run all the time, and wait for nothing")
        return self._now

    async def sleep_until(self, moment: float) -> None:
        """As `trio.sleep_until`, which costs three times as much, because it opens a cancel scope and cancels it."""
        if moment <= self._now:
            await checkpoint()
            return
        sleeper = (moment, next(self._numbers), current_task())
        heappush(self._sleepers, sleeper)

        def give_up(_: object) -> Abort:
            self._sleepers.remove(sleeper)
            heapify(self._sleepers)
            return Abort.SUCCEEDED

        await wait_task_rescheduled(give_up)

    def _end(self, why: str) -> None:
        """Stop the history; should it go on all the same, there is no other way than to crash it."""
        self._ends += 1
        if self._ends == 1:
            self._stop(Violation(why))
        elif self._ends > MOST_LOOKS:
            raise Violation(why)

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Every task waits: let the time be that of the next deadline, or of the next one who sleeps here."""
        sleepers = self._sleepers
        if sleepers:
            deadline = min(deadline, sleepers[0][0])
        if deadline == math.inf:
            self._blanks += 1
            if self._blanks >= MOST_BLANKS:
                self._end("every task waits, and for no moment")
        elif deadline > self._now:
            self._now = deadline
            if deadline > LONGEST:
                self._end("time passes and passes, and the history does not end")
            self._looks = self._blanks = 0
        while sleepers and sleepers[0][0] <= self._now:
            reschedule(heappop(sleepers)[2])
        return 0.0
