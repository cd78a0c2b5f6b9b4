"""The declared queues, their lanes, and who takes what, as all processes see them.

A copy of three tables. A transaction that changes them puts `meta.directory` up first: so those that change them wait
for one another, in one order. A statement that acts on what the copy says also says which version that is; if the
database has another one, it does nothing, and is made again with a new copy. A version is a moment of the clock, as far
as it goes forward: versions that were counted would come again where the tables are made anew or come out of a backup,
and the numbers of queues and lanes in the copy would then be those of others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ...delivery import Bounds
from ...delivery.shelf import is_stray, takes
from ...errors import BrokerUnavailable, QueueNotDeclared
from ...ports import Topics
from ..shared.packing import pack, to_bounds
from .binding import Step, statement
from .pool import Pool
from .rows import MICRO, check_name
from .wire import Rows, Wire

CONSUMER_TIME = 30
"""Seconds. A consumer that was silent for this long counts as dead: messages that only it takes may go to others."""

_unpack_takes = msgspec.msgpack.Decoder(dict[str, frozenset[str] | None]).decode

_VERSION = statement("SELECT directory, {s}.clock(), tableoid::bigint FROM {s}.meta")
_QUEUES = statement("SELECT id, name, paused, bounds FROM {s}.queue")
_LANES = statement("SELECT id, queue, topic, suspects, priority FROM {s}.lane ORDER BY id")
_CONSUMERS = statement("SELECT id, until, takes FROM {s}.consumer")
GATE = "EXISTS (SELECT FROM {s}.lane)"
"""A condition of each first statement of a transaction that puts rows into lanes. It locks the table of lanes. So a
transaction that deletes a queue waits for this one and sees its rows; and this one waits for that one, and sees the new
version then. With the version alone, what is stored while a queue is deleted would stay in a lane that does not exist.
"""

TOUCH = Step(statement("UPDATE {s}.meta SET directory = greatest(directory + 1, {s}.clock())"))
"""Have every process read the tables anew."""

_SNAPSHOT = Step(statement("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"))
_END = Step(statement("COMMIT"))
_TABLES = (Step(_VERSION), Step(_QUEUES), Step(_LANES), Step(_CONSUMERS))

_DECLARE = statement(
    "INSERT INTO {s}.queue (name) SELECT DISTINCT name FROM unnest($1) AS n (name) ORDER BY name "
    "ON CONFLICT DO NOTHING",
    "text[]",
)
_ADD_LANES = statement(
    """
    INSERT INTO {s}.lane (queue, topic, suspects, priority)
    SELECT queue.id, l.topic, l.suspects = 1, l.priority
    FROM unnest($1, $2, $3, $4) AS l (queue, topic, suspects, priority)
    JOIN {s}.queue ON queue.name = l.queue
    ON CONFLICT DO NOTHING
    """,
    "text[]",
    "text[]",
    "int8[]",
    "int8[]",
)
_PAUSED = statement("SELECT name, paused FROM {s}.queue WHERE name = ANY($1)", "text[]")
_PAUSE = statement("UPDATE {s}.queue SET paused = $2 WHERE name = $1", "text", "bool")
_OPEN = statement(
    """
    INSERT INTO {s}.consumer (id, until, takes) VALUES (coalesce($3, nextval('{s}.member')), {s}.clock() + $1, $2)
    ON CONFLICT (id) DO UPDATE SET until = excluded.until, takes = excluded.takes RETURNING id
    """,
    "int8",
    "bytea",
    "int8",
)
_TAKERS = statement("SELECT takes FROM {s}.consumer WHERE until > {s}.clock() ORDER BY id")
_CLOSE = statement("DELETE FROM {s}.consumer WHERE id = ANY($1)", "int8[]")
_BURY = statement(
    "DELETE FROM {s}.consumer WHERE until < {s}.clock() RETURNING id",
)
_BEAT = statement("UPDATE {s}.consumer SET until = {s}.clock() + $2 WHERE id = ANY($1) RETURNING id", "int8[]", "int8")
_COME_BACK = statement(
    "INSERT INTO {s}.consumer (id, until, takes) VALUES ($1, {s}.clock() + $2, $3) ON CONFLICT (id) DO NOTHING",
    "int8",
    "int8",
    "bytea",
)


class Lane(NamedTuple):
    """One topic of one queue with one priority. `suspects`: of the messages that must be leased alone."""

    id: int
    queue: str
    topic: str | None
    suspects: bool
    priority: int


class Place(NamedTuple):
    """What a lane is for."""

    queue: str
    topic: str | None
    priority: int
    suspects: bool = False


def place_of(lane: Lane, *, suspects: bool | None = None) -> Place:
    """What a lane is for; or the same for messages that must be leased alone, or may be leased with others."""
    return Place(lane.queue, lane.topic, lane.priority, lane.suspects if suspects is None else suspects)


class Directory:
    """The copy."""

    def __init__(self) -> None:
        self.version = -1
        self.tables: int | None = None
        """The number of one of the tables; others of the same name have another one."""
        self.queues: dict[str, tuple[int, bool]] = {}
        """By name: the queue's number, and whether it is paused."""
        self.bounds: dict[str, Bounds] = {}
        """Of the queues that are bounded."""
        self.lanes: dict[int, Lane] = {}
        self.places: dict[Place, int] = {}
        self._takers: dict[int, Mapping[str, frozenset[str] | None]] = {}
        self._lanes_for: dict[int, tuple[list[Lane], list[Lane]]] = {}

    async def refresh(self, wire: Wire) -> None:
        """Read everything anew."""
        await self.refresh_and_read(wire, [])

    async def refresh_and_read(self, wire: Wire, steps: Sequence[Step]) -> list[Rows]:
        """Read everything anew, and something else as it stood at that moment: the rows of each step."""
        [_, *found, _] = await wire.run([_SNAPSHOT, *_TABLES, *steps, _END])
        self._take(found[: len(_TABLES)])
        return found[len(_TABLES) :]

    async def refresh_inside(self, wire: Wire) -> None:
        """Read everything anew inside a transaction that is open, with what that transaction did itself."""
        self._take(await wire.run(list(_TABLES)))

    def _take(self, tables: Sequence[Rows]) -> None:
        [(version, now, number)], queues, lanes, consumers = tables
        if self.tables not in {None, number}:
            raise BrokerUnavailable("somebody has removed repid's tables, and made them anew")
        self.tables = number
        names = {id_: name for id_, name, *_ in queues}
        self.queues = {name: (id_, paused) for id_, name, paused, _ in queues}
        found = ((name, to_bounds(packed)) for _, name, _, packed in queues if packed is not None)
        self.bounds = {name: bounds for name, bounds in found if bounds is not None}
        self.lanes = {
            id_: Lane(id_, names[queue], topic, suspects, priority)
            for id_, queue, topic, suspects, priority in lanes
            if queue in names
        }
        self.places = {place_of(lane): lane.id for lane in self.lanes.values()}
        self._takers = {id_: _unpack_takes(takes) for id_, until, takes in consumers if until > now}
        self._lanes_for.clear()
        self.version = version

    def number(self, queue: str) -> int:
        """The number of a declared queue. Raises `QueueNotDeclared`."""
        found = self.queues.get(queue)
        if found is None:
            raise QueueNotDeclared(queue)
        return found[0]

    def readers(self, queue: str) -> int:
        """How many open consumers read the queue, as far as the copy says."""
        return sum(queue in takes for takes in self._takers.values())

    def lanes_of(self, queue: str) -> list[int]:
        """All lanes of a queue."""
        return [lane.id for lane in self.lanes.values() if lane.queue == queue]

    def lanes_for(self, consumer: int) -> tuple[list[Lane], list[Lane]]:
        """The lanes this consumer may take from, and those of suspects: what it asked for, and what no consumer asked
        for.
        """
        known = self._lanes_for.get(consumer)
        if known is None:
            taker = self._takers.get(consumer)
            lanes = [] if taker is None else list(self._lanes_of(taker))
            known = [lane for lane in lanes if not lane.suspects], [lane for lane in lanes if lane.suspects]
            self._lanes_for[consumer] = known
        return known

    def knows(self, consumer: int) -> bool:
        """Whether the database has this consumer."""
        return consumer in self._takers

    def _lanes_of(self, taker: Mapping[str, frozenset[str] | None]) -> Iterator[Lane]:
        wanted = {name: [other[name] for other in self._takers.values() if name in other] for name in taker}
        for lane in self.lanes.values():
            if lane.queue not in taker or self.queues[lane.queue][1]:
                continue
            if takes(taker[lane.queue], lane.topic) or is_stray(lane.topic, wanted[lane.queue]):
                yield lane


