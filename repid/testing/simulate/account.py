"""The account of every message: what the engine must say next, judged after every call.

Theory. The account is a second, much simpler engine without queues and orders: for each id where the message is, under
which token, with which counters. It is given each call that reached the engine, with its answer, in the order in which
the engine carried them out, and compares the answer with its own. So it holds, after every call, that

* a message is in one place: an id that is alive is not published again, a leased one is not leased again;
* what was acknowledged, cancelled or buried never comes back, and what was accepted is never gone;
* attempts, lost leases and ttls are what `delivery.fate` and `delivery.blame` say;
* a verdict is accepted if, and only if, it was given under the live lease; the same for an extension;
* no lease ends without a verdict unless a fault struck the process that held it;
* a schedule ticks once for each of its times.

`Disturbances` are what the faults of the plan and the shutdowns excuse; nothing else is excused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from ...delivery import (
    Ack,
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
    is_poison,
    is_suspect,
)
from ...envelope import Envelope
from ...errors import DuplicateId, QueueNotDeclared
from ...ports import Claimed, Verdict

Place: TypeAlias = Literal["waiting", "leased", "dead", "gone"]


class Violation(Exception):  # noqa: N818  it is what was found
    """An invariant does not hold: a fault of ours, or of the actors, and not of the plan."""


class Entry(msgspec.Struct, gc=False):
    """One message as the account has it; `number` counts those of one id. `holder`: the process that has, or had last, its lease; since `leased_at`."""

    envelope: Envelope
    published_at: float
    due: float
    expires_at: float
    number: int
    place: Place = "waiting"
    attempt: int = 1
    lost: int = 0
    token: Any = None
    holder: str = ""
    leased_at: float = 0.0
    until: float = 0.0
    has_started: bool = False
    is_cancelled: bool = False
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
    """Where every message is. Each method takes what a call was given, what it answered, and when and by whom it was made."""

    def __init__(self, lease_timeout: float, faults: Disturbances) -> None:
        self.entries: dict[str, Entry] = {}
        self.buried: Counter[str] = Counter()
        """How many dead messages there are of each queue."""
        self.settled: dict[str, Counter[str]] = {}
        """For each process, how many verdicts it gave that the engine accepted, by the word of its report."""
        self._lease_timeout = lease_timeout
        self._faults = faults
        self._tokens: set[Any] = set()
        self._ticks: set[tuple[str, float]] = set()
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
            "store_results": self._stored,
        }

    def judge(self, now: float, process: str, name: str, arguments: Sequence[Any], answer: Any) -> None:
        """A call was carried out. Raises `Violation` where the answer is not what it must be."""
        judge = self._judges.get(name)
        if judge is not None:
            self._expire(now)
            judge(now, process, *arguments, answer)

    def alive(self) -> list[str]:
        """The ids of the messages that are waiting or leased."""
        return [id_ for id_, entry in self.entries.items() if entry.place in {"waiting", "leased"}]

    # Messages in

    def _published(self, now: float, process: str, envelopes: Sequence[Envelope], answer: Sequence[Any]) -> None:
        for envelope, refused in zip(envelopes, answer, strict=True):
            if isinstance(refused, QueueNotDeclared):
                continue
            is_alive = self._is_alive(envelope.id)
            _expect(isinstance(refused, DuplicateId), is_alive, f"publishing {envelope.id} was refused as a duplicate")
            if refused is None:
                former = self.entries.get(envelope.id)
                if former is not None and not self._faults.excuse(process, former.published_at - 10.0, now):
                    raise Violation(f"{process} published {envelope.id} again, and no fault explains that")
                self._enter(envelope, now)

    def _enter(self, envelope: Envelope, now: float) -> None:
        due = now + max(envelope.options.delay or 0.0, 0.0)
        expires_at = math.inf if envelope.options.ttl is None else due + envelope.options.ttl
        former = self.entries.get(envelope.id)
        number = 1 if former is None else former.number + 1
        self.entries[envelope.id] = Entry(envelope, now, due, expires_at, number)

    def _ticked(self, now: float, _: str, *call: Any) -> None:
        name, expected_next, _next_at, envelope, answer = call
        if answer == "lost":
            return
        if (name, expected_next) in self._ticks:
            raise Violation(f"schedule {name} ticked twice for {expected_next:.3f}")
        self._ticks.add((name, expected_next))
        if answer == "fired":
            if self._is_alive(envelope.id):
                raise Violation(f"schedule {name} sent {envelope.id}, which is alive already")
            self._enter(envelope, now)

    # Leases

    def _claimed(self, now: float, process: str, _: str, limit: int, __: Any, answer: Claimed) -> None:
        if len(answer.deliveries) > limit:
            raise Violation(f"a claim of {limit} gave {len(answer.deliveries)} messages")
        for delivery in answer.deliveries:
            self._lease(now, process, delivery)

    def _lease(self, now: float, process: str, delivery: Delivery) -> None:
        id_ = delivery.envelope.id
        entry = self.entries.get(id_)
        if entry is None or entry.place != "waiting":
            where = "was never accepted" if entry is None else f"is {entry.place}"
            by = f", held by {entry.holder}" if entry is not None and entry.place == "leased" else ""
            raise Violation(f"{id_} was handed out although it {where}{by}")
        if delivery.token in self._tokens:
            raise Violation(f"{id_} was handed out under a token that was used before")
        _expect(delivery.envelope, entry.envelope, f"the envelope of {id_}")
        _expect((delivery.attempt, delivery.lost), (entry.attempt, entry.lost), f"attempt and lost leases of {id_}")
        if entry.due > now + 1e-6:
            raise Violation(f"{id_} was handed out {entry.due - now:.3f} s before it was due")
        self._tokens.add(delivery.token)
        entry.place, entry.token, entry.holder = "leased", delivery.token, process
        entry.leased_at, entry.until = now, now + self._lease_timeout
        if is_suspect(entry.lost):
            others = [other for other in self.entries.values() if other.place == "leased" and other.holder == process]
            if len([other for other in others if is_suspect(other.lost)]) > 1:
                raise Violation(f"{process} was given {id_} together with another message that was lost twice")

    def _extended(self, now: float, _: str, __: str, deliveries: Sequence[Delivery], answer: Sequence[bool]) -> None:
        for delivery, is_ours in zip(deliveries, answer, strict=True):
            entry = self._leased_as(delivery)
            _expect(is_ours, entry is not None, f"whether the lease of {delivery.envelope.id} was extended")
            if entry is not None:
                entry.until = now + self._lease_timeout

    def _rescued(self, now: float, _: str, answer: int) -> None:
        ended = [entry for entry in self.entries.values() if entry.place == "leased" and entry.until <= now]
        _expect(answer, len(ended), "the number of leases that were rescued")
        for entry in ended:
            self._take_back(entry, now)

    def _take_back(self, entry: Entry, now: float) -> None:
        id_ = entry.envelope.id
        if not self._faults.excuse(entry.holder, entry.leased_at - 10.0, now):
            raise Violation(
                f"the lease of {id_} ended without a verdict, and no fault had struck {entry.holder} since it was leased "
                f"at {entry.leased_at:.3f}"
            )
        entry.lost += 1
        if is_poison(entry.lost) and not entry.is_cancelled:
            self._bury(entry, "dead")
        else:
            self._wait(entry, now, 0.0)

    # Verdicts

    def _settled(
        self, now: float, process: str, _: str, settlements: Sequence[Settlement], answer: Sequence[Verdict]
    ) -> None:
        for settlement, verdict in zip(settlements, answer, strict=True):
            delivery = settlement.delivery
            entry = self._leased_as(delivery)
            _expect(verdict.accepted, entry is not None, f"whether the verdict on {delivery.envelope.id} was accepted")
            if entry is None:
                continue
            if settlement.survived:
                entry.lost = 0
            self._carry_out(entry, settlement.disposition, now)
            if settlement.result is not None:
                entry.has_result = True
            for envelope in settlement.outbox:
                if not self._is_alive(envelope.id):
                    self._enter(envelope, now)
            self.settled.setdefault(process, Counter()).update(words_of(settlement.disposition))

    def _carry_out(self, entry: Entry, disposition: Disposition, now: float) -> None:
        match disposition:
            case Ack(failure):
                self._leave(entry, "success" if failure is None else "failure")
            case Cancel():
                self._leave(entry, "cancelled")
            case Retry(delay):
                entry.attempt += 1
                entry.has_started = True
                self._wait(entry, now, delay)
            case Release(delay, _, started):
                entry.has_started = entry.has_started or started
                self._wait(entry, now, delay)
            case DeadLetter(reason):
                end: ResultState = "expired" if reason == "expired" else "dead" if reason == "unrouted" else "failure"
                self._bury(entry, end)

    def _cancelled(self, _: float, __: str, ids: Sequence[str], answer: Sequence[str]) -> None:
        for id_, word in zip(ids, answer, strict=True):
            entry = self.entries.get(id_)
            place = "gone" if entry is None else entry.place
            expected = {"waiting": "cancelled", "leased": "requested"}.get(place, "unknown")
            _expect(word, expected, f"what cancelling {id_} did, which is {place}")
            if entry is not None and place == "waiting":
                self._leave(entry, "cancelled")
            elif entry is not None and place == "leased":
                entry.is_cancelled = True

    def _reported(
        self, _: float, __: str, ___: str, progress: Sequence[tuple[Delivery, Progress | None]], ____: Any
    ) -> None:
        for delivery, _how_far in progress:
            entry = self._leased_as(delivery)
            if entry is not None:
                entry.has_started = True

    def _revived(self, now: float, _: str, queue: str, __: Any, answer: Sequence[Any]) -> None:
        dead = [entry for entry in self.entries.values() if entry.place == "dead" and entry.envelope.queue == queue]
        if len([refused for refused in answer if refused is None]) > len(dead):
            raise Violation(f"{len(answer)} messages of {queue} were revived, of {len(dead)} dead ones")
        for entry in dead:
            self._enter(msgspec.structs.replace(entry.envelope, options=_without_delay(entry.envelope)), now)
            self.entries[entry.envelope.id].envelope = entry.envelope
            self.buried[queue] -= 1

    def _stored(self, _: float, __: str, results: Sequence[NewResult], ___: Any) -> None:
        for result in results:
            if result.id in self.entries:
                self.entries[result.id].has_result = True

    # From place to place

    def _wait(self, entry: Entry, now: float, delay: float) -> None:
        entry.place, entry.token, entry.due = "waiting", None, now + max(delay, 0.0)
        if entry.is_cancelled:
            self._leave(entry, "cancelled")
        elif entry.expires_at <= now and not entry.has_started:
            self._bury(entry, "expired")

    def _expire(self, now: float) -> None:
        for entry in self.entries.values():
            if entry.expires_at <= now and entry.place == "waiting" and not entry.has_started:
                self._bury(entry, "expired")

    def _leave(self, entry: Entry, end: ResultState) -> None:
        entry.place, entry.token, entry.end = "gone", None, end

    def _bury(self, entry: Entry, end: ResultState) -> None:
        entry.place, entry.token, entry.end = "dead", None, end
        self.buried[entry.envelope.queue] += 1

    def _is_alive(self, id_: str) -> bool:
        entry = self.entries.get(id_)
        return entry is not None and entry.place in {"waiting", "leased"}

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


def _without_delay(envelope: Envelope) -> Any:
    return msgspec.structs.replace(envelope.options, delay=None)


def _expect(actual: object, expected: object, what: str) -> None:
    if actual != expected:
        raise Violation(f"{what}: expected {expected!r}, but got {actual!r}")
