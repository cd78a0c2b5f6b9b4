"""The fate of a delivery, as its worker decides it. Nothing outside this module makes a disposition.

The rules, all of them:

* A verdict is given once. What happens after it (an exception, a timeout) changes nothing.
* An actor that acknowledges first (`ack_first`): Ack before the start, and nothing afterwards.
* An actor that returned: Ack; in the mode `manual` the lease is kept, in `manual_explicit` the word it returned
  is the verdict.
* An actor that raised or ran past its timeout: first what `on_error` says; then, while retries are left, Retry
  after the policy's delay; then DeadLetter. In the mode `always_ack`: Ack with the failure.
* A payload that does not fit: DeadLetter, because retrying changes nothing. If the actor says that another version of
  the program may take it: as with a message that no actor here takes.
* No actor here takes it: Release with a delay that grows with its age, so that another worker may; after
  `UNROUTED_FOR` DeadLetter.
* Its actor is at its limit here: Release with a short delay.
* Past its ttl before it was ever started: DeadLetter. A start ends the ttl, no matter how the run ended.
* A stopping worker: Release. No attempt is used: the message is not to blame for the interruption.
* Cancelled: Cancel. It is never retried.
* A verdict that was given while the run went on, and would have the message run again: Cancel, if the message was
  cancelled meanwhile.
* A lost lease: nothing. Another worker owns the message.
* A verdict that the broker cannot write: the same one with that error as its failure, or else DeadLetter.

`FATES` has a row for each event that can reach a delivery in each phase; any other is our bug and says so.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from ..errors import InternalError
from .dispositions import ACK, KEEP, Ack, Cancel, DeadLetter, Disposition, Failure, Keep, Release, Retry
from .events import (
    CancelRequested,
    Crowded,
    Event,
    Expired,
    LeaseExpired,
    PayloadRefused,
    Raised,
    Returned,
    Starting,
    Stopping,
    TimedOut,
    Unrouted,
)

Mode: TypeAlias = Literal["auto", "always_ack", "ack_first", "manual", "manual_explicit"]
MODES: tuple[Mode, ...] = get_args(Mode)

Verb: TypeAlias = Literal["ack", "nack", "reject", "retry"]
VERBS: tuple[Verb, ...] = get_args(Verb)
"""The words that `on_error` and an actor in the mode `manual_explicit` may answer with."""

UNROUTED_FOR = 3600.0
"""Seconds for which other workers may take a message that no actor takes here."""

SHORTEST_UNROUTED_DELAY = 0.1
LONGEST_UNROUTED_DELAY = 30.0


class Phase(enum.Enum):
    """How far a delivery has come in this worker."""

    HELD = "leased and not started"
    RUNNING = "started, without a verdict"
    DECIDED = "its verdict has been handed over"


class Terms(msgspec.Struct, frozen=True):
    """What the decision depends on besides the event. `retry_delay` is asked with the retry's number, from 1."""

    mode: Mode
    attempt: int
    retries: int
    retry_delay: Callable[[int], float]


NO_TERMS = Terms(mode="auto", attempt=1, retries=0, retry_delay=float)
"""For events whose consequence does not depend on the actor."""


def decide(phase: Phase, event: Event, terms: Terms = NO_TERMS) -> Disposition | Keep | None:
    """What the broker must do now; `KEEP`: the lease stays with us; None: nothing, and nothing is kept."""
    try:
        rule = FATES[phase, type(event)]
    except KeyError:
        raise InternalError(f"{type(event).__name__} cannot happen to a delivery that is {phase.value}") from None
    return rule(event, terms)


def disposition_on(phase: Phase, event: Event, terms: Terms = NO_TERMS) -> Disposition:
    """Decide about an event that settles the delivery, under whatever terms."""
    decision = decide(phase, event, terms)
    if isinstance(decision, Disposition):
        return decision
    raise InternalError(f"{type(event).__name__} alone does not settle a delivery that is {phase.value}")


def disposition_for(
    word: str, terms: Terms, failure: Failure | None = None, delay: float | None = None
) -> Disposition | None:
    """What the word means for a started delivery under these terms.

    `delay` is in seconds: how long after a retry, instead of what the policy says, or after a reject the message is
    ready again. Returns None for an unknown word, and for a retry where none is left.
    """
    if word == "ack":
        return Ack(failure) if failure else ACK
    if word == "nack":
        return DeadLetter("nacked", failure)
    if word == "reject":
        return Release(0.0 if delay is None else delay, started=True)
    if word == "retry" and terms.attempt <= terms.retries:
        return Retry(terms.retry_delay(terms.attempt) if delay is None else delay, failure)
    return None


