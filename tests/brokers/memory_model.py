"""What a broker of ready, scheduled, leased and dead messages is, said as simply as possible: one list, sorted anew
whenever an order is asked for. It shares no code with the broker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from repid.delivery import Ack, DeadLetter, Delivery, Disposition, Release, Retry, Settlement, is_suspect
from repid.envelope import Envelope
from repid.ports import Category, Topics

LEASE = 60.0


@dataclass
class Message:
    envelope: Envelope
    rank: float
    order: int
    place: Category
    until: float = 0.0
    leased_as: int = 0
    token: int = 0
    attempt: int = 1
    lost: int = 0
    expires_at: float = float("inf")
    unrouted_at: float | None = None
    reason: str | None = None


class Model:
    def __init__(self) -> None:
        self.now = 0.0
        self.queues: set[str] = set()
        self.messages: list[Message] = []
        self.consumers: dict[int, Mapping[str, Topics]] = {}
        self._number = 0

    def advance(self, now: float) -> None:
        self.now = now
        for message in self.messages:
            if message.place == "scheduled" and message.until <= now:
                message.place = "ready"
            if message.place in {"ready", "scheduled"} and message.expires_at <= now:
                self._die(message, "expired")

    def publish(self, envelopes: Iterable[Envelope], *, declare: bool = False) -> list[str]:
        self.advance(self.now)
        answers = []
        for envelope in envelopes:
            if declare:
                self.queues.add(envelope.queue)
            if envelope.queue not in self.queues:
                answers.append("QueueNotDeclared")
            elif envelope.id in self._live_ids():
                answers.append("DuplicateId")
            else:
                answers.append("NoneType")
                self.messages.append(self._new(envelope, max(envelope.options.delay or 0.0, 0.0)))
        return answers

    def find(self, queue: str, place: Category) -> list[Message]:
        """The messages in one place, in the order of handling (the dead: of no particular order)."""
        found = [m for m in self.messages if m.envelope.queue == queue and m.place == place]
        if place == "ready":
            return sorted(found, key=lambda m: (m.rank, m.order))
        return sorted(found, key=lambda m: (m.until, m.leased_as if place == "leased" else m.order))

    def claimable(self, consumer: int, limit: int, at_most: Mapping[tuple[str, str], int], now: float) -> list[Message]:
        self.advance(now)
        queues = self.consumers[consumer]
        left = dict(at_most)
        ready: list[Message] = []
        for message in sorted(self.messages, key=lambda m: (m.rank, m.order)):
            queue, topic = message.envelope.queue, message.envelope.topic
            if message.place != "ready" or queue not in queues:
                continue
            if self._is_taken(queue, topic) and not _takes(queues, queue, topic):
                continue
            ready.append(message)
        if suspects := [message for message in ready if is_suspect(message.lost)]:
            return suspects[:1]
        claimed: list[Message] = []
        for message in ready:
            queue, topic = message.envelope.queue, message.envelope.topic
            if len(claimed) == limit:
                break
            if topic is not None and (queue, topic) in left:
                if left[queue, topic] <= 0:
                    continue
                left[queue, topic] -= 1
            claimed.append(message)
        return claimed

    def lease(self, message: Message, delivery: Delivery) -> None:
        """Take over the token of the broker's lease, and check what else the delivery says."""
        message.place, message.token, message.until = "leased", delivery.token, self.now + LEASE
        message.leased_as = self._next()
        ttl_left = None if message.expires_at == float("inf") else message.expires_at - self.now
        age = None if message.unrouted_at is None else self.now - message.unrouted_at
        said = (delivery.envelope, delivery.attempt, delivery.lost, delivery.ttl_left, delivery.unrouted_age)
        assert said == (message.envelope, message.attempt, message.lost, ttl_left, age)

    def settle(self, settlements: Sequence[Settlement]) -> list[tuple[bool, int]]:
        answers = []
        for settlement in settlements:
            message = self._leased(settlement.delivery)
            if message is None:
                answers.append((False, 0))
                continue
            self._carry_out(message, settlement.disposition)
            sent = self.publish(settlement.outbox, declare=True)
            answers.append((True, sum(answer != "NoneType" for answer in sent)))
        return answers

    def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        answers = []
        for delivery in deliveries:
            message = self._leased(delivery)
            if message is not None:
                message.until, message.leased_as = self.now + LEASE, self._next()
            answers.append(message is not None)
        return answers

    def rescue(self) -> int:
        ended = [m for m in self.messages if m.place == "leased" and m.until <= self.now]
        for message in ended:
            message.lost += 1
            if message.lost == 10:
                self._die(message, "poison")
            else:
                self._return(message)
        return len(ended)

    def flush(self, queue: str) -> int:
        gone = self.find(queue, "ready") + self.find(queue, "scheduled")
        self.messages = [m for m in self.messages if m not in gone]
        return len(gone)

    def delete(self, queue: str) -> None:
        self.queues.discard(queue)
        self.messages = [m for m in self.messages if m.envelope.queue != queue]

    def revive(self, queue: str, ids: Iterable[str]) -> list[str]:
        """Revive the dead with these ids, in this order; of those with the same id the one that died first."""
        dead = self.find(queue, "dead")
        answers = []
        for id_ in ids:
            message = min((m for m in dead if m.envelope.id == id_), key=lambda m: m.leased_as)
            dead.remove(message)
            if id_ in self._live_ids():
                answers.append("DuplicateId")
            else:
                answers.append("NoneType")
                self.messages.remove(message)
                self.messages.append(self._new(message.envelope, 0.0))
        self.advance(self.now)  # with a ttl of nothing they are dead again at once
        return answers

    def _carry_out(self, message: Message, disposition: Disposition) -> None:
        if isinstance(disposition, Ack):
            self.messages.remove(message)
        elif isinstance(disposition, DeadLetter):
            self._die(message, disposition.reason)
        elif isinstance(disposition, Retry):
            message.attempt += 1
            message.expires_at = float("inf")
            message.order = self._next()
            message.rank = self.now + disposition.delay + _offset(message.envelope)
            self._return(message, disposition.delay)
        elif isinstance(disposition, Release):
            if disposition.started:
                message.expires_at = float("inf")
            if disposition.unrouted and message.unrouted_at is None:
                message.unrouted_at = self.now
            self._return(message, disposition.delay)

    def _return(self, message: Message, delay: float = 0.0) -> None:
        message.place, message.until = "scheduled", self.now + delay
        self.advance(self.now)

    def _die(self, message: Message, reason: str) -> None:
        message.place, message.reason, message.leased_as = "dead", reason, self._next()

    def _new(self, envelope: Envelope, delay: float) -> Message:
        due = self.now + delay
        expires_at = float("inf") if envelope.options.ttl is None else due + envelope.options.ttl
        place: Category = "scheduled" if delay else "ready"
        return Message(envelope, due + _offset(envelope), self._next(), place, due, expires_at=expires_at)

    def _leased(self, delivery: Delivery) -> Message | None:
        held = (m for m in self.messages if m.place == "leased" and m.token == delivery.token)
        return next(held, None)

    def _live_ids(self) -> set[str]:
        return {m.envelope.id for m in self.messages if m.place != "dead"}

    def _is_taken(self, queue: str, topic: str | None) -> bool:
        return any(_takes(queues, queue, topic) for queues in self.consumers.values())

    def _next(self) -> int:
        self._number += 1
        return self._number


def _takes(queues: Mapping[str, Topics], queue: str, topic: str | None) -> bool:
    topics = queues.get(queue, frozenset())
    return topics is None or topic in topics


def _offset(envelope: Envelope) -> float:
    return 60.0 if envelope.options.priority is None else float(envelope.options.priority)
