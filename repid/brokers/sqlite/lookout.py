"""Whether something may have happened for those who wait, and how long the thread may sleep before it looks again.

Other processes are noticed by asking SQLite for `PRAGMA data_version`, which is another number after any connection
but ours has committed. Only while somebody waits is it asked.
"""

from __future__ import annotations

import math
import time
from functools import partial

from .clock import MICRO, Clock
from .errors import STATEMENT_FAILED
from .requests import Bell
from .store import Store

POLL = 0.005
POLL_WHEN_IDLE = 0.0125
"""Seconds between two looks; the second one when nothing has happened for `_IDLE_AFTER`. Half of that is the price of
waking up at all: less than 2 % of a slow core (measured)."""

_IDLE_AFTER = 1.0

_ASLEEP = 5.0
"""Seconds between two looks at whether the program still runs, so that a crashed one is not kept alive."""

CHECK = 1.0
"""Seconds after which those who wait are looked after in any case: the file may have been removed."""

_SHARE_OF_WATCHING = 0.2
"""Looking after those who watch takes at most this part of the thread's time."""


class Lookout:
    """Keeps in mind what was seen last, and when."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._ask_version = partial(store.connection.cursor().execute, "PRAGMA data_version")
        self._data_version = 0
        self._stirred = False
        self._stirred_at = 0.0
        self._check_at = 0.0
        self._watch_late = False
        self._watch_at = 0.0
        self._round_began = 0.0

    def stir(self) -> None:
        """We ourselves may have changed something."""
        self._stirred = True

    def is_stirred(self) -> bool:
        """Whether it is worth looking after those who wait."""
        version = self._version()
        now = time.monotonic()
        if version != self._data_version:
            self._data_version = version
            self._stirred = True
        if self._stirred:
            self._stirred_at = now
        return (
            self._stirred
            or (self._watch_late and now >= self._watch_at)
            or self._store.next_event <= self._clock.wall()
            or now >= self._check_at
        )

    def begin_round(self) -> bool:
        """They will be looked after now; whether those who watch may be, too."""
        self._round_began = now = time.monotonic()
        watching = now >= self._watch_at
        self._stirred, self._watch_late = False, not watching
        self._check_at = now + CHECK
        return watching

    def end_round(self) -> None:
        """Those who watch have been looked after: how long that took decides when they are again."""
        now = time.monotonic()
        self._watch_at = now + (now - self._round_began) / _SHARE_OF_WATCHING

    def is_beat_due(self) -> bool:
        """Whether our consumers have to be heard of."""
        return self._store.beat_due <= self._clock.boot()

    def sleep(self, bell: Bell, *, somebody_waits: bool) -> None:
        """Until it rings, our consumers have to be heard of, or something may have happened for those who wait.

        As little as possible is done in each look: after some milliseconds of sleep the processor has every line of it
        to fetch anew, which makes it five times as long. So when the next event is due is asked once; a step of the
        wall clock is noticed within `CHECK`.
        """
        beat = (self._store.beat_due - self._clock.boot()) / MICRO
        if not somebody_waits:
            bell.wait(max(0.0, min(_ASLEEP, beat)))
            return
        now = time.monotonic
        event = (self._store.next_event - self._clock.wall()) / MICRO
        until = min(now() + min(event, beat), self._check_at, self._watch_at if self._watch_late else math.inf)
        poll = POLL_WHEN_IDLE if now() > self._stirred_at + _IDLE_AFTER else POLL
        while (left := until - now()) > 0 and not bell.wait(min(poll, left)):
            if self._version() != self._data_version:
                return

    def _version(self) -> int:
        """The number that SQLite gives; the one known, if it gives none now: what that was is found out by `CHECK`."""
        try:
            version: int = self._ask_version().fetchone()[0]
        except STATEMENT_FAILED:
            return self._data_version
        return version
