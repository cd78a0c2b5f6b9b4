"""Looking at a store without changing where anything is (except what has become due or has expired by now)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import dropwhile, islice
from typing import Literal, TypeAlias, TypeVar

from ...delivery import StoredResult
from ...ports import BrowsedMessage, Category, Counts, Sight, Snapshot
from ..process import name_process
from ..shared.keys import to_number
from .lanes import in_order
from .record import Dead, Lease, Record, expiry_of
from .results import StoredAt, show
from .store import Store

T = TypeVar("T")
_LiveState: TypeAlias = Literal["ready", "scheduled", "leased"]


def counts(store: Store, name: str, now: float) -> Counts:
    """How many messages of the queue are where."""
    store.advance(now)
    channel = store.directory.channel(name)
    return Counts(
        ready=channel.ready,
        scheduled=channel.scheduled,
        leased=len(channel.leases),
        dead=len(channel.dead),
        paused=channel.paused,
        bounds=None if channel.bounded is None else channel.bounded.bounds,
        dropped=channel.dropped,
    )


def browse(
    store: Store, name: str, category: Category, limit: int, after: str | None, now: float, epoch: float
) -> list[BrowsedMessage]:
    """`limit` messages of the queue in that place: by rank, by due time, by end of lease, by age of death.

    `after`: the key of the message behind which to go on; where it has gone meanwhile, the list is empty.
    """
    now = store.advance(now)
    channel = store.directory.channel(name)
    if category == "dead":
        letters = channel.dead.items()
        return [_show_dead(*letter, now, epoch) for letter in _behind(letters, after, lambda letter: letter[0], limit)]
    records: Iterable[Record]
    if category == "ready":
        records = in_order(channel.all_lanes())
    elif category == "scheduled":
        records = store.scheduled.first_of(name, limit if after is None else sys.maxsize)
    else:
        records = channel.leases.values()
    return [
        _show(record, category, now, epoch) for record in _behind(records, after, lambda record: record.order, limit)
    ]


def _behind(found: Iterable[T], after: str | None, key: Callable[[T], int], limit: int) -> Iterator[T]:
    """At most `limit` of those that come behind the one with the key `after`."""
    rest = iter(found)
    if after is not None:
        wanted = to_number(after)
        rest = islice(dropwhile(lambda one: key(one) != wanted, rest), 1, None)
    return islice(rest, limit)


def find(store: Store, id_: str, now: float, epoch: float) -> list[BrowsedMessage]:
    """The messages with this id: the live one, then dead ones."""
    now = store.advance(now)
    record = store.find(id_)
    found = [] if record is None else [_show(record, _state(record), now, epoch)]
    letters = ((key, dead) for channel in store.channels.values() for key, dead in channel.dead.items())
    return found + [_show_dead(key, dead, now, epoch) for key, dead in letters if dead.envelope.id == id_]


def _show(record: Record, category: Category, now: float, epoch: float) -> BrowsedMessage:
    extras, place = record.extras, record.place
    lease = place if isinstance(place, Lease) else None
    due = place.until if isinstance(place, Lease) else place if isinstance(place, float) else None
    return BrowsedMessage(
        envelope=record.envelope,
        category=category,
        key=str(record.order),
        attempt=1 if extras is None else extras.attempt,
        lost=0 if extras is None else extras.lost,
        seen_at=epoch + now,
        enqueued_at=epoch + record.enqueued_at,
        due_at=None if due is None else epoch + due,
        leased_at=None if lease is None else epoch + lease.since,
        leased_by=None if lease is None else name_process(),
        failure=None if extras is None else extras.failure,
    )


def _show_dead(key: int, dead: Dead, now: float, epoch: float) -> BrowsedMessage:
    return BrowsedMessage(
        envelope=dead.envelope,
        category="dead",
        key=str(key),
        attempt=dead.attempt,
        lost=dead.lost,
        seen_at=epoch + now,
        enqueued_at=epoch + dead.enqueued_at,
        died_at=epoch + dead.died_at,
        reason=dead.reason,
        failure=dead.failure,
    )


def fetch(store: Store, ids: Sequence[str], now: float, epoch: float) -> list[StoredResult | None]:
    """The result under each id, or None."""
    now = store.advance(now)
    found = (store.results.find(id_, now) for id_ in ids)
    return [None if kept is None else show(kept, epoch) for kept in found]


def look(store: Store, ids: Sequence[tuple[str, str]], now: float, epoch: float) -> list[Sight]:
    """The state of each message, and how long it stays true if no call changes it."""
    now = store.advance(now)
    find, find_result, last_dead = store.find, store.results.kept.get, store.dead.last
    sights: list[Sight] = []
    for id_, result_id in ids:
        record, kept = find(id_), find_result(result_id)
        if kept is not None and kept.expires_at <= now:
            kept = None
        if record is not None:
            if record.extras is None and kept is None and type(record.place) is not float:
                sights.append(_READY if record.place is None else _LEASED)  # as below, for the many
                continue
            result = None if kept is None else show(kept, epoch)
            sights.append(Sight(_look_at_live(record, result), min(_holds_until(record), _expiry(kept)) - now))
        elif (dead := last_dead(id_)) is not None:
            result = None if kept is None else show(kept, epoch)
            snapshot = Snapshot(state="dead", attempt=dead.attempt, progress=dead.progress, result=result)
            sights.append(Sight(snapshot, min(store.dead.ends_at(dead), _expiry(kept)) - now))
        elif kept is None:
            sights.append(_GONE)
        else:
            sights.append(Sight(Snapshot(state="gone", result=show(kept, epoch)), kept.expires_at - now))
    return sights


_READY = Sight(Snapshot(state="ready", attempt=1))
_LEASED = Sight(Snapshot(state="leased", attempt=1))
_GONE = Sight(Snapshot(state="gone"))


def _look_at_live(record: Record, result: StoredResult | None) -> Snapshot:
    extras, state = record.extras, _state(record)
    if extras is None:
        return Snapshot(state=state, attempt=1, result=result)
    return Snapshot(
        state=state, attempt=extras.attempt, progress=extras.progress, cancelling=extras.cancelling, result=result
    )


def _state(record: Record) -> _LiveState:
    place = record.place
    return "leased" if isinstance(place, Lease) else "ready" if place is None else "scheduled"


def _holds_until(record: Record) -> float:
    if isinstance(record.place, Lease):
        return math.inf  # also when its time is over: only a rescue ends it
    due = record.place if isinstance(record.place, float) else math.inf
    expires_at = None if record.extras is None else expiry_of(record.extras)
    return due if expires_at is None else min(due, expires_at)


def _expiry(kept: StoredAt | None) -> float:
    return math.inf if kept is None else kept.expires_at
