"""The fate of a delivery. The rules, all of them:

* A verdict is given once. What happens after it (an exception, a timeout) changes nothing.
* An actor that returned: Ack; in the mode `manual` the lease is kept, in `manual_explicit` the word it returned
  is the verdict.
* An actor that raised or ran past its timeout: first what `on_error` says; then, while retries are left, Retry
  after the policy's delay; then DeadLetter. In the mode `always_ack`: Ack with the failure.
* A payload that does not fit: DeadLetter, because retrying changes nothing.
* Nobody here takes it: Release with a delay that grows with its age, so that another worker may; after
  `unrouted_for` DeadLetter.
* Its actor is at its limit here: Release with a short delay.
* Past its ttl before it was ever started: DeadLetter. A start, whatever came of it, ends the ttl.
* A stopping worker: Release. No attempt is used, being interrupted is nobody's fault.
* Cancelled by somebody: Cancel. It is never retried.
* A lost lease: nothing. Somebody else owns the message.

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
    Stopping,
    TimedOut,
    Unrouted,
)

Mode: TypeAlias = Literal["auto", "always_ack", "ack_first", "manual", "manual_explicit"]
MODES: tuple[Mode, ...] = get_args(Mode)

Verb: TypeAlias = Literal["ack", "nack", "reject", "retry"]
VERBS: tuple[Verb, ...] = get_args(Verb)
"""The words that `on_error` and an actor in the mode `manual_explicit` may answer with."""

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
    unrouted_for: float = 3600.0


def decide(phase: Phase, event: Event, terms: Terms) -> Disposition | Keep | None:
    """What the broker must do now; `KEEP`: the lease stays with us; None: nothing, and nothing is kept."""
    try:
        rule = FATES[phase, type(event)]
    except KeyError:
        raise InternalError(f"{type(event).__name__} cannot happen to a delivery that is {phase.value}") from None
    return rule(event, terms)


def say(word: str, terms: Terms, failure: Failure | None = None) -> Disposition | None:
    """What the word means for a delivery under these terms; None for an unknown word, or a retry with none left."""
    if word == "ack":
        return Ack(failure) if failure else ACK
    if word == "nack":
        return DeadLetter("nacked", failure)
    if word == "reject":
        return Release(started=True)
    if word == "retry" and terms.attempt <= terms.retries:
        return Retry(terms.retry_delay(terms.attempt), failure)
    return None


def unrouted_delay(age: float, chance: float) -> float:
    """Seconds until an unrouted message is looked at again: as long again as it has waited, within bounds, jittered."""
    delay = min(max(age, SHORTEST_UNROUTED_DELAY), LONGEST_UNROUTED_DELAY)
    return delay * (0.75 + chance / 2)


def _returned(event: Returned, terms: Terms) -> Disposition | Keep:
    if terms.mode == "manual":
        return KEEP
    if terms.mode != "manual_explicit":
        return ACK
    disposition = say(event.word, terms) if isinstance(event.word, str) else None
    if disposition is not None:
        return disposition
    text = f"an actor in the mode 'manual_explicit' must return one of {', '.join(VERBS)}, but returned {_show(event.word)}"
    if event.word == "retry":
        text = f"the actor returned 'retry' in attempt {terms.attempt}, but no retry is left of {terms.retries}"
    return _failed(Raised(Failure("UsageError", text)), terms)


def _show(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  whatever is wrong with it, the failure is to be recorded
        return f"a {type(value).__name__}"


def _failed(event: Raised | TimedOut, terms: Terms) -> Disposition:
    said = say(event.word, terms, event.failure) if event.word is not None else None
    if said is not None:
        return said
    if terms.mode == "always_ack":
        return Ack(event.failure)
    return say("retry", terms, event.failure) or DeadLetter("failed", event.failure)


def _payload_refused(event: PayloadRefused, _: Terms) -> Disposition:
    return DeadLetter("payload", event.failure)


def _unrouted(event: Unrouted, terms: Terms) -> Disposition:
    if event.age >= terms.unrouted_for:
        return DeadLetter("unrouted")
    return Release(unrouted_delay(event.age, event.chance), unrouted=True)


def _crowded(event: Crowded, _: Terms) -> Disposition:
    return Release(unrouted_delay(0, event.chance))


def _expired(_: Expired, __: Terms) -> Disposition:
    return DeadLetter("expired")


def _cancel(_: CancelRequested, __: Terms) -> Disposition:
    return Cancel()


def _release(_: Stopping, __: Terms) -> Disposition:
    return Release()


def _interrupted(_: Stopping, __: Terms) -> Disposition:
    return Release(started=True)


def _nothing(_: Event, __: Terms) -> None:
    return None


FATES: dict[tuple[Phase, type[Event]], Callable[[Any, Terms], Disposition | Keep | None]] = {
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
