"""What is stored where, and how an envelope becomes bytes that scripts can read the beginning of.

All keys of one prefix carry one hash tag, so one script may touch them all, also in a cluster. Every script is given
those that it may touch. Names of queues and topics are in the members of sorted sets, with their lengths before them: a
*lane* is a queue's prefix (length, name) and a topic's (its length plus 1, or 0 for none). So one sorted set by lane,
rank and order holds everything that is ready, and no key depends on what senders make up. The order, of messages of one
rank, comes from the server's clock (`scripts/part_start.lua`).

* `messages`: the record of each live message by id. `parse` in `scripts/part_fields.lua` tells its fields.
* `ready`, `suspects`: lane, rank, order, size of the payload, id. `scheduled`: prefix of the queue, due, whether it is
  a suspect, and the member of `ready`. `due`: when the next one of each queue is.
* `leases`: the tokens, scored by the end of the lease. A token is 16 random bytes, a number, since when and by whom the
  message is leased, the queue's prefix and the id. Only who leased a message can name its token, so removing it is the
  fence. It is longer than 64 bytes for ids of ours, or Redis would keep few leases in a list that it searches from the
  start for each.
* `expiries`: ids by the end of their ttl; infinity once that has passed on lease.
* `dead`, `letters`, `dead-ids`: keys by queue, what is kept under each key, and keys by id. A key is when the message
  died.
* `extras`: what few messages have: progress (p), failure of the last run (f), since when it is a suspect (t),
  cancellation (k).
* `results`, `result-expiries`. `schedules`, `schedule-times`, `schedule-ahead`.
* `consumers`, `alive`, `wanted`: what each takes, until when it is believed alive, and until when somebody wants a
  lane.
* `bounds`: of the bounded queues, and how many messages each has dropped. `epoch`: names the data; a server that has
  lost it gets another one.
* `sleepers`: who waits for what and may be given a message on which terms, or which lease it was given. `watched`,
  `watches`: who is told of a change of which id, and until when.

Times are microseconds on the server's clock; they are exact in Lua's numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from ...codec import JSON, MESSAGE_PACK
from ...delivery import DAY, WHEN_FULL, Bounds, Delivery, Failure, NewResult, Progress, StoredResult, poison_failure
from ...delivery.results import ResultState
from ...delivery.shelf import offset_of
from ...envelope import NO_OPTIONS, TOPIC, Envelope, Options
from ...errors import ConfigurationError
from ...ports import Topics

MICRO = 1_000_000

NAMES = (
    "queues",
    "messages",
    "ready",
    "suspects",
    "scheduled",
    "due",
    "leases",
    "expiries",
    "dead",
    "letters",
    "dead-ids",
    "extras",
    "results",
    "result-expiries",
    "consumers",
    "alive",
    "wanted",
    "sleepers",
    "watched",
    "watches",
    "schedules",
    "schedule-times",
    "schedule-ahead",
    "bounds",
    "epoch",
)
"""The keys, without the prefix, in the order of their short names in `scripts/part_start.lua`."""

LONGEST_NAME = 60_000
"""Bytes of the name of a queue, a topic or an id."""

STATES: tuple[ResultState, ...] = ("success", "failure", "dead", "expired", "cancelled", "dropped")
"""A result's state is stored as its number, counted from 1."""

pack = msgspec.msgpack.Encoder().encode
"""What only clients read."""

_unpack = msgspec.msgpack.Decoder().decode

_DUE, _EXPIRES, _UNROUTED, _SILENT, _RESULT, _TTL, _WANTED = 1, 2, 4, 8, 16, 32, 64
_HEAD = struct.Struct(">BIHQHIIIQ")
_PLAIN_HEAD = struct.Struct(">BIHQHIIIQH")
"""That of a record without flags, with the length of its lane."""
_NO_FLAGS = b"\0"
_LEASE_HEAD = struct.Struct(">18xQB")
LEASE_HEAD = _LEASE_HEAD.size
"""Bytes of a lease before the name of the worker."""
_TIME = struct.Struct(">Q")
_LENGTH = struct.Struct(">H")
_RESULT_HEAD = struct.Struct(">QQBI")

_CODES: dict[str | None, bytes] = {None: b"\0", JSON: b"\1", MESSAGE_PACK: b"\2"}
_CONTENT_TYPES: dict[int, str | None] = {code[0]: name for name, code in _CODES.items()}
_RARE = 255


