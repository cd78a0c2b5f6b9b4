"""Messages in: publishing, and reviving what is dead.

Theory. One statement stores a batch: bodies, and their places in `ready` and `scheduled`. Which of them were let in is
seen from the ids it returns. It does nothing where the directory has changed since lanes were looked up. The rank of a
message, when it is due and when it expires are what `repid.delivery.shelf.after_publishing` says, computed on the
server's clock; tests hold the two against each other. Numbers: each batch takes one from a sequence, and a message's
`seq` is that and its place in the batch.

Two statements store. An insert that skips ids which are alive (ON CONFLICT) costs the server a lock and a line of its
log (WAL) for each message, half as much again as the insert alone. So a transaction of our own looks the ids up first
and then just inserts. If somebody stored one of them in between, that fails and nothing was done: it is made again in
the other way. In a transaction with something else in it such a failure would undo that as well, so there the first
statement is used.

Columns are unnested in a SELECT list, which goes through all of them together, row by row, and gives NULL for a column
that has ended. In FROM the server would first store the rows of each column.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import copy
from functools import lru_cache
from typing import TypeVar

from msgspec.structs import replace

from ...delivery.shelf import offset_of
from ...envelope import NO_OPTIONS, TOPIC, Envelope, Options, PrioritiesT
from ...errors import BrokerRefused, DuplicateId, QueueNotDeclared
from ...ports import BrowsedMessage
from ..shared.packing import pack
from .binding import Statement, Step, statement
from .bounding import Admission, Run, drop_oldest, find_alive, holding, measure
from .directory import GATE, Directory, Place, adding, declaring, place_of
from .errors import DEADLOCK, ServerError
from .pool import Pool, in_transaction, transaction
from .rows import Bodies, Body, micros, to_bodies, to_id, to_options
from .shelving import Taken
from .wire import Rows, Wire

BATCH = 4096
"""Messages that one statement stores at most; a message's `seq` is its batch times this and its place there."""

UNCHECKED = -1
"""In place of a version of the directory: the transaction that publishes has locked it."""

_USUAL_OFFSET = offset_of(NO_OPTIONS, micros)


def _publishing(condition: str, on_conflict: str, stored: str) -> Statement:
    """A statement that stores a batch. `condition`: what else must hold for a row. `on_conflict`: the end of the
    insert. `stored`: which part of the statement has the rows that are stored.
    """
    return statement(
        f"""
        WITH input AS MATERIALIZED (
            SELECT (SELECT nextval('{{s}}.batch')) * {BATCH} + i.place AS seq, i.lane, now + i.wait + i.off AS rank,
                i.id, i.payload, i.kind, i.rare, i.result_id,
                CASE WHEN i.wait > 0 THEN now + i.wait END AS due, now + i.wait + i.ttl AS expires_at,
                now AS enqueued_at
            FROM (
                SELECT id, lane, payload, kind, rare, result_id, coalesce(off, {_USUAL_OFFSET}) AS off,
                    coalesce(wait, 0) AS wait, ttl, place
                FROM (
                    SELECT unnest($2) AS id, unnest($3) AS lane, unnest($4) AS payload, unnest($5) AS kind,
                        unnest($6) AS rare,
                        unnest($7) AS result_id, unnest($8) AS off, unnest($9) AS wait, unnest($10) AS ttl,
                        generate_series(0, $11 - 1) AS place
                ) AS u
            ) AS i,
                (SELECT {{s}}.clock() AS now OFFSET 0) AS time
            WHERE ($1 = {UNCHECKED} OR (SELECT directory FROM {{s}}.meta WHERE {GATE}) = $1){condition}
        ), inserted AS (
            INSERT INTO {{s}}.message
                (seq, lane, rank, id, payload, kind, rare, result_id, due, expires_at, enqueued_at)
            SELECT seq, lane, rank, id, payload, kind, rare, result_id, due, expires_at, enqueued_at
            FROM input ORDER BY id, seq
            {on_conflict}
        ), waiting AS (
            INSERT INTO {{s}}.ready (lane, rank, seq, expires_at)
            SELECT lane, rank, seq, expires_at FROM {stored} WHERE due IS NULL
        ), later AS (
            INSERT INTO {{s}}.scheduled (lane, rank, seq, expires_at, due)
            SELECT lane, rank, seq, expires_at, due FROM {stored} WHERE due IS NOT NULL
        ), old AS (
            DELETE FROM {{s}}.result WHERE id = ANY(ARRAY(SELECT coalesce(result_id, id) FROM {stored}))
        )
        SELECT count(*), CASE WHEN count(*) < $11 THEN coalesce(array_agg(id), '{{}}') END FROM {stored}
        """,
        "int8",
        "bytea[]",
        "int8[]",
        "bytea[]",
        "int8[]",
        "bytea[]",
        "bytea[]",
        "int8[]",
        "int8[]",
        "int8[]",
        "int8",
    )


