"""Claims that wait for something to become ready, and the clock by which they wait.

Theory. What makes a message ready leases it, in the same step, to the claims that wait for it, in the order in which
they began to wait: no message is ever ready while a claim waits that may have it. A waiting claim that is given
messages is woken in that step too, so a cancellation either comes before it, and nothing was leased, or after it, and
trio delivers the messages.

One alarm serves all claims (`keep_time`), so that none needs a timeout of its own, which would take longer than all
else that a claim does. While claims wait, the alarm goes off no later than the next scheduled message falls due and the
first deadline passes. It may go off for nothing: a claim that is woken leaves it as it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import trio
from trio.lowlevel import Abort, current_task, enable_ki_protection, reschedule, wait_task_rescheduled

from ...delivery import Delivery
from ...ports import AtMost, Take
from .record import Subscription
from .store import Store


class Clock:
    """Trio's clock plus an offset, so that what is stored grows older from one trio run to the next.

    The clocks of two runs are not related. Between runs the clock of the former one counts, which goes on after its end
    (but for a `MockClock`, for which no time passes then). It never runs backwards.

    `epoch` is what to add to its times for seconds since 1970, as the wall clock said at first: it is not stepped.
    """

    __slots__ = ("_now", "_of_trio", "_offset", "epoch")

    def __init__(self) -> None:
        self.epoch = 0.0
        self._of_trio: Callable[[], float] = trio.current_time
        self._now = -math.inf
        self._offset = 0.0

    def attach(self) -> None:
        """Go on in another trio run. The first run's times are trio's own."""
        of_trio = trio.lowlevel.current_clock().current_time  # as trio.current_time, without a search
        if self._now == -math.inf:
            self.epoch = time.time() - of_trio()
        else:
            self._offset = self.look() - of_trio()
        self._of_trio = of_trio

    def look(self) -> float:
        """The time now."""
        now = self._of_trio() + self._offset
        if now > self._now:
            self._now = now
            return now
        return self._now

    def reach(self, moment: float) -> None:
        """Go to this moment: trio's timeout for it has fired, though the rounded offset may be a little behind."""
        self._now = max(self._now, moment)

    def forward(self, seconds: float) -> None:
        """Put it forward against trio's clock."""
        self._offset += seconds

    def in_trio(self, moment: float) -> float:
        """The moment on trio's clock."""
        return moment - self._offset


class Waiter:
    """One claim that found nothing. `deadline` is on trio's clock; `take` is called with what is leased to it."""

    __slots__ = ("at_most", "deadline", "deliveries", "limit", "subscription", "take", "task")

    def __init__(self, subscription: Subscription, limit: int, at_most: AtMost, deadline: float, take: Take) -> None:
        self.subscription = subscription
        self.limit = limit
        self.at_most = at_most
        self.deadline = deadline
        self.take = take
        self.deliveries: list[Delivery] = []
        self.task = current_task()


class WaitingReceives:
    """The waiting claims, longest waiting first. Each of them found nothing in the store when it began to wait.

    A claim that is taken out is woken in the same step, so that what it was given cannot be lost to a cancellation.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.waiters: dict[Waiter, None] = {}
        self._alarm = trio.CancelScope()

    @enable_ki_protection
    async def keep_time(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve claims when what they wait for falls due, and wake them at their deadlines, until cancelled."""
        while True:
            with trio.CancelScope() as self._alarm:
                self._set_alarm(min([waiter.deadline for waiter in self.waiters], default=math.inf))
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await trio.sleep_forever()
            self._ring()

    async def wait(self, waiter: Waiter) -> list[Delivery]:
        """Wait until something is leased to the waiter, and return that.

        An empty list means: check again (the deadline has passed, or a consumer was closed). If this is cancelled,
        nothing was leased.
        """

        def leave(_: object) -> Abort:
            del self.waiters[waiter]
            return Abort.SUCCEEDED

        if not self.waiters:
            self._store.arrived = 0  # it found nothing of that
        self.waiters[waiter] = None
        self._set_alarm(waiter.deadline)
        await wait_task_rescheduled(leave)
        return waiter.deliveries

    def serve(self, now: float) -> None:
        """Lease what became ready to the waiting claims. To be called after each change, before any await, if some
        wait.
        """
        arrived, self._store.arrived = self._store.arrived, 0
        if arrived:
            self._serve(arrived, now, list(self.waiters))
        self._set_alarm(math.inf)

    def set_limits(self, subscription: Subscription, at_most: AtMost, now: float) -> None:
        """Change the limits of this consumer's waiting claims, and lease at once what they allow now."""
        mine = [waiter for waiter in self.waiters if waiter.subscription is subscription]
        for waiter in mine:
            waiter.at_most = at_most
        self._serve(len(mine), now, mine)

    def wake_all(self) -> None:
        """Wake all waiting claims, because a consumer or the connection was closed."""
        while self.waiters:
            reschedule(self.waiters.popitem()[0].task)

    def abandon(self) -> None:
        """Forget all waiting claims, because the trio run in which they waited has crashed."""
        self.waiters.clear()

    def _serve(self, arrived: int, now: float, waiters: Iterable[Waiter]) -> None:
        for waiter in waiters:
            if arrived <= 0:
                return
            waiter.deliveries = self._store.receive(waiter.subscription, waiter.limit, waiter.at_most, now)
            if waiter.deliveries:
                del self.waiters[waiter]
                reschedule(waiter.task)
                waiter.take(waiter.deliveries)
                arrived -= len(waiter.deliveries)

    def _set_alarm(self, deadline: float) -> None:
        """Have the alarm go off no later than this moment on trio's clock, nor than the next scheduled message falls
        due. An earlier alarm stays as it is.
        """
        if self.waiters:
            moment = min(deadline, self._clock.in_trio(self._store.next_due()))
            if moment < self._alarm.deadline:  # noqa: PLR1730  setting it takes long, even to the same value
                self._alarm.deadline = moment

    def _ring(self) -> None:
        moment, due = trio.current_time(), self._store.next_due()
        if self._clock.in_trio(due) <= moment:
            self._clock.reach(due)
        now = self._clock.look()
        self._store.advance(now)
        self.serve(now)
        for waiter in [each for each in self.waiters if each.deadline <= moment]:
            del self.waiters[waiter]
            reschedule(waiter.task)
