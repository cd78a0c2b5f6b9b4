"""Looking at a store without changing where anything is (but for what has become due or expired by now)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import dropwhile, islice
from typing import Literal, TypeAlias, TypeVar

from ...delivery import StoredResult
from ...ports import BrowsedMessage, Category, Counts, Sight, Snapshot
from .lanes import in_order
from .record import Dead, Lease, Record, expiry_of
from .results import StoredAt, show
from .store import Store, to_key

T = TypeVar("T")
_LiveState: TypeAlias = Literal["ready", "scheduled", "leased"]


def counts(store: Store, name: str, now: float) -> Counts:
    """How many messages of the queue are where."""
    store.advance(now)
    channel = store.directory.channel(name)
    return Counts(channel.ready, channel.scheduled, len(channel.leases), len(channel.dead), channel.paused)


def browse(
    store: Store, name: str, category: Category, limit: int, after: str | None, now: float
) -> list[BrowsedMessage]:
    """`limit` messages of the queue in that place: by rank, by due time, by end of lease, by age of death.

    `after`: the key of the message behind which to go on; where it has gone meanwhile, the list is empty.
    """
    now = store.advance(now)
    channel = store.directory.channel(name)
    if category == "dead":
        letters = channel.dead.items()
        return [_show_dead(*letter) for letter in _behind(letters, after, lambda letter: letter[0], limit)]
    records: Iterable[Record]
    if category == "ready":
        records = in_order(channel.all_lanes())
    elif category == "scheduled":
        records = store.scheduled.first_of(name, limit if after is None else sys.maxsize)
    else:
        records = channel.leases.values()
    return [_show(record, category, now) for record in _behind(records, after, lambda record: record.order, limit)]


def _behind(found: Iterable[T], after: str | None, key: Callable[[T], int], limit: int) -> Iterator[T]:
    """At most `limit` of those that come behind the one with the key `after`."""
    rest = iter(found)
    if after is not None:
        wanted = to_key(after)
        rest = islice(dropwhile(lambda one: key(one) != wanted, rest), 1, None)
    return islice(rest, limit)


def find(store: Store, id_: str, now: float) -> list[BrowsedMessage]:
    """The messages with this id: the live one, then dead ones."""
    now = store.advance(now)
    record = store.find(id_)
    found = [] if record is None else [_show(record, _state(record), now)]
    letters = ((key, dead) for channel in store.channels.values() for key, dead in channel.dead.items())
    return found + [_show_dead(key, dead) for key, dead in letters if dead.envelope.id == id_]


def _show(record: Record, category: Category, now: float) -> BrowsedMessage:
    extras = record.extras
    return BrowsedMessage(
        envelope=record.envelope,
        category=category,
        key=str(record.order),
        attempt=1 if extras is None else extras.attempt,
        lost=0 if extras is None else extras.lost,
        due_in=_due_in(record, now),
        failure=None if extras is None else extras.failure,
    )


def _due_in(record: Record, now: float) -> float | None:
    place = record.place
    if isinstance(place, Lease):
        return place.until - now
    return place - now if isinstance(place, float) else None


def _show_dead(key: int, dead: Dead) -> BrowsedMessage:
    return BrowsedMessage(
        envelope=dead.envelope,
        category="dead",
        key=str(key),
        attempt=dead.attempt,
        lost=dead.lost,
        reason=dead.reason,
        failure=dead.failure,
    )


def fetch(store: Store, ids: Sequence[str], now: float, epoch: float) -> list[StoredResult | None]:
    """The result under each id, or None."""
    now = store.advance(now)
    found = (store.results.find(id_, now) for id_ in ids)
    return [None if kept is None else show(kept, epoch) for kept in found]


def look(store: Store, id_: str, result_id: str, now: float, epoch: float) -> Sight:
    """How the message stands, and how long that holds if nobody does anything."""
    now = store.advance(now)
    record, kept = store.find(id_), store.results.find(result_id, now)
    result = None if kept is None else show(kept, epoch)
    if record is not None:
        return Sight(_look_at_live(record, result), min(_holds_until(record), _expiry(kept)) - now)
    dead = store.dead.last(id_)
    if dead is not None:
        snapshot = Snapshot(state="dead", attempt=dead.attempt, progress=dead.progress, result=result)
        return Sight(snapshot, _expiry(kept) - now)
    return Sight(Snapshot(state="gone", result=result), _expiry(kept) - now)


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
        return math.inf  # also when its time is over: somebody must rescue it
    due = record.place if isinstance(record.place, float) else math.inf
    expires_at = None if record.extras is None else expiry_of(record.extras)
    return due if expires_at is None else min(due, expires_at)


def _expiry(kept: StoredAt | None) -> float:
    return math.inf if kept is None else kept.expires_at
