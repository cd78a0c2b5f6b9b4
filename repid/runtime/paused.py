"""Paused queues of a worker: it gets nothing of them, which looks as if there were nothing to do. So it says so."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from ..logs import Log
from ..ports import Broker, how_to_resume
from .backoff import look_every

log = Log("repid.worker")

LOOK_EVERY = 300.0
"""Seconds between two looks: some engines must count messages for that, which takes longer the more there are."""


class PausedQueues:
    """Which of these queues are paused, as it was seen last."""

    def __init__(self, broker: Broker, queues: Sequence[str]) -> None:
        self._broker = broker
        self._queues = queues
        self._paused: frozenset[str] = frozenset()

    async def watch(self) -> None:
        """Look until cancelled."""
        await look_every(LOOK_EVERY, self.look, log, "cannot look for paused queues")

    async def look(self) -> None:
        """Look once, and tell what has changed."""
        are_paused = await self._broker.paused_of(self._queues)
        former, self._paused = self._paused, frozenset(compress(self._queues, are_paused))
        for queue in sorted(self._paused - former):
            log.warning("queue %r is paused, so no worker gets its messages: %s", queue, how_to_resume(queue))
        for queue in sorted(former - self._paused):
            log.info("queue %r is not paused any more", queue)
