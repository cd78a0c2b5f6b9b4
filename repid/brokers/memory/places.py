"""Where each message is, and how it gets from one place to another. Time comes in as the argument `now`.

Rules. Every message is in exactly one place: a lane (ready), the timetable of scheduled ones, its queue's leases,
the dead. The first three are live and in `_ids`. `advance` brings everything up to `now`: what is due becomes ready,
what is past its ttl and not leased becomes dead. What an index still holds of a message that is gone is skipped when
its turn comes.

A message whose run somebody has cancelled is never made ready or scheduled again: it is removed on its way there.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from ...delivery import NewResult
from ...delivery.shelf import EXPIRED, End, Shelved, has_expired, result_of_end
from ...envelope import Envelope, PrioritiesT
from .channel import Channel, Directory
from .dead import DeadLetters
from .record import GONE, Lease, Record, expiry_of, note
from .results import Results
from .timetable import Timetable
from .watching import Changes


class Places:
    """All messages and results of one broker.

    `arrived` counts what became ready since those who wait were last served. `changes` is told of each
    watched message and result that has changed.
    """

    def __init__(self) -> None:
        self.arrived = 0
        self.directory = Directory()
        self.channels = self.directory.channels
        self.scheduled = Timetable()
        self.dead = DeadLetters()
        self.results = Results()
        self.changes = Changes()
        self._watched: Collection[str] = ()  # looked at on the hot path
        self._ids: dict[str, Record] = _dict_with_hashes()
        self._expiring = Timetable()
        self._now = float("-inf")
        self._due_at = float("inf")  # nothing has to be done before
        self._order = 0

    def watch(self, watched: Collection[str]) -> None:
        """Tell `changes` of these ids from now on; the collection may change."""
        self._watched = self.changes.watched = watched

    def find(self, id_: str) -> Record | None:
        """The live message with this id."""
        return self._ids.get(id_)

    # Time

    def advance(self, now: float) -> float:
        """Bring the places up to `now`, which never runs backwards here; the time that holds."""
        if now > self._now:
            self._now = now
        else:
            now = self._now
        if now >= self._due_at:
            self._catch_up(now)
        return now

    def _catch_up(self, now: float) -> None:
        for record in self._expiring.take_due(now):
            is_leased = isinstance(record.place, Lease)  # then it is looked at when it comes back
            if not is_leased and record.rare is not None and has_expired(expiry_of(record.rare), now):
                self._end(self._take_out(record), record, EXPIRED)
        for record in self.scheduled.take_due(now):
            channel = self.channels[record.envelope.queue]
            channel.scheduled -= 1
            self._make_ready(channel, record)
        self.results.sweep(now)
        self._due_at = min(self.scheduled.next_moment(), self._expiring.next_moment(), self.results.sweep_at)

    def next_due(self) -> float:
        """When the next scheduled message becomes ready; inf if there is none."""
        return self.scheduled.next_moment()

    # From place to place

    def _enter(self, channel: Channel, envelope: Envelope, shelved: Shelved[float], order: int) -> None:
        """Take in a new message."""
        record = self._ids[envelope.id] = Record(envelope, 0.0, order)
        self._shelve(channel, record, shelved)
        expires_at = shelved.stored.expires_at
        if expires_at is not None:
            self._expiring.add(expires_at, record)
            self._due_at = min(self._due_at, expires_at)

    def _shelve(self, channel: Channel, record: Record, shelved: Shelved[float]) -> None:
        """Carry out what the rules say about a message that is in no place now."""
        note(record, shelved.stored)
        if shelved.end is not None:
            self._end(channel, record, shelved.end)
        elif shelved.due is not None:
            record.place = shelved.due
            channel.scheduled += 1
            self.scheduled.add(shelved.due, record)
            self._due_at = min(self._due_at, shelved.due)
        elif shelved.is_last:
            record.place = None
            channel.lane_of(record).class_of(priority_of(record.envelope)).append(record)
            self.arrived += 1
        else:
            self._make_ready(channel, record)

    def _make_ready(self, channel: Channel, record: Record) -> None:
        """Make it ready at the rank it has."""
        record.place = None
        channel.lane_of(record).put_back(record)
        self.arrived += 1
        self._tell(record)

    def _next_order(self) -> int:
        self._order += 1
        return self._order

    def _take_out(self, record: Record) -> Channel:
        """Take what is ready or scheduled out of its place; its channel. The caller puts it somewhere else."""
        channel = self.channels[record.envelope.queue]
        is_ready, record.place = record.place is None, GONE
        if is_ready:
            channel.lose(record)
        else:
            channel.scheduled -= 1
            self.scheduled.lose()
        return channel

    # Ends

    def _end(self, channel: Channel, record: Record, end: End) -> None:
        """It has been taken out of its place already. Store its result, unless a verdict brings one later."""
        self._remove(record)
        if end.reason is not None:
            self.dead.add(channel, record, end.reason, end.failure)
        result = result_of_end(record.envelope.result_id, record.envelope.options, end)
        if result is not None:
            self._store_result(result)

    def _remove(self, record: Record) -> None:
        """It is not live any more. It has been taken out of its place already."""
        del self._ids[record.envelope.id]
        record.place = GONE
        rare = record.rare
        if rare is not None and rare.expires_at is not None and rare.expires_at > self._now:  # else taken out when due
            self._expiring.lose()
        self._tell(record)

    # Results

    def _store_result(self, result: NewResult) -> None:
        self.results.store(result, self._now)
        self._due_at = min(self._due_at, self.results.sweep_at)
        if self._watched:
            self.changes.tell(result.id)

    def _tell(self, record: Record) -> None:
        if self._watched:
            self.changes.tell(record.envelope.id)


def _dict_with_hashes() -> dict[str, Record]:
    """A dictionary that keeps the hashes of its keys: CPython's does not while all it ever held are strings.

    Without them every collision among a hundred thousand ids is a look at a string that is in no cache: 90 instead
    of 55 ns to see that an id is new and put it in (3.11).
    """
    keyed: dict[object, Record] = {None: Record(Envelope("", "", b""), 0.0, 0)}
    del keyed[None]
    return cast("dict[str, Record]", keyed)


def priority_of(envelope: Envelope) -> PrioritiesT:
    """Its priority, which is medium where none was given."""
    priority = envelope.options.priority
    return PrioritiesT.MEDIUM if priority is None else priority
