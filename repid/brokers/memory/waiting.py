"""Consumers that wait for something to become ready.

Whoever makes something ready wakes as many waiting consumers as can take it, first come first served, each once.
A consumer that was woken passes the word on when it leaves, also if it was cancelled: nothing ready is left lying
while somebody waits for it. The first in the line keeps the time for all: its timeout is set to the next due time.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from .clock import Clock
from .store import Store
from .taker import Taker


class Waiter:
    """One `receive` that found nothing. `deadline` is trio's; `due` is what its timeout stands for, if not that."""

    __slots__ = ("at_most", "deadline", "due", "event", "limit", "scope", "taker")

    def __init__(self, taker: Taker, limit: int, at_most: Mapping[tuple[str, str], int], deadline: float) -> None:
        self.taker = taker
        self.limit = limit
        self.at_most = at_most
        self.deadline = deadline
        self.due = float("inf")
        self.event = trio.Event()
        self.scope = trio.CancelScope()


class Line:
    """The waiting consumers, longest waiting first."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiters: dict[Waiter, None] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, waiter: Waiter) -> None:
        """Until the waiter is woken, something is due, or its deadline is over; whoever waits looks again then.

        Cancelling loses nothing as long as the caller calls `pass_on` however this ends.
        """
        waiter.event = trio.Event()
        waiter.due = float("inf")
        try:
            with trio.CancelScope(deadline=waiter.deadline) as waiter.scope:
                self._waiters[waiter] = None
                self._keep_time()
                await waiter.event.wait()
        finally:
            self._waiters.pop(waiter, None)
        if waiter.scope.cancelled_caught and waiter.due < float("inf"):
            self._clock.reach(waiter.due)

    def stir(self) -> None:
        """Wake whom the last changes concern. To be called after each change, before anything is awaited."""
        arrived, self._store.arrived = self._store.arrived, 0
        if self._waiters:
            self._wake(arrived)
            self._keep_time()

    def pass_on(self) -> None:
        """As `stir`, by a waiter that leaves: what it was woken for, and did not take, may be another's."""
        self._store.arrived += 1
        self.stir()

    def wake_all(self) -> None:
        """Wake everybody, because a consumer or the connection was closed."""
        for waiter in self._waiters:
            waiter.event.set()
        self._waiters.clear()

    def abandon(self) -> None:
        """Forget everybody, because the run in which they waited is no more."""
        self._waiters.clear()

    def _wake(self, arrived: int) -> None:
        for waiter in list(self._waiters):
            if arrived <= 0:
                return
            if self._store.directory.lanes_for(waiter.taker, waiter.at_most)[0]:
                del self._waiters[waiter]
                waiter.event.set()
                arrived -= waiter.limit

    def _keep_time(self) -> None:
        """Set the timeout of the first in the line to the next due time, if that comes before its own deadline."""
        for waiter in self._waiters:
            due = self._store.next_due()
            moment = self._clock.in_trio(due)
            waiter.due, moment = (due, moment) if moment < waiter.deadline else (float("inf"), waiter.deadline)
            if waiter.scope.deadline != moment:
                waiter.scope.deadline = moment
            return