def declaring(names: Iterable[str]) -> list[Step]:
    """What creates the queues that do not exist yet."""
    wanted = list(names)
    for name in wanted:
        check_name("queue", name)
    return [TOUCH, Step(_DECLARE, (wanted,))]


def adding(places: Collection[Place]) -> list[Step]:
    """What creates these lanes, where they do not exist yet and their queues do."""
    wanted = sorted(places, key=lambda place: (place.queue, place.topic or "", place.priority, place.suspects))
    columns = zip(*((p.queue, p.topic, int(p.suspects), p.priority) for p in wanted), strict=True)
    return [TOUCH, Step(_ADD_LANES, tuple(columns))] if wanted else []


def pausing(name: str, *, paused: bool) -> list[Step]:
    """What holds a queue, or lets it go on."""
    return [TOUCH, Step(_PAUSE, (name, paused))]


async def paused(pool: Pool, names: Sequence[str]) -> dict[str, bool]:
    """Whether each of these queues is paused; those that are not declared are left out."""
    return dict(await pool.ask(_PAUSED, [name for name in names if "\0" not in name]))


async def open_consumer(pool: Pool, queues: Mapping[str, Topics], known: int | None) -> tuple[int, bytes]:
    """Enter a consumer: its number, which may be known from an earlier link, and what it takes."""
    packed = pack({name: None if topics is None else sorted(topics) for name, topics in queues.items()})
    [_, [(id_,)]] = await pool.run([TOUCH, Step(_OPEN, (CONSUMER_TIME * MICRO, packed, known))])
    return id_, packed


