"""The declared queues, each with its lanes, leases and dead letters, and which of their topics a consumer takes.

Invariants. A lane is in `lanes` as long as it has a live message, so topics that senders make up cost nothing later.
`strays` are those lanes of `lanes` that no open consumer asked for: they are kept up to date when a lane is made and
when a consumer comes or goes, so that a claim needs no look at the other consumers. A dead letter is in its queue by
key and in `DeadLetters` by id.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from ...delivery import ever_fits, refusal
from ...delivery.shelf import End, takes
from ...envelope import Envelope
from ...errors import BrokerRefused, DuplicateId, QueueFull, QueueNotDeclared
from ...ports import AtMost, Topics
from .bounding import Bounded
from .lanes import Cap, Head, Heads, Lane, heads_of
from .record import Dead, Extras, Record, Subscription, is_suspected


class Channel:
    """One declared queue. A lane is in `lanes` as long as it has a live message, so empty ones cost nothing.

    `strays` are the lanes that no open consumer has asked for: every consumer of the queue may take them. `suspects`
    are lanes too, of messages that must be leased alone.
    `leases` are in the order in which they end, because all last equally long. `scheduled` only counts; the
    messages are in the store's timetable. While it is `paused` no consumer gets its messages. `bounded`: None if it is
    not; `dropped`: how many messages were dropped because it was full. `heads`: None while there are few lanes.
    `fronts`: of its consumers that read many queues. `suspected`: where a queue enters itself if it has suspects.
    """

    __slots__ = (
        "bounded",
        "dead",
        "dropped",
        "fronts",
        "heads",
        "lanes",
        "leases",
        "name",
        "paused",
        "scheduled",
        "strays",
        "suspected",
        "suspects",
        "taken_whole",
        "topics_taken",
    )

    def __init__(self, name: str, suspected: dict[Channel, None]) -> None:
        self.name = name
        self.suspected = suspected
        self.lanes: dict[str | None, Lane] = {}
        self.heads: Heads | None = None
        self.fronts: list[Fronts] = []
        self.strays: dict[str | None, Lane] = {}
        self.suspects: dict[str | None, Lane] = {}
        self.leases: dict[int, Record] = {}
        self.dead: dict[int, Dead] = {}
        self.scheduled = 0
        self.paused = False
        self.bounded: Bounded | None = None
        self.dropped = 0
        self.topics_taken: Counter[str | None] = Counter()
        self.taken_whole = 0

    @property
    def ready(self) -> int:
        """How many messages are ready."""
        return sum(map(len, self.all_lanes()))

    def note_waiting(self, record: Record, step: int = 1) -> None:
        """A message waits from now on (step 1) or waits no more (step -1)."""
        if self.bounded is not None:
            self.bounded.note(record.payload, step)

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
        if self.heads is not None:
            self.heads.changed[lane] = None
        if self.fronts:
            self.tell_fronts()
        return lane

    def lane_of(self, record: Record) -> Lane:
        """The lane for a message that comes back, made if there is none; the caller puts it there."""
        topic = record.topic
        if not is_suspected(record):
            return self.lane(topic)
        if topic not in self.suspects:
            self.suspects[topic] = Lane(self.name, topic)
            self.suspected[self] = None
        return self.suspects[topic]

    def lose(self, record: Record) -> None:
        """A ready message has gone."""
        lane = (self.suspects if is_suspected(record) else self.lanes)[record.topic]
        lane.lose()
        self.note_change(lane.topic)
        if not lane:
            self.drop(lane)

    def tell_fronts(self) -> None:
        """The queue may begin with another message than before."""
        for fronts in self.fronts:
            fronts.changed[self] = None

    def note_change(self, topic: str | None) -> None:
        """The lane of this topic may begin with another message than before."""
        self.tell_fronts()
        if self.heads is not None and topic in self.lanes:
            self.heads.changed[self.lanes[topic]] = None

    def drop(self, lane: Lane) -> None:
        """Forget a lane that has become empty."""
        for lanes in (self.lanes, self.strays, self.suspects):
            if lanes.get(lane.topic) is lane:
                del lanes[lane.topic]
        if self.heads is not None:
            self.heads.changed.pop(lane, None)

    def clear_ready(self) -> None:
        """Forget every ready message."""
        if self.bounded is not None:
            self.bounded = Bounded(self.bounded.bounds, ())
        self.lanes.clear()
        self.heads = None
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

    def heads_for(self, topics: Topics, limit: int) -> list[Head]:
        """The first heads that a consumer of these topics may take; `limit` of them are enough for `limit` messages."""
        few = max(_FEW_LANES, 4 * limit)
        if len(self.lanes) <= _FEW_LANES:
            self.heads = None
        lanes = len(self.lanes) if topics is None else min(len(topics), len(self.lanes)) + len(self.strays)
        if lanes <= few:
            heads = heads_of(self.lanes_for(topics))
            self.note_drawn(heads)
            return heads
        if self.heads is None:
            self.heads = Heads(self.lanes)
        if topics is None:
            return self.heads.first(limit, lambda _: True)
        strays = self.strays
        return self.heads.first(limit, lambda topic: topic in topics or topic in strays)

    def note_drawn(self, heads: Iterable[Head]) -> None:
        """These heads are about to be taken out."""
        if self.heads is not None:
            self.heads.changed.update((lane, None) for _, _, _, lane in heads)

    def note_subscription(self, subscription: Subscription, step: int = 1) -> None:
        """Note that a consumer was opened (step 1) or closed (step -1)."""
        topics = subscription.queues[self.name]
        if topics is None:
            self.taken_whole += step
        else:
            self.topics_taken.update(dict.fromkeys(topics, step))
            self.topics_taken = +self.topics_taken  # without those that no consumer takes any more
        self.strays = {topic: lane for topic, lane in self.lanes.items() if self._is_stray(topic)}
        self.tell_fronts()

    def _is_stray(self, topic: str | None) -> bool:
        return not self.taken_whole and topic not in self.topics_taken


_FEW_LANES = 64
"""Of up to this many lanes a claim looks at each, which takes less time than to keep their heads in order."""

_FEW_QUEUES = 64
"""As `_FEW_LANES`, for queues."""


class Fronts:
    """Finds those of a consumer's many queues that begin with the first messages, without a look at each.

    The first message that the consumer may take of each queue is in `_entries`, a heap, unless the queue is in
    `changed`. Code that puts something into a queue, or takes something out, tells it (`Channel.tell_fronts`). An entry
    that is not the one in `_noted` is old, and is dropped when its turn comes, or when such entries are most.
    """

    __slots__ = ("_entries", "_noted", "_queues", "_serials", "changed")

    def __init__(self, queues: Mapping[str, Topics]) -> None:
        self._queues = queues
        self._entries: list[tuple[float, int, int, Channel]] = []
        self._noted: dict[Channel, int] = {}
        self._serials = count()  # of the entries, so that queues are never compared
        self.changed: dict[Channel, None] = {}

    def first(self, limit: int) -> list[Head]:
        """The heads of the first queues; there are enough for `limit` messages."""
        self._take_in()
        heads: list[Head] = []
        found = 0
        while self._entries and found < limit:
            _, _, serial, channel = heappop(self._entries)
            if self._noted.get(channel) == serial:
                own = self._heads_of(channel, limit)
                heads += own
                found += bool(own)
                channel.tell_fronts()
        return heads

    def _take_in(self) -> None:
        if len(self._entries) > 2 * len(self._queues):
            self._entries.clear()
            self.changed |= dict.fromkeys(self._noted)
        for channel in self.changed:
            heads = self._heads_of(channel, 1)
            self._noted.pop(channel, None)
            if heads:
                rank, order, _, _ = min(heads)
                self._noted[channel] = serial = next(self._serials)
                heappush(self._entries, (rank, order, serial, channel))
        self.changed.clear()

    def _heads_of(self, channel: Channel, limit: int) -> list[Head]:
        if channel.paused or not channel.lanes:
            return []
        return channel.heads_for(self._queues[channel.name], limit)


class Directory:
    """The declared queues and the open consumers."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self.has_bounds = False
        """Whether a queue is bounded, or was."""
        self._subscriptions: dict[Subscription, None] = {}
        self._suspected: dict[Channel, None] = {}
        """The queues that have suspects, or had some until recently."""
        self._fronts: dict[Subscription, Fronts] = {}
        """Those of consumers that read many queues."""

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
                self.channels[name] = channel = Channel(name, self._suspected)
                for subscription in self._subscriptions:
                    if name in subscription.queues:
                        self._enter(channel, subscription)

    def readers(self, name: str) -> int:
        """How many open consumers read the queue."""
        return sum(name in subscription.queues for subscription in self._subscriptions)

    def takers(self) -> list[Mapping[str, Topics]]:
        """What each open consumer takes."""
        return [dict(subscription.queues) for subscription in self._subscriptions]

    def open(self, subscription: Subscription) -> None:
        """From now on what this consumer takes is no stray. Raises `QueueNotDeclared`."""
        channels = [self.channel(name) for name in subscription.queues]
        self._subscriptions[subscription] = None
        if len(channels) > _FEW_QUEUES:
            self._fronts[subscription] = Fronts(subscription.queues)
        for channel in channels:
            self._enter(channel, subscription)

    def _enter(self, channel: Channel, subscription: Subscription) -> None:
        """Note at a queue that a consumer reads it."""
        if subscription in self._fronts:
            channel.fronts.append(self._fronts[subscription])
        channel.note_subscription(subscription)

    def close(self, subscription: Subscription) -> None:
        """The consumer takes nothing any more; what it leased stays leased."""
        del self._subscriptions[subscription]
        fronts = self._fronts.pop(subscription, None)
        for name in subscription.queues:
            if name in self.channels:
                channel = self.channels[name]
                if fronts is not None:
                    channel.fronts.remove(fronts)
                channel.note_subscription(subscription, -1)

    def close_all(self) -> None:
        """Close every consumer."""
        for subscription in list(self._subscriptions):
            self.close(subscription)

    def suspects_for(self, subscription: Subscription) -> list[Lane]:
        """The lanes this consumer may take suspects from now, none of them empty."""
        lanes: list[Lane] = []
        for channel in list(self._suspected):
            if not channel.suspects:
                del self._suspected[channel]
            elif channel.name in subscription.queues and not channel.paused:
                lanes += channel.suspects_for(subscription.queues[channel.name])
        return lanes

    def heads_for(
        self, subscription: Subscription, limit: int, at_most: AtMost
    ) -> tuple[list[Head], dict[Lane, list[Cap]]]:
        """What this consumer may take first now, enough for `limit` messages, and the limits of lanes that have any."""
        heads: list[Head] = []
        caps: dict[Lane, list[Cap]] = {}
        groups = [Cap(limit) for _, limit in at_most.groups]
        is_limited = bool(at_most.topics or groups)
        fronts = self._fronts.get(subscription)
        if fronts is not None and not is_limited and len(subscription.queues) > 4 * limit:
            return fronts.first(limit), caps
        for name, topics in subscription.queues.items():
            channel = self.channels.get(name)
            if channel is None or not channel.lanes or channel.paused:
                continue
            if channel.fronts:
                channel.tell_fronts()
            if not is_limited:
                heads += channel.heads_for(topics, limit)
                continue
            of_channel: list[Head] = []
            for lane in channel.lanes_for(topics):
                cap, group = at_most.of(name, lane.topic), at_most.group(name, lane.topic)
                found = [] if cap is None else [Cap(cap)]
                if group is not None:
                    found.append(groups[group])
                if all(one.left > 0 for one in found):
                    lane.add_heads(of_channel)
                if found:
                    caps[lane] = found
            channel.note_drawn(of_channel)
            heads += of_channel
        return heads, caps


