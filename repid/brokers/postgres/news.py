"""News of the database on its way to the one task that waits for it.

Theory. A NOTIFY makes transactions that commit at the same time wait for one another, so no process notifies unless
another waits. A process that is about to wait says so first, and for what: it writes a row in `sleeper`. Then it looks
once more, and only then it waits. A process that has changed something looks for such rows *after* its own transaction
was committed, removes the rows of those that the change concerns, and notifies once for all of them. So one of two
things is true: the last look has seen the change, or the process that made the change has seen the row. From the moment
when it is woken until it says again that it waits, a process is not notified, however much happens.

* Another process may see the row, remove it and notify before the answer to the writing of it is read here, on another
  connection: then this process does not wait (`_wakes`).
* A worker always waits for events, and for messages only when it has nothing to do (`waits_for_messages`). Who
  publishes wakes only processes that wait for messages, so nobody is notified while all workers are busy.
* Who is woken looks for messages and at what it watches at once, and again when it has said that it waits. It looks for
  events then only: a cancellation may come a round trip later, and most wake-ups are about messages.
* All processes hear each notification. It says for whom it is; without names it is for all.
* Who has looked at the schedules is told of new ones by a second row, under the negative number of the process. It is
  written with the look, before it (`asking_for_schedules`), and it stays while the process is woken for messages.

Where notifications do not get through (a pooler in transaction mode, `listen=False`), the process looks now and then
whether its rows are still there: the same flag, polled. And every `CHECK` seconds everything is told to have changed,
so what was missed, for whatever reason, costs at most that time. A process that listens and watches nothing waits for
`IDLE_CHECK` instead: it misses only what somebody changed who was killed before it could notify. Messages are left out
then if they were looked for a moment ago.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

import trio

from ...errors import BrokerUnavailable
from ...ports import News
from ..shared.notes import Notes
from .binding import Step, statement
from .rows import MICRO, to_key
from .wire import Rows

CHECK = 5.0
"""Seconds after which a waiting process looks although it was not woken."""

IDLE_CHECK = 15.0
"""The same, for one that listens and watches nothing."""

POLLS = (0.01, 0.25)
"""Seconds between two looks at the flag where nothing is notified: from the first to the second, growing."""

SLEEPER_TIME = 60
"""Seconds after which a process that waits and was not heard of is believed dead."""

SCHEDULES = b"schedules"
"""Among the keys that a process watches: it is told of schedules. The key of an id has 16 bytes, or ends in FF."""

MOST_WATCHED = 2000
"""Ids that a process asks to be woken for; others it looks at every `CHECK` seconds."""

MANY = 100
"""Messages that became ready together. More than these wake all: to name each of them would cost more than it saves."""

MOST_NAMED = 300
"""Processes that one notification names, which may have 8000 bytes; more than these are not named."""

_FALL_ASLEEP = statement(
    """
    INSERT INTO {s}.sleeper (id, wants_ready, ids, listens, until) VALUES ($1, $2, $3, $4, {s}.clock() + $5)
    ON CONFLICT (id) DO UPDATE SET wants_ready = excluded.wants_ready, ids = excluded.ids, until = excluded.until
    """,
    "int8",
    "bool",
    "bytea[]",
    "bool",
    "int8",
)
_WAKE = statement(
    f"""
    WITH asleep AS MATERIALIZED (
        SELECT id, listens FROM {{s}}.sleeper
        WHERE abs(id) <> $1 AND ($2 AND id > 0 OR $3 AND wants_ready OR ids && $4)
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM {{s}}.sleeper WHERE id = ANY(ARRAY(SELECT id FROM asleep))
    )
    SELECT pg_notify($5, CASE WHEN count(*) <= {MOST_NAMED} THEN string_agg(id::text, ' ') ELSE '' END)
    FROM asleep WHERE listens
    HAVING count(*) > 0
    """,
    "int8",
    "bool",
    "bool",
    "bytea[]",
    "text",
    is_hint=True,
)
_TELL = statement("SELECT pg_notify($1, '')", "text")
_ARE_ASLEEP = statement("SELECT id FROM {s}.sleeper WHERE id IN ($1, -$1)", "int8")
_LEAVE = statement("DELETE FROM {s}.sleeper WHERE id IN ($1, -$1)", "int8")
NEW_MEMBER = Step(statement("SELECT nextval('{s}.member'), tableoid::bigint FROM {s}.meta"))
"""A number of our own, and that of a table, which another table of the same name never has."""
BURY_SLEEPERS = Step(statement("DELETE FROM {s}.sleeper WHERE until < {s}.clock()"))


def channel_of(schema: str) -> str:
    """The channel on which the processes that use a schema are notified; PostgreSQL allows 63 bytes."""
    return f"repid:{schema}".encode()[:63].decode(errors="ignore")


class NewsBox:
    """Merged notes, and whether this process has said that it waits. `member`: its number in `sleeper`."""

    def __init__(
        self,
        member: int,
        channel: str,
        watched: Collection[str],
        ask: Callable[[Step], Awaitable[Rows]],
        *,
        listens: bool,
    ) -> None:
        self._member = member
        self._channel = channel
        self._watched = watched
        self._ask = ask
        self._listens = listens
        self._asleep = False
        self._was_quiet = False  # while it slept last, until it was time for a look
        self._wakes = 0
        """How often somebody has notified."""
        self._asks_until = -math.inf  # until when the row for schedules counts, unless somebody removes it
        self._schedule_wakes = 0
        self._declared: frozenset[str] = frozenset()
        self._waiting: dict[str, float] = {}
        """The consumers of this process that wait for messages, and when each looked for some last."""
        self._declared_ready = False
        self._error: BrokerUnavailable | None = None
        self._notes = Notes()
        self._event = trio.Event()

    # Waking others

    def waking(self, *, everybody: bool = False, ready: bool = False, ids: Iterable[str] = ()) -> Step:
        """What wakes the others that this concerns; for a transaction of its own, behind the one that made
        the change.
        """
        changed = list(ids)
        everybody = everybody or (ready and len(changed) > MANY)
        keys = [] if everybody else [to_key(id_) for id_ in changed]
        return Step(_WAKE, (self._member, everybody, ready, keys, self._channel))

    def waking_for_schedules(self) -> Step:
        """The same, of those that have looked at the schedules."""
        return Step(_WAKE, (self._member, False, False, [SCHEDULES], self._channel))

    def telling(self) -> Step:
        """What notifies everybody of what a transaction made ready; for the transaction itself, however long
        it takes.
        """
        return Step(_TELL, (self._channel,))

    # Being woken

    def note(
        self,
        *,
        ready: bool = False,
        events: bool = False,
        ids: Iterable[str] | None = (),
        schedules: bool = False,
    ) -> None:
        """Something may have changed; see `News`."""
        touched = None if ids is None else [id_ for id_ in ids if id_ in self._watched]
        if ready or events or schedules or touched is None or touched:
            self._notes.add(ready=ready, events=events, ids=touched, schedules=schedules)
            self._event.set()

    def heard(self, names: bytes) -> None:
        """A notification has come, for the processes that it names."""
        named = names.split()
        if not named or b"%d" % self._member in named:
            self.woken()
        if not named or b"%d" % -self._member in named:
            self._hear_of_schedules()

    def woken(self) -> None:
        """Somebody has notified: anything may have changed, and we are not asleep any more. Events are told of when we
        are again.
        """
        self._asleep = False
        self._wakes += 1
        self.note(ready=True, ids=None)

    @contextmanager
    def asking_for_schedules(self) -> Iterator[list[Step]]:
        """Look at the schedules in the block. It gives what says, before the look and in a transaction of its own, that
        we are to be told of new ones; nothing where that was said a while ago.
        """
        wakes, now = self._schedule_wakes, trio.current_time()
        if now < self._asks_until:
            yield []
            return
        yield [Step(_FALL_ASLEEP, (-self._member, False, [SCHEDULES], self._listens, SLEEPER_TIME * MICRO))]
        if wakes == self._schedule_wakes:
            self._asks_until = now + SLEEPER_TIME / 3

    def _hear_of_schedules(self) -> None:
        """Somebody has stored one, and has removed our row."""
        self._asks_until = -math.inf
        self._schedule_wakes += 1
        self.note(schedules=True)

    def watching(self, ids: Iterable[str]) -> None:
        """These are looked at, and maybe watched from now on: those that wait must say so again."""
        if self._asleep and not self._declared.issuperset(ids):
            self._asleep = False
            self._event.set()

    def waits_for_messages(self, consumer: str) -> None:
        """Note that this consumer found no message, and waits for one until `waits_no_more`."""
        self._waiting[consumer] = trio.current_time()
        if self._asleep and not self._declared_ready:
            self._asleep = False
            self._event.set()

    def waits_no_more(self, consumer: str) -> None:
        """Note that this consumer waits for no message. The row may still say that it does: then it is woken once in
        vain.
        """
        self._waiting.pop(consumer, None)

    def broke(self, error: BrokerUnavailable) -> None:
        """The link is broken: tell all that wait."""
        self._error = error
        self._event.set()

    async def next(self) -> News:
        """Wait for news and take it. Cancelled: it stays for the next call."""
        await trio.lowlevel.checkpoint()
        while not self._notes:
            if self._error is not None:
                raise self._error
            if self._asleep:
                await self._wait()
            else:
                await self._fall_asleep()
        self._event = trio.Event()
        return self._notes.take()

    async def _fall_asleep(self) -> None:
        """Say that we wait; then everybody has to look once more."""
        declared = frozenset(list(self._watched)[:MOST_WATCHED])
        keys, ready, wakes = [to_key(id_) for id_ in declared], bool(self._waiting), self._wakes
        with trio.CancelScope(shield=True):  # a wait is cancelled often; the door bounds it by closing the link
            await self._ask(Step(_FALL_ASLEEP, (self._member, ready, keys, self._listens, SLEEPER_TIME * MICRO)))
        self._asleep, self._declared, self._declared_ready = self._wakes == wakes, declared, ready
        looked_before = trio.current_time() - IDLE_CHECK / 2
        looks = not self._was_quiet or any(at < looked_before for at in self._waiting.values())
        self._was_quiet = False
        self.note(ready=looks, events=True, ids=None)

    async def _wait(self) -> None:
        with trio.move_on_after(CHECK if self._watched or not self._listens else IDLE_CHECK):
            if self._listens:
                await self._event.wait()
            else:
                await self._poll()
            return
        self._asleep, self._was_quiet = False, True  # it is said anew, as others must not believe us dead; then we look

    async def _poll(self) -> None:
        pause, longest = POLLS
        while True:
            with trio.move_on_after(pause):
                await self._event.wait()
                return
            with trio.CancelScope(shield=True):
                rows = await self._ask(Step(_ARE_ASLEEP, (self._member,)))
            asleep = {id_ for (id_,) in rows}
            if -self._member not in asleep and self._asks_until > trio.current_time():
                self._hear_of_schedules()
            if self._member not in asleep:
                self.woken()
                return
            pause = min(1.5 * pause, longest)

    def leaving(self) -> Step:
        """What takes our rows away."""
        return Step(_LEAVE, (self._member,))
