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

from ...delivery import DAY, Failure, NewResult, Reason, ResultState
from ...envelope import Envelope, PrioritiesT
from .channel import Channel, Directory
from .dead import DeadLetters
from .record import GONE, Lease, Rare, Record, has_expired, is_gone
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
            if not is_leased and record.rare is not None and has_expired(record.rare, now):
                self._give_up(self._take_out(record), record, "expired")
        for record in self.scheduled.take_due(now):
            channel = self.channels[record.envelope.queue]
            channel.scheduled -= 1
            self._put_back(channel, record)
        self.results.sweep(now)
        self._due_at = min(self.scheduled.next_moment(), self._expiring.next_moment(), self.results.sweep_at)

    def next_due(self) -> float:
        """When the next scheduled message becomes ready; inf if there is none."""
        return self.scheduled.next_moment()

    # From place to place

    def _enter(self, channel: Channel, envelope: Envelope, now: float, order: int) -> None:
        """Take in a new message that has options; it is in `_ids` already."""
        options = envelope.options
        delay = options.delay if options.delay is not None and options.delay > 0 else 0.0
        priority = priority_of(envelope)
        record = self._ids[envelope.id] = Record(envelope, now + delay + priority, order)
        if options.ttl is not None:
            record.rare = Rare(expires_at=now + delay + options.ttl)
        if delay:
            self._schedule(channel, record, now + delay)
        else:
            channel.lane(envelope.topic).class_of(priority).append(record)
        self._let_expire(record)

    def _let_expire(self, record: Record) -> None:
        """Look at a new message again when its ttl is over, if it has one."""
        if record.rare is not None and record.rare.expires_at is not None and not is_gone(record):
            self._expiring.add(record.rare.expires_at, record)
            self._due_at = min(self._due_at, record.rare.expires_at)

    def _schedule(self, channel: Channel, record: Record, due: float) -> None:
        if not self._has_ended(channel, record):
            record.place = due
            channel.scheduled += 1
            self.scheduled.add(due, record)
            self._due_at = min(self._due_at, due)

    def _put_back(self, channel: Channel, record: Record) -> None:
        """Make it ready at the rank it has."""
        if not self._has_ended(channel, record):
            record.place = None
            channel.lane_of(record).put_back(record)
            self.arrived += 1
            self._tell(record)

    def _put_last(self, channel: Channel, record: Record, now: float, delay: float = 0.0) -> None:
        """Make it ready, in `delay` seconds, at the rank of a message enqueued then."""
        priority = priority_of(record.envelope)
        self._order += 1
        record.order = self._order
        record.rank = now + max(delay, 0.0) + priority
        if delay > 0:
            self._schedule(channel, record, now + delay)
        elif not self._has_ended(channel, record):
            record.place = None
            channel.lane_of(record).class_of(priority).append(record)
            self.arrived += 1

    def _has_ended(self, channel: Channel, record: Record) -> bool:
        """Whether it can go nowhere any more, because it was cancelled or has expired; then it is put away."""
        rare = record.rare
        if rare is None:
            return False
        if rare.cancelling:
            self._remove_cancelled(record)
        elif has_expired(rare, self._now):
            self._give_up(channel, record, "expired")
        else:
            return False
        return True

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

    def _remove(self, record: Record) -> None:
        """It is not live any more. It has been taken out of its place already."""
        del self._ids[record.envelope.id]
        record.place = GONE
        rare = record.rare
        if rare is not None and rare.expires_at is not None and rare.expires_at > self._now:  # else taken out when due
            self._expiring.lose()
        self._tell(record)

    def _remove_cancelled(self, record: Record) -> None:
        self._remove(record)
        self._conclude(record.envelope, "cancelled")

    def _bury(self, channel: Channel, record: Record, reason: Reason) -> None:
        self._remove(record)
        self.dead.add(channel, record, reason)

    def _give_up(self, channel: Channel, record: Record, reason: Reason, failure: Failure | None = None) -> None:
        """Bury what no worker had a say in: then nobody else stores a result."""
        self._bury(channel, record, reason)
        self._conclude(record.envelope, "expired" if reason == "expired" else "dead", failure)

    def _conclude(self, envelope: Envelope, state: ResultState, failure: Failure | None = None) -> None:
        """Store what became of a message, unless its sender wanted no result."""
        options = envelope.options
        if options.store_result is not False:
            ttl = DAY if options.result_ttl is None else options.result_ttl
            self._store_result(NewResult(id=envelope.result_id, state=state, failure=failure, ttl=ttl))

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
