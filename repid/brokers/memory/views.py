"""Looking at a store without changing where anything is (but for what has become due or expired by now)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, TypeAlias

from ...delivery import StoredResult
from ...errors import ConfigurationError
from ...ports import BrowsedMessage, Category, Counts, Snapshot
from .lanes import in_order
from .record import Dead, Lease, Record
from .results import Kept, show
from .store import Store

_LiveState: TypeAlias = Literal["ready", "scheduled", "leased"]


def counts(store: Store, name: str, now: float) -> Counts:
    """How many messages of the queue are where."""
    store.advance(now)
    channel = store.directory.channel(name)
    return Counts(channel.ready, channel.scheduled, len(channel.leases), len(channel.dead), channel.paused)


def browse(store: Store, name: str, category: Category, limit: int, now: float) -> list[BrowsedMessage]:
    """The first `limit` messages of the queue in that place: by rank, by due time, by end of lease, by age of death."""
    now = store.advance(now)
    channel = store.directory.channel(name)
    limit = max(limit, 0)
    if category == "dead":
        return [_show_dead(key, dead) for key, dead in islice(channel.dead.items(), limit)]
    records: Iterator[Record]
    if category == "ready":
        records = in_order(channel.all_lanes())
    elif category == "scheduled":
        records = iter(store.scheduled.first_of(name, limit))
    elif category == "leased":
        records = iter(channel.leases.values())
    else:
        raise ConfigurationError(f"no category {category!r}: it is one of ready, scheduled, leased, dead")
    return [_show(record, category, now) for record in islice(records, limit)]


def _show(record: Record, category: Category, now: float) -> BrowsedMessage:
    rare = record.rare
    return BrowsedMessage(
        envelope=record.envelope,
        category=category,
        key=record.order,
        attempt=1 if rare is None else rare.attempt,
        lost=0 if rare is None else rare.lost,
        due_in=_due_in(record, now),
        failure=None if rare is None else rare.failure,
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
        key=key,
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


def look(store: Store, id_: str, result_id: str, now: float, epoch: float) -> tuple[Snapshot, float]:
    """How the message stands, and how long that holds if nobody does anything."""
    now = store.advance(now)
    record, kept = store.find(id_), store.results.find(result_id, now)
    result = None if kept is None else show(kept, epoch)
    if record is not None:
        return _look_at_live(record, result), min(_holds_until(record), _expiry(kept))
    dead = store.dead.last(id_)
    if dead is not None:
        return Snapshot(state="dead", attempt=dead.attempt, progress=dead.progress, result=result), _expiry(kept)
    return Snapshot(state="gone", result=result), _expiry(kept)


def _look_at_live(record: Record, result: StoredResult | None) -> Snapshot:
    rare, place = record.rare, record.place
    state: _LiveState = "leased" if isinstance(place, Lease) else "ready" if place is None else "scheduled"
    if rare is None:
        return Snapshot(state=state, attempt=1, result=result)
    return Snapshot(
        state=state, attempt=rare.attempt, progress=rare.progress, cancelling=rare.cancelling, result=result
    )


def _holds_until(record: Record) -> float:
    if isinstance(record.place, Lease):
        return math.inf  # also when its time is over: somebody must rescue it
    due = record.place if isinstance(record.place, float) else math.inf
    expires_at = None if record.rare is None else record.rare.expires_at
    return due if expires_at is None else min(due, expires_at)


def _expiry(kept: Kept | None) -> float:
    return math.inf if kept is None else kept.expires_at