_PUBLISH = _publishing(
    "",
    "ON CONFLICT (id) DO NOTHING RETURNING seq, lane, rank, id, result_id, due, expires_at",
    "inserted",
)
"""How many were stored, and the ids of these; NULL if all were."""

_PUBLISH_NEW = _publishing(
    " AND i.id NOT IN (SELECT m.id FROM {s}.message AS m WHERE m.id = ANY($2) OFFSET 0)", "", "input"
)
"""As `_PUBLISH`, for a transaction of its own, and for ids that differ. Fails with `_TAKEN` where one of them was
stored meanwhile.
"""

_TAKEN = "23505"
"""The SQLSTATE of a row that is there already."""

_DIRECTORY = statement("SELECT directory FROM {s}.meta")
_HOLD_DIRECTORY = Step(statement("SELECT FROM {s}.meta FOR SHARE"))
"""Nobody changes the directory until the transaction ends."""

KEEP_DIRECTORY = Step(statement("SELECT FROM {s}.meta FOR NO KEY UPDATE"))
"""As `_HOLD_DIRECTORY`, for who may change it too: two that only hold it could not both go on to change it."""

HOLD_LANES = Step(
    statement("SELECT tableoid::bigint FROM {s}.meta WHERE NOT EXISTS (SELECT FROM {s}.lane WHERE id < 0)")
)
"""No queue is deleted until the transaction ends, since this locks what it looks at. It gives the number of a table,
which is another one in another database.
"""

_DEAD = statement(
    "SELECT key, id, lane, payload, kind, rare, result_id FROM {s}.dead WHERE queue + 0 = $1 AND key = ANY($2) "
    "ORDER BY key FOR UPDATE",
    "int8",
    "int8[]",
)
_STORE_DEAD = statement(
    """
    INSERT INTO {s}.dead (queue, lane, id, payload, kind, rare, result_id,
        attempt, lost, reason, failure, enqueued_at, died_at)
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        AS t (queue, lane, id, payload, kind, rare, result_id, attempt, lost, reason, failure, enqueued_at, died_at)
    WHERE NOT EXISTS (SELECT FROM {s}.dead AS d WHERE d.id = t.id AND d.died_at + 0 = t.died_at OFFSET 0)
    """,
    "int8[]",
    "int8[]",
    "bytea[]",
    "bytea[]",
    "int8[]",
    "bytea[]",
    "bytea[]",
    "int8[]",
    "int8[]",
    "text[]",
    "bytea[]",
    "int8[]",
    "int8[]",
)
_FORGET_DEAD = statement("DELETE FROM {s}.dead WHERE key = ANY($1)", "int8[]")


T = TypeVar("T")


