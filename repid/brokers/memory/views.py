"""Looking at a store without changing where anything is (but for what has become due or expired by now)."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nsmallest
from itertools import islice

from ...errors import ConfigurationError
from ...ports import BrowsedMessage, Category, Counts
from .lanes import in_order
from .record import Dead, Record, is_gone
from .store import Store


def counts(store: Store, name: str, now: float) -> Counts:
    """How many messages of the queue are where."""
    store.advance(now)
    channel = store.directory.channel(name)
    ready = sum(map(len, channel.lanes.values()))
    return Counts(ready, channel.scheduled, len(channel.leases), len(channel.dead))


def browse(store: Store, name: str, category: Category, limit: int, now: float) -> list[BrowsedMessage]:
    """The first `limit` messages of the queue in that place: by rank, by due time, by end of lease, by age of death."""
    now = store.advance(now)
    channel = store.directory.channel(name)
    limit = max(limit, 0)
    if category == "dead":
        return [_show_dead(key, dead) for key, dead in islice(channel.dead.items(), limit)]
    records: Iterator[Record]
    if category == "ready":
        records = in_order(channel.lanes.values())
    elif category == "scheduled":
        mine = (entry for entry in store.scheduled if entry[2].envelope.queue == name and not is_gone(entry[2]))
        records = (entry[2] for entry in nsmallest(limit, mine))
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
        due_in=None if category == "ready" else record.until - now,
        failure=None if rare is None else rare.failure,
    )


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
