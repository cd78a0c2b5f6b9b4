"""The account of every message: what the engine must say next, judged after every call.

Theory. The account is a second, much simpler engine without queues and orders: for each id where the message is, under
which token, with which counters. It is given each call that reached the engine, with its answer, in the order in which
the engine carried them out, and compares the answer with its own. So it holds, after every call, that

* a message is in one place: an id that is alive is not published again, a leased one is not leased again;
* what was acknowledged, cancelled or buried never comes back, and what was accepted is never gone;
* attempts, lost leases and ttls are what `delivery.fate` and `delivery.blame` say;
* a verdict is accepted if, and only if, it was given under the live lease; the same for an extension;
* no lease ends without a verdict unless a fault struck the process that held it;
* a claim gives what its consumer takes, within its limits, by rank, and nothing of a paused queue;
* a schedule ticks once for each of its times, not while it is paused, and not while its former message lives;
* what is new is refused if, and only if, its bounded queue has no room for it, and then it is nowhere.

`Disturbances` are what the faults of the plan and the shutdowns excuse; nothing else is excused.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal, TypeAlias

import msgspec

from ...delivery import (
    Ack,
    Bounds,
    Cancel,
    DeadLetter,
    Delivery,
    Disposition,
    NewResult,
    Progress,
    Release,
    ResultState,
    Retry,
    Settlement,
    ever_fits,
    has_room,
    is_over,
    is_poison,
    is_suspect,
)
from ...delivery.shelf import is_stray, takes
from ...envelope import Envelope, PrioritiesT
from ...errors import DuplicateId, QueueFull, QueueNotDeclared
from ...ports import AtMost, Claimed, ScheduleChange, StoredSchedule, Topics, Verdict

Place: TypeAlias = Literal["waiting", "leased", "dead", "gone"]

AFTERMATH = 10.0
"""Seconds after a fault in which a process may still be troubled by it: the bound of a call, and a new link."""

LONGEST_TRIPS = 3.0
"""How many latencies an answer and the next call may be under way, at the most: one and a half each."""


class Violation(Exception):  # noqa: N818  it is what was found
    """An invariant does not hold: a fault of ours, or of the actors, and not of the plan."""


class Entry(msgspec.Struct, gc=False):
    """One message as the account has it; `number` counts those of one id. `holder`: the process that has, or had last,
    its lease; since `leased_at`.
    """

    envelope: Envelope
    published_at: float
    due: float
    expires_at: float
    number: int
    rank: tuple[float, int]
    """From which moment on it may be run, with its priority, and how many came before it."""
    place: Place = "waiting"
    attempt: int = 1
    lost: int = 0
    token: Any = None
    holder: str = ""
    counts: Counter[str] | None = None
    """Those of the process that has, or had last, its lease. A verdict may come when another process has its name."""
    leased_at: float = 0.0
    until: float = 0.0
    has_started: bool = False
    is_cancelled: bool = False
    cancelled_at: float = math.inf
    is_removed: bool = False
    """Whether an operator has removed it, so that it has no end."""
    end: ResultState | None = None
    """What its result must say, if one is stored."""
    has_result: bool = False


class Disturbances:
    """When which process was struck by a fault or stopped. An empty name strikes all."""

    def __init__(self) -> None:
        self._struck: dict[str, list[tuple[float, float]]] = {}

    def add(self, process: str, since: float, until: float) -> None:
        """From `since` to `until` this process may lose what it holds."""
        self._struck.setdefault(process, []).append((since, until))

    def excuse(self, process: str, since: float, until: float) -> bool:
        """Whether a fault struck this process between these moments."""
        struck = (*self._struck.get(process, ()), *self._struck.get("", ()))
        return any(start <= until and end >= since for start, end in struck)


class Account:
    """Where every message is. Each method takes what a call was given, what it answered, and when and by whom it was
    made.
    """

    def __init__(self, lease_timeout: float, faults: Disturbances, latency: float = 0.0) -> None:
        self.entries: dict[str, Entry] = {}
        self.settled: dict[str, Counter[str]] = defaultdict(Counter)
        """For each process since it was started last: how many leases it had, as "leases", and how many verdicts on
        these the engine accepted, as "verdicts" and by the word of its report.
        """
        self.sent_again: set[str] = set()
        """Ids that their producer publishes twice on purpose."""
        self.ticked: Counter[str] = Counter()
        """How often each schedule has ticked or passed a tick over."""
        self.bounds: dict[str, Bounds] = {}
        self.dropped: Counter[str] = Counter()
        """How many messages each queue has dropped because it was full."""
        self.drops = 0
        """How many all have."""
        self._graves: dict[str, list[Envelope]] = {}
        self._paused: set[str] = set()
        self._subscriptions: dict[str, Mapping[str, Topics]] = {}
        self._schedules: dict[str, StoredSchedule] = {}
        self._stored_at: dict[str, float] = {}
        self._lease_timeout = lease_timeout
        self._faults = faults
        self._latency = latency
        self._tokens: set[Any] = set()
        self._expires_next = math.inf
        self._order = 0
        self._settled_at: dict[Any, float] = {}
        self._judges: dict[str, Callable[..., None]] = {
            "publish": self._published,
            "claim": self._claimed,
            "settle": self._settled,
            "extend": self._extended,
            "rescue": self._rescued,
            "cancel": self._cancelled,
            "report": self._reported,
            "revive": self._revived,
            "tick": self._ticked,
            "replace_schedules": self._replaced,
            "remove_schedule": self._schedule_removed,
            "subscribe": self._subscribed,
            "unsubscribe": self._unsubscribed,
            "pause": self._pause,
            "set_bounds": self._bounded,
            "flush": self._flushed,
            "delete_messages": self._dead_deleted,
            "store_results": self._stored,
        }

    def judge(self, now: float, process: str, name: str, arguments: Sequence[Any], answer: Any) -> None:
        """A call was carried out. Raises `Violation` where the answer is not what it must be."""
        judge = self._judges.get(name)
        if judge is not None:
            if self._expires_next <= now:
                self._expire(now)
            judge(now, process, *arguments, answer)

    def alive(self) -> list[str]:
        """The ids of the messages that are waiting or leased."""
        return [id_ for id_, entry in self.entries.items() if entry.place in {"waiting", "leased"}]

    def is_alive(self, id_: str) -> bool:
        """Whether a message of this id is waiting or leased."""
        entry = self.entries.get(id_)
        return entry is not None and entry.place in {"waiting", "leased"}

    def buried(self, queue: str) -> int:
        """How many dead messages the queue has."""
        return len(self._graves.get(queue, ()))

    # Messages in

    def _published(self, now: float, process: str, envelopes: Sequence[Envelope], answer: Sequence[Any]) -> None:
        full: set[str] = set()
        for envelope, refused in zip(envelopes, answer, strict=True):
            if isinstance(refused, QueueNotDeclared):
                continue
            is_alive = self.is_alive(envelope.id)
            _expect(isinstance(refused, DuplicateId), is_alive, "publishing {} was refused as a duplicate", envelope.id)
            if not is_alive and not self._has_room(envelope.queue, [envelope]):
                full.add(envelope.queue)  # and what is behind it in the call must not overtake it
            is_full = not is_alive and envelope.queue in full
            _expect(isinstance(refused, QueueFull), is_full, "publishing {} was refused for want of room", envelope.id)
            if refused is None:
                former = self.entries.get(envelope.id)
                if (
                    former is not None
                    and envelope.id not in self.sent_again
                    and not self._faults.excuse(process, former.published_at - AFTERMATH, now)
                ):
                    raise Violation(f"{process} published {envelope.id} again, and no fault explains that")
                self._enter(envelope, now)
        self._drop_oldest(now, [each for each, refused in zip(envelopes, answer, strict=True) if refused is None])

    def _enter(self, envelope: Envelope, now: float, delay: float | None = None) -> None:
        options = envelope.options
        due = now + max(options.delay or 0.0 if delay is None else delay, 0.0)
        expires_at = math.inf if options.ttl is None else due + options.ttl
        former = self.entries.get(envelope.id)
        number = 1 if former is None else former.number + 1
        self._expires_next = min(self._expires_next, expires_at)
        self.entries[envelope.id] = Entry(envelope, now, due, expires_at, number, self._rank(due, envelope))

    # Schedules

    def overdue(self, name: str, now: float, engine_time: float) -> float:
        """For how many seconds the tick of a schedule could have been made; 0: there is none to make."""
        stored = self._schedules.get(name)
        if stored is None or stored.paused:
            return 0.0
        return max(0.0, min(engine_time - stored.next_at, now - self._stored_at[name]))

    def _replaced(self, now: float, __: str, changes: Sequence[ScheduleChange], answers: Sequence[bool]) -> None:
        for (old, new), answer in zip(changes, answers, strict=True):
            name = new.schedule.name
            _expect(answer, self._schedules.get(name) == old, "whether schedule {} was replaced", name)
            if answer:
                self._schedules[name], self._stored_at[name] = new, now

    def _schedule_removed(self, _: float, __: str, name: str, answer: bool) -> None:
        _expect(answer, self._schedules.pop(name, None) is not None, "whether schedule {} was removed", name)

    def _ticked(self, now: float, _: str, *call: Any) -> None:
        name, expected_next, next_at, envelope, answer = call
        stored = self._schedules.get(name)
        if stored is None or stored.paused or stored.next_at != expected_next:
            _expect(answer, "lost", "the tick of schedule {} at {:.3f}", name, expected_next)
            return
        overlaps = stored.schedule.overlap == "skip" and stored.last_id is not None and self.is_alive(stored.last_id)
        self.ticked[name] += 1
        if envelope is None or overlaps or self.is_alive(envelope.id):
            wanted, changes = "skipped", {"skipped": stored.skipped + 1}
        else:
            wanted, changes = "fired", {"fired": stored.fired + 1, "last_id": envelope.id}
            self._enter(envelope, now)
            self._drop_oldest(now, [envelope])
        _expect(answer, wanted, "the tick of schedule {} at {:.3f}", name, expected_next)
        self._schedules[name] = msgspec.structs.replace(stored, next_at=next_at, **changes)

    # Bounds

    def _bounded(self, _: float, __: str, bounds: Mapping[str, Bounds], ___: None) -> None:
        self.bounds.update(bounds)

    def _waiting_in(self, queue: str) -> list[Entry]:
        return [each for each in self.entries.values() if each.place == "waiting" and each.envelope.queue == queue]

    def _has_room(self, queue: str, envelopes: Sequence[Envelope]) -> bool:
        bounds = self.bounds.get(queue)
        if bounds is None:
            return True
        more, more_volume = len(envelopes), _volume(envelopes)
        if bounds.are_none or bounds.when_full == "drop_oldest":
            return ever_fits(bounds, more, more_volume)
        waiting = [each.envelope for each in self._waiting_in(queue)]
        return has_room(bounds, len(waiting), _volume(waiting), more, more_volume)

    def _has_room_for_all(self, outbox: Sequence[Envelope]) -> bool:
        if not outbox:
            return True
        new = [envelope for envelope in outbox if not self.is_alive(envelope.id)]
        queues = {envelope.queue for envelope in new}
        return all(self._has_room(queue, [each for each in new if each.queue == queue]) for queue in queues)

    def _drop_oldest(self, now: float, came: Sequence[Envelope]) -> None:
        """What is new lets the oldest go: of what is ready, by rank, else what is due first."""
        if not self.bounds:
            return
        for queue in {envelope.queue for envelope in came} & self.bounds.keys():
            bounds = self.bounds[queue]
            waiting = self._waiting_in(queue) if bounds.when_full == "drop_oldest" else []
            while is_over(bounds, len(waiting), _volume([each.envelope for each in waiting])):
                ready = [each for each in waiting if each.due <= now]
                oldest = min(
                    ready or waiting, key=lambda each: each.rank if each.due <= now else (each.due, each.rank[1])
                )
                waiting.remove(oldest)
                self._leave(oldest, "dropped")
                self.dropped[queue] += 1
                self.drops += 1

    # Consumers

    def _subscribed(self, _: float, __: str, consumer: str, queues: Mapping[str, Topics], ___: None) -> None:
        self._subscriptions[consumer] = queues

    def _unsubscribed(self, _: float, __: str, consumer: str, ___: None) -> None:
        self._subscriptions.pop(consumer, None)

    def _pause(self, _: float, __: str, queue: str, paused: bool, ___: None) -> None:
        (self._paused.add if paused else self._paused.discard)(queue)

    # Leases

    def _claimed(self, now: float, process: str, consumer: str, limit: int, at_most: AtMost, answer: Claimed) -> None:
        if not answer.deliveries:
            return
        given = [(each.envelope.queue, each.envelope.topic) for each in answer.deliveries]
        if len(given) > limit:
            raise Violation(f"a claim of {limit} gave {len(given)} messages")
        for key in at_most.topics.keys() & set(given):
            if given.count(key) > at_most.topics[key]:
                raise Violation(f"a claim of at most {at_most.topics[key]} of {key} gave {given.count(key)}")
        queues = self._subscriptions.get(consumer, {})
        for delivery in answer.deliveries:
            self._check_takes(queues, delivery.envelope)
            self._lease(now, process, delivery)

    def _check_takes(self, queues: Mapping[str, Topics], envelope: Envelope) -> None:
        """The consumer takes this queue and topic, and the queue is not paused."""
        if envelope.queue in self._paused:
            raise Violation(f"{envelope.id} was leased from {envelope.queue}, which is paused")
        wanted = [each[envelope.queue] for each in self._subscriptions.values() if envelope.queue in each]
        if not takes(queues.get(envelope.queue, frozenset()), envelope.topic) and not is_stray(envelope.topic, wanted):
            raise Violation(f"{envelope.id} was leased to a consumer that does not take its topic {envelope.topic!r}")

    def _check_rank(self, now: float, entry: Entry) -> None:
        """No other message of its topic, and no more suspect than it, has waited longer."""
        envelope = entry.envelope
        for other in self.entries.values():
            if (
                other.rank < entry.rank
                and other.place == "waiting"
                and other.due <= now
                and other.envelope.queue == envelope.queue
                and other.envelope.topic == envelope.topic
                and is_suspect(other.lost) == is_suspect(entry.lost)
            ):
                raise Violation(f"{envelope.id} was leased before {other.envelope.id}, whose turn it was")

    def _lease(self, now: float, process: str, delivery: Delivery) -> None:
        id_ = delivery.envelope.id
        entry = self.entries.get(id_)
        if entry is None or entry.place != "waiting":
            where = "was never accepted" if entry is None else f"is {entry.place}"
            by = f", held by {entry.holder}" if entry is not None and entry.place == "leased" else ""
            raise Violation(f"{id_} was handed out although it {where}{by}")
        if delivery.token in self._tokens:
            raise Violation(f"{id_} was handed out under a token that was used before")
        _expect(delivery.envelope, entry.envelope, "the envelope of {}", id_)
        _expect((delivery.attempt, delivery.lost), (entry.attempt, entry.lost), "attempt and lost leases of {}", id_)
        if entry.due > now + 1e-6:
            raise Violation(f"{id_} was handed out {entry.due - now:.3f} s before it was due")
        self._check_rank(now, entry)
        self._tokens.add(delivery.token)
        entry.counts = counts = self.settled[process]
        counts["leases"] += 1
        entry.place, entry.token, entry.holder = "leased", delivery.token, process
        entry.leased_at, entry.until = now, now + self._lease_timeout
        if is_suspect(entry.lost):
            leased = [each for each in self.entries.values() if each.place == "leased" and each.holder == process]
            if sum(is_suspect(each.lost) for each in leased) > 1:
                raise Violation(f"{process} was given {id_} together with another message that was lost twice")

    def _extended(
        self, now: float, process: str, _: str, deliveries: Sequence[Delivery], answer: Sequence[bool]
    ) -> None:
        for delivery, is_ours in zip(deliveries, answer, strict=True):
            entry = self._leased_as(delivery)
            _expect(is_ours, entry is not None, "whether the lease of {} was extended", delivery.envelope.id)
            if entry is not None:
                entry.until = now + self._lease_timeout
                continue
            settled_at = self._settled_at.get(delivery.token, now)
            if settled_at < now - LONGEST_TRIPS * self._latency and not self._faults.excuse(
                process, settled_at - AFTERMATH, now
            ):
                raise Violation(f"{process} extends the lease of {delivery.envelope.id}, settled at {settled_at:.3f}")

    def _rescued(self, now: float, _: str, answer: int) -> None:
        ended = [entry for entry in self.entries.values() if entry.place == "leased" and entry.until <= now]
        _expect(answer, len(ended), "the number of leases that were rescued")
        for entry in ended:
            self._take_back(entry, now)

    def _take_back(self, entry: Entry, now: float) -> None:
        id_ = entry.envelope.id
        if not self._faults.excuse(entry.holder, entry.leased_at - AFTERMATH, now):
            raise Violation(
                f"the lease of {id_} ended without a verdict, and no fault had struck {entry.holder} since it was "
                f"leased at {entry.leased_at:.3f}"
            )
        entry.lost += 1
        if is_poison(entry.lost) and not entry.is_cancelled:
            self._bury(entry, "dead")
        else:
            self._wait(entry, now, 0.0)

    # Verdicts

    def _settled(
        self, now: float, _: str, __: str, settlements: Sequence[Settlement], answer: Sequence[Verdict]
    ) -> None:
        for settlement, verdict in zip(settlements, answer, strict=True):
            delivery = settlement.delivery
            entry = self._leased_as(delivery)
            is_full = entry is not None and not self._has_room_for_all(settlement.outbox)
            _expect(verdict.full is not None, is_full, "whether the outbox of {} had no room", delivery.envelope.id)
            if entry is not None and is_full:
                entry.until = now + self._lease_timeout  # nothing else was done
                continue
            _expect(verdict.accepted, entry is not None, "whether the verdict on {} was accepted", delivery.envelope.id)
            if entry is None:
                continue
            self._settled_at[delivery.token] = now
            if settlement.survived:
                entry.lost = 0
            self._carry_out(entry, settlement.disposition, now)
            if settlement.result is not None:
                entry.has_result = True
            sent: list[Envelope] = []
            for envelope in settlement.outbox:
                if not self.is_alive(envelope.id):
                    sent.append(envelope)
                    self._enter(envelope, now)
            self._drop_oldest(now, sent)
            dropped = len(settlement.outbox) - len(sent)
            _expect(verdict.dropped, dropped, "how much of the outbox of {} was dropped", delivery.envelope.id)
            assert entry.counts is not None, "it was leased"
            entry.counts.update(["verdicts", *words_of(settlement.disposition)])

    def _carry_out(self, entry: Entry, disposition: Disposition, now: float) -> None:
        match disposition:
            case Ack(failure):
                self._leave(entry, "success" if failure is None else "failure")
            case Cancel():
                self._leave(entry, "cancelled")
            case Retry(delay):
                entry.attempt += 1
                entry.has_started = True
                entry.rank = self._rank(now + max(delay, 0.0), entry.envelope)
                self._wait(entry, now, delay)
            case Release(delay, _, started):
                entry.has_started = entry.has_started or started
                self._wait(entry, now, delay)
            case DeadLetter(reason):
                end: ResultState = "expired" if reason == "expired" else "dead" if reason == "unrouted" else "failure"
                self._bury(entry, end)

    def _cancelled(self, now: float, __: str, ids: Sequence[str], answer: Sequence[str]) -> None:
        for id_, word in zip(ids, answer, strict=True):
            entry = self.entries.get(id_)
            place = "gone" if entry is None else entry.place
            expected = {"waiting": "cancelled", "leased": "requested"}.get(place, "unknown")
            _expect(word, expected, "what cancelling {} did, which is {}", id_, place)
            if entry is not None and place == "waiting":
                self._leave(entry, "cancelled")
            elif entry is not None and place == "leased" and not entry.is_cancelled:
                entry.is_cancelled, entry.cancelled_at = True, now

    def _reported(
        self, _: float, __: str, ___: str, progress: Sequence[tuple[Delivery, Progress | None]], ____: Any
    ) -> None:
        for delivery, _how_far in progress:
            entry = self._leased_as(delivery)
            if entry is not None:
                entry.has_started = True

    def _revived(self, now: float, _: str, queue: str, keys: Sequence[str] | None, answer: Sequence[Any]) -> None:
        if keys is not None:
            raise Violation("only all dead messages of a queue are revived here")
        graves = self._graves.pop(queue, [])
        _expect(len(answer), len(graves), "the number of dead messages of {}", queue)
        refused = 0
        for envelope in graves:
            if self.is_alive(envelope.id):
                refused += 1
                self._graves.setdefault(queue, []).append(envelope)
            else:
                self._enter(envelope, now, 0.0)
        duplicates = [each for each in answer if isinstance(each, DuplicateId)]
        _expect(len(duplicates), refused, "how many dead messages of {} were refused as duplicates", queue)

    def _dead_deleted(self, _: float, __: str, queue: str, keys: Sequence[str] | None, answer: int) -> None:
        if keys is not None:
            raise Violation("only all dead messages of a queue are deleted here")
        _expect(answer, len(self._graves.pop(queue, ())), "the number of dead messages of {}", queue)

    def _flushed(self, _: float, __: str, queue: str, answer: int) -> None:
        waiting = self._waiting_in(queue)
        _expect(answer, len(waiting), "the number of messages that were flushed from {}", queue)
        for entry in waiting:
            entry.place, entry.is_removed = "gone", True

    def _stored(self, _: float, __: str, results: Sequence[NewResult], ___: Any) -> None:
        for result in results:
            if result.id in self.entries:
                self.entries[result.id].has_result = True

    # From place to place

    def _wait(self, entry: Entry, now: float, delay: float) -> None:
        entry.place, entry.token, entry.due = "waiting", None, now + max(delay, 0.0)
        if entry.is_cancelled:
            self._leave(entry, "cancelled")
        elif not entry.has_started:
            if entry.expires_at <= now:
                self._bury(entry, "expired")
            self._expires_next = min(self._expires_next, entry.expires_at)

    def _expire(self, now: float) -> None:
        waiting = [entry for entry in self.entries.values() if entry.place == "waiting" and not entry.has_started]
        expired = [entry for entry in waiting if entry.expires_at <= now]
        expired.sort(key=attrgetter("expires_at"))  # they are revived in the order of their deaths
        for entry in expired:
            self._bury(entry, "expired")
        self._expires_next = min((entry.expires_at for entry in waiting if entry.expires_at > now), default=math.inf)

    def _leave(self, entry: Entry, end: ResultState) -> None:
        entry.place, entry.token, entry.end = "gone", None, end

    def _bury(self, entry: Entry, end: ResultState) -> None:
        entry.place, entry.token, entry.end = "dead", None, end
        self._graves.setdefault(entry.envelope.queue, []).append(entry.envelope)

    def _rank(self, due: float, envelope: Envelope) -> tuple[float, int]:
        self._order += 1
        priority = envelope.options.priority
        return due + (PrioritiesT.MEDIUM if priority is None else priority), self._order

    def _leased_as(self, delivery: Delivery) -> Entry | None:
        entry = self.entries.get(delivery.envelope.id)
        return entry if entry is not None and entry.place == "leased" and entry.token == delivery.token else None


def words_of(disposition: Disposition) -> list[str]:
    """The counts of a worker's report that an accepted verdict raises."""
    match disposition:
        case Ack(failure=None):
            return ["succeeded"]
        case Ack():
            return ["failed"]
        case Retry():
            return ["retried"]
        case Release():
            return ["released"]
        case Cancel():
            return ["cancelled"]
        case DeadLetter(reason=reason):
            return ["dead", "failed"] if reason in {"failed", "nacked"} else ["dead"]


def _volume(envelopes: Sequence[Envelope]) -> int:
    return sum(len(envelope.payload) for envelope in envelopes)


def _expect(actual: object, expected: object, what: str, *names: object) -> None:
    """Raise `Violation` unless they are equal. `what` is a format for the names, which is filled in only then."""
    if actual != expected:
        raise Violation(f"{what.format(*names)}: expected {expected!r}, but got {actual!r}")
