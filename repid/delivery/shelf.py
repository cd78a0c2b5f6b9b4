"""The rules for a stored message: where it goes, and when it comes to its end. Pure, like the table of fates.

`fate` says which disposition follows from what happened to a delivery; this module says what the broker does with the
message then, and what it decides without any worker. A broker stores, moves and counts; it decides nothing itself.
Where one decides in bulk (a plain publish, a batch of plain acks, SQL over many rows), tests hold it against these
rules.

A live message is ready, scheduled or leased. The rules, all of them:

* Publishing. With a delay it is scheduled until then, else ready. Its rank is the moment from which it may be run plus
  an offset for its priority; messages are claimed by rank. Its ttl ends that long after the same moment.
* Reviving a dead message. As publishing, but its delay was waited for already.
* Ack, Cancel: it is removed. DeadLetter: it is dead, with that reason and failure.
* Retry. It has one more attempt, and the rank of a message that is published when the delay is over.
* Release. It keeps its rank, and so its turn. The first unrouted release notes the time.
* A start ends the ttl, no matter how the run ends. A message that was not started when its ttl is over is dead as
  `expired`: at once where it waits, and on its way back where it is leased.
* A lost lease. It counts (`lost`), and the message keeps its rank. Too many make it dead as `poison` (see `blame`), and
  some make it a suspect. A verdict that a run survived makes the count 0 again.
* A cancellation request. What waits is removed. What is leased is marked, and never ready or scheduled again: it is
  removed where it would have been, before anything else is looked at.
* The result of an end that no worker had a say in: `cancelled`, `expired` or `dead`, unless the sender wants none;
  `dropped` where the sender has asked for one, since a full queue may drop very many. A result that comes with a
  verdict is stored as it is.
* Fitting. A consumer takes the messages of its queues with the topics it asked for (None: all). A topic that no open
  consumer of the queue asked for is a stray: every consumer of that queue takes it.

Times are numbers on the broker's clock, in its unit: `unit` makes one of seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Generic, TypeVar

import msgspec
from msgspec.structs import replace

from ..envelope import DEFAULT_PRIORITY, Options
from .blame import is_poison
from .dispositions import Ack, Cancel, DeadLetter, Disposition, Failure, Reason, Release, Retry
from .fate import unless_cancelled
from .results import DAY, NewResult, ResultState

N = TypeVar("N", int, float)


class Stored(msgspec.Struct, Generic[N], frozen=True, kw_only=True, gc=False):
    """What the rules read and change of a live message.

    `offset`: what its priority adds to its rank. `expires_at`: None if it has no ttl, or was started.
    """

    rank: N
    offset: N
    attempt: int = 1
    lost: int = 0
    expires_at: N | None = None
    unrouted_at: N | None = None
    is_cancelled: bool = False


class End(msgspec.Struct, frozen=True, gc=False):
    """The message is live no more.

    `reason`: why it is dead; None: it is removed. `state`: what its result says if no verdict brings one; None:
    nothing.
    """

    reason: Reason | None = None
    failure: Failure | None = None
    state: ResultState | None = None


class Shelved(msgspec.Struct, Generic[N], frozen=True, gc=False):
    """Where a message is from now on: at its `end`, or scheduled until `due`, or (both None) ready.

    `is_last`: it comes behind all that have its rank already. `failure`: that of its last run, if it `is_last`.
    """

    stored: Stored[N]
    due: N | None = None
    end: End | None = None
    is_last: bool = False
    failure: Failure | None = None


REMOVED = End()
CANCELLED = End(state="cancelled")
EXPIRED = End("expired", state="expired")
DROPPED = End(state="dropped")


def offset_of(options: Options, unit: Callable[[float], N]) -> N:
    """What the priority adds to a rank."""
    return unit(DEFAULT_PRIORITY if options.priority is None else options.priority)


def after_publishing(options: Options, now: N, unit: Callable[[float], N]) -> Shelved[N]:
    """Where a new message goes."""
    delay = _delay(options.delay, unit)
    start, offset = now + delay, offset_of(options, unit)
    expires_at = None if options.ttl is None else start + unit(options.ttl)
    stored = Stored(rank=start + offset, offset=offset, expires_at=expires_at)
    return Shelved(stored, start if delay else None, is_last=True)


def after_reviving(options: Options, now: N, unit: Callable[[float], N]) -> Shelved[N]:
    """Where a dead message goes that is made a new one."""
    return after_publishing(replace(options, delay=None), now, unit)


def has_expired(expires_at: N | None, now: N) -> bool:
    """Whether the ttl is over of a message that was not started."""
    return expires_at is not None and expires_at <= now


def after_start(stored: Stored[N]) -> Stored[N]:
    """A run of it has begun."""
    return stored if stored.expires_at is None else replace(stored, expires_at=None)


def after_verdict(
    stored: Stored[N], disposition: Disposition, now: N, unit: Callable[[float], N], *, survived: bool = False
) -> Shelved[N]:
    """Where a leased message goes once its verdict has come."""
    if survived and stored.lost:
        stored = replace(stored, lost=0)
    match unless_cancelled(disposition, cancelled=stored.is_cancelled):
        case Ack():
            return Shelved(stored, end=REMOVED)
        case Cancel():
            return Shelved(stored, end=CANCELLED)
        case DeadLetter(reason, failure):
            return Shelved(stored, end=End(reason, failure))
        case Retry(seconds, failure):
            delay = _delay(seconds, unit)
            stored = replace(stored, attempt=stored.attempt + 1, rank=now + delay + stored.offset, expires_at=None)
            return Shelved(stored, now + delay if delay else None, is_last=True, failure=failure)
        case Release(seconds, unrouted, started):
            if unrouted and stored.unrouted_at is None:
                stored = replace(stored, unrouted_at=now)
            return _back(after_start(stored) if started else stored, now, _delay(seconds, unit))


def after_lost_lease(stored: Stored[N], now: N, poisoned: Callable[[int], Failure]) -> Shelved[N]:
    """Where a message goes whose lease has ended without a verdict; `poisoned` tells the failure of a last loss."""
    if stored.is_cancelled:
        return Shelved(stored, end=CANCELLED)
    lost = stored.lost + 1
    stored = replace(stored, lost=lost)
    if is_poison(lost):
        return Shelved(stored, end=End("poison", poisoned(lost), "dead"))
    return _back(stored, now)


def after_cancellation_request(stored: Stored[N], *, leased: bool) -> Shelved[N]:
    """Where a message goes when it is cancelled; one that is leased stays leased, and its worker is told."""
    if leased:
        return Shelved(replace(stored, is_cancelled=True))
    return Shelved(stored, end=CANCELLED)


def result_of_end(id_: str, options: Options, end: End) -> NewResult | None:
    """What to store where no verdict brings a result; None: nothing, or the sender wants nothing stored."""
    if end.state is None or options.store_result is False:
        return None
    if end.state == "dropped" and not options.store_result:
        return None
    ttl = options.result_ttl
    kept_for = DAY if ttl is None or math.isnan(ttl) else ttl
    return NewResult(id=id_, state=end.state, failure=end.failure, ttl=kept_for)


def takes(topics: Collection[str] | None, topic: str | None) -> bool:
    """Whether a consumer that asked for these topics of a queue (None: all) takes this one, stray or not."""
    return topics is None or topic in topics


def is_stray(topic: str | None, wanted: Iterable[Collection[str] | None]) -> bool:
    """Whether none of the consumers of the queue asked for this topic; `wanted`: what each of them asked for."""
    return not any(takes(topics, topic) for topics in wanted)


def _back(stored: Stored[N], now: N, delay: N | None = None) -> Shelved[N]:
    if has_expired(stored.expires_at, now):
        return Shelved(stored, end=EXPIRED)
    return Shelved(stored, now + delay if delay else None)


def _delay(seconds: float | None, unit: Callable[[float], N]) -> N:
    return unit(seconds if seconds is not None and seconds > 0 else 0.0)
