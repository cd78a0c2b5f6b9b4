"""News of the file on its way from the file's thread to the one task that waits for it, and to the requests that rest.

Theory. The thread notes what may have changed; notes are merged until they are taken on trio's side: by the task that
waits, in the step in which `next` returns, or a turn earlier to be told at once (`_deliver`). So a cancelled wait loses
nothing: the notes stay for the next one, or were told. The thread looks for changes of other processes only while
`is_wanted`; a task that begins to wait wakes the thread, unless the thread is watching already. What changed in between
is found by the thread's next look, which compares the file with what it was at the last one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable

import trio
from trio.lowlevel import TrioToken

from ...ports import News
from ...run_token import call_soon_in
from ..shared.notes import Notes
from .requests import RequestQueue

_LINGERING = 0.1
"""Seconds for which the thread goes on watching after the task has left with its news: usually it waits again
at once.
"""

_SHARE_OF_WATCHING = 0.2
"""Looking at watched messages because other processes changed something takes at most this part of the time."""


class NewsBox:
    """Merged notes of one file. All fields but the plain times change under the lock."""

    def __init__(
        self,
        token: TrioToken,
        queue: RequestQueue,
        watched: Collection[str],
        tell: Callable[[News], bool] | None = None,
    ) -> None:
        self.watched = watched
        """The ids that are watched now. Trio's thread changes it at any time: look ids up, do not iterate."""
        self.is_watched_over = False
        """Whether the thread notices changes now without being woken."""
        self.ids_at = 0.0
        """When watched messages may be looked at again because of other processes, on the monotonic clock."""
        self.is_ready = False
        """Whether something may have become ready since the thread stirred the requests that rest."""
        self._token = token
        self._queue = queue
        self._tell = tell
        self._lock = threading.Lock()
        self._notes = Notes()
        self._waiting: trio.Event | None = None
        self._wanted_until = 0.0

    # On trio's side

    async def next(self) -> News:
        """Wait for news and take it. A checkpoint. If this is cancelled, the news stays for the next call."""
        await trio.lowlevel.checkpoint()
        if not self._notes:
            event = trio.Event()
            with self._lock:
                self._waiting = event
            if not self.is_watched_over:
                self._queue.wake_up.signal()
            if self._notes:  # it was noted before the event was there
                event.set()
            try:
                await event.wait()
            finally:
                self._waiting = None
        self._wanted_until = time.monotonic() + _LINGERING
        with self._lock:
            return self._notes.take()

    def _deliver(self) -> None:
        """Notes have come while a task waits."""
        waiting = self._waiting
        if waiting is None or not self._notes:  # the next task that waits finds them, or they are taken
            return
        if self._tell is None:
            waiting.set()
            return
        with self._lock:
            news = self._notes.take()
        if self._tell(news):
            waiting.set()

    # On the file's thread

    @property
    def is_wanted(self) -> bool:
        """Whether a task waits for news or messages, or is about to wait for news again."""
        return self._waiting is not None or self._queue.is_resting or time.monotonic() < self._wanted_until

    def note(
        self,
        *,
        ready: bool = False,
        events: bool = False,
        ids: Iterable[str] | None = (),
        schedules: bool = False,
    ) -> None:
        """Something may have changed; see `News`. Ids that are not watched are left out, and so is what is ready where
        a request rests that waits for it: `is_ready` is for that.
        """
        if ready:  # a plain assignment: the other thread may set it in the same moment
            self.is_ready = True
        ready = ready and not self._queue.is_resting
        touched = None if ids is None else [id_ for id_ in ids if id_ in self.watched]
        if not (ready or events or schedules or touched is None or touched):
            return
        with self._lock:
            self._notes.add(ready=ready, events=events, ids=touched, schedules=schedules)
        if self._waiting is not None:
            call_soon_in(self._token, self._deliver, idempotent=True)

    def note_everything(self) -> None:
        """Anything may have changed."""
        self.note(ready=True, events=True, ids=None, schedules=True)

    def looked(self, seconds: float) -> None:
        """Looking at watched messages took this long; that decides when it may be done again."""
        self.ids_at = time.monotonic() + seconds / _SHARE_OF_WATCHING