REMOVED_AT_ONCE = 256
"""How many dead letters `remove_old` removes at most: others wait meanwhile."""


class DeadLetters:
    """Finds the dead of one id, and those that have been dead for `ttl` seconds (None: they stay).

    Each queue has its own by key, in the order in which they died. `_order` has all of them in that order, where one
    that was taken out early leaves nothing; it is kept only where there is a ttl.
    """

    __slots__ = ("_by_id", "_order", "_ttl")

    def __init__(self, ttl: float | None) -> None:
        self._ttl = ttl
        self._by_id: dict[str, list[Dead]] = {}
        self._order: OrderedDict[int, Channel] = OrderedDict()

    def add(self, channel: Channel, record: Record, end: End, now: float) -> None:
        """Take in what is not live any more."""
        assert end.reason is not None
        extras = record.extras or Extras()
        dead = Dead(
            envelope=record.envelope,
            enqueued_at=record.enqueued_at,
            died_at=now,
            attempt=extras.attempt,
            lost=extras.lost,
            reason=end.reason,
            failure=end.failure,
            progress=extras.progress,
        )
        channel.dead[record.order] = dead
        self._by_id.setdefault(record.id, []).append(dead)
        if self._ttl is not None:
            self._order[record.order] = channel

    def ends_at(self, dead: Dead) -> float:
        """When its ttl is over; inf if it has none."""
        return math.inf if self._ttl is None else dead.died_at + self._ttl

    def next_moment(self) -> float:
        """When the ttl of the next one is over; inf if there is none."""
        if not self._order:
            return math.inf
        key, channel = next(iter(self._order.items()))
        return self.ends_at(channel.dead[key])

    def remove_old(self, now: float) -> list[str]:
        """Remove some of those whose ttl is over; their ids."""
        ids: list[str] = []
        while len(ids) < REMOVED_AT_ONCE and self.next_moment() <= now:
            key, channel = next(iter(self._order.items()))
            ids.append(channel.dead[key].envelope.id)
            self.take(channel, key)
        return ids

    def take(self, channel: Channel, key: int) -> None:
        """Take one out."""
        dead = channel.dead.pop(key)
        self._order.pop(key, None)
        self._keep(dead.envelope.id, [other for other in self._by_id[dead.envelope.id] if other is not dead])

    def take_all(self, channel: Channel) -> set[str]:
        """Take out all of one queue; their ids."""
        ids = {dead.envelope.id for dead in channel.dead.values()}
        for id_ in ids:
            self._keep(id_, [other for other in self._by_id[id_] if other.envelope.queue != channel.name])
        for key in channel.dead:
            self._order.pop(key, None)
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


