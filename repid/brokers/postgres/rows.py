"""Envelope ↔ row. What most messages do not have is NULL, which costs a bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from ...codec import JSON, MESSAGE_PACK
from ...delivery import Failure
from ...envelope import NO_OPTIONS, TOPIC, Envelope, Options
from ...errors import ConfigurationError
from ..shared.packing import pack

MICRO = 1_000_000

_KINDS: dict[str | None, int | None] = {None: None, JSON: 1, MESSAGE_PACK: 2}
_CONTENT_TYPES: dict[int | None, str | None] = {kind: name for name, kind in _KINDS.items()}
_ANOTHER = 0
"""The kind of a content type that is in the rare part."""

_NOT_UTF8 = b"\xff"

T = TypeVar("T")


def body_of(place: str) -> str:
    """SQL that joins the body of each message of `place`, which has its `seq`, under the name m (`Statement` says why
    like this).
    """
    return f"LATERAL (SELECT * FROM {{s}}.message AS b WHERE b.seq = {place}.seq OFFSET 0) AS m"


class Rare(msgspec.Struct, array_like=True, frozen=True, gc=False, omit_defaults=True):
    """The rare parts of an envelope."""

    headers: dict[str, str] = {}
    content_type: str | None = None
    reply_to: str | None = None
    options: Options = NO_OPTIONS
    parameters: dict[str, Any] | None = None


class Body(NamedTuple):
    """A message as it is stored. Its topic decides its lane."""

    key: bytes
    payload: bytes
    kind: int | None
    rare: bytes | None
    result_key: bytes | None


class Bodies(NamedTuple):
    """Messages as they are stored, by columns: an object for each would keep the garbage collector busy."""

    keys: Sequence[bytes]
    payloads: Sequence[bytes]
    kinds: Sequence[int | None]
    rares: Sequence[bytes | None]
    result_keys: Sequence[bytes | None]

    def part(self, chosen: Sequence[int]) -> Bodies:
        """Those at these places, which ascend."""
        if len(chosen) == len(self.keys):
            return self

        def of(column: Sequence[T]) -> list[T]:
            return [column[index] for index in chosen]

        return Bodies(of(self.keys), of(self.payloads), of(self.kinds), of(self.rares), of(self.result_keys))


_unpack_rare = msgspec.msgpack.Decoder(Rare).decode


def micros(seconds: float) -> int:
    """Seconds in the database's unit, within what it can hold."""
    return round(min(max(seconds, -1e12), 1e12) * MICRO)


def to_key(id_: str) -> bytes:
    """The id as it is stored. No two ids have one key."""
    if len(id_) == 32:
        try:
            key = bytes.fromhex(id_)
        except ValueError:
            pass
        else:
            if key.hex() == id_:
                return key
    key = id_.encode() + _NOT_UTF8
    return key + _NOT_UTF8 if len(key) == 16 else key


def _to_keys(ids: Sequence[str]) -> list[bytes]:
    """The keys of many ids, several times faster where all are of the usual kind."""
    text = "".join(ids)
    if set(map(len, ids)) == {32}:
        try:
            packed = bytes.fromhex(text)
        except ValueError:
            pass
        else:
            if packed.hex() == text:
                return [packed[at : at + 16] for at in range(0, len(packed), 16)]
    return [to_key(id_) for id_ in ids]


def to_id(key: bytes) -> str:
    """The id whose key this is."""
    return key.hex() if len(key) == 16 else key.rstrip(_NOT_UTF8).decode()


def check_name(what: str, name: str) -> None:
    """Raise `ConfigurationError` for text that PostgreSQL cannot hold."""
    if "\0" in name:
        raise ConfigurationError(f"{what} {name!r} has a NUL character, which text in PostgreSQL cannot hold")


def to_bodies(envelopes: Sequence[Envelope]) -> Bodies:
    """The envelopes as rows. Raises `ConfigurationError` for one that cannot be written."""
    kinds = [_KINDS.get(envelope.content_type, _ANOTHER) for envelope in envelopes]
    rares: list[bytes | None] = [None] * len(envelopes)
    result_keys: list[bytes | None] = [None] * len(envelopes)
    headers: object = None
    has_others = False
    for index, envelope in enumerate(envelopes):
        if envelope.headers is not headers:  # a batch often shares them
            headers, topic = envelope.headers, envelope.headers.get(TOPIC)
            has_others = len(envelope.headers) > (topic is not None)
            if topic is not None:
                check_name("topic", topic)
        if (
            has_others
            or envelope.options is not NO_OPTIONS
            or envelope.reply_to is not None
            or envelope.parameters is not None
            or kinds[index] == _ANOTHER
        ):
            rares[index], result_keys[index] = _to_rare(envelope, kinds[index])
    keys = _to_keys([envelope.id for envelope in envelopes])
    return Bodies(keys, [envelope.payload for envelope in envelopes], kinds, rares, result_keys)


def _to_rare(envelope: Envelope, kind: int | None) -> tuple[bytes, bytes | None]:
    """Its rare parts, and the key of its result."""
    options = envelope.options
    rare = Rare(
        {name: value for name, value in envelope.headers.items() if name != TOPIC},
        envelope.content_type if kind == _ANOTHER else None,
        envelope.reply_to,
        options,
        envelope.parameters,
    )
    try:
        return pack(rare), None if options.result_id is None else to_key(options.result_id)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ConfigurationError(
            f"message {envelope.id!r} cannot be written to PostgreSQL ({error}): its id, headers, reply_to, options "
            "and parameters must be plain values"
        ) from error


def to_envelope(
    queue: str, topic: str | None, key: bytes, payload: bytes, kind: int | None, rare: bytes | None
) -> Envelope:
    """The envelope of a row."""
    headers: dict[str, str] = {} if topic is None else {TOPIC: topic}
    if rare is None:
        return Envelope(to_id(key), queue, payload, _CONTENT_TYPES.get(kind), headers)
    found = _unpack_rare(rare)
    headers.update(found.headers)
    content_type = found.content_type if kind == _ANOTHER else _CONTENT_TYPES.get(kind)
    options = NO_OPTIONS if found.options == NO_OPTIONS else found.options
    return Envelope(to_id(key), queue, payload, content_type, headers, found.reply_to, options, found.parameters)


UNREADABLE = (TypeError, ValueError, LookupError, RecursionError, msgspec.MsgspecError)
"""What `to_envelope` raises of a row that another program, or another version, has written."""


def unreadable(error: Exception) -> Failure:
    """The failure of a message that cannot be read."""
    return Failure("UnreadableRow", f"what is stored of this message cannot be read: {error}")


def show_envelope(queue: str, topic: str | None, *body: Any) -> tuple[Envelope, Failure | None]:
    """The envelope of a row. If it cannot be read: what is left of it, and why."""
    try:
        return to_envelope(queue, topic, *body), None
    except UNREADABLE as error:
        key, payload, kind, _ = body
        headers = {} if topic is None else {TOPIC: topic}
        return Envelope(to_id(key), queue, payload, _CONTENT_TYPES.get(kind), headers), unreadable(error)


def to_options(rare: bytes | None) -> Options:
    """Only the options of a row; none where they cannot be read, so that such a message can be ended."""
    if rare is None:
        return NO_OPTIONS
    try:
        return _unpack_rare(rare).options
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        return NO_OPTIONS
