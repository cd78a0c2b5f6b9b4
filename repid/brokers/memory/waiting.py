"""Consumers that wait for something to become ready.

Whoever makes something ready leases it, in the same step, to the consumers that wait for it, first come first served.
The first in the line keeps the time for all: its timeout is set to the next due time.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

from ...delivery import Delivery
from ...ports import AtMost
from .clock import Clock
from .store import Store
from .taker import Taker


class Waiter:
    """One `receive` that found nothing. `deadline` is trio's; `due` is what its timeout stands for, if not that."""

    __slots__ = ("at_most", "deadline", "deliveries", "due", "limit", "scope", "taker", "task")

    def __init__(self, taker: Taker, limit: int, at_most: AtMost, deadline: float) -> None:
        self.taker = taker
        self.limit = limit
        self.at_most = at_most
        self.deadline = deadline
        self.due = float("inf")
        self.deliveries: list[Delivery] = []
        self.scope = trio.CancelScope(deadline=deadline)
        self.task = current_task()


class Line:
    """The waiting consumers, longest waiting first. Each of them found nothing in the store when it joined.

    Who is taken out of the line is woken in the same step, so that what it was given cannot be lost to a cancellation.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiters: dict[Waiter, None] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, waiter: Waiter) -> list[Delivery]:
        """What became ready for the waiter. Nothing: it has to look itself, since something is due, its deadline is over
        or something was closed. Cancelled: it was given nothing.
        """

        def leave(_: object) -> Abort:
            del self._waiters[waiter]
            return Abort.SUCCEEDED

        with waiter.scope:
            self._waiters[waiter] = None
            self._keep_time()
            try:
                await wait_task_rescheduled(leave)
            finally:
                self._keep_time()
        if waiter.scope.cancelled_caught and waiter.due < float("inf"):
            self._clock.reach(waiter.due)
        return waiter.deliveries

    def stir(self, now: float) -> None:
        """Serve whom the last changes concern. To be called after each change, before anything is awaited."""
        arrived, self._store.arrived = self._store.arrived, 0
        if self._waiters:
            if arrived:
                self._serve(arrived, now, list(self._waiters))
            self._keep_time()

    def set_limits(self, taker: Taker, at_most: AtMost, now: float) -> None:
        """The waiting claims of this consumer heed these from now on; what they allow now is leased at once."""
        mine = [waiter for waiter in self._waiters if waiter.taker is taker]
        for waiter in mine:
            waiter.at_most = at_most
        self._serve(len(mine), now, mine)

    def wake_all(self) -> None:
        """Wake everybody, because a consumer or the connection was closed."""
        while self._waiters:
            reschedule(self._waiters.popitem()[0].task)

    def abandon(self) -> None:
        """Forget everybody, because the run in which they waited is no more."""
        self._waiters.clear()

    def _serve(self, arrived: int, now: float, waiters: Iterable[Waiter]) -> None:
        for waiter in waiters:
            if arrived <= 0:
                return
            waiter.deliveries = self._store.receive(waiter.taker, waiter.limit, waiter.at_most, now)
            if waiter.deliveries:
                del self._waiters[waiter]
                reschedule(waiter.task)
                arrived -= len(waiter.deliveries)

    def _keep_time(self) -> None:
        """Set the timeout of the first in the line to the next due time, if that comes before its own deadline."""
        for waiter in self._waiters:
            due = self._store.next_due()
            moment = self._clock.in_trio(due)
            waiter.due, moment = (due, moment) if moment < waiter.deadline else (float("inf"), waiter.deadline)
            if waiter.scope.deadline != moment:
                waiter.scope.deadline = moment
            return
