"""Queues that nobody reads although messages wait in them: they are told of, by any worker on that server.

A sender cannot know: it may have stopped long ago. So a worker looks now and then, at queues that it does not read
itself too. That costs two light requests, and one more where there are such queues.
"""

from __future__ import annotations

from ..logs import Log
from ..ports import Broker
from .backoff import look_every

log = Log("repid.worker")

LOOK_EVERY = 300.0
"""Seconds between two looks."""

TOLD_AFTER = 3
"""Looks in a row, after the first one, that find a queue without a reader before it is told of."""

MOST_LOOKED_AT = 100
"""Queues without a reader of which one look asks for the counts."""

MOST_NAMED = 10


class Unread:
    """The queues of a server that knows its readers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._looks: dict[str, int] = {}
        """How many looks in a row have found it so. Once it was told of, it is told of again only after a change."""

    async def watch(self) -> None:
        """Look until cancelled."""
        await look_every(LOOK_EVERY, self.look, log, "cannot look for queues that nobody reads")

    async def look(self) -> None:
        """Look once. If it fails, as where a queue is deleted meanwhile, counting starts again."""
        former, self._looks = self._looks, {}
        waiting = await self._waiting()
        self._looks = {name: former.get(name, -1) + 1 for name in waiting}
        found = [name for name, looks in self._looks.items() if looks == TOLD_AFTER]
        if found:
            named = ", ".join(f"{name!r} ({waiting[name]} ready)" for name in found[:MOST_NAMED])
            log.warning(
                "nobody has read these queues for %g minutes, and messages wait in them: %s%s",
                TOLD_AFTER * LOOK_EVERY / 60,
                named,
                f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else "",
            )

    async def _waiting(self) -> dict[str, int]:
        """How many messages are ready in each queue that nobody reads and nobody has paused."""
        read = {queue for reader in await self._broker.readers() for queue in reader}
        names = [name for name in await self._broker.queues() if name not in read][:MOST_LOOKED_AT]
        counts = await self._broker.counts_of(names) if names else []
        return {name: each.ready for name, each in zip(names, counts, strict=True) if each.ready and not each.paused}
