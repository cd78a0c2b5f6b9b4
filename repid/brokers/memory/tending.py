"""Tending queues by hand: removing what is in them, pausing them, and reviving what is dead.

Functions over a store. Like the store's own operations each of them first brings the store up to `now`, and is one
step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from ...delivery import Bounds
from ...delivery.shelf import after_reviving
from ...errors import BrokerRefused, DuplicateId
from ..shared.keys import to_number
from .bounding import Bounded
from .queues import Channel
from .store import Store, withdraw


def flush(store: Store, name: str, now: float) -> int:
    """Remove what is ready or scheduled; returns how many."""
    store.advance(now)
    channel = store.directory.channel(name)
    removed = [record for lane in channel.all_lanes() for record in lane.records()]
    if channel.scheduled:
        removed += store.scheduled.take_queue(name)
        channel.scheduled = 0
    channel.clear_ready()
    for record in removed:
        store.remove(record)
    return len(removed)


def delete(store: Store, name: str, now: float) -> None:
    """Remove the queue with everything in it. Nothing happens if there is no such queue."""
    if name in store.channels:
        flush(store, name, now)
        channel = store.channels.pop(name)
        for token, record in channel.leases.items():
            withdraw(record, token)
            store.remove(record)
        store.changes.tell(store.dead.take_all(channel))


def pause(store: Store, name: str, now: float) -> None:
    """Give no message of this queue to consumers."""
    store.advance(now)
    store.directory.channel(name).paused = True


def resume(store: Store, name: str, now: float) -> None:
    """Give messages of this queue to consumers again."""
    store.advance(now)
    channel = store.directory.channel(name)
    if channel.paused:
        channel.paused = False
        channel.tell_fronts()
        store.arrived += channel.ready


def revive(store: Store, name: str, keys: Iterable[str] | None, now: float) -> list[BrokerRefused | None]:
    """Make dead messages ready again, as new ones. Returns for each None, or why it was refused."""
    now = store.advance(now)
    channel = store.directory.channel(name)
    return [_revive(store, channel, key, now) for key in (list(channel.dead) if keys is None else map(to_number, keys))]


def _revive(store: Store, channel: Channel, key: int, now: float) -> BrokerRefused | None:
    dead = channel.dead.get(key)
    if dead is None:
        return BrokerRefused(f"no dead message in {channel.name!r} has the key {key}")
    envelope = dead.envelope
    if store.find(envelope.id) is not None:
        return DuplicateId(envelope.id, channel.name)
    store.dead.take(channel, key)
    store.results.remove(envelope.result_id)
    store.take_in(channel, envelope, after_reviving(envelope.options, now, float))
    store.tell_of([envelope])
    return None


def delete_dead(store: Store, name: str, keys: Iterable[str] | None, now: float) -> int:
    """Remove dead messages for ever; returns how many."""
    store.advance(now)
    channel = store.directory.channel(name)
    chosen = [
        key
        for key in (list(channel.dead) if keys is None else dict.fromkeys(map(to_number, keys)))
        if key in channel.dead
    ]
    ids = {channel.dead[key].envelope.id for key in chosen}
    for key in chosen:
        store.dead.take(channel, key)
    store.changes.tell(ids)
    return len(chosen)


def set_bounds(store: Store, bounds: Mapping[str, Bounds], now: float) -> None:
    """Declare queues, and bound them from now on."""
    store.advance(now)
    store.directory.declare(bounds)
    for name, bound in bounds.items():
        channel = store.channels[name]
        scheduled = store.scheduled.first_of(name, channel.scheduled) if channel.scheduled else ()
        ready = chain.from_iterable(lane.records() for lane in channel.all_lanes())
        channel.bounded = None if bound.are_none else Bounded(bound, chain(ready, scheduled))
        store.directory.has_bounds = True


def tell_of_room(store: Store) -> None:
    """Tell of the queues that were full and have room now. To be called after each change while there are any."""
    for name, wanted in list(store.full.items()):
        if wanted.is_there or store.channels.get(name) is not wanted.channel:
            del store.full[name]
            store.changes.tell_of_room()
