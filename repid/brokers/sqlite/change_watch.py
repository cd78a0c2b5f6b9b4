"""How the file's thread notices that something may have changed, and how long it may sleep before it looks again.

Theory. Three kinds of change matter to the task that waits for news, and to claims that rest:

* *Our own transactions.* `Transactions` notes them at the commit, since it knows what they did.
* *Transactions of other connections.* SQLite's `PRAGMA data_version` is a different number after any of them. When it
  changed, one small read finds out of what kind the change is. The number is looked at when the system tells that a
  commit is done, and a few times after one has begun, since not everybody says when it is done (`FileEvents`). This
  begins when the system has told of anything, which `watch_file` brings about at once. Where it tells nothing, the
  number is looked at every few milliseconds.
* *Time.* At `Store.next_event` a message falls due or expires. That is told once for each such moment: a transaction
  that then makes the message ready finds the next moment.

Every `CHECK` seconds everything is told to have changed. So a mistake of a hint costs at most that time, a step of the
wall clock is noticed, and callers that wait learn that the file was removed. It looks at nothing while no task waits.
"""

from __future__ import annotations

import math
import time
from functools import partial

from .clock import MICRO, Clock
from .errors import STATEMENT_FAILED
from .file_events import DONE, FileEvents, Watch
from .news import NewsBox
from .requests import WakeUp
from .store import Store
from .transactions import Transactions

POLL = 0.005
POLL_WHEN_IDLE = 0.0125
"""Seconds between two looks; the second one when nothing has happened for `_IDLE_AFTER`. Half of that is the price of
waking up at all: less than 2 % of a slow core (measured)."""

_IDLE_AFTER = 1.0

_FIRST_LOOK = 0.0005
_PAUSE_GROWTH = 1.5
_LONGEST_COMMIT = 0.25
"""Seconds. A commit is told when it begins to be written, and can be seen when the disk has it. Where nobody says when
that is, the thread looks again and again, with growing pauses. A commit that takes longer is found when everything is
told to have changed.
"""

_ASLEEP = 5.0
"""Seconds between two looks at whether the program still runs, so that a crashed one is not kept alive."""

CHECK = 1.0
"""Seconds after which everything is told to have changed."""


class ChangeWatch:
    """What was seen of one open file last, and when. It belongs to the file's thread."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        transactions: Transactions,
        news: NewsBox,
        watch_log: Watch,
    ) -> None:
        self._watch_log = watch_log
        self._tells = False  # whether the system was seen to tell of a commit
        self._store = store
        self._clock = clock
        self._transactions = transactions
        self._news = news
        self._ask_version = partial(store.connection.cursor().execute, "PRAGMA data_version")
        self._data_version = 0
        self._told_due: float = -1  # the `next_event` that was told
        self._ticks: object = None  # when schedules are due, as `look_for_news` says
        self._ids_are_late = False  # watched messages are to be looked at, as soon as `NewsBox.ids_at` allows
        self._changed_at = 0.0
        self._looked_at = 0.0
        self._check_at = 0.0

    def note_change(self) -> None:
        """We have changed the file: more of what is due may have to be told."""
        self._changed_at = time.monotonic()
        self._told_due = -1

    def is_late(self) -> bool:
        """Whether requests have kept the thread from looking for longer than a sleep would."""
        return time.monotonic() > self._looked_at + POLL

    def look(self) -> None:
        """Tell what has changed since the last look."""
        version = self._version()
        now = self._looked_at = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + CHECK
            self._data_version, self._ids_are_late = version, False
            self._news.note_everything()
            return
        ready = events = schedules = False
        if version != self._data_version:
            self._data_version, self._ids_are_late, self._changed_at = version, True, now
            ready, events, ticks = self._transactions.look_for_news()
            schedules, self._ticks = ticks != self._ticks, ticks
        due = self._store.next_event
        if due <= self._clock.wall() and due != self._told_due:
            self._told_due = due
            ready = self._ids_are_late = True
        tells_ids = self._ids_are_late and now >= self._news.ids_at
        if tells_ids:
            self._ids_are_late = False
        self._news.note(ready=ready, events=events, ids=None if tells_ids else (), schedules=schedules)

    def is_beat_due(self) -> bool:
        """Whether our consumers have to be heard of."""
        return self._store.beat_due <= self._clock.boot()

    def sleep(self, wake_up: WakeUp) -> None:
        """Sleep until the wake-up is signalled, our consumers have to be heard of, or something may have changed.

        Each look does as little as possible: after some milliseconds of sleep every line of it has to be fetched into
        the processor's cache again, which makes it five times as slow. So the time of the next event is computed once.
        """
        beat = (self._store.beat_due - self._clock.boot()) / MICRO
        self._news.is_watched_over = False
        if not self._news.is_wanted:
            wake_up.wait(max(0.0, min(_ASLEEP, beat)))
            return
        self._news.is_watched_over = True
        now = time.monotonic
        until = min(now() + min(self._next_event_in(), beat), self._check_at)
        if self._ids_are_late:
            until = min(until, self._news.ids_at)
        events = self._watch_log()
        if events is not None and (told := events.take()):  # that may also have been somebody else's commit
            self._tells = True
            if self._await_commit(wake_up, until, events, told):
                return
        if events is None or not self._tells:
            poll = POLL_WHEN_IDLE if now() > self._changed_at + _IDLE_AFTER else POLL
            self._look_again(wake_up, until, poll)
            return
        while (left := until - now()) > 0 and not wake_up.wait_with(events, left):
            if (told := events.take()) and self._await_commit(wake_up, until, events, told):
                return

    def _look_again(self, wake_up: WakeUp, until: float, pause: float) -> None:
        """Look at the file after each pause, until there is something to do."""
        while (left := until - time.monotonic()) > 0:
            if wake_up.wait(min(pause, left)) or self._version() != self._data_version:
                return

    def _await_commit(self, wake_up: WakeUp, until: float, events: FileEvents, told: int) -> bool:
        """Look at the file until what was told of can be seen. Returns whether there is something to do now.

        It may have been a commit of our own, which is never seen, and another one may begin meanwhile: then the pauses
        are short again. However much is written, there is one look in `_FIRST_LOOK` seconds; and once it is known when
        the next one is, no event ends the sleep before it.
        """
        look_at = math.inf
        while True:
            now, soonest = time.monotonic(), self._looked_at + _FIRST_LOOK
            if told:
                pause, end = _FIRST_LOOK, min(until, now + _LONGEST_COMMIT)
                look_at = min(look_at, max(now, soonest) if told & DONE else now + pause)
            if now >= look_at:
                self._looked_at = now
                if self._version() != self._data_version:
                    return True
                look_at, soonest = now + pause, now + _FIRST_LOOK
                pause *= _PAUSE_GROWTH
            left = min(look_at, end) - now
            if left <= 0:
                return False
            if look_at <= soonest:
                woken, told = wake_up.wait(left), 0
            else:
                woken, told = wake_up.wait_with(events, left), events.take()
            if woken:
                return True

    def _next_event_in(self) -> float:
        due = self._store.next_event
        return math.inf if due == self._told_due else (due - self._clock.wall()) / MICRO

    def _version(self) -> int:
        """The number that SQLite gives; if it gives none now, the one that is known."""
        try:
            version: int = self._ask_version().fetchone()[0]
        except STATEMENT_FAILED:
            return self._data_version
        return version
