"""Messages in: publishing, and reviving what is dead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, groupby

from ...delivery import Failure
from ...delivery.shelf import after_publishing, after_reviving
from ...envelope import TOPIC, Envelope, PrioritiesT
from ...errors import BrokerRefused, DuplicateId, QueueNotDeclared
from ...ports import BrowsedMessage
from ..shared.packing import pack
from .bounding import Admission
from .clock import micros
from .directory import Channel
from .rows import BODY, BODY_COLUMNS, PLAIN, PLAIN_COLUMNS, Body, Key, lane_topic, to_envelope, to_id, to_options
from .store import Store
from .unreadable import read_or, to_unreadable

_AT_ONCE = (100, 20, 5, 1)
"""Rows in one statement, most first: each of a hundred costs two thirds of what it costs alone (measured)."""


def _insert(columns: str, rows: int) -> str:
    marks = f"({', '.join('?' * (columns.count(',') + 1))})"
    return f"INSERT INTO message ({columns}) VALUES {', '.join([marks] * rows)} ON CONFLICT (id) DO NOTHING"  # noqa: S608


_INSERTS = {
    columns.count(",") + 1: [(count, _insert(columns, count)) for count in _AT_ONCE]
    for columns in (f"seq, lane, enqueued_at, rank, {PLAIN}", f"seq, lane, enqueued_at, rank, due, expires_at, {BODY}")
}
"""By the length of a row: how many rows each statement takes, and the statement."""

_MAKE_READY = """
INSERT INTO ready SELECT lane, rank, seq FROM message WHERE seq BETWEEN ? AND ? AND due IS NULL
"""
_MAKE_ONE_READY = "INSERT INTO ready (lane, rank, seq) VALUES (?, ?, ?)"
"""For a single message, without a look at its row."""

_MEDIUM = micros(PrioritiesT.MEDIUM)

_MAKE_SCHEDULED = """
INSERT INTO scheduled SELECT due, seq, lane FROM message WHERE seq BETWEEN ? AND ? AND due IS NOT NULL
"""
_REVIVE = f"""
INSERT INTO message (seq, lane, enqueued_at, rank, expires_at, {BODY})
SELECT ?, ?, ?, ?, ?, {BODY} FROM dead WHERE key = ?
"""  # noqa: S608

_STORE_DEAD = f"""
INSERT INTO dead (queue, lane, {BODY}, attempt, lost, reason, failure, died_at, enqueued_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""  # noqa: S608

PLAIN_ROW = 4 + PLAIN_COLUMNS
"""Columns of a row that has neither due time nor expiry nor anything else but `PLAIN`."""

_INSERT_PLAIN = dict(_INSERTS[PLAIN_ROW])[1]

Row = tuple[object, ...]


def publish(
    store: Store, envelopes: Sequence[Envelope], bodies: Sequence[Body], *, is_admitted: bool = False
) -> list[BrokerRefused | None]:
    """Publish all; for each None, or why it was refused. `bodies` are those of the envelopes.

    `is_admitted`: also where a queue is full.
    """
    outcomes: list[BrokerRefused | None] = [None] * len(envelopes)
    if not envelopes:
        return outcomes
    if len(bodies) == 1 and len(bodies[0]) == PLAIN_COLUMNS and not store.directory.has_bounds:
        return [_publish_plain(store, envelopes[0], bodies[0])]
    first = store.reserve(len(envelopes))
    admission = Admission(store) if store.directory.has_bounds else None
    rows = _to_rows(store, first, envelopes, bodies, outcomes, None if is_admitted else admission)
    if not rows:
        return outcomes
    last = first + len(envelopes) - 1
    written = _write(store, rows)
    if written != len(rows):
        _note_duplicates(store, first, last, envelopes, outcomes)
    store.forget_old_results(first, last)
    if store.execute(_MAKE_READY, (first, last)).rowcount:
        store.note_arrival()
    events = [moment for row in rows if len(row) > PLAIN_ROW for moment in row[4:6] if isinstance(moment, int)]
    if events:
        store.execute(_MAKE_SCHEDULED, (first, last))
        store.next_event = min(store.next_event, *events)
    if admission is not None:
        admission.finish(envelopes, is_admitted=is_admitted)
    return outcomes


def _publish_plain(store: Store, envelope: Envelope, body: Body) -> BrokerRefused | None:
    """Publish one message that has nothing but `PLAIN`, as most have, where no queue is bounded."""
    channel = store.directory.channels.get(envelope.queue)
    if channel is None:
        return QueueNotDeclared(envelope.queue)
    lane, seq, now = store.directory.lane(channel, lane_topic(envelope)), store.reserve(1), store.now
    rank = now + _MEDIUM
    if not store.write(_INSERT_PLAIN, (seq, lane, now, rank, *body)).rowcount:
        return DuplicateId(envelope.id, envelope.queue)
    store.forget_old_results(seq, seq)
    store.write(_MAKE_ONE_READY, (lane, rank, seq))
    store.note_arrival()
    return None


def _to_rows(
    store: Store,
    first: int,
    envelopes: Sequence[Envelope],
    bodies: Sequence[Body],
    outcomes: list[BrokerRefused | None],
    admission: Admission | None,
) -> list[Row]:
    rows: list[Row] = []
    now = store.now
    rank = now + _MEDIUM
    lanes: dict[tuple[str, str | None], int] = {}
    seq = first - 1
    for envelope, body in zip(envelopes, bodies, strict=True):
        seq += 1
        headers = envelope.headers
        place = (envelope.queue, headers.get(TOPIC) if headers else None)
        lane = lanes.get(place)
        if lane is None:
            channel = store.directory.channels.get(envelope.queue)
            if channel is None:
                outcomes[seq - first] = QueueNotDeclared(envelope.queue)
                continue
            lane = lanes[place] = store.directory.lane(channel, lane_topic(envelope))
        if admission is not None and (full := admission.refuse_one(envelope)) is not None:
            outcomes[seq - first] = full
            continue
        if len(body) == PLAIN_COLUMNS:
            rows.append((seq, lane, now, rank, *body))
        else:
            shelved = after_publishing(envelope.options, now, micros)
            rows.append((seq, lane, now, shelved.stored.rank, shelved.due, shelved.stored.expires_at, *body))
    return rows


def _write(store: Store, rows: Sequence[Row]) -> int:
    """Write the rows in their order; how many were let in."""
    written = 0
    for length, group in groupby(rows, len):
        alike = list(group)
        start = 0
        for count, insert in _INSERTS[length]:
            while len(alike) - start >= count:
                values = tuple(chain.from_iterable(alike[start : start + count]))
                written += store.write(insert, values).rowcount
                start += count
    return written


def _note_duplicates(
    store: Store, first: int, last: int, envelopes: Sequence[Envelope], outcomes: list[BrokerRefused | None]
) -> None:
    """Those that are not in the file now were not let in."""
    found = store.execute("SELECT seq FROM message WHERE seq BETWEEN ? AND ?", (first, last))
    accepted = {seq for (seq,) in found.fetchall()}
    for place, envelope in enumerate(envelopes):
        if outcomes[place] is None and first + place not in accepted:
            outcomes[place] = DuplicateId(envelope.id, envelope.queue)


def publish_declaring(
    store: Store, envelopes: Sequence[Envelope], bodies: Sequence[Body]
) -> list[BrokerRefused | None]:
    """Publish, declaring the queues that do not exist, whether there is room or not."""
    store.directory.declare(envelope.queue for envelope in envelopes)
    return publish(store, envelopes, bodies, is_admitted=True)


def store_dead(store: Store, messages: Sequence[BrowsedMessage], bodies: Sequence[Body]) -> None:
    """Keep these as dead letters, except those that are kept already."""
    for message, body in zip(messages, bodies, strict=True):
        envelope = message.envelope
        channel = store.directory.channel(envelope.queue)
        lane = store.directory.lane(channel, lane_topic(envelope))
        enqueued_at, died_at = (
            micros(message.seen_at if moment is None else moment) for moment in (message.enqueued_at, message.died_at)
        )
        columns: list[object] = [*body, *[None] * (BODY_COLUMNS - len(body))]
        if (
            store.execute("SELECT 1 FROM dead WHERE id = ? AND died_at = ?", (columns[0], died_at)).fetchone()
            is not None
        ):
            continue
        failure = None if message.failure is None else pack(message.failure)
        state = message.attempt, message.lost, message.reason or "failed", failure, died_at, enqueued_at
        store.execute(_STORE_DEAD, (channel.id, lane, *columns, *state))


REVIVED_AT_ONCE = 300
"""Messages that one transaction revives: that takes some ten milliseconds (measured)."""


def revive(store: Store, queue: str, keys: Iterable[int]) -> list[BrokerRefused | None]:
    """Make the dead messages with these keys ready again, as new ones."""
    channel = store.directory.channel(queue)
    return [_revive(store, channel, key) for key in keys]


def _find_dead(store: Store, channel: Channel, key: int) -> tuple[Key, int, bytes | None] | None:
    """Id, lane and rare parts of a dead message; None: there is none. Raises where it cannot be read."""
    sql = f"SELECT lane, {BODY} FROM dead WHERE key = ? AND queue = ?"  # noqa: S608
    row = store.execute(sql, (key, channel.id)).fetchone()
    if row is None:
        return None
    lane, *body = row
    to_envelope(channel.name, None, body)
    return body[0], lane, body[4]


def _revive(store: Store, channel: Channel, key: int) -> BrokerRefused | None:
    found = read_or(lambda: _find_dead(store, channel, key), to_unreadable)
    if found is None:
        return BrokerRefused(f"no dead message in {channel.name!r} has the key {key}")
    if isinstance(found, Failure):
        return BrokerRefused(f"the dead message in {channel.name!r} with the key {key} stays: {found.text}")
    id_, lane, extra = found
    lane = store.directory.twin(lane, suspects=False)
    if store.execute("SELECT 1 FROM message WHERE id = ?", (id_,)).fetchone() is not None:
        return DuplicateId(to_id(id_), channel.name)
    stored = after_reviving(to_options(extra), store.now, micros).stored
    seq = store.reserve(1)
    store.execute(_REVIVE, (seq, lane, store.now, stored.rank, stored.expires_at, key))
    store.execute("DELETE FROM dead WHERE key = ?", (key,))
    store.forget_old_results(seq, seq)
    store.make_ready(seq, lane, stored.rank)
    if stored.expires_at is not None:
        store.next_event = min(store.next_event, stored.expires_at)
    return None
