"""Queues that a worker looks at now and then, to tell of them: those it reads and gets nothing of, since they are
paused, and those that nobody reads although messages wait in them.

Of the second kind a sender cannot know: it may have stopped long ago. So any worker on that server looks, at queues
that it does not read itself too. That costs two light requests, and one more where there are such queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from ..logs import Log
from ..ports import Broker, how_to_resume
from .outage import look_every

log = Log("repid.worker")

LOOK_EVERY = 300.0
"""Seconds between two looks: some engines must count messages to know what is paused, which takes longer the more there
are.
"""

TOLD_AFTER = 3
"""Looks in a row, after the first one, that find a queue without a reader before it is told of."""

MOST_LOOKED_AT = 100
"""Queues without a reader of which one look asks for the counts."""

MOST_NAMED = 10


class PausedQueues:
    """Which of these queues are paused, as it was seen last. A worker that gets nothing looks as if it had nothing to
    do.
    """

    def __init__(self, broker: Broker, queues: Sequence[str]) -> None:
        self._broker = broker
        self._queues = queues
        self._paused: frozenset[str] = frozenset()

    async def watch(self) -> None:
        """Look until cancelled."""
        await look_every(LOOK_EVERY, self.look, "cannot look for paused queues")

    async def look(self) -> None:
        """Look once, and tell what has changed."""
        are_paused = await self._broker.paused_of(self._queues)
        former, self._paused = self._paused, frozenset(compress(self._queues, are_paused))
        for queue in sorted(self._paused - former):
            log.warning("queue %r is paused, so no worker gets its messages: %s", queue, how_to_resume(queue))
        for queue in sorted(former - self._paused):
            log.info("queue %r is not paused any more", queue)


class UnreadQueues:
    """The queues that nobody reads, of a server that knows its readers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._looks: dict[str, int] = {}
        """How many looks in a row have found it so. Once it was told of, it is told of again only after a change."""

    async def watch(self) -> None:
        """Look until cancelled."""
        await look_every(LOOK_EVERY, self.look, "cannot look for queues that nobody reads")

    async def look(self) -> None:
        """Look once. If it fails, as where a queue is deleted meanwhile, counting starts again."""
        former, self._looks = self._looks, {}
        read = {queue for reader in await self._broker.readers() for queue in reader}
        names = [name for name in await self._broker.queues() if name not in read][:MOST_LOOKED_AT]
        counts = await self._broker.counts_of(names) if names else []
        ready = {name: each.ready for name, each in zip(names, counts, strict=True) if each.ready and not each.paused}
        self._looks = {name: former.get(name, -1) + 1 for name in ready}
        found = [name for name, looks in self._looks.items() if looks == TOLD_AFTER]
        if found:
            named = ", ".join(f"{name!r} ({ready[name]} ready)" for name in found[:MOST_NAMED])
            log.warning(
                "nobody has read these queues for %g minutes, and messages wait in them: %s%s",
                TOLD_AFTER * LOOK_EVERY / 60,
                named,
                f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else "",
            )
