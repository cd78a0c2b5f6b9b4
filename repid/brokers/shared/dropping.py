"""Telling the log of messages that were dropped because their queue was full, once in a while."""

from __future__ import annotations

import time

from ...logs import Log

log = Log("repid.server")

LOG_EVERY = 60.0
"""Seconds. The first messages that a queue drops are told at once, those of the next minute together."""


class DropLog:
    """Counts what the calls of one driver have dropped."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._told_at: dict[str, float] = {}

    def note(self, queue: str, count: int) -> None:
        """`count` messages of the queue were dropped."""
        if not count:
            return
        self._counts[queue] = self._counts.get(queue, 0) + count
        now = time.monotonic()
        if now - self._told_at.get(queue, -LOG_EVERY) >= LOG_EVERY:
            self._told_at[queue] = now
            log.warning(
                'queue %r was full and has dropped %d of its oldest messages (when_full="drop_oldest")',
                queue,
                self._counts.pop(queue),
            )
