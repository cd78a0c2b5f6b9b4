"""Queues whose messages no worker gets although calls wait there for jobs to end: the log tells why.

A call that waits in vain looks exactly like one whose job takes long. So when a job that is ready has not begun for
`UNSERVED_AFTER`, or no job of those that are followed has ended for so long, the engine is asked who reads the queue
and whether it is paused; and again after ever longer pauses, since that may change while the call waits. The calls that
wait need no task and no scope for that: their wait for news has a deadline already. However many calls wait, a queue is
looked at once in `UNSERVED_AFTER` at most.

What was found is remembered for `MOST_REMEMBERED` queues, those that were looked at last, since a program may make up
names of queues without end. Of one that was forgotten the log may tell again.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice

import trio

from ...errors import BrokerError
from ...logs import Log
from ...ports import Topics, how_to_resume

log = Log("repid.server")

UNSERVED_AFTER = 5.0
"""Seconds of waiting after which the log says so where nobody reads the queue: its worker was perhaps not started."""

LONGEST_PAUSE = 300.0
"""Seconds between two looks of one call at the most."""

ASK_EVERY = 60.0
"""Seconds after which the engine is asked again whether a queue is paused: some must count its messages for that."""

MOST_REMEMBERED = 1000
"""Queues of which it is remembered what was found, and of which one call looks at most."""


class _Found:
    """What is known of one queue. `told`: why no worker gets its messages, as the log says it; "" if one does."""

    __slots__ = ("asked_at", "is_paused", "looked_at", "told", "was_read_here")

    def __init__(self) -> None:
        self.looked_at = self.asked_at = -math.inf
        self.is_paused = self.was_read_here = False
        self.told = ""


class UnservedQueues:
    """The queues of one connection whose messages no worker gets.

    `ask` is `Server.readers` and `ask_paused` is `Server.paused_of`; each is None if the engine cannot tell.
    `how_to_start`: what to do where nobody reads.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[list[Mapping[str, Topics]]]] | None,
        ask_paused: Callable[[Sequence[str]], Awaitable[list[bool]]] | None,
        how_to_start: str,
    ) -> None:
        self._ask = ask
        self._ask_paused = ask_paused
        self._how_to_start = how_to_start
        self._found: dict[str, _Found] = {}
        """By queue; the one that was asked for last comes last."""

    def looks(self, queues: Callable[[], Iterable[str]] | None) -> Looks:
        """For a call that begins to wait now, in these queues; None: its queues are not looked at."""
        return Looks(self, queues if self._ask or self._ask_paused else None)

    def closed(self, queues: Iterable[str]) -> None:
        """Note that a consumer of this process has ended, which read these."""
        for queue in queues:
            self._found_of(queue).was_read_here = True

    async def look(self, queues: Iterable[str], waited: float) -> None:
        """Log which of these queues are those whose messages no worker gets; nothing if the engine does not answer."""
        now = trio.current_time()
        found = {queue: self._found_of(queue) for queue in islice(queues, MOST_REMEMBERED)}
        chosen = sorted(queue for queue, each in found.items() if now - each.looked_at >= UNSERVED_AFTER)
        for queue in chosen:
            found[queue].looked_at = now
        for queue, reason in (await self.reasons(chosen) or {}).items():
            if reason and found[queue].told != reason:
                log.warning("a call has waited for %.0f s for a job in queue %r. %s", waited, queue, reason)
            found[queue].told = reason

    async def reasons(self, queues: Sequence[str]) -> dict[str, str] | None:
        """For each queue why no worker gets its messages; "" if one does. Returns None if the engine did not answer."""
        if not queues:
            return {}
        try:
            read = set(queues) if self._ask is None else {queue for reader in await self._ask() for queue in reader}
            await self._look_for_pauses(queues)
        except BrokerError:
            return None
        return {queue: self._reason(queue, is_read=queue in read) for queue in queues}

    async def _look_for_pauses(self, queues: Sequence[str]) -> None:
        now = trio.current_time()
        chosen = [queue for queue in queues if now - self._found_of(queue).asked_at >= ASK_EVERY]
        if self._ask_paused is None or not chosen:
            return
        for queue in chosen:
            self._found_of(queue).asked_at = now
        for queue, is_paused in zip(chosen, await self._ask_paused(chosen), strict=True):
            self._found_of(queue).is_paused = is_paused

    def _reason(self, queue: str, *, is_read: bool) -> str:
        reasons = []
        found = self._found_of(queue)
        if found.is_paused:
            reasons.append(f"That queue is paused, so no worker gets its messages: {how_to_resume(queue)}")
        if not is_read:
            ended = ", and the one of this process has ended" if found.was_read_here else ""
            reasons.append(
                f"No worker reads that queue now{ended}: the call waits until one does; {self._how_to_start}"
            )
        return ". ".join(reasons)

    def _found_of(self, queue: str) -> _Found:
        """What is known of a queue; what was asked for longest ago is forgotten for it."""
        found = self._found.pop(queue, None) or _Found()
        self._found[queue] = found
        if len(self._found) > MOST_REMEMBERED:
            del self._found[next(iter(self._found))]
        return found


class Looks:
    """When one call that waits checks whether its queues are read: after `UNSERVED_AFTER`, then ever more rarely."""

    def __init__(self, unserved: UnservedQueues, queues: Callable[[], Iterable[str]] | None) -> None:
        self._unserved = unserved
        self._queues = queues
        self._pause = UNSERVED_AFTER
        self._began = trio.current_time()
        self.due = math.inf if queues is None else self._began + UNSERVED_AFTER
        """The moment of the next look, on trio's clock."""

    async def look(self) -> None:
        """Look now, if that is due."""
        now = trio.current_time()
        if self._queues is None or now < self.due:
            return
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self.due = now + self._pause
        await self._unserved.look(self._queues(), now - self._began)
