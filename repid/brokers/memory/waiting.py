"""Claims that wait for something to become ready, and the clock by which they wait.

Theory. What makes a message ready leases it, in the same step, to the claims that wait for it, in the order in which
they began to wait: no message is ever ready while a claim waits that may have it. A waiting claim that is given
messages is woken in that step too, so a cancellation either comes before it, and nothing was leased, or after it, and
trio delivers the messages. One timeout serves all: that of the first waiting claim ends when the next scheduled message
falls due.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

from ...delivery import Delivery
from ...ports import AtMost
from .record import Subscription
from .store import Store


class Clock:
    """Trio's clock plus an offset, so that what is stored grows older from one trio run to the next.

    The clocks of two runs are not related: between runs the monotonic clock of the process counts, within a run only
    trio's (so a `MockClock` works). It never runs backwards.

    `epoch` is what to add to its times for seconds since 1970, as the wall clock said at first: it is not stepped.
    """

    __slots__ = ("_now", "_of_trio", "_offset", "_seen", "epoch")

    def __init__(self) -> None:
        self.epoch = 0.0
        self._of_trio: Callable[[], float] = trio.current_time
        self._now: float | None = None
        self._offset = 0.0
        self._seen = 0.0

    def attach(self) -> None:
        """Go on in another trio run. The first run's times are trio's own."""
        self._of_trio = trio.lowlevel.current_clock().current_time  # as trio.current_time, without a search
        if self._now is None:
            self.epoch = time.time() - trio.current_time()
        else:
            self._offset = self._now + (time.monotonic() - self._seen) - trio.current_time()

    def look(self) -> float:
        """The time now."""
        now = self._of_trio() + self._offset
        self._seen = time.monotonic()
        if self._now is not None and now <= self._now:
            return self._now
        self._now = now
        return now

    def reach(self, moment: float) -> None:
        """Go to this moment: trio's timeout for it has fired, though the rounded offset may be a little behind."""
        self._now = moment if self._now is None else max(self._now, moment)

    def forward(self, seconds: float) -> None:
        """Put it forward against trio's clock."""
        self._offset += seconds

    def in_trio(self, moment: float) -> float:
        """The same moment on trio's clock."""
        return moment - self._offset


class Waiter:
    """One claim that found nothing.

    `deadline` is on trio's clock. `due`: the moment of the next due message, if the timeout stands for that instead.
    """

    __slots__ = ("at_most", "deadline", "deliveries", "due", "limit", "scope", "subscription", "task")

    def __init__(self, subscription: Subscription, limit: int, at_most: AtMost, deadline: float) -> None:
        self.subscription = subscription
        self.limit = limit
        self.at_most = at_most
        self.deadline = deadline
        self.due = float("inf")
        self.deliveries: list[Delivery] = []
        self.scope = trio.CancelScope(deadline=deadline)
        self.task = current_task()


class WaitingReceives:
    """The waiting claims, longest waiting first. Each of them found nothing in the store when it began to wait.

    A claim that is taken out is woken in the same step, so that what it was given cannot be lost to a cancellation.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiters: dict[Waiter, None] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, waiter: Waiter) -> list[Delivery]:
        """Wait until something is leased to the waiter, and return that.

        An empty list means: check again (a message is due, the deadline has passed, or a consumer was closed). If this
        is cancelled, nothing was leased.
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

    def serve(self, now: float) -> None:
        """Lease what became ready to the waiting claims. To be called after each change, before any await."""
        arrived, self._store.arrived = self._store.arrived, 0
        if self._waiters:
            if arrived:
                self._serve(arrived, now, list(self._waiters))
            self._keep_time()

    def set_limits(self, subscription: Subscription, at_most: AtMost, now: float) -> None:
        """Change the limits of this consumer's waiting claims, and lease at once what they allow now."""
        mine = [waiter for waiter in self._waiters if waiter.subscription is subscription]
        for waiter in mine:
            waiter.at_most = at_most
        self._serve(len(mine), now, mine)

    def wake_all(self) -> None:
        """Wake all waiting claims, because a consumer or the connection was closed."""
        while self._waiters:
            reschedule(self._waiters.popitem()[0].task)

    def abandon(self) -> None:
        """Forget all waiting claims, because the trio run in which they waited has crashed."""
        self._waiters.clear()

    def _serve(self, arrived: int, now: float, waiters: Iterable[Waiter]) -> None:
        for waiter in waiters:
            if arrived <= 0:
                return
            waiter.deliveries = self._store.receive(waiter.subscription, waiter.limit, waiter.at_most, now)
            if waiter.deliveries:
                del self._waiters[waiter]
                reschedule(waiter.task)
                arrived -= len(waiter.deliveries)

    def _keep_time(self) -> None:
        """Set the timeout of the first waiting claim to the next due time, if that comes before its own deadline."""
        for waiter in self._waiters:
            due = self._store.next_due()
            moment = self._clock.in_trio(due)
            waiter.due, moment = (due, moment) if moment < waiter.deadline else (float("inf"), waiter.deadline)
            if waiter.scope.deadline != moment:
                waiter.scope.deadline = moment
            return