class Sending:
    """Envelopes on their way in, with the rows and the lanes that they go to."""

    def __init__(self, envelopes: Sequence[Envelope]) -> None:
        self.envelopes = envelopes
        self.bodies = to_bodies(envelopes)
        self.places = _to_places(envelopes)
        self.lanes = set(self.places)
        self.outcomes: list[BrokerRefused | None] = [None] * len(envelopes)
        self.left = list(range(len(envelopes)))
        """Which of them were neither stored nor refused yet."""
        self.dropped: dict[str, list[Taken]] = {}
        """What full queues have dropped for these."""

    @property
    def ids_differ(self) -> bool:
        """Whether no two of them have the same id."""
        return len(set(self.bodies.keys)) == len(self.bodies.keys)

    def lacking(self, directory: Directory) -> set[Place]:
        """The lanes that do not exist yet, of queues that do."""
        return {place for place in self.lanes if place not in directory.places and place.queue in directory.queues}

    def refuse_undeclared(self, directory: Directory) -> None:
        """Refuse what is for queues that do not exist."""
        undeclared = {place.queue for place in self.lanes if place.queue not in directory.queues}
        if undeclared:
            for index in self.left:
                if self.places[index].queue in undeclared:
                    self.outcomes[index] = QueueNotDeclared(self.places[index].queue)
            self.left = [index for index in self.left if self.outcomes[index] is None]

    def bounded(self, directory: Directory) -> list[str]:
        """The bounded queues that what is left goes to."""
        return sorted({place.queue for place in self.lanes} & directory.bounds.keys())

    def keys_for(self, queues: Collection[str]) -> list[bytes]:
        """The ids of what is left for these queues."""
        return [self.bodies.keys[index] for index in self.left if self.places[index].queue in queues]

    def sizes(self, queues: Collection[str], alive: Collection[bytes]) -> dict[str, list[int]]:
        """By queue, the sizes of what would be let into these queues."""
        found: dict[str, list[int]] = {}
        for place, key, payload in zip(self.places, self.bodies.keys, self.bodies.payloads, strict=True):
            if place.queue in queues and key not in alive:
                found.setdefault(place.queue, []).append(len(payload))
        return found

    def refuse_full(self, bounded: Collection[str], admission: Admission, alive: Collection[bytes]) -> None:
        """Refuse what has no room; `alive`: ids that are refused for being alive."""
        taken = set(alive)
        for index in self.left:
            queue, key = self.places[index].queue, self.bodies.keys[index]
            if queue in bounded and key not in taken:
                self.outcomes[index] = admission.refuse(queue, 1, len(self.envelopes[index].payload))
            if self.outcomes[index] is None:
                taken.add(key)
        self.left = [index for index in self.left if self.outcomes[index] is None]

    def storing(self, directory: Directory, version: int, insert: Statement = _PUBLISH) -> list[Step]:
        """The statements that store what is left."""
        return [
            _store(
                insert,
                version,
                self.bodies.part(part),
                [directory.places[self.places[index]] for index in part],
                [self.envelopes[index].options for index in part],
            )
            for part in _parts(self.left)
        ]

    def steps(self, directory: Directory, insert: Statement = _PUBLISH) -> list[Step]:
        """The statements that store what is left, and one that reads the version of the directory afterwards."""
        found = self.storing(directory, directory.version, insert)
        if len(found) > 1:
            found.insert(0, _HOLD_DIRECTORY)  # so that all of them see one directory
        return [*found, Step(_DIRECTORY)]

    def note(self, answers: Sequence[Rows], version: int) -> bool:
        """Take the answers to `steps`; whether they were carried out, and not a change of the directory in
        their way.
        """
        *stored, [(found,)] = answers
        stored = stored[-len(_parts(self.left)) :]
        if found != version and not any(count for [(count, _)] in stored):
            return False
        self.take(stored)
        return True

    def take(self, stored: Sequence[Rows]) -> None:
        """Take the answers to `storing`: what was not stored has an id that is alive."""
        for part, [(_, keys)] in zip(_parts(self.left), stored, strict=True):
            if keys is None:
                continue
            accepted = set(keys)
            for index in part:
                key = self.bodies.keys[index]
                if key in accepted:
                    accepted.discard(key)  # a second one with this id was not let in
                else:
                    envelope = self.envelopes[index]
                    self.outcomes[index] = DuplicateId(envelope.id, envelope.queue)
        self.left = []

    @property
    def accepted(self) -> Iterator[Envelope]:
        """What was stored."""
        return (e for e, outcome in zip(self.envelopes, self.outcomes, strict=True) if outcome is None)