class Wanted(NamedTuple):
    """Room that a queue did not have: for `size` messages of `volume` bytes together."""

    channel: Channel
    size: int
    volume: int

    def at_most(self, other: Wanted | None) -> Wanted:
        """What makes it worth asking again for either of the two."""
        if other is None or other.channel is not self.channel:
            return self
        return Wanted(self.channel, min(self.size, other.size), min(self.volume, other.volume))

    @property
    def is_there(self) -> bool:
        """Whether there is that room now."""
        return self.channel.bounded is None or self.channel.bounded.admits(self.size, self.volume)


class Admission:
    """Which messages of one call come in, as far as their queues are concerned. `is_forced`: also where there is no
    room.

    `full`: where to note for how much a queue had no room. `live`: the ids of live messages. `overflowing`: queues that
    may hold too much now, and drop the oldest.
    """

    __slots__ = ("_directory", "_full", "_is_forced", "_live", "_refused", "overflowing")

    def __init__(
        self, directory: Directory, full: dict[str, Wanted], live: Collection[str], *, is_forced: bool = False
    ) -> None:
        self._live = live
        self.overflowing: dict[Channel, None] = {}
        self._directory = directory
        self._full = full
        self._is_forced = is_forced
        self._refused: dict[Channel, QueueFull] = {}

    def check(self, channel: Channel | None, envelope: Envelope, *, is_plain: bool) -> BrokerRefused | None:
        """Why a message is refused; None: it comes in. If it `is_plain`, it counts from now on; others when they are
        placed.
        """
        if channel is None:
            return QueueNotDeclared(envelope.queue)
        if envelope.id in self._live:
            return DuplicateId(envelope.id, channel.name)
        bounded = channel.bounded
        if bounded is None:
            return None
        if (
            is_plain
            and not bounded.drops_oldest
            and channel not in self._refused
            and bounded.take(envelope.payload, forced=self._is_forced)
        ):
            return None
        refused = None if self._is_forced and not bounded.drops_oldest else self.refuse(channel, envelope)
        if refused is None and is_plain:
            bounded.note(envelope.payload)
        return refused

    def refuse(self, channel: Channel, *envelopes: Envelope) -> QueueFull | None:
        """Why these are refused, which go in together or not at all; None: they come in."""
        bounded = channel.bounded
        if bounded is None:
            return None
        if bounded.drops_oldest:
            self.overflowing[channel] = None
        if self._is_forced:
            return None
        before = self._refused.get(channel)  # what comes behind one that was refused must not overtake it
        volume = sum([len(envelope.payload) for envelope in envelopes])
        if before is None and bounded.admits(len(envelopes), volume):
            return None
        if before is not None and before.can_wait and ever_fits(bounded.bounds, len(envelopes), volume):
            return before  # its sender waits, and is told nothing of it
        name = channel.name
        readers = self._directory.readers(name) if before is None else before.readers
        refused = refusal(name, bounded.bounds, len(envelopes), volume, readers)
        if refused.can_fit and before is None:
            self._refused[channel] = refused
            self._full[name] = Wanted(channel, len(envelopes), volume).at_most(self._full.get(name))
        return refused

    def refuse_whole(self, outbox: Iterable[Envelope]) -> QueueFull | None:
        """Why an outbox is refused, which comes in as a whole or not at all; None: there is room for it."""
        wanted: dict[Channel, list[Envelope]] = {}
        for envelope in outbox:
            channel = self._directory.channels.get(envelope.queue)
            if channel is not None and channel.bounded is not None and envelope.id not in self._live:
                wanted.setdefault(channel, []).append(envelope)
        refused = (self.refuse(channel, *envelopes) for channel, envelopes in wanted.items())
        return next((each for each in refused if each is not None), None)
