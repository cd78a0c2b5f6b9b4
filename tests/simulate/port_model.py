"""What the port promises of messages, as a short model: a list, looked through from its start at every call.

It says which messages a claim may bring, not in which order: several engines round times in their own ways. Which ones a
full queue drops does not depend on that, where all have one priority.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from repid.delivery import (
    UNBOUNDED,
    Ack,
    Bounds,
    Cancel,
    DeadLetter,
    Delivery,
    Disposition,
    Release,
    Retry,
    Settlement,
    has_room,
    is_over,
)
from repid.envelope import Envelope

LEASE = 600.0


@dataclass
class Message:
    envelope: Envelope
    due: float
    expires_at: float
    rank: tuple[float, int]
    place: str = "waiting"
    attempt: int = 1
    lost: int = 0
    token: Any = None
    until: float = 0.0
    is_cancelled: bool = False


class Model:
    def __init__(self) -> None:
        self.now = 0.0
        self.messages: list[Message] = []
        self.paused: set[str] = set()
        self.results: dict[str, str] = {}
        self.bounds: dict[str, Bounds] = {}
        self.dropped: Counter[str] = Counter()
        self.order = 0

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for message in self.messages:
            if message.place == "waiting" and message.expires_at <= self.now:
                self._end(message, "dead", "expired")

    def publish(self, envelopes: Sequence[Envelope]) -> list[str]:
        """For each "accepted", "duplicate" or "full"."""
        answers: list[str] = []
        full: set[str] = set()
        for envelope in envelopes:
            if self._live(envelope.id) is not None:
                answers.append("duplicate")
            elif envelope.queue in full or not self._has_room(envelope.queue, 1):
                full.add(envelope.queue)
                answers.append("full")
            else:
                self._enter(envelope, envelope.options.delay or 0.0)
                answers.append("accepted")
        came = zip(envelopes, answers, strict=True)
        self._drop_oldest(envelope.queue for envelope, answer in came if answer == "accepted")
        return answers

    def claimable(self, queues: Iterable[str]) -> list[Message]:
        taken = set(queues) - self.paused
        return [m for m in self.messages if m.place == "waiting" and m.due <= self.now and m.envelope.queue in taken]

    def lease(self, delivery: Delivery) -> None:
        message = self._live(delivery.envelope.id)
        assert message is not None
        assert (delivery.attempt, delivery.lost) == (message.attempt, message.lost)
        message.place, message.token, message.until = "leased", delivery.token, self.now + LEASE

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        """For each "settled", "refused" or "full"."""
        answers: list[str] = []
        for settlement in settlements:
            message = self._leased(settlement.delivery)
            if message is None:
                answers.append("refused")
            elif not self._have_room(settlement.outbox):
                answers.append("full")
            else:
                self._carry_out(message, settlement.disposition)
                if settlement.result is not None:
                    self.results[message.envelope.result_id] = settlement.result.state
                sent = [envelope.queue for envelope in settlement.outbox if self._send(envelope)]
                self._drop_oldest(sent)
                answers.append("settled")
        return answers

    def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        held = [self._leased(delivery) for delivery in deliveries]
        for message in filter(None, held):
            message.until = self.now + LEASE
        return [message is not None for message in held]

    def rescue(self) -> int:
        ended = [m for m in self.messages if m.place == "leased" and m.until <= self.now]
        for message in ended:
            message.lost += 1
            self._return(message, 0.0)
        return len(ended)

    def cancel(self, id_: str) -> str:
        message = self._live(id_)
        if message is None:
            return "unknown"
        if message.place == "leased":
            message.is_cancelled = True
            return "requested"
        self._end(message, "gone", "cancelled")
        return "cancelled"

    def flush(self, queue: str) -> int:
        waiting = [m for m in self.messages if m.place == "waiting" and m.envelope.queue == queue]
        for message in waiting:
            message.place = "gone"
        return len(waiting)

    def revive(self, queue: str) -> int:
        """How many are ready again."""
        revived = 0
        for message in [m for m in self.messages if m.place == "dead" and m.envelope.queue == queue]:
            if self._live(message.envelope.id) is None:
                message.place = "gone"
                self._enter(message.envelope, 0.0)
                revived += 1
        return revived

    def delete_dead(self, queue: str) -> int:
        dead = [m for m in self.messages if m.place == "dead" and m.envelope.queue == queue]
        for message in dead:
            message.place = "gone"
        return len(dead)

    def counts(self, queue: str) -> tuple[int, int, int, int]:
        """Ready, scheduled, leased, dead."""
        here = [m for m in self.messages if m.envelope.queue == queue]
        ready = sum(m.place == "waiting" and m.due <= self.now for m in here)
        waiting, leased, dead = (sum(m.place == place for m in here) for place in ("waiting", "leased", "dead"))
        return ready, waiting - ready, leased, dead

    def _enter(self, envelope: Envelope, delay: float) -> None:
        ttl = math.inf if envelope.options.ttl is None else envelope.options.ttl
        due = self.now + delay
        self.messages.append(Message(envelope, due, due + ttl, self._rank(due)))
        self.results.pop(envelope.result_id, None)

    def _send(self, envelope: Envelope) -> bool:
        if self._live(envelope.id) is not None:
            return False
        self._enter(envelope, envelope.options.delay or 0.0)
        return True

    def _rank(self, due: float) -> tuple[float, int]:
        self.order += 1
        return due, self.order

    def _waiting(self, queue: str) -> list[Message]:
        return [m for m in self.messages if m.place == "waiting" and m.envelope.queue == queue]

    def _has_room(self, queue: str, more: int) -> bool:
        bounds = self.bounds.get(queue, UNBOUNDED)
        size = len(self._waiting(queue))
        return bounds.when_full == "drop_oldest" or has_room(bounds, size, size, more, more)

    def _have_room(self, outbox: Sequence[Envelope]) -> bool:
        wanted = Counter(envelope.queue for envelope in outbox if self._live(envelope.id) is None)
        return all(self._has_room(queue, more) for queue, more in wanted.items())

    def _drop_oldest(self, queues: Iterable[str]) -> None:
        for queue in dict.fromkeys(queues):
            bounds, waiting = self.bounds.get(queue, UNBOUNDED), self._waiting(queue)
            while bounds.when_full == "drop_oldest" and is_over(bounds, len(waiting), len(waiting)):
                oldest = min(waiting, key=lambda m: (0.0, *m.rank) if m.due <= self.now else (1.0, m.due, m.rank[1]))
                waiting.remove(oldest)
                oldest.place = "gone"
                self.dropped[queue] += 1
                if oldest.envelope.options.store_result:
                    self.results[oldest.envelope.result_id] = "dropped"

    def _carry_out(self, message: Message, disposition: Disposition) -> None:
        match disposition:
            case Ack():
                message.place = "gone"
            case Cancel():
                self._end(message, "gone", "cancelled")
            case DeadLetter():
                message.place = "dead"
            case Retry(delay):
                message.attempt += 1
                message.expires_at = math.inf
                message.rank = self._rank(self.now + delay)
                self._return(message, delay)
            case Release(delay, _, started):
                message.expires_at = math.inf if started else message.expires_at
                self._return(message, delay)

    def _return(self, message: Message, delay: float) -> None:
        message.place, message.due = "waiting", self.now + delay
        if message.is_cancelled:
            self._end(message, "gone", "cancelled")
        elif message.lost == 10:
            self._end(message, "dead", "dead")
        self.advance(0.0)

    def _end(self, message: Message, place: str, state: str) -> None:
        message.place = place
        if message.envelope.options.store_result is not False:
            self.results[message.envelope.result_id] = state

    def _live(self, id_: str) -> Message | None:
        return next((m for m in self.messages if m.envelope.id == id_ and m.place in {"waiting", "leased"}), None)

    def _leased(self, delivery: Delivery) -> Message | None:
        return next((m for m in self.messages if m.place == "leased" and m.token == delivery.token), None)
