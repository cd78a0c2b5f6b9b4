"""Queues that nobody reads although calls wait there for jobs to end: the log tells, once for each.

A call that waits in vain looks exactly like one whose job takes long. So when a job that is ready has not begun for
`UNREAD_AFTER`, or no job of those that are followed has ended for so long, the engine is asked once who reads the queue.
The calls that wait need no task and no scope for that: their wait for news has a deadline already. However many calls
wait, a queue is looked at once in `UNREAD_AFTER`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping

import trio

from ...errors import BrokerError
from ...logs import Log
from ...ports import Topics

log = Log("repid.server")

UNREAD_AFTER = 5.0
"""Seconds of waiting after which the log says so where nobody reads the queue: its worker was perhaps not started."""


class UnreadQueues:
    """Those of one connection. `ask` is `Server.readers`, None if the engine does not know that; `how_to_start`: what to
    do where nobody reads.
    """

    def __init__(self, ask: Callable[[], Awaitable[list[Mapping[str, Topics]]]] | None, how_to_start: str) -> None:
        self._ask = ask
        self._how_to_start = how_to_start
        self._looked_at: dict[str, float] = {}
        self._told: set[str] = set()

    def due(self) -> float:
        """When a call that begins to wait now should look, on trio's clock."""
        return math.inf if self._ask is None else trio.current_time() + UNREAD_AFTER

    async def look(self, queues: Iterable[str]) -> None:
        """Tell of those among these queues that nobody reads. If the engine does not answer, nothing is told."""
        now = trio.current_time()
        chosen = {queue for queue in queues if now - self._looked_at.get(queue, -math.inf) >= UNREAD_AFTER}
        if self._ask is None or not chosen:
            return
        self._looked_at.update(dict.fromkeys(chosen, now))
        try:
            read = {queue for reader in await self._ask() for queue in reader}
        except BrokerError:
            return
        unread = chosen - read
        for queue in sorted(unread - self._told):
            log.warning(
                "a call has waited for %.0f s for a job in queue %r. No worker reads that queue now: the call waits until "
                "one does; %s",
                UNREAD_AFTER,
                queue,
                self._how_to_start,
            )
        self._told = self._told - chosen | unread
