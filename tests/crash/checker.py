"""From the journals and the broker's last state to an account of every id. Pure.

The rules; whatever breaks one is a fault:

* lost: what the broker confirmed, or has leased, or a confirmed ack has sent, is in the broker's last state or was
  ended by a verdict. A verdict ended it if the broker confirmed that; or if its process was killed before the answer,
  for then nobody knows.
* twice: an id is in the last state at most once, and not at all if it was ended by a confirmed verdict. It is leased
  to nobody after that either.
* stale: at most one ending verdict is accepted for each time that the id was published (a call without an answer is made
  again, and does not tell whether the first one is over), and a verdict is accepted only while its lease is the latest.
* refused: a verdict is refused only if its lease had been over for lack of an extension.
* unexplained: a message is leased again only if it was given back by a verdict, or its former lease was not extended
  for a whole lease time, or it was leased in the last moments before the server was killed (`FORGETS`). The attempt
  grows with a retry only.
* unearned: only what an actor has finished is acknowledged.
* stranger: nobody leases an id that nobody meant to publish.
* failover: no rule but the last one and this one holds for what a primary had confirmed in the last moments before it was killed
  (`LAGS`), if its replica takes over and nobody waited for that. This is counted, not a fault.
* link: a worker that lives through an outage says so, once, and has its link again (`outages`).
* half: of one publish call that was not confirmed, all or none exist. (More than the port asks; these engines do it.)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeAlias

from .journal import (
    Claimed,
    Confirmed,
    Extended,
    Finished,
    Intended,
    Judged,
    Lease,
    Line,
    Linked,
    Proved,
    Settled,
    Settling,
    Started,
    Stepped,
    Told,
)

LOST_WITH_IT = {
    "lost": "publishes",
    "twice": "verdicts",
    "stale": "verdicts",
    "unexplained": "leases",
    "refused": "leases",
}
"""What a replica did not have, by the rule that is broken for want of it."""

Rule: TypeAlias = Literal["lost", "twice", "stale", "refused", "unexplained", "unearned", "stranger", "half", "link"]

ENDING = ("Ack", "DeadLetter", "Cancel")
GIVING_BACK = ("Retry", "Release")

FORGETS = 1.0
"""Seconds within which a claim may be forgotten by a server that is killed: PostgreSQL waits for the disk only where it
confirms something."""


LAGS = 1.0
"""Seconds by which a replica is behind its primary at the most."""


@dataclass(frozen=True)
class Life:
    """One process: its journal, when it was killed, and from when to when it was stopped."""

    name: str
    lines: Sequence[Line]
    killed_at: float | None = None
    stops: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Fault:
    """A rule that was broken, by what became of one id."""

    rule: Rule
    id: str
    text: str


@dataclass
class Account:
    """Figures of a run and the faults in it."""

    figures: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)


@dataclass
class Held:
    """One lease in the hands of one process. `renewed`: from when on it lasts a lease time at the least."""

    life: Life
    lease: Lease
    renewed: float
    claimed: float
    started: float | None = None
    finished: bool = False
    verdict: Judged | None = None
    settling: float = 0.0
    settled: float = 0.0
    accepted: bool | None = None
    unanswered: bool = False

    @property
    def unknown(self) -> bool:
        """Whether a verdict was under way when the process was killed or the link broke."""
        cut_off = self.unanswered or self.life.killed_at is not None
        return self.verdict is not None and self.accepted is None and cut_off

    def over(self, lease_time: float) -> float:
        """When the lease was over at the earliest."""
        return self.renewed + lease_time

    def may_have_been(self, kinds: Iterable[str]) -> bool:
        """Whether a verdict of these kinds was accepted, or may have been."""
        return self.verdict is not None and self.verdict.kind in kinds and (self.accepted is True or self.unknown)

    def was(self, kinds: Iterable[str]) -> bool:
        """Whether a verdict of these kinds was accepted for certain."""
        return self.verdict is not None and self.verdict.kind in kinds and self.accepted is True


class Books:
    """The journals sorted by id."""

    def __init__(self, lives: Sequence[Life], final: Collection[str]) -> None:
        self.intended: dict[str, Sequence[str]] = {}
        """By id the ids of the call that was to publish it."""
        self.confirmed: dict[str, float] = {}
        """When each was confirmed."""
        self.births: Counter[str] = Counter()
        """How often an id may have been published."""
        self.held: dict[int, Held] = {}
        self.by_id: defaultdict[str, list[Held]] = defaultdict(list)
        self.steps: Counter[str] = Counter()
        self.proved = 0
        """Calls that had no answer and were made again until they had."""
        for life in lives:
            for line in life.lines:
                self._enter(life, line)
        self.births.update(list(self.intended))
        for history in self.by_id.values():
            history.sort(key=lambda held: held.lease.token)
            self._send(history, final)

    def exists(self, id_: str, final: Collection[str]) -> bool:
        """Whether anybody has seen it in the broker."""
        return id_ in self.by_id or id_ in final

    def _enter(self, life: Life, line: Line) -> None:
        match line:
            case Intended(ids=ids):
                self.intended.update(dict.fromkeys(ids, ids))
            case Confirmed(ids=ids):
                self.confirmed.update(dict.fromkeys(ids, line.at))
            case Proved(anew=anew):
                self.births.update(anew)
                self.proved += 1
            case Claimed(leases=leases):
                for lease in leases:
                    held = self.held[lease.token] = Held(life, lease, renewed=line.asked, claimed=line.at)
                    self.by_id[lease.id].append(held)
            case Stepped(step=step):
                self.steps[step] += 1
            case Linked() | Told():
                pass
            case _:
                self._enter_lease(line)

    def _enter_lease(self, line: Extended | Started | Finished | Settling | Settled) -> None:
        held = self.held
        match line:
            case Extended(tokens=tokens):
                for token in tokens:
                    held[token].renewed = line.asked
            case Started(token=token):
                held[token].started = line.at
            case Finished(token=token):
                held[token].finished = True
            case Settling(verdicts=verdicts):
                for verdict in verdicts:
                    held[verdict.token].verdict = verdict
                    held[verdict.token].settling = line.at
            case Settled(accepted=accepted, refused=refused, unanswered=unanswered):
                for token in unanswered:
                    held[token].unanswered = True
                for token in (*accepted, *refused):
                    held[token].settled = line.at
                    held[token].accepted = token in accepted

    def _send(self, history: Sequence[Held], final: Collection[str]) -> None:
        """Enter what outboxes have sent in one step with their verdicts, those nobody was told of included."""
        for held in history:
            if held.verdict is not None and held.verdict.outbox and held.may_have_been(("Ack",)):
                outbox = held.verdict.outbox
                self.intended.update(dict.fromkeys(outbox, outbox))
                self.births.update(outbox)
                if held.accepted or (held is history[-1] and held.lease.id not in final):
                    self.confirmed.update(dict.fromkeys(outbox, held.settled))


class _Check:
    """One id, held against the rules."""

    def __init__(
        self,
        id_: str,
        books: Books,
        places: Sequence[str],
        lease_time: float,
        crashes: Sequence[float],
        failovers: Sequence[float],
        account: Account,
    ) -> None:
        self.id = id_
        self.books = books
        self.places = places
        self.lease_time = lease_time
        self.crashes = crashes
        self.failovers = failovers
        self.account = account
        self.births = books.births[id_]
        self.history: Sequence[Held] = books.by_id.get(id_, ())

    def run(self) -> None:
        """All the rules for one id."""
        self._existence()
        for held, later in pairwise(self.history):
            self._again(held, later)
        for held in self.history:
            is_early = held.accepted is False and held.settled < held.over(self.lease_time)
            if is_early and not self._forgotten(held, held.settled):
                self._complain("refused", f"{held.life.name} was refused while its lease was good")
            if held.was(("Ack",)) and not held.finished:
                self._complain("unearned", f"{held.life.name} has acknowledged it, but its actor had not finished")

    def _complain(self, rule: Rule, text: str) -> None:
        if self._was_lost_with_a_primary():
            self.account.figures[f"lost with a primary: {LOST_WITH_IT.get(rule, 'other')}"] += 1
            return
        told = "; ".join(_tell(held) for held in self.history) or "never leased"
        self.account.faults.append(Fault(rule, self.id, f"{text} ({told})"))

    def _was_lost_with_a_primary(self) -> bool:
        """Whether the server had confirmed anything of it just before it was killed, and its replica may not know."""
        moments = [self.books.confirmed.get(self.id, -math.inf)]
        moments += [at for held in self.history for at in (held.claimed, held.renewed, held.settled)]
        return any(0 <= failover - at < LAGS for failover in self.failovers for at in moments)

    def _existence(self) -> None:
        ended = [held for held in self.history if held.was(ENDING)]
        buried = [held for held in ended if held.was(("DeadLetter",))]
        if self.id not in self.books.intended:
            self._complain("stranger", "nobody meant to publish it")
        existed = self.id in self.books.confirmed or bool(self.history)
        if existed and not self.places and not any(held.may_have_been(ENDING) for held in self.history):
            self._complain("lost", "it is nowhere, and nobody has ended it")
        if self.places and len(self.places) + len(ended) - len(buried) > max(self.births, 1):
            self._complain("twice", f"found as {', '.join(self.places)}")
        if len(ended) > max(self.births, 1):
            self._complain("stale", f"{len(ended)} verdicts have ended it")

    def _again(self, held: Held, later: Held) -> None:
        """Why a message was leased again."""
        given_back = held.was(GIVING_BACK)
        expired = later.claimed >= held.over(self.lease_time) or self._forgotten(held, later.claimed)
        if self.births > 1 and held.may_have_been(ENDING) and later.lease.attempt == 1:
            return  # perhaps it is the one that was published anew
        if held.was(ENDING):
            self._complain("twice", f"{later.life.name} has leased it after its end")
        if held.accepted and later.claimed < held.settling:
            self._complain("stale", f"{held.life.name}'s verdict was accepted though {later.life.name} had it then")
        grown = later.lease.attempt - held.lease.attempt
        if grown != held.was(("Retry",)) and not (held.unknown and grown in (0, 1)):
            self._complain("unexplained", f"attempt {later.lease.attempt} after {held.lease.attempt}")
        if not (given_back or expired or held.may_have_been(GIVING_BACK)):
            left = held.over(self.lease_time) - later.claimed
            self._complain("unexplained", f"{later.life.name} has leased it {left:.3f} s before the lease was over")
        if held.started is not None and later.started is not None:
            cause = "was given back" if given_back else self._cause(held, later.claimed)
            self.account.figures[f"run again: {cause}"] += 1

    def _forgotten(self, held: Held, until: float) -> bool:
        """Whether the server may have forgotten the lease before this moment, because it was killed."""
        last = max(held.claimed, held.renewed)
        return any(abs(crash - last) < FORGETS and crash <= until for crash in self.crashes)

    def _cause(self, held: Held, until: float) -> str:
        """Why a lease was not extended."""
        killed_at = held.life.killed_at
        if killed_at is not None and killed_at <= until:
            return "its process was killed"
        if any(start <= until and end >= held.claimed for start, end in held.life.stops):
            return "its process was stopped"
        if self._forgotten(held, until):
            return "its server was killed"
        if held.unanswered:
            return "its link was cut"
        return "its lease expired, its process or link being slow"


def check(
    lives: Sequence[Life],
    final: Mapping[str, Sequence[str]],
    lease_time: float,
    crashes: Sequence[float] = (),
    *,
    failovers: Sequence[float] = (),
) -> Account:
    """The account. `lease_time`: what a lease lasts at the least, by the clock of the journals. `final` names for each id that is in the broker at the end every place it is found in. `crashes`: when the server was killed; `failovers`: those after which a replica took over that nobody had waited for."""
    books = Books(lives, final)
    account = Account()
    for id_ in {**books.intended, **books.by_id, **dict.fromkeys(final), **books.confirmed}:
        _Check(id_, books, final.get(id_, ()), lease_time, crashes, failovers, account).run()
    for call in {tuple(call) for call in books.intended.values()}:
        found = sum(books.exists(id_, final) for id_ in call)
        if 0 < found < len(call) and not books.confirmed.keys() >= set(call):
            account.faults.append(Fault("half", call[0], f"{found} of the {len(call)} messages of one call exist"))
    account.figures.update(_figures(lives, books, final))
    return account


def _tell(held: Held) -> str:
    verdict = "no verdict" if held.verdict is None else f"{held.verdict.kind}, accepted: {held.accepted}"
    started = "not started" if held.started is None else f"started {held.started:.3f}"
    return (
        f"{held.life.name} claimed {held.claimed:.3f} (token {held.lease.token}, attempt {held.lease.attempt}, "
        f"lost {held.lease.lost}), {started}, renewed {held.renewed:.3f}, {verdict} {held.settled:.3f}"
    )


def _figures(lives: Sequence[Life], books: Books, final: Mapping[str, Sequence[str]]) -> dict[str, int]:
    held = books.held.values()
    unconfirmed = books.intended.keys() - books.confirmed.keys()
    return {
        "processes": len(lives),
        "killed": sum(life.killed_at is not None for life in lives),
        "stops": sum(len(life.stops) for life in lives),
        **{f"at step {step}": count for step, count in sorted(books.steps.items())},
        "published, confirmed": len(books.confirmed),
        "calls without an answer, proved by their ids": books.proved,
        "published, never confirmed: exist": sum(books.exists(id_, final) for id_ in unconfirmed),
        "published, never confirmed: do not": sum(not books.exists(id_, final) for id_ in unconfirmed),
        "leases": len(held),
        "leases recovered from the dead": sum(one.lease.lost > 0 for one in held),
        "runs": sum(one.started is not None for one in held),
        "verdicts accepted": sum(one.accepted is True for one in held),
        "verdicts refused as stale": sum(one.accepted is False for one in held),
        "verdicts whose process was killed meanwhile": sum(one.unknown and not one.unanswered for one in held),
        "verdicts without an answer": sum(one.unanswered for one in held),
        "dead at the end": sum("dead" in places for places in final.values()),
        "alive at the end": sum(any(place != "dead" for place in places) for places in final.values()),
    }
