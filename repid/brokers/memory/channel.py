"""The declared queues, each with its lanes, leases and dead, and which of their topics somebody takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from ...delivery.shelf import takes
from ...errors import QueueNotDeclared
from ...ports import AtMost, Topics
from .lanes import Cap, Lane
from .record import Dead, Record, is_suspected
from .taker import Taker


class Channel:
    """One declared queue. A lane is in `lanes` as long as it has a live message, so empty ones cost nothing.

    `strays` are the lanes no open consumer has asked for: they go to whoever takes anything of the queue. `suspects` are
    lanes too, of messages that must be leased alone.
    `leases` are in the order in which they end, because all last equally long. `scheduled` only counts; the
    messages are in the store's timetable. While it is `paused` its lanes are handed out to nobody.
    """

    __slots__ = (
        "dead",
        "lanes",
        "leases",
        "name",
        "paused",
        "scheduled",
        "strays",
        "suspects",
        "takers",
        "takers_of_all",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.lanes: dict[str | None, Lane] = {}
        self.strays: dict[str | None, Lane] = {}
        self.suspects: dict[str | None, Lane] = {}
        self.leases: dict[int, Record] = {}
        self.dead: dict[int, Dead] = {}
        self.scheduled = 0
        self.paused = False
        self.takers: Counter[str | None] = Counter()
        self.takers_of_all = 0

    @property
    def ready(self) -> int:
        """How many messages are ready."""
        return sum(map(len, self.all_lanes()))

    def all_lanes(self) -> list[Lane]:
        """The lanes of all ready messages."""
        return [*self.lanes.values(), *self.suspects.values()]

    def lane(self, topic: str | None) -> Lane:
        """The lane of this topic, made if there is none; the caller puts something into it."""
        lane = self.lanes.get(topic)
        if lane is None:
            lane = self.lanes[topic] = Lane(self.name, topic)
            if self._is_stray(topic):
                self.strays[topic] = lane
        return lane

    def lane_of(self, record: Record) -> Lane:
        """The lane for a message that comes back, made if there is none; the caller puts it there."""
        topic = record.envelope.topic
        if not is_suspected(record):
            return self.lane(topic)
        if topic not in self.suspects:
            self.suspects[topic] = Lane(self.name, topic)
        return self.suspects[topic]

    def lose(self, record: Record) -> None:
        """A ready message has gone."""
        lane = (self.suspects if is_suspected(record) else self.lanes)[record.envelope.topic]
        lane.lose()
        if not lane:
            self.drop(lane)

    def drop(self, lane: Lane) -> None:
        """Forget a lane that has become empty."""
        for lanes in (self.lanes, self.strays, self.suspects):
            if lanes.get(lane.topic) is lane:
                del lanes[lane.topic]

    def clear_ready(self) -> None:
        """Forget every ready message."""
        self.lanes.clear()
        self.strays.clear()
        self.suspects.clear()

    def suspects_for(self, topics: Topics) -> Iterator[Lane]:
        """The lanes of suspects a consumer of these topics may take from."""
        for topic, lane in self.suspects.items():
            if takes(topics, topic) or self._is_stray(topic):
                yield lane

    def lanes_for(self, topics: Topics) -> Iterator[Lane]:
        """The lanes a consumer of these topics may take from."""
        if topics is None:
            yield from self.lanes.values()
            return
        lanes = self.lanes
        few: Collection[str | None] = topics if len(topics) <= len(lanes) else lanes.keys() & topics
        for topic in few:
            if topic in lanes:
                yield lanes[topic]
        yield from self.strays.values()

    def add_taker(self, taker: Taker, step: int = 1) -> None:
        """Note that a consumer was opened (step 1) or closed (step -1)."""
        topics = taker.queues[self.name]
        if topics is None:
            self.takers_of_all += step
        else:
            self.takers.update(dict.fromkeys(topics, step))
            self.takers = +self.takers  # without those nobody takes any more
        self.strays = {topic: lane for topic, lane in self.lanes.items() if self._is_stray(topic)}

    def _is_stray(self, topic: str | None) -> bool:
        return not self.takers_of_all and topic not in self.takers


class Directory:
    """The declared queues and the open consumers."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self._takers: dict[Taker, None] = {}

    def channel(self, name: str) -> Channel:
        """The declared queue of this name. Raises `QueueNotDeclared`."""
        channel = self.channels.get(name)
        if channel is None:
            raise QueueNotDeclared(name)
        return channel

    def declare(self, names: Iterable[str]) -> None:
        """Create the queues that do not exist yet."""
        for name in names:
            if name not in self.channels:
                self.channels[name] = channel = Channel(name)
                for taker in self._takers:
                    if name in taker.queues:
                        channel.add_taker(taker)

    def open(self, taker: Taker) -> None:
        """From now on what this consumer takes is no stray. Raises `QueueNotDeclared`."""
        channels = [self.channel(name) for name in taker.queues]
        self._takers[taker] = None
        for channel in channels:
            channel.add_taker(taker)

    def close(self, taker: Taker) -> None:
        """The consumer takes nothing any more; what it leased stays leased."""
        del self._takers[taker]
        for name in taker.queues:
            if name in self.channels:
                self.channels[name].add_taker(taker, -1)

    def is_open(self, taker: Taker) -> bool:
        """Whether the consumer was opened and not closed."""
        return taker in self._takers

    def close_all(self) -> None:
        """Close every consumer."""
        for taker in list(self._takers):
            self.close(taker)

    def suspects_for(self, taker: Taker) -> list[Lane]:
        """The lanes this consumer may take suspects from now, none of them empty."""
        open_channels = [(self.channels.get(name), topics) for name, topics in taker.queues.items()]
        return [
            lane
            for channel, topics in open_channels
            if channel is not None and channel.suspects and not channel.paused
            for lane in channel.suspects_for(topics)
        ]

    def lanes_for(self, taker: Taker, at_most: AtMost) -> tuple[list[Lane], dict[Lane, list[Cap]]]:
        """The lanes this consumer may take from now, none of them empty, and the limits of those that have any."""
        lanes: list[Lane] = []
        caps: dict[Lane, list[Cap]] = {}
        groups = [Cap(limit) for _, limit in at_most.groups]
        is_limited = bool(at_most.topics or groups)
        for name, topics in taker.queues.items():
            channel = self.channels.get(name)
            if channel is None or not channel.lanes or channel.paused:
                continue
            if not is_limited:
                lanes.extend(channel.lanes_for(topics))
                continue
            for lane in channel.lanes_for(topics):
                cap, group = at_most.of(name, lane.topic), at_most.group(name, lane.topic)
                found = [] if cap is None else [Cap(cap)]
                if group is not None:
                    found.append(groups[group])
                if all(one.left > 0 for one in found):
                    lanes.append(lane)
                if found:
                    caps[lane] = found
        return lanes, caps
