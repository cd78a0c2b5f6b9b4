"""How jobs stand: all who watch share one look at the engine.

Theory. A watcher subscribes to news of its two ids, looks, and waits while what it sees is what it has seen. Looks that
are asked for at the same time become one call of the driver (`Coalescer`), so a thousand watchers that are woken
together cost one request. `watched` counts who watches which id; the driver is given it at its link and tells news of
these ids only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import trio

from ...ports import Sight, Snapshot
from .hub import Hub

Ids: TypeAlias = tuple[str, str]
"""The id of a message and that of its result."""

Look: TypeAlias = Callable[[Sequence[Ids]], Awaitable[list[Sight]]]


class Watchers:
    """All who watch jobs of one server. `look` asks for several snapshots at once."""

    def __init__(self, hub: Hub, look: Look) -> None:
        self.hub = hub
        self.watched: Counter[str] = Counter()
        self._look = look

    async def watch(self, ids: Ids, seen: Snapshot | None) -> Snapshot:
        """How the message stands, as soon as that differs from `seen`. Cancelling loses nothing."""
        with self._watching(ids), self.hub.subscribed("ids", frozenset(ids)) as subscription:
            while True:
                subscription.is_fresh = False
                [sight] = await self._look([ids])
                if sight.snapshot != seen:
                    return sight.snapshot
                await self.hub.wait(subscription, trio.current_time() + sight.holds_for)

    @contextmanager
    def _watching(self, ids: Ids) -> Iterator[None]:
        self.watched.update(ids)
        try:
            yield
        finally:
            for id_ in ids:
                self.watched[id_] -= 1
                if not self.watched[id_]:
                    del self.watched[id_]