class Rare(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What most envelopes do not have. `headers`: without the topic."""

    content_type: str | None
    headers: dict[str, str] | None
    reply_to: str | None
    options: Options
    parameters: dict[str, Any] | None


_unpack_rare = msgspec.msgpack.Decoder(Rare).decode
_unpack_failure = msgspec.msgpack.Decoder(Failure).decode
_unpack_progress = msgspec.msgpack.Decoder(Progress).decode


def to_argument(value: Any) -> bytes:
    """The argument of a script. Redis' MessagePack is that of 2012: it has one type for text and bytes."""
    kind = type(value)
    if kind is bytes:
        return _packed(value)
    if kind is list or kind is tuple:
        count = len(value)
        head = b"%c" % (0x90 | count) if count < 16 else b"\xdd" + count.to_bytes(4, "big")
        return head + b"".join(map(to_argument, value))
    return _packed(value.encode()) if kind is str else pack(value)


def _packed(value: bytes) -> bytes:
    size = len(value)
    if size < 32:
        return b"%c%b" % (0xA0 | size, value)
    if size < 65_536:
        return b"\xda%b%b" % (size.to_bytes(2, "big"), value)
    return b"\xdb%b%b" % (size.to_bytes(4, "big"), value)


def to_lease(lease: bytes) -> tuple[int, str]:
    """Since when and by whom a message is leased."""
    since, length = _LEASE_HEAD.unpack_from(lease)
    return since, lease[LEASE_HEAD : LEASE_HEAD + length].decode("utf-8", "replace")


def micros(seconds: float) -> int:
    """The duration in whole microseconds; what is longer than thirty years is cut there: Lua's numbers must hold it."""
    return round(max(min(seconds, 1e9), -1e9) * MICRO)


def keys_of(prefix: str) -> list[bytes]:
    """All keys of one prefix."""
    return [f"{{{prefix}}}:{name}".encode() for name in NAMES]


def to_key(id_: str) -> bytes:
    """The id as it is stored: 32 hexadecimal digits as their 16 bytes. No two ids have one key."""
    if len(id_) == 32:
        try:
            packed = bytes.fromhex(id_)
        except ValueError:
            return b"t" + id_.encode()
        if packed.hex() == id_:
            return b"h" + packed
    return b"t" + id_.encode()


def to_id(key: bytes) -> str:
    """The id whose key this is."""
    return key[1:].hex() if key[:1] == b"h" else key[1:].decode()


def prefix_of(queue: str) -> bytes:
    """What the lanes of a queue begin with."""
    name = queue.encode()
    return _LENGTH.pack(len(name)) + name


def lane_of(queue: str, topic: str | None) -> bytes:
    """The lane of the messages of one topic of a queue."""
    if topic is None:
        return prefix_of(queue) + b"\0\0"
    name = topic.encode()
    return prefix_of(queue) + _LENGTH.pack(len(name) + 1) + name


_lane_of = lru_cache(4096)(lane_of)


@lru_cache(4096)
def _from_lane(lane: bytes) -> tuple[str, str | None, bytes]:
    """Queue, topic, and the queue's prefix."""
    end = 2 + _LENGTH.unpack_from(lane)[0]
    topic = lane[end + 2 :].decode() if lane[end : end + 2] != b"\0\0" else None
    return lane[2:end].decode(), topic, lane[:end]


def takes_of(queues: Mapping[str, Topics]) -> list[tuple[bytes, bytes, list[bytes] | bool]]:
    """What a consumer takes, as scripts read it: prefix, name and lanes (False: all) of each queue."""
    return [
        (
            prefix_of(name),
            name.encode(),
            False if topics is None else [lane_of(name, topic) for topic in sorted(topics)],
        )
        for name, topics in queues.items()
    ]


def to_takes(fields: Iterable[bytes]) -> dict[str, frozenset[str] | None]:
    """What a consumer takes, of the fields under which it is entered: a queue's prefix, or the lanes of its topics."""
    takes: dict[str, frozenset[str] | None] = {}
    for field in fields:
        end = 2 + _LENGTH.unpack_from(field)[0]
        queue = field[2:end].decode()
        topics = takes.get(queue, frozenset())
        takes[queue] = None if end == len(field) or topics is None else topics | {field[end + 2 :].decode()}
    return takes


# Messages


def to_entries(envelopes: Iterable[Envelope]) -> list[bytes]:
    """The envelopes as scripts take them: see `scripts/part_publish.lua`.

    Raises `ConfigurationError` for one that cannot be written.
    """
    entries: list[bytes] = []
    for envelope in envelopes:
        try:
            entries.append(_to_entry(envelope))
        except (TypeError, ValueError, OverflowError, RecursionError, struct.error, msgspec.MsgspecError) as error:
            raise ConfigurationError(
                f"message {envelope.id!r} cannot be written to Redis ({error}): its id, headers, reply_to, options "
                "and parameters must be plain values"
            ) from error
    return entries


def _to_entry(envelope: Envelope) -> bytes:
    headers, options = envelope.headers, envelope.options
    topic: object = headers.get(TOPIC) if headers else None
    lane = _lane_of(envelope.queue, topic if isinstance(topic, str) else None)
    key, payload = to_key(envelope.id), envelope.payload
    key_size, size = len(key), len(payload)
    if max(key_size, len(lane)) > LONGEST_NAME:
        raise ValueError(f"its id, or its queue and topic, are longer than {LONGEST_NAME} bytes")
    code = _CODES.get(envelope.content_type)
    others = len(headers) > (isinstance(topic, str))
    is_plain = envelope.reply_to is None and envelope.parameters is None and not others
    if is_plain and options is NO_OPTIONS and code is not None:
        tail = _ENTRY_TAIL.pack(size, _PLAIN_OFFSET, 0, -1, 0, size + 1)
        return b"".join((_LENGTH.pack(key_size), key, _place_of(envelope.queue, lane), tail, code, payload))
    rare = Rare(
        envelope.content_type,
        {
            name: value
            for name, value in headers.items()
            if name != TOPIC or value is not topic or type(value) is not str
        }
        if others
        else None,
        envelope.reply_to,
        options,
        envelope.parameters,
    )
    packed = pack(rare)
    flags, blocks = 0, b""
    ttl = -1
    if options.ttl is not None:
        ttl = max(micros(options.ttl), 0)
        flags, blocks = _TTL, _TIME.pack(ttl)
    if options.store_result is False:
        flags |= _SILENT
    elif options.store_result:
        flags |= _WANTED
    if options.result_id is not None or options.result_ttl is not None:
        result_key = b"" if options.result_id is None else to_key(options.result_id)
        if len(result_key) > LONGEST_NAME:
            raise ValueError(f"its result_id is longer than {LONGEST_NAME} bytes")
        flags |= _RESULT
        kept = DAY if options.result_ttl is None or math.isnan(options.result_ttl) else options.result_ttl
        blocks += _TIME.pack(max(micros(kept), 0)) + _LENGTH.pack(len(result_key)) + result_key
    delay = max(micros(options.delay), 0) if options.delay else 0
    rest = b"%b\xff%b%b%b" % (blocks, len(packed).to_bytes(4, "big"), packed, payload)
    tail = _ENTRY_TAIL.pack(size, offset_of(options, micros), delay, ttl, flags, len(rest))
    return b"".join((_LENGTH.pack(key_size), key, _place_of(envelope.queue, lane), tail, rest))


@lru_cache(4096)
def _place_of(queue: str, lane: bytes) -> bytes:
    name = queue.encode()
    return b"".join((_LENGTH.pack(len(name)), name, _LENGTH.pack(len(lane)), lane))


_ENTRY_TAIL = struct.Struct(">IIqqBI")
"""Size, offset, delay, ttl, flags, and the length of the rest."""
_PLAIN_OFFSET = offset_of(NO_OPTIONS, micros)


class Record(msgspec.Struct, frozen=True, gc=False):
    """A stored message as it is read. Times are the server's, in microseconds."""

    envelope: Envelope
    prefix: bytes
    attempt: int
    lost: int
    enqueued_at: int
    expires_at: int | None
    unrouted_at: int | None


def to_record(key: bytes, record: bytes) -> Record:
    """Read a record. Raises whatever comes of one that was not written by us: see `UNREADABLE`."""
    flags, attempt, lost, _, _, _, _, size, enqueued_at = _HEAD.unpack_from(record)
    at = _HEAD.size
    expires_at = unrouted_at = None
    if flags & _DUE:
        at += 8
    if flags & _EXPIRES:
        (expires_at,) = _TIME.unpack_from(record, at)
        at += 8
    if flags & _UNROUTED:
        (unrouted_at,) = _TIME.unpack_from(record, at)
        at += 8
    (length,) = _LENGTH.unpack_from(record, at)
    queue, topic, prefix = _from_lane(record[at + 2 : at + 2 + length])
    at += 2 + length
    if flags & _TTL:
        at += 8
    if flags & _RESULT:
        at += 10 + _LENGTH.unpack_from(record, at + 8)[0]
    start = len(record) - size
    headers = {} if topic is None else {TOPIC: topic}
    code = record[at]
    if code != _RARE:
        envelope = Envelope(to_id(key), queue, record[start:], _CONTENT_TYPES[code], headers)
    else:
        rare = _unpack_rare(record[at + 5 : start])
        headers.update(rare.headers or {})
        options = NO_OPTIONS if rare.options == NO_OPTIONS else rare.options
        envelope = Envelope(
            to_id(key), queue, record[start:], rare.content_type, headers, rare.reply_to, options, rare.parameters
        )
    return Record(envelope, prefix, attempt, lost, enqueued_at, expires_at, unrouted_at)


UNREADABLE = (TypeError, ValueError, LookupError, ArithmeticError, struct.error, RecursionError, msgspec.MsgspecError)
"""What reading raises of what somebody else has written."""


def to_delivery(lease: bytes, record: bytes, at: int, now: int) -> Delivery:
    """The delivery of a message that was leased just now. `at`: where the queue's prefix begins in the lease."""
    key = lease[at + 2 + _LENGTH.unpack_from(lease, at)[0] :]
    if record[:1] == _NO_FLAGS:
        _, attempt, lost, _, _, _, _, size, _, length = _PLAIN_HEAD.unpack_from(record)
        start = _PLAIN_HEAD.size + length
        code = record[start]
        if code != _RARE:
            queue, topic, _ = _from_lane(record[_PLAIN_HEAD.size : start])
            headers = {} if topic is None else {TOPIC: topic}
            payload = record[len(record) - size :]
            return Delivery(Envelope(to_id(key), queue, payload, _CONTENT_TYPES[code], headers), attempt, lost, lease)
    found = to_record(key, record)
    unrouted_at, expires_at = found.unrouted_at, found.expires_at
    return Delivery(
        found.envelope,
        found.attempt,
        found.lost,
        lease,
        None if unrouted_at is None else max(0, now - unrouted_at) / MICRO,
        None if expires_at is None else (expires_at - now) / MICRO,
    )


# Bounds


_BOUNDS = struct.Struct(">QQB")


def pack_bounds(bounds: Bounds) -> bytes:
    """Bounds as scripts read them; empty if they limit nothing."""
    if bounds.are_none:
        return b""
    limits = (min(limit or 0, 2**53) for limit in (bounds.max_size, bounds.max_bytes))
    return _BOUNDS.pack(*limits, WHEN_FULL.index(bounds.when_full))


def to_bounds(packed: bytes) -> Bounds | None:
    """Stored bounds; None where there are none."""
    if not packed:
        return None
    max_size, max_bytes, when_full = _BOUNDS.unpack(packed)
    return Bounds(max_size=max_size or None, max_bytes=max_bytes or None, when_full=WHEN_FULL[when_full])


# Failures, progress, results


def pack_failure(failure: Failure | None) -> bytes:
    """A failure as it is stored."""
    return b"" if failure is None else b"\0" + pack(failure)


def to_failure(packed: bytes) -> Failure | None:
    """A stored failure: one of ours, or what a script noted of a poison."""
    if not packed:
        return None
    try:
        if packed[:1] == b"\0":
            return _unpack_failure(packed[1:])
        lost, worker, held_for, since_first = _unpack(packed[1:])
        return poison_failure(lost, worker, held_for, since_first)
    except UNREADABLE as error:
        return Failure("UnreadableRow", f"the stored failure cannot be read: {error}")


def to_progress(packed: bytes) -> Progress | None:
    """A stored progress; None where it cannot be read."""
    if not packed:
        return None
    try:
        return _unpack_progress(packed)
    except UNREADABLE:
        return None


def pack_result(result: NewResult) -> tuple[bytes, int, bytes, bytes, int]:
    """A result on its way: id, state, payload, failure, ttl."""
    failure = pack_failure(result.failure)
    return to_key(result.id), STATES.index(result.state) + 1, result.payload, failure, micros(result.ttl)


def to_result(id_: str, stored: bytes) -> StoredResult | None:
    """A stored result; None where there is none or it cannot be read."""
    if not stored:
        return None
    try:
        finished_at, expires_at, state, length = _RESULT_HEAD.unpack_from(stored)
        end = _RESULT_HEAD.size + length
        return StoredResult(
            id=id_,
            state=STATES[state - 1],
            payload=stored[end:],
            failure=to_failure(stored[_RESULT_HEAD.size : end]),
            finished_at=finished_at / MICRO,
            expires_at=expires_at / MICRO,
        )
    except UNREADABLE:
        return None


class Letter(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a dead message: its id, its reason, and the packed parts."""

    id: bytes
    reason: str
    failure: bytes
    record: bytes


def to_letter(stored: bytes) -> Letter:
    """Read what is kept of a dead message."""
    at = 2 + _LENGTH.unpack_from(stored)[0]
    id_ = stored[2:at]
    end = at + 1 + stored[at]
    reason = stored[at + 1 : end].decode()
    start = end + 4
    end = start + int.from_bytes(stored[end:start], "big")
    failure = stored[start:end]
    start = end + 4
    end = start + int.from_bytes(stored[end:start], "big")
    return Letter(id_, reason, failure, stored[end:])
