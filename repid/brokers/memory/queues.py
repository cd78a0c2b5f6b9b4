"""The declared queues, each with its lanes, leases and dead letters, and which of their topics a consumer takes.

Invariants. A lane is in `lanes` as long as it has a live message, so topics that senders make up cost nothing later.
`strays` are those lanes of `lanes` that no open consumer asked for: they are kept up to date when a lane is made and
when a consumer comes or goes, so that a claim needs no look at the other consumers. A dead letter is in its queue by
key and in `DeadLetters` by id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from ...delivery import Failure, Reason
from ...delivery.shelf import takes
from ...errors import QueueNotDeclared
from ...ports import AtMost, Topics
from .lanes import Cap, Lane
from .record import Dead, Record, Subscription, is_suspected


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
        "taken_whole",
        "topics_taken",
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
        self.topics_taken: Counter[str | None] = Counter()
        self.taken_whole = 0

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

    def note_subscription(self, subscription: Subscription, step: int = 1) -> None:
        """Note that a consumer was opened (step 1) or closed (step -1)."""
        topics = subscription.queues[self.name]
        if topics is None:
            self.taken_whole += step
        else:
            self.topics_taken.update(dict.fromkeys(topics, step))
            self.topics_taken = +self.topics_taken  # without those nobody takes any more
        self.strays = {topic: lane for topic, lane in self.lanes.items() if self._is_stray(topic)}

    def _is_stray(self, topic: str | None) -> bool:
        return not self.taken_whole and topic not in self.topics_taken


class Directory:
    """The declared queues and the open consumers."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self._subscriptions: dict[Subscription, None] = {}

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
                for subscription in self._subscriptions:
                    if name in subscription.queues:
                        channel.note_subscription(subscription)

    def open(self, subscription: Subscription) -> None:
        """From now on what this consumer takes is no stray. Raises `QueueNotDeclared`."""
        channels = [self.channel(name) for name in subscription.queues]
        self._subscriptions[subscription] = None
        for channel in channels:
            channel.note_subscription(subscription)

    def close(self, subscription: Subscription) -> None:
        """The consumer takes nothing any more; what it leased stays leased."""
        del self._subscriptions[subscription]
        for name in subscription.queues:
            if name in self.channels:
                self.channels[name].note_subscription(subscription, -1)

    def is_open(self, subscription: Subscription) -> bool:
        """Whether the consumer was opened and not closed."""
        return subscription in self._subscriptions

    def close_all(self) -> None:
        """Close every consumer."""
        for subscription in list(self._subscriptions):
            self.close(subscription)

    def suspects_for(self, subscription: Subscription) -> list[Lane]:
        """The lanes this consumer may take suspects from now, none of them empty."""
        open_channels = [(self.channels.get(name), topics) for name, topics in subscription.queues.items()]
        return [
            lane
            for channel, topics in open_channels
            if channel is not None and channel.suspects and not channel.paused
            for lane in channel.suspects_for(topics)
        ]

    def lanes_for(self, subscription: Subscription, at_most: AtMost) -> tuple[list[Lane], dict[Lane, list[Cap]]]:
        """The lanes this consumer may take from now, none of them empty, and the limits of those that have any."""
        lanes: list[Lane] = []
        caps: dict[Lane, list[Cap]] = {}
        groups = [Cap(limit) for _, limit in at_most.groups]
        is_limited = bool(at_most.topics or groups)
        for name, topics in subscription.queues.items():
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


class DeadLetters:
    """Finds the dead of one id; each queue has its own by key, in the order in which they died."""

    __slots__ = ("_by_id",)

    def __init__(self) -> None:
        self._by_id: dict[str, list[Dead]] = {}

    def add(self, channel: Channel, record: Record, reason: Reason, failure: Failure | None) -> None:
        """Take in what is not live any more."""
        extras = record.extras
        if extras is None:
            dead = Dead(record.envelope, 1, 0, reason, failure, None)
        else:
            dead = Dead(record.envelope, extras.attempt, extras.lost, reason, failure, extras.progress)
        channel.dead[record.order] = dead
        self._by_id.setdefault(record.envelope.id, []).append(dead)

    def take(self, channel: Channel, key: int) -> None:
        """Take one out."""
        dead = channel.dead.pop(key)
        self._keep(dead.envelope.id, [other for other in self._by_id[dead.envelope.id] if other is not dead])

    def take_all(self, channel: Channel) -> set[str]:
        """Take out all of one queue; their ids."""
        ids = {dead.envelope.id for dead in channel.dead.values()}
        for id_ in ids:
            self._keep(id_, [other for other in self._by_id[id_] if other.envelope.queue != channel.name])
        channel.dead.clear()
        return ids

    def last(self, id_: str) -> Dead | None:
        """The one of this id that died last."""
        return self._by_id[id_][-1] if id_ in self._by_id else None

    def _keep(self, id_: str, namesakes: list[Dead]) -> None:
        if namesakes:
            self._by_id[id_] = namesakes
        else:
            del self._by_id[id_]
