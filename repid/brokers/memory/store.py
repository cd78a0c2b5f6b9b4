"""What may be done to the messages of the memory broker: synchronous and pure. Time comes in as the argument `now`.

Each operation first brings the store up to `now`. Only `rescue` ends a lease, however long ago its time was over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

from ...delivery import SUSPECT_FROM, Ack, Delivery, Failure, NewResult, Progress, Settlement, poison_failure
from ...delivery.shelf import (
    after_cancellation_request,
    after_lost_lease,
    after_publishing,
    after_reviving,
    after_start,
    after_verdict,
)
from ...envelope import NO_OPTIONS, TOPIC, Envelope, PrioritiesT
from ...errors import BrokerRefused, DuplicateId, QueueNotDeclared
from ...ports import REFUSED, SETTLED, AtMost, Cancelled, Verdict
from ..process import name_process
from .channel import Channel
from .lanes import draw
from .places import Places
from .record import Lease, Rare, Record, as_stored, expiry_of, note
from .taker import Taker


class Store(Places):
    """All queues of one broker."""

    def __init__(self, lease_timeout: float) -> None:
        super().__init__()
        self.lease_timeout = lease_timeout
        self._token = 0

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

    def receive(self, taker: Taker, limit: int, at_most: AtMost, now: float) -> list[Delivery]:
        """Lease the next messages by rank, at most `limit`, or one suspect; perhaps none."""
        now = self.advance(now)
        suspects = self.directory.suspects_for(taker) if at_most.alone else []
        if suspects:
            taken, emptied = draw(suspects, 1, {})
            _rare(taken[0]).leased_at = now
        else:
            lanes, caps = self.directory.lanes_for(taker, at_most)
            if not lanes:
                return []
            taken, emptied = draw(lanes, limit, caps, at_most.size, at_most.first)
        deliveries = self._lease(taken, taker, now)
        for lane in emptied:
            self.channels[lane.queue].drop(lane)
        if self._watched:
            for record in taken:
                self._tell(record)
        return deliveries

    def _lease(self, records: Sequence[Record], taker: Taker, now: float) -> list[Delivery]:
        lease = Lease(taker, now + self.lease_timeout, range(self._token + 1, self._token + 1 + len(records)))
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
            rare = record.rare
            deliveries.append(Delivery(envelope, 1, 0, token) if rare is None else _deliver(envelope, rare, token, now))
        return deliveries

    def suspects(self, taker: Taker, now: float) -> int:
        """How many ready messages this consumer may only be given alone."""
        self.advance(now)
        return sum(map(len, self.directory.suspects_for(taker)))

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
                taker = _lease_of(record).taker
                record.place = Lease(taker, now + self.lease_timeout, range(token, token + 1))
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
        rare = _rare(record)

        def poisoned(lost: int) -> Failure:
            held_for, since_first = self._now - rare.leased_at, self._now - rare.suspected_at
            return poison_failure(lost, name_process(), held_for, since_first)

        shelved = after_lost_lease(as_stored(record), self._now, poisoned)
        if shelved.stored.lost == SUSPECT_FROM:
            rare.suspected_at = self._now
        self._shelve(channel, record, shelved)

    def report(self, progress: Sequence[tuple[Delivery, Progress | None]], now: float) -> None:
        """Note that runs have begun and how far they have come; those that are not leased under this token any more are passed over."""
        self.advance(now)
        for delivery, latest in progress:
            channel = self.channels.get(delivery.envelope.queue)
            record = channel.leases.get(delivery.token) if channel is not None else None
            if record is not None:
                rare = _rare(record)
                note(record, after_start(as_stored(record)))
                rare.progress = rare.progress if latest is None else latest
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
            if type(disposition) is Ack and record.rare is None:
                del ids[record.envelope.id]
            else:
                _withdraw(record, delivery.token)
                self._carry_out(channel, record, settlement, now)
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
            _rare(record).failure = shelved.failure
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
            lease.taker.requests[token] = None
            self.changes.tell_of_events()
            self._tell(record)
        return "requested"

    # Results

    def store_results(self, results: Iterable[NewResult], now: float) -> None:
        """Store results, in place of those with the same ids."""
        self.advance(now)
        for result in results:
            self._store_result(result)


def to_key(key: str) -> int:
    """The key under which a dead message is kept; that of none for a text that is no key of ours."""
    return int(key) if key.isdecimal() else -1


def _rare(record: Record) -> Rare:
    """The rare state of a leased message, made if it has none."""
    if record.rare is None:
        record.rare = Rare()
    return record.rare


def _lease_of(record: Record) -> Lease:
    assert isinstance(record.place, Lease)
    return record.place


def _withdraw(record: Record, token: int) -> None:
    """The run has ended: nobody need be told any more to cancel it."""
    if record.rare is not None and record.rare.cancelling:
        _lease_of(record).taker.requests.pop(token, None)


def _deliver(envelope: Envelope, rare: Rare, token: int, now: float) -> Delivery:
    rare.progress = None
    return Delivery(
        envelope,
        rare.attempt,
        rare.lost,
        token,
        None if rare.first_unrouted_at is None else now - rare.first_unrouted_at,
        None if (expires_at := expiry_of(rare)) is None else expires_at - now,
    )