def _to_places(envelopes: Sequence[Envelope]) -> list[Place]:
    places: list[Place] = []
    queue = headers = options = place = None
    for one in envelopes:
        if place is None or one.headers is not headers or one.options is not options or one.queue is not queue:
            queue, headers, options = one.queue, one.headers, one.options  # a batch often shares them
            place = _to_place(queue, headers.get(TOPIC), options.priority)
        places.append(place)
    return places


@lru_cache(4096)
def _to_place(queue: str, topic: str | None, priority: int | None) -> Place:
    return Place(queue, topic, int(PrioritiesT.MEDIUM if priority is None else priority))


def _parts(chosen: Sequence[int]) -> list[Sequence[int]]:
    return [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]


def _store(insert: Statement, version: int, bodies: Bodies, lanes: Sequence[int], options: Sequence[Options]) -> Step:
    keys, payloads, kinds, rares, result_keys = bodies
    offs: list[int] | None = None
    waits: list[int] | None = None
    ttls: list[int | None] | None = None
    if options.count(NO_OPTIONS) != len(options):
        offs = [offset_of(o, micros) for o in options]
        waits = [0 if o.delay is None or o.delay <= 0 else micros(o.delay) for o in options]
        ttls = [None if o.ttl is None else micros(o.ttl) for o in options]
    columns = keys, lanes, payloads, _unless_empty(kinds), _unless_empty(rares), _unless_empty(result_keys)
    return Step(insert, (version, *columns, offs, waits, ttls, len(keys)))


def _unless_empty(column: Sequence[T | None]) -> Sequence[T | None] | None:
    """The column, or None where nothing is in it: each column costs the server time, and what is lacking is
    filled up.
    """
    return None if column.count(None) == len(column) else column


async def publish(pool: Pool, directory: Directory, sending: Sending, after: Step) -> None:
    """Store all that is allowed in, in one transaction; the outcomes are in `sending`. `after` is carried out behind
    it.
    """
    insert = _PUBLISH_NEW if sending.ids_differ else _PUBLISH
    async with pool.wire() as wire:
        await prepare(wire, directory, sending)
        while sending.left:
            if directory.bounds and (bounded := sending.bounded(directory)):
                is_done = await _publish_bounded(wire, directory, sending, bounded, after)
            else:
                version = directory.version
                try:
                    [*answers, _] = await wire.run(sending.steps(directory, insert), [after])
                    is_done = sending.note(answers, version)
                except ServerError as error:
                    # In a deadlock another transaction wants ids that this one has stored, and has those that this
                    # one wants: it goes on now, and they are there.
                    if error.code != DEADLOCK and (error.code != _TAKEN or insert is _PUBLISH):
                        raise
                    insert, is_done = _PUBLISH, False
            if is_done:
                return
            await directory.refresh(wire)
            await prepare(wire, directory, sending)


async def _publish_bounded(wire: Wire, directory: Directory, sending: Sending, bounded: list[str], after: Step) -> bool:
    """Store what has room, while no other sender gets into these queues. Returns False if the directory has changed."""
    directory = copy(directory)  # other tasks read theirs anew meanwhile
    async with in_transaction(wire, after):
        _, [(version,)], _ = await wire.run([_HOLD_DIRECTORY, Step(_DIRECTORY), holding(directory, bounded)])
        if version != directory.version:
            return False
        admission = Admission(directory, await measure(wire.run, directory, bounded))
        sending.refuse_full(bounded, admission, await find_alive(wire.run, sending.keys_for(bounded)))
        if sending.left:
            sending.take(await wire.run(sending.storing(directory, UNCHECKED)))
        sending.dropped = await drop_oldest(wire, directory, bounded)
    return True


async def refuse_full_in(run: Run, directory: Directory, sending: Sending) -> None:
    """Refuse what has no room, as far as can be seen in a transaction of the caller's own."""
    directory = copy(directory)  # other tasks read theirs anew meanwhile
    if directory.bounds and (bounded := sending.bounded(directory)):
        admission = Admission(directory, await measure(run, directory, bounded))
        sending.refuse_full(bounded, admission, await find_alive(run, sending.keys_for(bounded)))


