"""Waiting for news: one call to the engine serves all who wait.

Theory. A task that waits first *subscribes*, then looks, then waits. News that arrives between the look and the wait is
noted at the subscription, so the wait ends at once: no wake-up is lost. There is no background task. One of the waiting
tasks leads: it calls the driver's `news` and wakes every task that the answer concerns. When the leader leaves (there
was news for it, its deadline passed, it was cancelled), it makes the next task the leader. So nothing of this outlives
the callers, and cancelling one of them does not harm the others.

The driver's `news` is called only while a task waits. Its first answer may tell of changes that happened long before:
that costs one call too many, never one too few.

A driver that can (`TellingDriver`) tells its news at once, too. Then those who follow the leader do not wait until that
has had its turn, and the leader has none if the news is not for it. If it is for the leader, that is not woken by this,
but by its own call of `news`, which returns: to cancel that call would take longer. What a task would do first when it
is awake may be done in that very step, if it does not wait (`look`).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

from ...ports import News

Topic: TypeAlias = Literal["ready", "events", "ids", "room", "schedules"]

LONGEST_WAIT = 30.0
"""Seconds that one call of `news` may wait, so that an engine which has lost this client is asked again."""


class Subscription:
    """What one task waits for. `is_fresh`: there was news since the task looked last."""

    __slots__ = ("ids", "is_fresh", "look", "rouse", "topic")

    def __init__(self, topic: Topic, ids: frozenset[str]) -> None:
        self.topic = topic
        self.ids = ids
        self.is_fresh = False
        self.rouse: Callable[[], None] | None = None
        """Ends the present wait; None while the task does not wait."""
        self.look: Callable[[], None] | None = None
        """Called with news that is told at once, before it wakes the task: one that follows, and was not cancelled. It
        must not raise.
        """

    def is_concerned_by(self, news: News) -> bool:
        """Whether it is worth looking again after this news."""
        if self.topic == "ready":
            return news.ready
        if self.topic == "events":
            return news.events
        if self.topic == "room":
            return news.room
        if self.topic == "schedules":
            return news.schedules
        return news.ids is None or not self.ids.isdisjoint(news.ids)

    def wake(self) -> None:
        """There is news: end the present wait, or the next one."""
        self.is_fresh = True
        if self.rouse is not None:
            self.rouse()


class Hub:
    """All tasks that wait for news of one engine. `ask` is the driver's `news` behind the door: it never raises."""

    def __init__(self, ask: Callable[[float], Awaitable[News | None]]) -> None:
        self._ask = ask
        self._subscriptions: dict[Subscription, None] = {}
        self._leader: Subscription | None = None

    @contextmanager
    def subscribed_as(self, subscription: Subscription) -> Iterator[None]:
        """Note news for a block, for this subscription."""
        self._subscriptions[subscription] = None
        try:
            yield
        finally:
            self._subscriptions.pop(subscription, None)

    @contextmanager
    def subscribed(self, topic: Topic, ids: frozenset[str] = frozenset()) -> Iterator[Subscription]:
        """Note news of this kind for a block."""
        subscription = Subscription(topic, ids)
        self._subscriptions[subscription] = None
        try:
            yield subscription
        finally:
            self._subscriptions.pop(subscription, None)

    async def wait(self, subscription: Subscription, until: float = math.inf) -> bool:
        """Wait until there is news for this subscription, or until that moment of trio's clock. A checkpoint.

        Returns whether there was news. Cancelling loses nothing.
        """
        if subscription.is_fresh or until <= trio.current_time():
            has_news, subscription.is_fresh = subscription.is_fresh, False
            await trio.lowlevel.checkpoint()
            return has_news
        with trio.CancelScope(deadline=until) as scope:
            while not subscription.is_fresh:
                if self._leader is not None:
                    await self._follow(subscription)
                else:
                    await self._lead(subscription, scope)
        has_news, subscription.is_fresh = subscription.is_fresh, False
        return has_news

    def tell(self, news: News) -> None:
        """Wake every task that this news concerns."""
        for subscription in self._subscriptions:
            if subscription.is_concerned_by(news):
                subscription.wake()

    def tell_at_once(self, news: News) -> bool:
        """Wake every task that this news concerns, except the leader. Returns whether it concerns the leader, too: then
        its call of `news` must return.
        """
        is_for_leader = False
        for subscription in self._subscriptions:
            if subscription.is_concerned_by(news):
                if subscription is self._leader:
                    subscription.is_fresh = is_for_leader = True
                else:
                    if subscription.look is not None and subscription.rouse is not None:
                        subscription.look()
                    subscription.wake()
        return is_for_leader

    def tell_all(self) -> None:
        """Every task must look again: a consumer or the connection was closed, or the link is back."""
        self.tell(News())

    async def _lead(self, subscription: Subscription, scope: trio.CancelScope) -> None:
        """Ask for all, until there is news for this one too. What others tell it meanwhile ends its scope, as its
        deadline does.
        """
        self._leader = subscription
        try:
            while not subscription.is_fresh:
                subscription.rouse = scope.cancel
                news = await self._ask(max(0.0, min(scope.deadline - trio.current_time(), LONGEST_WAIT)))
                subscription.rouse = None  # it is awake, and sees for itself
                if news is not None:
                    self.tell(news)
        finally:
            subscription.rouse = None
            self._leader = None
            self._have_another_lead()

    async def _follow(self, subscription: Subscription) -> None:
        task = current_task()

        def rouse() -> None:
            subscription.rouse = None
            reschedule(task)

        def give_up(_: object) -> Abort:
            subscription.rouse = None
            return Abort.SUCCEEDED

        subscription.rouse = rouse
        try:
            await wait_task_rescheduled(give_up)
        finally:
            if self._leader is None:  # it was to lead, and leaves instead
                self._have_another_lead()

    def _have_another_lead(self) -> None:
        for subscription in self._subscriptions:
            if subscription.rouse is not None and not subscription.is_fresh:
                subscription.rouse()
                return
