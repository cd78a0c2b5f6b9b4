"""How jobs stand: all who watch share one look at the engine.

Theory. A watcher subscribes to news of its two ids, looks, and waits while what it sees is what it has seen. Looks that
are asked for at the same time become one call of the driver (`Coalescer`), so a thousand watchers that are woken
together cost one request. `watched` counts who watches which id for every change of it, and has 0 where only followers
do, which wait for the end alone; the driver is given it at its link and tells news of these ids only.

`Following` is one task that watches many messages until each has ended. It has one subscription for all of them, which
notes the ids that news tells of, and looks at these only, in one call. So ten thousand results cost as many requests as
there are wake-ups. Each message is looked at once at first, also one that was followed before it was published: an
engine may tell only of what was looked at. A local engine tells of every id in `watched`, so there the first look is
left out for what is about to be published without a ttl: time alone does not end it.

A result that only the following task wants is not stored at all by an engine that can (`HandingDriver`): in the step in
which it would be stored it is put down here, and its message is followed no more. If another task begins to watch or
follow it before that, it is stored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import chain
from typing import TypeAlias

import trio

from ...delivery import StoredResult
from ...errors import BrokerUnavailable
from ...ports import News, Sight, Snapshot, Taker
from .hub import Hub, Subscription
from .unserved import UnservedQueues

Ids: TypeAlias = tuple[str, str]
"""The id of a message and that of its result."""

Look: TypeAlias = Callable[[Sequence[Ids]], Awaitable[list[Sight]]]

Queues: TypeAlias = Callable[[], Iterable[str]]
"""Gives the queues in which messages that are followed wait now."""

LONGEST_GATHERING = 0.001
"""Seconds for which results that were handed over wait for more."""

LARGEST_LOOK = 1000
"""Messages that one look of a follower asks for."""


class Watchers:
    """All who watch jobs of one server. `look` asks for several snapshots at once; `look_at_many` is for those who ask
    for many already, so that putting their requests together is not worth a turn of the loop. `is_local`: the engine
    is in this process; it tells of every id in `watched`, also of one that was never looked at.

    Who waits goes on waiting while the link to a remote engine is down (`is_down`): what becomes of the messages does
    not depend on it. Whoever only begins to watch is told. So are all where the link is up and the engine cannot look:
    no news would end the wait.
    """

    def __init__(
        self,
        hub: Hub,
        look: Look,
        look_at_many: Look,
        unserved: UnservedQueues,
        *,
        is_local: bool,
        is_down: Callable[[], bool],
    ) -> None:
        self.hub = hub
        self.unserved = unserved
        self.is_local = is_local
        self.is_down = is_down
        self.watched: dict[str, int] = {}
        self.followers: dict[str, int] = {}
        """How many follow which id."""
        self.takers: dict[str, Taker] = {}
        """Who takes the result of which id. Nobody else watches or follows it."""
        self._look = look
        self._look_at_many = look_at_many

    async def watch(self, ids: Ids, seen: Snapshot | None, queue: str | None) -> Snapshot:
        """How the message stands, as soon as that differs from `seen`. Cancelling loses nothing. `queue`: tell if it
        waits there and nobody reads it.
        """
        waiting_in = [queue] if queue is not None and seen is not None and seen.state == "ready" else None
        looks = self.unserved.looks(None if waiting_in is None else lambda: waiting_in)
        has_looked = seen is not None
        with self._watching(ids), self.hub.subscribed("ids", frozenset(ids)) as subscription:
            while True:
                subscription.is_fresh = False
                try:
                    [sight] = await self._look([ids])
                except BrokerUnavailable:
                    if not (has_looked and self.is_down()):
                        raise
                    await self.hub.wait(subscription)  # that the link is up again is news
                    continue
                has_looked = True
                if sight.snapshot != seen:
                    return sight.snapshot
                until = trio.current_time() + sight.holds_for
                while not await self.hub.wait(subscription, min(until, looks.due)) and trio.current_time() < until:
                    await looks.look()

    @contextmanager
    def follow(self, check: Callable[[], None], queues: Queues | None) -> Iterator[Following]:
        """Follow many messages for a block. `check` raises where the connection has been closed. `queues`: see
        `Server.follow`.
        """
        following = Following(self, self._look_at_many, check, queues)
        try:
            with self.hub.subscribed_as(following.subscription):
                yield following
        finally:
            following.forget_all()

    @contextmanager
    def _watching(self, ids: Ids) -> Iterator[None]:
        watched = self.watched
        for id_ in ids:
            watched[id_] = watched.get(id_, 0) + 1
            self.takers.pop(id_, None)
        try:
            yield
        finally:
            for id_ in ids:
                watched[id_] -= 1
                if not (watched[id_] or id_ in self.followers):
                    del watched[id_]


class Following:
    """The messages that one task follows, until each has ended. Other tasks may add some, and wake it."""

    def __init__(self, watchers: Watchers, look: Look, check: Callable[[], None], queues: Queues | None) -> None:
        self._followed: dict[str, Ids] = {}
        """By either of its ids."""
        self.subscription = _Many(self._followed)
        self._watchers = watchers
        self._look = look
        self._check = check
        self._queues = queues
        self._again: list[tuple[float, str]] = []
        """When what was seen of a message does not hold any more, the earliest first."""
        self._has_result_ids = False
        """Whether the result of any has another id than the message."""
        self._is_woken = False
        self._taken: list[tuple[Ids, Snapshot]] = []
        """What has ended and is not followed any more, with results that the engine handed over."""

    def add(self, messages: Iterable[Ids], *, look_first: bool = True, take_results: bool = False) -> None:
        """Follow these from now on. Those that are not published yet must be before the next `ended`.

        `look_first=False`: they are published then and have no ttl, so that a local engine will tell of each end. What
        was refused must be added again. `take_results`: nobody else will want the results. A local engine does not have
        to store them, and one that it did not store expires in the moment in which it came.
        """
        by_id = {message[0]: message for message in messages}
        by_result_id = {message[1]: message for message in by_id.values() if message[1] != message[0]}
        self._has_result_ids = self._has_result_ids or bool(by_result_id)
        watched, followers, takers = self._watchers.watched, self._watchers.followers, self._watchers.takers
        for found in (by_id, by_result_id):
            if watched.keys().isdisjoint(found):  # the same as below, for the many
                watched |= dict.fromkeys(found, 0)
                followers |= dict.fromkeys(found, 1)
                if take_results and not by_result_id:
                    takers |= dict.fromkeys(found, self._take)
            else:
                for id_ in found:
                    takers.pop(id_, None)
                    if id_ not in self._followed:
                        followers[id_] = followers.get(id_, 0) + 1
                        watched.setdefault(id_, 0)
            self._followed |= found
        if look_first or not self._watchers.is_local:
            self.subscription.changed |= by_id.keys()
            self.subscription.wake()

    def _take(self, results: Sequence[StoredResult]) -> None:
        """Messages have ended with these results, and the engine does not keep them."""
        followed, takers = self._followed, self._watchers.takers
        watched, followers = self._watchers.watched, self._watchers.followers
        for result in results:
            id_ = result.id
            self._taken.append((followed.pop(id_), Snapshot(state="gone", result=result)))
            del takers[id_], followers[id_], watched[id_]  # which nobody else follows or watches
        if not self.subscription.is_fresh:
            self.subscription.wake()

    def wake(self) -> None:
        """End the present wait of `ended`, or the next one."""
        self._is_woken = True
        self.subscription.wake()

    async def ended(self) -> list[tuple[Ids, Snapshot]]:
        """Wait until some have ended; those are followed no more. Woken, it returns an empty list. Cancelled, it loses
        none.

        A message that was never published has ended, too.
        """
        subscription = self.subscription
        looks = self._watchers.unserved.looks(self._queues)
        while True:
            self._check()
            if self._taken:
                await self._let_more_come()
            subscription.is_fresh = is_away = False
            try:
                ended = await self._look_again()  # also while results are handed over: others may end without one
            except BrokerUnavailable:
                if not self._watchers.is_down():
                    raise
                ended, is_away = [], True
            if ended or self._taken or self._is_woken:
                ended += self._taken
                self._taken.clear()
                self._is_woken = False
                return ended
            if is_away:
                await self._watchers.hub.wait(subscription)  # that the link is up again is news
            elif not subscription.changed:
                until = self._again[0][0] if self._again else math.inf
                await self._watchers.hub.wait(subscription, min(until, looks.due))
                await looks.look()

    async def look(self, messages: Sequence[Ids]) -> list[Snapshot]:
        """How these stand now, whether they are followed or not. What was handed over, and is not told of yet, has its
        result.
        """
        found: list[Snapshot] = []
        for start in range(0, len(messages), LARGEST_LOOK):
            found += [sight.snapshot for sight in await self._look(messages[start : start + LARGEST_LOOK])]
        taken = dict(self._taken)
        return [taken.get(message, snapshot) for message, snapshot in zip(messages, found, strict=True)]

    async def _let_more_come(self) -> None:
        """Where several have come, wait as long as more do in every turn: many at once cost less."""
        before, until = 0, time.perf_counter() + LONGEST_GATHERING
        while len(self._taken) > before and time.perf_counter() < until:
            before = len(self._taken)
            await trio.lowlevel.checkpoint()

    async def _look_again(self) -> list[tuple[Ids, Snapshot]]:
        """Look at what may have changed. What has ended is forgotten."""
        subscription, now = self.subscription, trio.current_time()
        if subscription.all_changed:
            subscription.all_changed = False
            subscription.changed.update(self._followed)
        while self._again and self._again[0][0] <= now:
            subscription.changed.add(heappop(self._again)[1])
        messages = self._take_changed()
        if not messages:
            return []
        try:
            sights = await self._look(messages)
        except BaseException:
            subscription.changed.update([id_ for id_, _ in messages])
            raise
        now, ended = trio.current_time(), []
        for message, sight in zip(messages, sights, strict=True):
            snapshot = sight.snapshot
            if message[0] not in self._followed:
                continue  # it has ended by this very look, and its result was handed over
            if snapshot.state in _ENDS:
                ended.append((message, snapshot))
            elif sight.holds_for < math.inf:
                heappush(self._again, (now + sight.holds_for, message[0]))
        self._forget([message for message, _ in ended])
        return ended

    def _take_changed(self) -> list[Ids]:
        """Those that may have changed, as many as one look may ask for. News that comes during the look is
        noted anew.
        """
        followed, changed = self._followed, self.subscription.changed
        taken = [changed.pop() for _ in range(min(len(changed), LARGEST_LOOK))]
        messages = [followed[id_] for id_ in taken if id_ in followed]
        if self._has_result_ids:  # a message may be there by either of its ids
            messages = list(dict.fromkeys(messages))
            changed.difference_update([result_id for _, result_id in messages], [id_ for id_, _ in messages])
        return messages

    def _forget(self, messages: Sequence[Ids]) -> None:
        followed, takers = self._followed, self._watchers.takers
        watched, followers = self._watchers.watched, self._watchers.followers
        for id_ in chain.from_iterable(messages) if self._has_result_ids else [message[0] for message in messages]:
            if followed.pop(id_, None) is None:  # the message and its result may have one id
                continue
            takers.pop(id_, None)
            others = followers.pop(id_) - 1
            if others:
                followers[id_] = others
            elif not watched[id_]:
                del watched[id_]

    def forget_all(self) -> None:
        """Follow none any more."""
        self._forget(list(self._followed.values()))


_ENDS = frozenset({"dead", "gone"})
"""The states in which nothing more becomes of a message."""


class _Many(Subscription):
    """A subscription for ids that change. It notes which of them news has told of."""

    __slots__ = ("all_changed", "changed", "followed")

    def __init__(self, followed: Mapping[str, Ids]) -> None:
        super().__init__("ids", frozenset())
        self.followed = followed
        self.changed: set[str] = set()
        self.all_changed = False

    def is_concerned_by(self, news: News) -> bool:
        """Whether it is worth looking again after this news."""
        if news.ids is None:
            self.all_changed = True
            return True
        told = self.followed.keys() & news.ids
        self.changed |= told
        return bool(told)