async def prepare(wire: Wire, directory: Directory, sending: Sending) -> None:
    """Make the lanes that are lacking, and refuse what is for no queue."""
    if any(place not in directory.places for place in sending.lanes):
        await directory.refresh(wire)
        while lacking := sending.lacking(directory):  # again if the queue was deleted and declared anew meanwhile
            await wire.run(adding(lacking))
            await directory.refresh(wire)
    sending.refuse_undeclared(directory)


async def publish_in(wire: Wire, directory: Directory, sending: Sending) -> None:
    """Publish inside a transaction that is open; queues are declared if need be.

    What was made here is undone with the transaction, so a copy of the directory is used. Others may have deleted what
    the directory knows, but nobody deletes what was declared here before the transaction ends.
    """
    known, local = directory, Directory()
    while True:
        lanes = {place for place in sending.lanes if place not in known.places}
        if lanes:
            missing = {place.queue for place in lanes if place.queue not in known.queues}
            await wire.run([*declaring(sorted(missing)), *adding(lanes)])
        await local.refresh_inside(wire)
        known = local
        if all(place in local.places for place in sending.lanes):
            version = local.version
            if sending.note(await wire.run(sending.steps(local)), version):
                break
    if local.bounds:
        sending.dropped = await drop_oldest(wire, local, {place.queue for place in sending.lanes})


async def revive(pool: Pool, directory: Directory, queue: str, keys: Collection[int]) -> list[BrokerRefused | None]:
    """Make the dead messages with these keys ready again, as new ones."""
    number = directory.number(queue)
    wanted = list(keys)
    async with transaction(pool) as wire:
        _, rows = await wire.run([KEEP_DIRECTORY, Step(_DEAD, (number, wanted))])
        found = {key: (Body(id_, *body), lane) for key, id_, lane, *body in rows}
        order = [key for key in dict.fromkeys(wanted) if key in found]
        local = Directory()
        await local.refresh_inside(wire)
        back = {key: place_of(local.lanes[found[key][1]], suspects=False) for key in order}
        if lacking := {place for place in back.values() if place not in local.places}:
            await wire.run(adding(lacking))
            await local.refresh_inside(wire)
        stored: set[bytes] = set()
        revived: dict[int, bool] = {}
        for part in _parts(order):
            options = [replace(to_options(found[key][0].rare), delay=None) for key in part]  # its time had come
            lanes = [local.places[back[key]] for key in part]
            bodies = Bodies(*zip(*(found[key][0] for key in part), strict=True))
            [[(_, keys_)]] = await wire.run([_store(_PUBLISH, local.version, bodies, lanes, options)])
            stored.update(bodies.keys if keys_ is None else keys_)
        for key in order:
            id_ = found[key][0].key
            revived[key] = id_ in stored
            stored.discard(id_)
        await wire.run([Step(_FORGET_DEAD, ([key for key, done in revived.items() if done],))])
    answers: list[BrokerRefused | None] = []
    for key in wanted:
        if key not in revived:
            answers.append(BrokerRefused(f"no dead message in {queue!r} has the key {key}"))
        elif revived[key]:
            answers.append(None)
            del revived[key]  # asked for twice, it is not there the second time
        else:
            answers.append(DuplicateId(to_id(found[key][0].key), queue))
    return answers


async def store_dead(pool: Pool, messages: Sequence[BrowsedMessage]) -> None:
    """Keep these as dead letters, except those that are kept already."""
    sending = Sending([message.envelope for message in messages])
    async with transaction(pool) as wire:
        await wire.run([KEEP_DIRECTORY])
        local = Directory()
        await local.refresh_inside(wire)
        if lacking := sending.lacking(local):
            await wire.run(adding(lacking))
            await local.refresh_inside(wire)
        rows = [
            (
                local.number(place.queue),
                local.places[place],
                *body,
                message.attempt,
                message.lost,
                message.reason or "failed",
                None if message.failure is None else pack(message.failure),
                *(
                    micros(message.seen_at if moment is None else moment)
                    for moment in (message.enqueued_at, message.died_at)
                ),
            )
            for message, place, *body in zip(messages, sending.places, *sending.bodies, strict=True)
        ]
        await wire.run([Step(_STORE_DEAD, tuple(zip(*rows, strict=True)))])