def unless_cancelled(disposition: Disposition, *, cancelled: bool) -> Disposition:
    """The disposition, or Cancel if it would have a cancelled message run again."""
    return Cancel() if cancelled and isinstance(disposition, Retry | Release) else disposition


def with_failure(disposition: Disposition, failure: Failure) -> Disposition:
    """What to do in place of a disposition that the broker cannot write, for a reason that is told in `failure`.

    A retry stays a retry. The actor has ended and what it did is done, so no other message is run again for this.
    """
    match disposition:
        case Retry(delay):
            return Retry(delay, failure)
        case DeadLetter(reason):
            return DeadLetter(reason, failure)
        case _:
            return DeadLetter("failed", failure)


def unrouted_delay(age: float, chance: float) -> float:
    """Seconds until an unrouted message is looked at again: as long again as it has waited, within bounds, jittered."""
    delay = min(max(age, SHORTEST_UNROUTED_DELAY), LONGEST_UNROUTED_DELAY)
    return delay * (0.75 + chance / 2)


def _returned(event: Returned, terms: Terms) -> Disposition | Keep:
    if terms.mode == "manual":
        return KEEP
    if terms.mode != "manual_explicit":
        return ACK
    disposition = disposition_for(event.word, terms) if isinstance(event.word, str) else None
    if disposition is not None:
        return disposition
    verbs = ", ".join(VERBS)
    text = f"an actor in the mode 'manual_explicit' must return one of {verbs}, but returned {_show(event.word)}"
    if event.word == "retry":
        text = f"the actor returned 'retry' in attempt {terms.attempt}, but no retry is left of {terms.retries}"
    return _failed(Raised(Failure("UsageError", text)), terms)


def _show(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  whatever is wrong with it, the failure is to be recorded
        return f"a {type(value).__name__}"


def _failed(event: Raised | TimedOut, terms: Terms) -> Disposition:
    said = None if event.word is None else disposition_for(event.word, terms, event.failure)
    if said is not None:
        return said
    if terms.mode == "always_ack":
        return Ack(event.failure)
    return disposition_for("retry", terms, event.failure) or DeadLetter("failed", event.failure)


def _payload_refused(event: PayloadRefused, _: Terms) -> Disposition:
    if event.age is None or event.age >= UNROUTED_FOR:
        return DeadLetter("payload", event.failure)
    return Release(unrouted_delay(event.age, event.chance), unrouted=True)


def _unrouted(event: Unrouted, _: Terms) -> Disposition:
    if event.age >= UNROUTED_FOR:
        return DeadLetter("unrouted")
    return Release(unrouted_delay(event.age, event.chance), unrouted=True)


def _crowded(event: Crowded, _: Terms) -> Disposition:
    return Release(unrouted_delay(0, event.chance))


def _expired(_: Expired, __: Terms) -> Disposition:
    return DeadLetter("expired")


def _ack_first(_: Starting, __: Terms) -> Disposition:
    return ACK


def _cancel(_: CancelRequested, __: Terms) -> Disposition:
    return Cancel()


def _release(_: Stopping, __: Terms) -> Disposition:
    return Release()


def _interrupted(_: Stopping, __: Terms) -> Disposition:
    return Release(started=True)


def _nothing(_: Event, __: Terms) -> None:
    return None


FATES: dict[tuple[Phase, type[Event]], Callable[[Any, Terms], Disposition | Keep | None]] = {
    (Phase.HELD, Starting): _ack_first,
    (Phase.HELD, PayloadRefused): _payload_refused,
    (Phase.HELD, Unrouted): _unrouted,
    (Phase.HELD, Crowded): _crowded,
    (Phase.HELD, Expired): _expired,
    (Phase.HELD, CancelRequested): _cancel,
    (Phase.HELD, Stopping): _release,
    (Phase.HELD, LeaseExpired): _nothing,
    (Phase.RUNNING, Returned): _returned,
    (Phase.RUNNING, Raised): _failed,
    (Phase.RUNNING, TimedOut): _failed,
    (Phase.RUNNING, CancelRequested): _cancel,
    (Phase.RUNNING, Stopping): _interrupted,
    (Phase.RUNNING, LeaseExpired): _nothing,
    (Phase.DECIDED, Returned): _nothing,
    (Phase.DECIDED, Raised): _nothing,
    (Phase.DECIDED, TimedOut): _nothing,
    (Phase.DECIDED, CancelRequested): _nothing,
    (Phase.DECIDED, Stopping): _nothing,
    (Phase.DECIDED, LeaseExpired): _nothing,
}


ON_PLAIN_RETURN = disposition_on(Phase.RUNNING, Returned())
"""The decision for every return in the mode `auto`, made once for the hot path."""
