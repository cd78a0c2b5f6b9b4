"""The declared queues, their lanes, and who takes what, as all processes see them.

A copy of three tables. Each transaction first checks whether they have changed. Of new queues and lanes, which may be
thousands, only the new rows are read: their ids grow. Any other change adds 1 to `meta.directory`, and then all
processes read everything anew. So a new queue or lane costs the same, no matter how many there are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from ...delivery import Bounds
from ...delivery.shelf import is_stray, takes
from ...errors import QueueNotDeclared
from ...ports import Topics
from ..shared.packing import pack, to_bounds
from .unreadable import fetch_all, read_or

_unpack_takes = msgspec.msgpack.Decoder(dict[str, frozenset[str] | None]).decode

_MOST_EMPTY_LANES = 1000
"""With more lanes than this, and twice as many as were in use at the last look, the empty ones are removed."""

VERSION = "directory, (SELECT coalesce(max(id), 0) FROM queue), (SELECT coalesce(max(id), 0) FROM lane)"
"""In a statement on `meta`: what tells that there is something new. The arguments of `Directory.refresh`."""

USED = """
WITH RECURSIVE used (lane) AS (
    SELECT min(lane) FROM ready
    UNION ALL
    SELECT (SELECT min(ready.lane) FROM ready WHERE ready.lane > used.lane) FROM used WHERE used.lane IS NOT NULL
)
"""
"""Before a statement: `used`, the lanes in which something is ready, and NULL behind the last one. It takes a look at
the index for each lane, however many messages are in it.
"""

_USED_LANES = f"{USED} SELECT lane FROM used WHERE lane IS NOT NULL"  # noqa: S608  of our own


class Lane(NamedTuple):
    """One topic of one queue. `suspects`: of the messages that must be leased alone."""

    id: int
    queue: str
    topic: str | None
    suspects: bool = False


class Channel:
    """One declared queue and its lanes by topic, those of suspects apart. `bounds`: None if it has none."""

    __slots__ = ("bounds", "id", "lanes", "name", "paused", "suspects")

    def __init__(self, id_: int, name: str, paused: bool, bounds: Bounds | None) -> None:
        self.id = id_
        self.name = name
        self.paused = paused
        self.bounds = bounds
        self.lanes: dict[str | None, int] = {}
        self.suspects: dict[str | None, int] = {}

    def all_lanes(self) -> Iterator[Lane]:
        """Every lane there is."""
        for suspects, lanes in ((False, self.lanes), (True, self.suspects)):
            for topic, id_ in lanes.items():
                yield Lane(id_, self.name, topic, suspects)


class Subscription(NamedTuple):
    """What one consumer takes, and until when it counts as present, on the boot clock of `boot`."""

    boot: int
    until: int
    takes: Mapping[str, frozenset[str] | None]


class Directory:
    """The copy, and the changes to what it is a copy of. The latter are for write transactions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute
        self.version = -1
        self._last = (0, 0)  # the ids of the last queue and the last lane that are known
        self.channels: dict[str, Channel] = {}
        self.lanes: dict[int, Lane] = {}
        self.has_bounds = False
        """Whether any queue is bounded."""
        self._names: dict[int, str] = {}  # of the queues, by id
        self.subscriptions: dict[int, Subscription] = {}
        self._lanes_for: dict[int, tuple[int, list[Lane], list[Lane], frozenset[int]]] = {}
        self._most_lanes = _MOST_EMPTY_LANES

    def refresh(self, version: int, last_queue: int, last_lane: int) -> None:
        """Read what is not known yet, or all if the version is not the one that is known.

        If ids have gone back, somebody has restored a copy of the file, in which not all is that is known.
        """
        if version != self.version or last_queue < self._last[0] or last_lane < self._last[1]:
            self._last = (0, 0)
            self.channels, self.lanes, self.has_bounds = {}, {}, False
            self._names.clear()
            self._lanes_for.clear()
            self.subscriptions = {
                id_: Subscription(boot, until, _read_takes(takes))
                for id_, boot, until, takes in self._execute("SELECT id, boot, until, takes FROM consumer")
            }
            self.version = version
        if self._last != (last_queue, last_lane):
            self._read_new()

    def _read_new(self) -> None:
        queue, lane = self._last
        sql = "SELECT id, name, paused, bounds FROM queue WHERE id > ? ORDER BY id"
        for row in fetch_all(self._connection, sql, (queue,)):
            self._note_queue(*row)
        sql = "SELECT id, queue, topic, suspects FROM lane WHERE id > ? ORDER BY id"
        for id_, queue_id, topic, suspects in fetch_all(self._connection, sql, (lane,)):
            if queue_id in self._names:
                self._note_lane(Lane(id_, self._names[queue_id], topic, bool(suspects)))

    def _note_queue(self, id_: int, name: str, paused: int, packed: bytes | None = None) -> None:
        bounds = to_bounds(packed)
        self.channels[name] = Channel(id_, name, bool(paused), bounds)
        self.has_bounds = self.has_bounds or bounds is not None
        self._names[id_] = name
        self._last = (id_, self._last[1])

    def _note_lane(self, lane: Lane) -> None:
        channel = self.channels[lane.queue]
        (channel.suspects if lane.suspects else channel.lanes)[lane.topic] = lane.id
        self.lanes[lane.id] = lane
        self._last = (self._last[0], lane.id)
        self._lanes_for.clear()

    def forget(self) -> None:
        """What was noted since the transaction began was rolled back: read it all at the next occasion."""
        self.version = -1

    def touch(self) -> None:
        """Have every process, this one too, read the tables anew."""
        self._execute("UPDATE meta SET directory = directory + 1")
        self.refresh(*self._execute(f"SELECT {VERSION} FROM meta").fetchone())  # noqa: S608

    # Queues

    def channel(self, name: str) -> Channel:
        """The declared queue of this name. Raises `QueueNotDeclared`."""
        channel = self.channels.get(name)
        if channel is None:
            raise QueueNotDeclared(name)
        return channel

    def declare(self, names: Iterable[str]) -> None:
        """Create the queues that do not exist yet."""
        for name in dict.fromkeys(names):
            if name not in self.channels:
                id_ = self._execute("INSERT INTO queue (name) VALUES (?)", (name,)).lastrowid
                assert id_ is not None
                self._note_queue(id_, name, 0)

    def pause(self, name: str, *, paused: bool) -> None:
        """Give no messages of the queue to consumers, or give them again."""
        channel = self.channel(name)
        if channel.paused is not paused:
            self._execute("UPDATE queue SET paused = ? WHERE id = ?", (paused, channel.id))
            self.touch()

    def remove(self, channel: Channel) -> None:
        """Remove a queue whose lanes are empty."""
        self._execute("DELETE FROM lane WHERE queue = ?", (channel.id,))
        self._execute("DELETE FROM queue WHERE id = ?", (channel.id,))
        self.touch()

    # Lanes

    def lane(self, channel: Channel, topic: str | None) -> int:
        """The id of the lane of this topic, made if there is none."""
        lane = channel.lanes.get(topic)
        if lane is None:
            lane = self._add_lane(channel, topic, suspects=False)
        return lane

    def _add_lane(self, channel: Channel, topic: str | None, *, suspects: bool) -> int:
        row = (channel.id, topic, suspects)
        id_ = self._execute("INSERT INTO lane (queue, topic, suspects) VALUES (?, ?, ?)", row).lastrowid
        assert id_ is not None
        self._note_lane(Lane(id_, channel.name, topic, suspects))
        return id_

    def twin(self, lane: int, *, suspects: bool) -> int:
        """The id of the lane of the same topic for suspects, or for all others; made if there is none."""
        _, queue, topic, is_for_suspects = self.lanes[lane]
        if is_for_suspects is suspects:
            return lane
        channel = self.channels[queue]
        if not suspects:
            return self.lane(channel, topic)
        known = channel.suspects.get(topic)
        return self._add_lane(channel, topic, suspects=True) if known is None else known

    def used_lanes(self) -> set[int]:
        """The lanes in which something is ready."""
        return {lane for (lane,) in self._execute(_USED_LANES)}

    def remove_empty_lanes(self) -> None:
        """Remove empty lanes if there are many: senders may invent topics."""
        if len(self.lanes) <= self._most_lanes:
            return
        used = self.used_lanes()
        for table in ("scheduled", "lease", "dead"):
            used.update(lane for (lane,) in self._execute(f"SELECT DISTINCT lane FROM {table}"))  # noqa: S608
        empty = [(id_,) for id_ in self.lanes if id_ not in used]
        for row in empty:
            self._execute("DELETE FROM lane WHERE id = ?", row)
        self._most_lanes = max(_MOST_EMPTY_LANES, 2 * len(used))
        self.touch()

    # Consumers

    def open(self, queues: Mapping[str, Topics], boot: int, until: int, known: int | None = None) -> tuple[int, bytes]:
        """Enter a consumer; its id and what to give to `renew`. Raises `QueueNotDeclared`."""
        for name in queues:
            self.channel(name)
        takes = pack({name: None if topics is None else sorted(topics) for name, topics in queues.items()})
        row = (known, boot, until, takes)
        sql = "INSERT OR REPLACE INTO consumer (id, boot, until, takes) VALUES (?, ?, ?, ?)"
        id_ = self._execute(sql, row).lastrowid
        assert id_ is not None
        self.touch()
        return id_, takes

    def close(self, ids: Iterable[int]) -> None:
        """Remove consumers; what they leased stays leased."""
        for id_ in ids:
            self._execute("DELETE FROM consumer WHERE id = ?", (id_,))
        self.touch()

    def renew(self, consumers: Mapping[int, bytes], boot: int, until: int) -> None:
        """Say that these consumers are present, even if another process took them for dead."""
        sql = "INSERT OR REPLACE INTO consumer (id, boot, until, takes) VALUES (?, ?, ?, ?)"
        for id_, packed in consumers.items():
            self._execute(sql, (id_, boot, until, packed))
        self.touch()

    def readers(self, queue: str, boot: int, now: int) -> int:
        """How many present consumers read the queue."""
        return sum(
            queue in other.takes and other.boot == boot and other.until > now for other in self.subscriptions.values()
        )

    def takers(self, boot: int, now: int) -> list[Mapping[str, Topics]]:
        """What each present consumer takes."""
        return [dict(other.takes) for other in self.subscriptions.values() if other.boot == boot and other.until > now]

    def overdue(self, boot: int, now: int) -> list[int]:
        """The consumers whose process seems to be dead."""
        return [
            id_
            for id_, subscription in self.subscriptions.items()
            if subscription.boot != boot or subscription.until <= now
        ]

    def lanes_for(self, consumer: int, boot: int, now: int) -> list[Lane]:
        """The lanes this consumer may take from: those that it asked for, and in its queues those that no consumer
        asked for.
        """
        return self._known_lanes(consumer, boot, now)[1]

    def ids_for(self, consumer: int, boot: int, now: int) -> frozenset[int]:
        """The ids of the lanes that `lanes_for` gives."""
        return self._known_lanes(consumer, boot, now)[3]

    def suspects_for(self, consumer: int, boot: int, now: int) -> list[Lane]:
        """The lanes of messages that must be leased alone."""
        return self._known_lanes(consumer, boot, now)[2]

    def _known_lanes(self, consumer: int, boot: int, now: int) -> tuple[int, list[Lane], list[Lane], frozenset[int]]:
        known = self._lanes_for.get(consumer)
        if known is None or known[0] <= now:
            subscription = self.subscriptions.get(consumer)
            live = [other for other in self.subscriptions.values() if other.boot == boot and other.until > now]
            lanes = [] if subscription is None else list(self._lanes_of(subscription, live))
            horizon = min((other.until for other in live), default=now)
            suspects = [lane for lane in lanes if lane.suspects]
            plain = [lane for lane in lanes if not lane.suspects]
            known = (horizon, plain, suspects, frozenset(lane.id for lane in plain))
            self._lanes_for[consumer] = known
        return known

    def _lanes_of(self, subscription: Subscription, live: list[Subscription]) -> Iterator[Lane]:
        for name, topics in subscription.takes.items():
            channel = self.channels.get(name)
            if channel is None or channel.paused:
                continue
            wanted = [other.takes[name] for other in live if name in other.takes]
            for lane in channel.all_lanes():
                if takes(topics, lane.topic) or is_stray(lane.topic, wanted):
                    yield lane


def _read_takes(packed: bytes) -> Mapping[str, frozenset[str] | None]:
    """What a consumer takes; nothing, where another version has written that and it cannot be read."""
    return read_or(lambda: _unpack_takes(packed), lambda _: {})
