"""The virtual clock of a history: when every task waits, it is the moment of the next deadline.

trio asks its clock how long it may sleep only when no task can run. This one makes it that moment at once, and answers
0. So nothing ever waits in real time, and what must wait for something else than trio, as a thread, has no place here.

It also notices a fleet that is busy for ever: tasks run and run, no time passes, and no timeout would end that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import trio
from trio.lowlevel import (
    Abort,
    Task,
    cancel_shielded_checkpoint,
    checkpoint,
    current_clock,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from .account import Violation

trios_sleep, trios_sleep_until = trio.sleep, trio.sleep_until
"""They have other names here because `seeding` puts those of the clock in their place."""

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
        self._naps: list[tuple[float, int, Nap]] = []
        """A heap: who sleeps until when, those of one moment in the order in which they began."""
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

    async def sleep(self, seconds: float) -> None:
        """As `trio.sleep`: see `sleep_until`."""
        if current_clock() is not self:
            await trios_sleep(seconds)
        elif seconds < 0:
            raise ValueError("`seconds` must be non-negative")
        elif seconds == 0:
            await checkpoint()
        else:
            await self.sleep_until(self._now + seconds)

    async def sleep_until(self, deadline: float) -> None:
        """As `trio.sleep_until`, which costs three times as much, because it opens a cancel scope and cancels it.

        Where a task is cancelled in the turn in which it would wake, it is cancelled, as with trio's. In a run that has
        another clock it is trio's: that of another thread, or a later one of a program that has kept this function.
        """
        if current_clock() is not self:
            await trios_sleep_until(deadline)
            return
        if math.isnan(deadline):
            raise ValueError("deadline must not be NaN")
        if deadline > self._now:
            await Nap(self, deadline).rest()
        else:
            await cancel_shielded_checkpoint()
        raise_if_cancelled()

    async def wait_until(self, moment: float) -> None:
        """Wait for this moment as for an event: where a task is cancelled in the turn in which it would wake,
        it wakes.
        """
        if moment > self._now:
            await Nap(self, moment).rest()
        else:
            await checkpoint()

    def put_to_sleep(self, nap: Nap) -> None:
        """Wake this one at its moment."""
        heappush(self._naps, (nap.moment, next(self._numbers), nap))

    def _end(self, why: str) -> None:
        """Stop the history; should it go on all the same, there is no other way than to crash it."""
        self._ends += 1
        if self._ends == 1:
            self._stop(Violation(why))
        elif self._ends > MOST_LOOKS:
            raise Violation(why)

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Every task waits: let the time be that of the next deadline, or of the next one who sleeps here."""
        naps = self._naps
        while naps and naps[0][2].is_over:
            heappop(naps)
        if naps:
            deadline = min(deadline, naps[0][0])
        if deadline == math.inf:
            self._blanks += 1
            if self._blanks >= MOST_BLANKS:
                self._end("every task waits, and for no moment")
        elif deadline > self._now:
            self._now = deadline
            if deadline > LONGEST:
                self._end("time passes and passes, and the history does not end")
            self._looks = self._blanks = 0
        while naps and naps[0][0] <= self._now:
            heappop(naps)[2].end()
        return 0.0


class Nap:
    """The sleep of the present task until a moment, or until `wake`."""

    __slots__ = ("_clock", "_task", "moment", "was_woken")

    def __init__(self, clock: VirtualClock, moment: float) -> None:
        self.moment = moment
        self.was_woken = False
        """Whether it ended by `wake`."""
        self._clock = clock
        self._task: Task | None = None

    @property
    def is_over(self) -> bool:
        """Whether the task sleeps no more."""
        return self._task is None

    async def rest(self) -> None:
        """Sleep. To be called once."""
        self._task = current_task()
        self._clock.put_to_sleep(self)
        await wait_task_rescheduled(self._give_up)

    def wake(self) -> None:
        """End it before its moment. Does nothing if it is over, or has not begun."""
        if self._task is not None:
            self.was_woken = True
            self.end()

    def end(self) -> None:
        """The task goes on, unless it sleeps no more."""
        task, self._task = self._task, None
        if task is not None:
            reschedule(task)

    def _give_up(self, _: object) -> Abort:
        self._task = None
        return Abort.SUCCEEDED


def raise_if_cancelled() -> None:
    """What trio does where the moment of a task and its cancellation come in one turn."""
    if current_task()._cancel_status.effectively_cancelled:  # noqa: SLF001  as private as what `seeding` uses
        raise trio.Cancelled._create()  # noqa: SLF001  as above, and tested with it
