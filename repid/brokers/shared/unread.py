"""Queues whose messages no worker gets although calls wait there for jobs to end: the log tells why.

A call that waits in vain looks exactly like one whose job takes long. So when a job that is ready has not begun for
`UNREAD_AFTER`, or no job of those that are followed has ended for so long, the engine is asked who reads the queue and
whether it is paused; and again after ever longer pauses, since that may change while the call waits. The calls that
wait need no task and no scope for that: their wait for news has a deadline already. However many calls wait, a queue is
looked at once in `UNREAD_AFTER` at most.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import trio

from ...errors import BrokerError
from ...logs import Log
from ...ports import Topics, how_to_resume

log = Log("repid.server")

UNREAD_AFTER = 5.0
"""Seconds of waiting after which the log says so where nobody reads the queue: its worker was perhaps not started."""

LONGEST_PAUSE = 300.0
"""Seconds between two looks of one call at the most."""

ASK_EVERY = 60.0
"""Seconds after which the engine is asked again whether a queue is paused: some must count its messages for that."""


class UnreadQueues:
    """Those of one connection. `ask` is `Server.readers` and `ask_paused` is `Server.paused_of`; each is None if the
    engine cannot tell. `how_to_start`: what to do where nobody reads.
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
        self._were_read_here: set[str] = set()
        self._looked_at: dict[str, float] = {}
        self._asked_at: dict[str, float] = {}
        self._paused: set[str] = set()
        self._told: dict[str, str] = {}

    def looks(self, queues: Callable[[], Iterable[str]] | None) -> Looks:
        """For a call that begins to wait now, in these queues; None: its queues are not looked at."""
        return Looks(self, queues if self._ask or self._ask_paused else None)

    def closed(self, queues: Iterable[str]) -> None:
        """Note that a consumer of this process has ended, which read these."""
        self._were_read_here.update(queues)

    async def look(self, queues: Iterable[str], waited: float) -> None:
        """Log which of these queues are those whose messages no worker gets; nothing if the engine does not answer."""
        now = trio.current_time()
        chosen = {queue for queue in queues if now - self._looked_at.get(queue, -math.inf) >= UNREAD_AFTER}
        self._looked_at.update(dict.fromkeys(chosen, now))
        reasons = await self.reasons(sorted(chosen))
        if reasons is None:
            return
        for queue, reason in reasons.items():
            if reason and self._told.get(queue) != reason:
                log.warning("a call has waited for %.0f s for a job in queue %r. %s", waited, queue, reason)
        self._told |= reasons

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
        chosen = [queue for queue in queues if now - self._asked_at.get(queue, -math.inf) >= ASK_EVERY]
        if self._ask_paused is None or not chosen:
            return
        self._asked_at.update(dict.fromkeys(chosen, now))
        for queue, is_paused in zip(chosen, await self._ask_paused(chosen), strict=True):
            (self._paused.add if is_paused else self._paused.discard)(queue)

    def _reason(self, queue: str, *, is_read: bool) -> str:
        reasons = []
        if queue in self._paused:
            reasons.append(f"That queue is paused, so no worker gets its messages: {how_to_resume(queue)}")
        if not is_read:
            ended = ", and the one of this process has ended" if queue in self._were_read_here else ""
            reasons.append(
                f"No worker reads that queue now{ended}: the call waits until one does; {self._how_to_start}"
            )
        return ". ".join(reasons)


class Looks:
    """When one call that waits looks whether its queues are read: after `UNREAD_AFTER`, then ever more rarely."""

    def __init__(self, unread: UnreadQueues, queues: Callable[[], Iterable[str]] | None) -> None:
        self._unread = unread
        self._queues = queues
        self._pause = UNREAD_AFTER
        self._began = trio.current_time()
        self.due = math.inf if queues is None else self._began + UNREAD_AFTER
        """The moment of the next look, on trio's clock."""

    async def look(self) -> None:
        """Look now, if that is due."""
        now = trio.current_time()
        if self._queues is None or now < self.due:
            return
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self.due = now + self._pause
        await self._unread.look(self._queues(), now - self._began)
