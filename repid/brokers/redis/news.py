"""News on its way from the task that listens to the one task that waits for it.

What comes while no task waits is kept for the next task that does. Where news is told at once instead, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import trio

from ...ports import News
from ..shared.notes import Notes
from .layout import to_id


class NewsBox:
    """Merged notes of one link. `is_closed`: the link has ended."""

    def __init__(self, tell: Callable[[News], bool] | None = None) -> None:
        self.is_closed = False
        self._tell = tell
        self._notes = Notes()
        self._waiting: trio.Event | None = None

    async def next(self, wait: float) -> News | None:
        """Wait for news and take it. Cancelled, it stays. After a long wait without any, everything may have
        changed.
        """
        if not (self._notes or self.is_closed):
            self._waiting = trio.Event()
            try:
                with trio.move_on_after(wait) as scope:
                    await self._waiting.wait()
            finally:
                self._waiting = None
            if scope.cancelled_caught:
                return News() if wait >= SURE_TIME else None
        else:
            await trio.lowlevel.checkpoint()
        return self._notes.take()

    def note_ready(self) -> None:
        """There may be something to claim."""
        self._note(ready=True)

    def note_events(self) -> None:
        """Somebody cancels a message that is leased."""
        self._note(events=True)

    def note_id(self, key: bytes) -> None:
        """A message or result that is watched has changed."""
        self._note(ids={to_id(key)})

    def note_schedules(self) -> None:
        """A schedule was stored that is due soon."""
        self._note(schedules=True)

    def note_everything(self) -> None:
        """Anything may have changed."""
        self._note(ready=True, events=True, ids=None, schedules=True)

    def close(self) -> None:
        """Nothing will come any more."""
        self.is_closed = True
        self._wake()

    def _note(
        self,
        *,
        ready: bool = False,
        events: bool = False,
        ids: Collection[str] | None = (),
        schedules: bool = False,
    ) -> None:
        if self._tell is None:
            self._notes.add(ready=ready, events=events, ids=ids, schedules=schedules)
            self._wake()
        elif self._tell(News(ready, events, ids, room=False, schedules=schedules)):
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None:
            self._waiting.set()


SURE_TIME = 25.0
"""Seconds without news after which it is worth looking although nothing was told: a wake-up may have been lost."""
