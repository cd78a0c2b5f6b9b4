"""Bounded queues in the file: what waits there, and what has room. The rules are `repid.delivery.bounds`.

What waits is counted in the file, once for a transaction that sends to a bounded queue, and no further than its bound;
a claim in the same transaction has it counted again. Counters that every transaction keeps were rejected: all queues
would pay.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...delivery import Bounds, ever_fits, has_room, is_over, refusal
from ...delivery.shelf import DROPPED
from ...envelope import Envelope
from ...errors import QueueFull
from ..shared.packing import pack
from .directory import Channel
from .rows import Key, to_key
from .store import Store

_LANES = "(SELECT id FROM lane WHERE queue = ?1)"
_WAITING = f"""
SELECT seq FROM ready WHERE lane IN {_LANES} UNION ALL SELECT seq FROM scheduled WHERE lane IN {_LANES} LIMIT ?2
"""  # noqa: S608
_COUNT = f"SELECT count(*), 0 FROM ({_WAITING})"  # noqa: S608
_COUNT_BYTES = f"""
SELECT count(*), coalesce(sum(length(payload)), 0)
FROM ({_WAITING}) AS waiting JOIN message ON message.seq = waiting.seq
"""  # noqa: S608
_OLDEST = f"""
SELECT seq FROM (SELECT seq, rank FROM ready WHERE lane IN {_LANES} ORDER BY rank, seq LIMIT ?2)
"""  # noqa: S608
_OLDEST_SCHEDULED = f"SELECT seq FROM scheduled WHERE lane IN {_LANES} ORDER BY due, seq LIMIT ?2"  # noqa: S608

_ALL = 2**62


def set_bounds(store: Store, bounds: dict[str, Bounds]) -> None:
    """Declare queues, and bound them from now on."""
    store.directory.declare(bounds)
    for name, bound in bounds.items():
        packed = None if bound.are_none else pack(bound)
        store.execute("UPDATE queue SET bounds = ? WHERE id = ?", (packed, store.directory.channel(name).id))
    store.directory.touch()


def are_set(store: Store, bounds: dict[str, Bounds]) -> bool:
    """Whether the queues have these bounds already."""
    channels = store.directory.channels
    return all(name in channels and channels[name].bounds == (None if b.are_none else b) for name, b in bounds.items())


def measure(store: Store, channel: Channel, bounds: Bounds) -> tuple[int, int]:
    """How many messages wait, and the bytes of their payloads; counted no further than what is allowed."""
    known = store.waiting.get(channel.id)
    if known is None:
        limit = _ALL if bounds.max_size is None or bounds.when_full == "drop_oldest" else bounds.max_size
        sql = _COUNT if bounds.max_bytes is None else _COUNT_BYTES
        size, volume = store.execute(sql, (channel.id, limit)).fetchone()
        known = store.waiting[channel.id] = (size, volume)
    return known


class Admission:
    """Which messages of one call have room. `overflowing`: queues that may hold too much now, and drop the oldest."""

    __slots__ = ("_let_in", "_refused", "_store", "overflowing")

    def __init__(self, store: Store) -> None:
        self.overflowing: dict[Channel, None] = {}
        self._store = store
        self._let_in: set[Key] = set()
        self._refused: dict[Channel, QueueFull] = {}

    def refuse_one(self, envelope: Envelope) -> QueueFull | None:
        """Why a message is refused; None: it comes in, or one with its id is alive, which the file will say."""
        channel, key = self._store.directory.channels[envelope.queue], to_key(envelope.id)
        if channel.bounds is not None:
            if key in self._let_in or _is_alive(self._store, key):
                return None
            refused = self.refuse(channel, 1, len(envelope.payload))
            if refused is not None:
                return refused
        self._let_in.add(key)
        return None

    def refuse(self, channel: Channel, more: int, volume: int) -> QueueFull | None:
        """Why `more` messages of `volume` bytes together are refused; None: they come in."""
        bounds = channel.bounds
        if bounds is None:
            return None
        before, store = self._refused.get(channel), self._store
        if bounds.when_full == "drop_oldest":
            self.overflowing[channel] = None
            admits = ever_fits(bounds, more, volume)
        elif before is not None:  # what comes behind one that was refused must not overtake it
            admits = False
        else:
            waiting = measure(store, channel, bounds)
            admits = has_room(bounds, *waiting, more, volume)
            if admits:
                store.waiting[channel.id] = (waiting[0] + more, waiting[1] + volume)
        if admits:
            return None
        readers = (
            store.directory.readers(channel.name, store.boot, store.boot_now) if before is None else before.readers
        )
        refused = refusal(channel.name, bounds, more, volume, readers)
        if refused.can_fit and before is None:
            self._refused[channel] = refused
        return refused

    def finish(self, envelopes: Sequence[Envelope], *, is_admitted: bool) -> None:
        """The messages have come in: drop what queues hold beyond their bounds now."""
        if is_admitted:
            for queue in {envelope.queue for envelope in envelopes}:
                channel = self._store.directory.channels.get(queue)
                if channel is not None and channel.bounds is not None and channel.bounds.when_full == "drop_oldest":
                    self.overflowing[channel] = None
        for channel in self.overflowing:
            if channel.bounds is not None:
                _drop_oldest(self._store, channel, channel.bounds)


def refuse_outbox(store: Store, outbox: Sequence[Envelope]) -> QueueFull | None:
    """Why an outbox as a whole has no room; None: it has.

    At first each message is taken for a new one. Only where that leaves no room are those left out whose ids are alive,
    and what waits is counted anew, as outboxes that did not come in after all may have been added to it.
    """
    channels = store.directory.channels
    bounded = [each for each in outbox if each.queue in channels and channels[each.queue].bounds is not None]
    if not bounded:
        return None
    refused = _refuse_all(store, bounded)
    if refused is not None:
        store.waiting.clear()
        new = [each for each in bounded if not _is_alive(store, to_key(each.id))]
        refused = _refuse_all(store, new)
    return refused


def _refuse_all(store: Store, envelopes: Sequence[Envelope]) -> QueueFull | None:
    wanted: dict[Channel, list[int]] = {}
    for envelope in envelopes:
        wanted.setdefault(store.directory.channels[envelope.queue], []).append(len(envelope.payload))
    before = dict(store.waiting)
    admission = Admission(store)
    for channel, sizes in wanted.items():
        refused = admission.refuse(channel, len(sizes), sum(sizes))
        if refused is not None:
            store.waiting = before
            return refused
    return None


def _is_alive(store: Store, key: Key) -> bool:
    return store.execute("SELECT 1 FROM message WHERE id = ?", (key,)).fetchone() is not None


def _drop_oldest(store: Store, channel: Channel, bounds: Bounds) -> None:
    store.waiting.pop(channel.id, None)
    size, volume = measure(store, channel, bounds)
    dropped = 0
    while is_over(bounds, size, volume):
        over = 1 if bounds.max_size is None else max(1, size - bounds.max_size)
        found = store.execute(_OLDEST, (channel.id, over)).fetchall()
        found = found or store.execute(_OLDEST_SCHEDULED, (channel.id, over)).fetchall()
        for (seq,) in found:
            [length] = store.execute("SELECT length(payload) FROM message WHERE seq = ?", (seq,)).fetchone()
            store.take_out(seq)
            store.end(seq, DROPPED)
            size, volume, dropped = size - 1, volume - (0 if bounds.max_bytes is None else length), dropped + 1
    store.waiting.pop(channel.id, None)
    if dropped:
        store.has_moved = True
        store.execute("UPDATE queue SET dropped = dropped + ? WHERE id = ?", (dropped, channel.id))
        store.drop_log.note(channel.name, dropped)