async def takers(pool: Pool) -> list[Mapping[str, Topics]]:
    """What each consumer takes that is present."""
    return [_unpack_takes(packed) for (packed,) in await pool.ask(_TAKERS)]


def closing(consumers: Iterable[int]) -> list[Step]:
    """What strikes consumers off; what they leased stays leased."""
    return [TOUCH, Step(_CLOSE, (list(consumers),))]


async def beat(pool: Pool, consumers: Mapping[int, bytes]) -> None:
    """Say that these consumers are present, also where another process had taken them for dead."""
    if consumers:
        known = {id_ for (id_,) in await pool.ask(_BEAT, list(consumers), CONSUMER_TIME * MICRO)}
        if missing := [id_ for id_ in consumers if id_ not in known]:
            steps = [Step(_COME_BACK, (id_, CONSUMER_TIME * MICRO, consumers[id_])) for id_ in missing]
            await pool.run([TOUCH, *steps])


async def beat_on(wire: Wire, consumers: Mapping[int, bytes]) -> None:
    """Say on this connection that consumers are present which others have taken for dead."""
    steps = [Step(_COME_BACK, (id_, CONSUMER_TIME * MICRO, takes)) for id_, takes in consumers.items()]
    await wire.run([TOUCH, *steps])


async def bury(pool: Pool) -> bool:
    """Remove the consumers that were silent for too long. Returns whether there were any."""
    found = await pool.ask(_BURY)
    if found:
        await pool.run([TOUCH])
    return bool(found)
