"""What may be done to the messages of the memory broker. Synchronous; time comes in as the argument `now`.

Theory. Where a message goes and when it ends is decided by `repid.delivery.shelf`; the store carries that out. Each
operation first brings the store up to `now` (`advance`): what is due becomes ready, what has expired and is not leased
ends. Then it changes places in one step, without an await, so nobody ever sees a message between two places.

Invariants.

* Every message is in exactly one place: a lane of its queue (ready), the timetable of scheduled ones, the leases of its
  queue, or the dead letters. The first three are live and in `_ids`, which makes live ids unique.
* An index may still hold a record that has left its place. Its `place` is `GONE` then, it is skipped when its turn
  comes, and who takes it out early tells the index (`lose`), which counts such entries and sweeps them out.
* A record with a ttl is in `_expiring` from its publishing until that moment, wherever it is meanwhile.
* `_due_at` is not later than the first moment at which `_catch_up` has anything to do.
* The clock never runs backwards here, so a fresh message has the highest rank of its priority: lanes rely on it.
* Only `rescue` ends a lease, however long ago its time was over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import takewhile

from ...delivery import SUSPECT_FROM, Ack, Delivery, Failure, NewResult, Progress, Settlement, poison_failure
from ...delivery.shelf import (
    EXPIRED,
    End,
    Shelved,
    after_cancellation_request,
    after_lost_lease,
    after_publishing,
    after_reviving,
    after_start,
    after_verdict,
    has_expired,
    result_of_end,
)
from ...envelope import NO_OPTIONS, TOPIC, Envelope, PrioritiesT
from ...errors import BrokerRefused, DuplicateId, QueueNotDeclared
from ...ports import REFUSED, SETTLED, AtMost, Cancelled, Verdict
from ..process import name_process
from .changes import Changes
from .lanes import Timetable, draw
from .queues import Channel, DeadLetters, Directory
from .record import GONE, Extras, Lease, Record, Subscription, as_stored, expiry_of, note
from .results import Results


class Store:
    """All queues, messages and results of one broker.

    `arrived` counts what became ready since the waiting claims were last served. `changes` is told of each watched
    message and result that has changed.
    """

    def __init__(self, lease_timeout: float) -> None:
        self.lease_timeout = lease_timeout
        self.arrived = 0
        self.directory = Directory()
        self.channels = self.directory.channels
        self.scheduled = Timetable()
        self.dead = DeadLetters()
        self.results = Results()
        self.changes = Changes()
        self._watched: Collection[str] = ()  # looked at on the hot path
        self._ids: dict[str, Record] = {}
        self._expiring = Timetable()
        self._now = float("-inf")
        self._due_at = float("inf")  # nothing has to be done before
        self._order = 0
        self._token = 0

    def watch(self, watched: Collection[str]) -> None:
        """Tell `changes` of these ids from now on; the collection may change."""
        self._watched = self.changes.watched = watched

    def find(self, id_: str) -> Record | None:
        """The live message with this id."""
        return self._ids.get(id_)

    # Time

    def advance(self, now: float) -> float:
        """Bring everything up to `now`, and return the time that holds: it never runs backwards here."""
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
            if not is_leased and record.extras is not None and has_expired(expiry_of(record.extras), now):
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

    # Queues

    def delete(self, name: str, now: float) -> None:
        """Remove the queue with everything in it. Nothing happens where there is none."""
        if name in self.channels:
            self.flush(name, now)
            channel = self.channels.pop(name)
            for token, record in channel.leases.items():
                _withdraw(record, token)
                self._remove(record)
            for id_ in self.dead.take_all(channel):
                self.changes.tell(id_)

    def flush(self, name: str, now: float) -> int:
        """Remove what is ready or scheduled; how many."""
        self.advance(now)
        channel = self.directory.channel(name)
        removed = [record for lane in channel.all_lanes() for record in lane.records()]
        if channel.scheduled:
            removed += self.scheduled.take_queue(name)
            channel.scheduled = 0
        channel.clear_ready()
        for record in removed:
            self._remove(record)
        return len(removed)

    def pause(self, name: str, now: float) -> None:
        """Hand out nothing of this queue."""
        self.advance(now)
        self.directory.channel(name).paused = True

    def resume(self, name: str, now: float) -> None:
        """Hand out its messages again."""
        self.advance(now)
        channel = self.directory.channel(name)
        if channel.paused:
            channel.paused = False
            self.arrived += channel.ready

    # Messages in

    def publish(self, envelopes: Sequence[Envelope], now: float) -> list[BrokerRefused | None]:
        """Publish all; for each None, or why it was refused."""
        now = self.advance(now)
        channels, ids, results = self.channels, self._ids, self.results.kept
        medium, order = PrioritiesT.MEDIUM, self._order
        rank = now + medium
        outcomes: list[BrokerRefused | None] = []
        for envelope in envelopes:
            channel = channels.get(envelope.queue)
            if channel is None:
                outcomes.append(QueueNotDeclared(envelope.queue))
            elif envelope.id in ids:
                outcomes.append(DuplicateId(envelope.id, envelope.queue))
            else:
                outcomes.append(None)
                order += 1
                if results:
                    self.results.remove(envelope.result_id)
                if envelope.options is NO_OPTIONS:
                    record = ids[envelope.id] = Record(envelope, rank, order)
                    channel.lane(envelope.headers.get(TOPIC)).class_of(medium).append(record)
                else:
                    self._enter(channel, envelope, after_publishing(envelope.options, now, float), order)
        self.arrived += order - self._order
        self._order = order
        if self._watched:
            self._tell_of(envelopes)
        return outcomes

    def send(self, envelopes: Sequence[Envelope], now: float) -> int:
        """Publish, declaring the queues; how many were dropped because their id is alive."""
        self.directory.declare(envelope.queue for envelope in envelopes)
        return sum(outcome is not None for outcome in self.publish(envelopes, now))

    def revive(self, name: str, keys: Iterable[str] | None, now: float) -> list[BrokerRefused | None]:
        """Make dead messages ready again, as new ones; for each None, or why not."""
        now = self.advance(now)
        channel = self.directory.channel(name)
        return [self._revive(channel, key, now) for key in (list(channel.dead) if keys is None else map(to_key, keys))]

    def _revive(self, channel: Channel, key: int, now: float) -> BrokerRefused | None:
        dead = channel.dead.get(key)
        if dead is None:
            return BrokerRefused(f"no dead message in {channel.name!r} has the key {key}")
        envelope = dead.envelope
        if envelope.id in self._ids:
            return DuplicateId(envelope.id, channel.name)
        self.dead.take(channel, key)
        self.results.remove(envelope.result_id)
        self._enter(channel, envelope, after_reviving(envelope.options, now, float), self._next_order())
        self._tell_of([envelope])
        return None

    def delete_dead(self, name: str, keys: Iterable[str] | None, now: float) -> int:
        """Remove dead messages for good; how many."""
        self.advance(now)
        channel = self.directory.channel(name)
        chosen = [
            key
            for key in (list(channel.dead) if keys is None else dict.fromkeys(map(to_key, keys)))
            if key in channel.dead
        ]
        ids = {channel.dead[key].envelope.id for key in chosen}
        for key in chosen:
            self.dead.take(channel, key)
        for id_ in ids:
            self.changes.tell(id_)
        return len(chosen)

    def _tell_of(self, envelopes: Iterable[Envelope]) -> None:
        """These were published: they, and what was stored under their result ids, may have changed."""
        for envelope in envelopes:
            self.changes.tell(envelope.id)
            self.changes.tell(envelope.result_id)

    # Messages out

    def receive(self, subscription: Subscription, limit: int, at_most: AtMost, now: float) -> list[Delivery]:
        """Lease the next messages by rank, at most `limit`, or one suspect; perhaps none."""
        now = self.advance(now)
        suspects = self.directory.suspects_for(subscription) if at_most.alone else []
        if suspects:
            taken, emptied = draw(suspects, 1, {})
            _extras_of(taken[0]).leased_at = now
        else:
            lanes, caps = self.directory.lanes_for(subscription, at_most)
            if not lanes:
                return []
            taken, emptied = draw(lanes, limit, caps, at_most.size, at_most.first)
        deliveries = self._lease(taken, subscription, now)
        for lane in emptied:
            self.channels[lane.queue].drop(lane)
        if self._watched:
            for record in taken:
                self._tell(record)
        return deliveries

    def _lease(self, records: Sequence[Record], subscription: Subscription, now: float) -> list[Delivery]:
        lease = Lease(subscription, now + self.lease_timeout, range(self._token + 1, self._token + 1 + len(records)))
        self._token += len(records)
        name: str | None = None
        leases: dict[int, Record] = {}
        deliveries: list[Delivery] = []
        for token, record in zip(lease.tokens, records, strict=True):
            envelope = record.envelope
            if envelope.queue is not name:
                name = envelope.queue
                leases = self.channels[name].leases
            record.place = lease
            leases[token] = record
            extras = record.extras
            deliveries.append(
                Delivery(envelope, 1, 0, token) if extras is None else _deliver(envelope, extras, token, now)
            )
        return deliveries

    def suspects(self, subscription: Subscription, now: float) -> int:
        """How many ready messages this consumer may only be given alone."""
        self.advance(now)
        return sum(map(len, self.directory.suspects_for(subscription)))

    # Leases

    def extend(self, deliveries: Sequence[Delivery], now: float) -> list[bool]:
        """Start the lease of each anew, also of one that has ended but was not rescued; False where it is lost."""
        now = self.advance(now)
        answers: list[bool] = []
        for delivery in deliveries:
            token = delivery.token
            channel = self.channels.get(delivery.envelope.queue)
            record = channel.leases.pop(token, None) if channel is not None else None
            if channel is not None and record is not None:
                subscription = _lease_of(record).subscription
                record.place = Lease(subscription, now + self.lease_timeout, range(token, token + 1))
                channel.leases[token] = record
            answers.append(record is not None)
        return answers

    def rescue(self, now: float) -> int:
        """Take back every lease that has ended; how many. The messages are ready again, or at their end."""
        now = self.advance(now)
        rescued = 0
        for channel in self.channels.values():
            ended = [*takewhile(lambda lease: _lease_of(lease[1]).until <= now, channel.leases.items())]
            rescued += len(ended)
            for token, record in ended:
                del channel.leases[token]
                self._take_back(channel, record, token)
        return rescued

    def _take_back(self, channel: Channel, record: Record, token: int) -> None:
        _withdraw(record, token)
        extras = _extras_of(record)

        def poisoned(lost: int) -> Failure:
            held_for, since_first = self._now - extras.leased_at, self._now - extras.suspected_at
            return poison_failure(lost, name_process(), held_for, since_first)

        shelved = after_lost_lease(as_stored(record), self._now, poisoned)
        if shelved.stored.lost == SUSPECT_FROM:
            extras.suspected_at = self._now
        self._shelve(channel, record, shelved)

    def report(self, progress: Sequence[tuple[Delivery, Progress | None]], now: float) -> None:
        """Note that runs have begun and how far they have come; those that are not leased under this token any more are passed over."""
        self.advance(now)
        for delivery, latest in progress:
            channel = self.channels.get(delivery.envelope.queue)
            record = channel.leases.get(delivery.token) if channel is not None else None
            if record is not None:
                extras = _extras_of(record)
                note(record, after_start(as_stored(record)))
                extras.progress = extras.progress if latest is None else latest
                self._tell(record)

    # Verdicts

    def settle(self, settlements: Sequence[Settlement], now: float) -> list[Verdict]:
        """Carry out each disposition with its result and outbox, in this order: an outbox may name the same id."""
        now = self.advance(now)
        channels, ids = self.channels, self._ids
        verdicts: list[Verdict] = []
        for settlement in settlements:
            delivery, disposition = settlement.delivery, settlement.disposition
            channel = channels.get(delivery.envelope.queue)
            record = channel.leases.pop(delivery.token, None) if channel is not None else None
            if channel is None or record is None:
                verdicts.append(REFUSED)
                continue
            if type(disposition) is not Ack:
                _withdraw(record, delivery.token)
                self._carry_out(channel, record, settlement, now)
            elif record.extras is None:
                del ids[record.envelope.id]
            else:
                _withdraw(record, delivery.token)
                self._remove(record)
            if settlement.result is not None:
                self._store_result(settlement.result)
            dropped = self.send(settlement.outbox, now) if settlement.outbox else 0
            verdicts.append(Verdict("settled", dropped) if dropped else SETTLED)
        if self._watched:
            for settlement in settlements:
                self.changes.tell(settlement.delivery.envelope.id)
        return verdicts

    def _carry_out(self, channel: Channel, record: Record, settlement: Settlement, now: float) -> None:
        """Carry out a verdict. The lease has been taken off."""
        stored, survived = as_stored(record), settlement.survived
        shelved = after_verdict(stored, settlement.disposition, now, float, survived=survived)
        if shelved.is_last:
            record.order = self._next_order()
            _extras_of(record).failure = shelved.failure
        self._shelve(channel, record, shelved)

    def cancel(self, id_: str, now: float) -> Cancelled:
        """Remove what waits; have the consumer told whose run it is."""
        self.advance(now)
        record = self.find(id_)
        if record is None:
            return "unknown"
        lease, stored = record.place, as_stored(record)
        if not isinstance(lease, Lease):
            self._shelve(self._take_out(record), record, after_cancellation_request(stored, leased=False))
            return "cancelled"
        if not stored.is_cancelled:
            note(record, after_cancellation_request(stored, leased=True).stored)
            leases = self.channels[record.envelope.queue].leases
            token = next(token for token in lease.tokens if leases.get(token) is record)
            lease.subscription.requests[token] = None
            self.changes.tell_of_events()
            self._tell(record)
        return "requested"

    # Results

    def store_results(self, results: Iterable[NewResult], now: float) -> None:
        """Store results, in place of those with the same ids."""
        self.advance(now)
        for result in results:
            self._store_result(result)

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
        """Carry out the end of a record that is in no place any more. What a verdict says of its result comes later."""
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
        extras = record.extras
        if (
            extras is not None and extras.expires_at is not None and extras.expires_at > self._now
        ):  # else taken out when due
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


def priority_of(envelope: Envelope) -> PrioritiesT:
    """Its priority, which is medium where none was given."""
    priority = envelope.options.priority
    return PrioritiesT.MEDIUM if priority is None else priority


def to_key(key: str) -> int:
    """The key under which a dead message is kept; that of none for a text that is no key of ours."""
    return int(key) if key.isdecimal() else -1


def _extras_of(record: Record) -> Extras:
    """The extras state of a leased message, made if it has none."""
    if record.extras is None:
        record.extras = Extras()
    return record.extras


def _lease_of(record: Record) -> Lease:
    assert isinstance(record.place, Lease)
    return record.place


def _withdraw(record: Record, token: int) -> None:
    """The run has ended: nobody need be told any more to cancel it."""
    if record.extras is not None and record.extras.cancelling:
        _lease_of(record).subscription.requests.pop(token, None)


def _deliver(envelope: Envelope, extras: Extras, token: int, now: float) -> Delivery:
    extras.progress = None
    return Delivery(
        envelope,
        extras.attempt,
        extras.lost,
        token,
        None if extras.first_unrouted_at is None else now - extras.first_unrouted_at,
        None if (expires_at := expiry_of(extras)) is None else expires_at - now,
    )
