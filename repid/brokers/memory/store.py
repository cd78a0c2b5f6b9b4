"""The state machine of the memory broker: synchronous and pure. Time comes in as the argument `now`.

Rules. Every message is in exactly one place: a lane (ready), the heap of scheduled ones, its queue's leases, its
queue's dead. The ids of the first three are in `_ids`. Each operation first brings the store up to `now`: what is
due becomes ready, what is past its ttl and not leased becomes dead. Only `rescue` ends a lease. What an index
still holds of a message that expired or went is skipped when its turn comes; only messages with a ttl leave such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import takewhile

from ...delivery import Ack, DeadLetter, Delivery, Disposition, Reason, Release, Retry, Settlement
from ...envelope import NO_OPTIONS, TOPIC, Envelope, PrioritiesT
from ...errors import BrokerRefused, DuplicateId, QueueNotDeclared
from ...ports import REFUSED, SETTLED, Verdict
from .channel import Channel, Directory, Taker
from .lanes import Entry, draw
from .record import Dead, Place, Rare, Record, is_gone

MOST_LOST = 10
"""A message whose leases ended so often without a verdict is poison (DESIGN.md, "The fate of a delivery")."""

_FEWEST_TO_COMPACT = 1024


class Store:
    """All queues of one broker. `arrived` counts what became ready since whoever wakes consumers last reset it."""

    def __init__(self, lease_timeout: float) -> None:
        self.lease_timeout = lease_timeout
        self.arrived = 0
        self.directory = Directory()
        self.channels = self.directory.channels
        self.scheduled: list[Entry] = []
        self._ids: set[str] = set()
        self._expiring: list[Entry] = []
        self._compact_at = _FEWEST_TO_COMPACT
        self._now = float("-inf")
        self._order = 0
        self._token = 0

    # Time

    def advance(self, now: float) -> float:
        """Bring the store up to `now`, which never runs backwards here; the time that holds."""
        if now > self._now:
            self._now = now
        else:
            now = self._now
        if self.scheduled and self.scheduled[0][0] <= now:
            self._make_due_ready(now)
        if self._expiring and self._expiring[0][0] <= now:
            self._expire(now)
        return now

    def next_due(self) -> float:
        """When the next scheduled message becomes ready; inf if there is none."""
        while self.scheduled and is_gone(self.scheduled[0][2]):
            heappop(self.scheduled)
        return self.scheduled[0][0] if self.scheduled else float("inf")

    def _make_due_ready(self, now: float) -> None:
        while self.scheduled and self.scheduled[0][0] <= now:
            record = heappop(self.scheduled)[2]
            if not is_gone(record):
                channel = self.channels[record.envelope.queue]
                channel.scheduled -= 1
                self._put_back(channel, record)

    def _expire(self, now: float) -> None:
        while self._expiring and self._expiring[0][0] <= now:
            record = heappop(self._expiring)[2]
            place = record.rare.place if record.rare is not None else Place.GONE
            if place is Place.GONE or place is Place.LEASED:
                continue  # a leased one is looked at when it comes back
            channel = self.channels[record.envelope.queue]
            if place is Place.SCHEDULED:
                channel.scheduled -= 1
            self._bury(channel, record, "expired")
            if place is Place.READY:
                lane = channel.lanes[record.envelope.topic]
                lane.stale += 1
                if not lane:
                    channel.drop(lane)

    # Queues

    def delete(self, name: str, now: float) -> None:
        """Remove the queue with everything in it. Nothing happens where there is none."""
        if name in self.channels:
            self.flush(name, now)
            self._forget(self.channels.pop(name).leases.values())

    def flush(self, name: str, now: float) -> int:
        """Remove what is ready or scheduled; how many."""
        self.advance(now)
        channel = self.directory.channel(name)
        removed = [record for lane in channel.lanes.values() for record in lane.records()]
        if channel.scheduled:
            mine = [entry for entry in self.scheduled if entry[2].envelope.queue == name]
            removed += [record for _, _, record in mine if not is_gone(record)]
            self.scheduled = [entry for entry in self.scheduled if entry[2].envelope.queue != name]
            heapify(self.scheduled)
            channel.scheduled = 0
        channel.clear_ready()
        self._forget(removed)
        return len(removed)

    def _forget(self, records: Iterable[Record]) -> None:
        for record in records:
            self._ids.remove(record.envelope.id)
            if record.rare is not None:
                record.rare.place = Place.GONE

    # Messages in

    def publish(self, envelopes: Sequence[Envelope], now: float) -> list[BrokerRefused | None]:
        now = self.advance(now)
        channels, ids = self.channels, self._ids
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
                ids.add(envelope.id)
                order += 1
                if envelope.options is NO_OPTIONS:
                    lane = channel.lane(envelope.headers.get(TOPIC))
                    lane.class_of(medium).append(Record(envelope, rank, order))
                else:
                    self._enter(channel, envelope, now, order)
        self.arrived += order - self._order
        self._order = order
        return outcomes

    def _enter(self, channel: Channel, envelope: Envelope, now: float, order: int) -> None:
        options = envelope.options
        priority = PrioritiesT.MEDIUM if options.priority is None else options.priority
        delay = options.delay if options.delay is not None and options.delay > 0 else 0.0
        record = Record(envelope, now + delay + priority, order)
        if options.ttl is not None:
            record.rare = Rare(Place.READY, expires_at=now + delay + options.ttl)
            self._watch(record)
        if delay:
            self._schedule(channel, record, now + delay)
        else:
            channel.lane(envelope.topic).class_of(priority).append(record)

    def _watch(self, record: Record) -> None:
        """Look at the record again when its ttl is over. Those that went before are swept out now and then."""
        assert record.rare is not None
        assert record.rare.expires_at is not None
        if len(self._expiring) >= self._compact_at:
            self._expiring = [entry for entry in self._expiring if not is_gone(entry[2])]
            heapify(self._expiring)
            self._compact_at = max(_FEWEST_TO_COMPACT, 2 * len(self._expiring))
        heappush(self._expiring, (record.rare.expires_at, record.order, record))

    def revive(self, name: str, keys: Iterable[int] | None, now: float) -> list[BrokerRefused | None]:
        now = self.advance(now)
        channel = self.directory.channel(name)
        return [self._revive(channel, key, now) for key in (list(channel.dead) if keys is None else keys)]

    def _revive(self, channel: Channel, key: int, now: float) -> BrokerRefused | None:
        dead = channel.dead.get(key)
        if dead is None:
            return BrokerRefused(f"no dead message in {channel.name!r} has the key {key}")
        envelope = dead.envelope
        if envelope.id in self._ids:
            return DuplicateId(envelope.id, channel.name)
        del channel.dead[key]
        self._ids.add(envelope.id)
        record = Record(envelope, 0.0, 0)
        if envelope.options.ttl is not None:
            record.rare = Rare(Place.READY, expires_at=now + envelope.options.ttl)
        self._put_last(channel, record, now)
        if record.rare is not None and record.rare.place is Place.READY:
            self._watch(record)
        return None

    # Messages out

    def receive(self, taker: Taker, limit: int, at_most: Mapping[tuple[str, str], int], now: float) -> list[Delivery]:
        """Lease the next messages by rank, at most `limit`; perhaps none."""
        now = self.advance(now)
        lanes, caps = self.directory.lanes_for(taker, at_most)
        if not lanes:
            return []
        taken, emptied = draw(lanes, limit, caps)
        deliveries = self._lease(taken, now)
        for lane in emptied:
            self.channels[lane.queue].drop(lane)
        return deliveries

    def _lease(self, records: Iterable[Record], now: float) -> list[Delivery]:
        until, token = now + self.lease_timeout, self._token
        name: str | None = None
        leases: dict[int, Record] = {}
        deliveries: list[Delivery] = []
        for record in records:
            token += 1
            envelope = record.envelope
            if envelope.queue is not name:
                name = envelope.queue
                leases = self.channels[name].leases
            record.until = until
            leases[token] = record
            rare = record.rare
            deliveries.append(Delivery(envelope, 1, 0, token) if rare is None else _deliver(envelope, rare, token, now))
        self._token = token
        return deliveries

    # Leases

    def extend(self, deliveries: Sequence[Delivery], now: float) -> list[bool]:
        """Start the lease of each anew, also of one that has ended but was not rescued; False where it is lost."""
        now = self.advance(now)
        answers: list[bool] = []
        for delivery in deliveries:
            channel = self.channels.get(delivery.envelope.queue)
            record = channel.leases.pop(delivery.token, None) if channel is not None else None
            if channel is not None and record is not None:
                record.until = now + self.lease_timeout
                channel.leases[delivery.token] = record
            answers.append(record is not None)
        return answers

    def rescue(self, now: float) -> int:
        """Take back every lease that has ended; how many. The messages are ready again, or dead."""
        now = self.advance(now)
        rescued = 0
        for channel in self.channels.values():
            ended = [*takewhile(lambda lease: lease[1].until <= now, channel.leases.items())]
            rescued += len(ended)
            for token, record in ended:
                del channel.leases[token]
                self._take_back(channel, record)
        return rescued

    def _take_back(self, channel: Channel, record: Record) -> None:
        rare = _rare(record)
        rare.lost += 1
        if rare.lost >= MOST_LOST:
            self._bury(channel, record, "poison")
        else:
            self._put_back(channel, record)

    def settle(self, settlements: Sequence[Settlement], now: float) -> list[Verdict]:
        now = self.advance(now)
        channels, forget = self.channels, self._ids.remove
        verdicts: list[Verdict] = []
        for settlement in settlements:
            delivery, disposition = settlement.delivery, settlement.disposition
            channel = channels.get(delivery.envelope.queue)
            record = channel.leases.pop(delivery.token, None) if channel is not None else None
            if channel is None or record is None:
                verdicts.append(REFUSED)
                continue
            if type(disposition) is Ack:
                forget(record.envelope.id)
                if record.rare is not None:
                    record.rare.place = Place.GONE
            else:
                self._keep(channel, record, disposition, now)
            dropped = self._send(settlement.outbox, now) if settlement.outbox else 0
            verdicts.append(Verdict(accepted=True, dropped=dropped) if dropped else SETTLED)
        return verdicts

    def _send(self, outbox: Sequence[Envelope], now: float) -> int:
        """Publish an outbox, declaring its queues; how many were dropped because their id is alive."""
        self.directory.declare(envelope.queue for envelope in outbox)
        return sum(outcome is not None for outcome in self.publish(outbox, now))

    def _keep(self, channel: Channel, record: Record, disposition: Disposition, now: float) -> None:
        """Carry out a disposition after which the message is still there. Its lease has been taken off."""
        match disposition:
            case Retry(delay, failure):
                rare = _rare(record)
                rare.attempt += 1
                rare.failure = failure
                self._put_last(channel, record, now, delay)
            case Release(delay, unrouted):
                if unrouted and _rare(record).first_unrouted_at is None:
                    _rare(record).first_unrouted_at = now
                if delay > 0:
                    self._schedule(channel, record, now + delay)
                else:
                    self._put_back(channel, record)
            case DeadLetter(reason, failure):
                _rare(record).failure = failure
                self._bury(channel, record, reason)

    # Places

    def _schedule(self, channel: Channel, record: Record, due: float) -> None:
        if self._is_expired(record):
            self._bury(channel, record, "expired")
            return
        if record.rare is not None:
            record.rare.place = Place.SCHEDULED
        record.until = due
        channel.scheduled += 1
        heappush(self.scheduled, (due, record.order, record))

    def _put_back(self, channel: Channel, record: Record) -> None:
        """Make it ready at the rank it has."""
        if self._is_expired(record):
            self._bury(channel, record, "expired")
            return
        if record.rare is not None:
            record.rare.place = Place.READY
        channel.lane(record.envelope.topic).put_back(record)
        self.arrived += 1

    def _put_last(self, channel: Channel, record: Record, now: float, delay: float = 0.0) -> None:
        """Make it ready, in `delay` seconds, at the rank of a message enqueued then."""
        priority = _priority(record)
        self._order += 1
        record.order = self._order
        if delay > 0:
            record.rank = now + delay + priority
            self._schedule(channel, record, now + delay)
        elif self._is_expired(record):
            self._bury(channel, record, "expired")
        else:
            record.rank = now + priority
            if record.rare is not None:
                record.rare.place = Place.READY
            channel.lane(record.envelope.topic).class_of(priority).append(record)
            self.arrived += 1

    def _is_expired(self, record: Record) -> bool:
        rare = record.rare
        return rare is not None and rare.expires_at is not None and rare.expires_at <= self._now

    def _bury(self, channel: Channel, record: Record, reason: Reason) -> None:
        self._ids.remove(record.envelope.id)
        attempt, lost, failure = 1, 0, None
        if record.rare is not None:
            record.rare.place = Place.GONE
            attempt, lost, failure = record.rare.attempt, record.rare.lost, record.rare.failure
        channel.dead[record.order] = Dead(record.envelope, attempt, lost, reason, failure)


def _rare(record: Record) -> Rare:
    """The rare state of a leased message, made if it has none."""
    if record.rare is None:
        record.rare = Rare(Place.LEASED)
    return record.rare


def _priority(record: Record) -> PrioritiesT:
    priority = record.envelope.options.priority
    return PrioritiesT.MEDIUM if priority is None else priority


def _deliver(envelope: Envelope, rare: Rare, token: int, now: float) -> Delivery:
    rare.place = Place.LEASED
    return Delivery(
        envelope,
        rare.attempt,
        rare.lost,
        token,
        None if rare.first_unrouted_at is None else now - rare.first_unrouted_at,
        None if rare.expires_at is None else rare.expires_at - now,
    )
