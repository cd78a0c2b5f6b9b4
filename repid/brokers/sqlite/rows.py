"""Envelope ↔ row. What most messages do not have is NULL, which costs a byte.

An id of 32 hexadecimal digits is kept as its 16 bytes, any other id as text. The topic is in the lane, a well-known
content type is a number; other headers and the rare parts (`Extra`) are MessagePack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import msgspec

from ...codec import JSON, MESSAGE_PACK
from ...envelope import NO_OPTIONS, TOPIC, Envelope, Options
from ...errors import ConfigurationError
from ..shared.packing import pack

Key: TypeAlias = bytes | str
"""An id as it is stored."""

Body: TypeAlias = tuple[object, ...]
"""The columns `PLAIN` of a message that has nothing else, or the columns `BODY` of any other."""

PLAIN = "id, payload, content_type"
READ = f"{PLAIN}, headers, extra"
"""The columns that make an envelope, as `compose` takes them."""
BODY = f"{READ}, result_id"
PLAIN_COLUMNS = 3
BODY_COLUMNS = 6

_CODES: dict[str | None, int | str | None] = {None: None, JSON: 1, MESSAGE_PACK: 2}
_CONTENT_TYPES: dict[Any, Any] = {code: name for name, code in _CODES.items()}

unpack: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode


class Extra(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The rare parts of an envelope."""

    reply_to: str | None = None
    options: Options = NO_OPTIONS
    parameters: dict[str, Any] | None = None


_unpack_headers = msgspec.msgpack.Decoder(dict[str, str]).decode
_unpack_extra = msgspec.msgpack.Decoder(Extra).decode

LISTED = "(SELECT value FROM json_each(?))"
"""In a statement: many numbers as one argument; `to_list` makes it."""


def to_list(numbers: Sequence[int]) -> str:
    """The numbers as JSON, for SQLite's json_each."""
    return msgspec.json.encode(numbers).decode()


def to_key(id_: str) -> Key:
    """The id as it is stored. No two ids have one key."""
    if len(id_) == 32:
        try:
            key = bytes.fromhex(id_)
        except ValueError:
            return id_
        if key.hex() == id_:
            return key
    return id_


def to_id(key: Key) -> str:
    """The id whose key this is."""
    return key if isinstance(key, str) else key.hex()


def to_bodies(envelopes: Iterable[Envelope]) -> list[Body]:
    """The envelopes as rows. Raises `ConfigurationError` for one that cannot be written to a file."""
    bodies: list[Body] = []
    for envelope in envelopes:
        try:
            bodies.append(_to_body(envelope))
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise ConfigurationError(
                f"message {envelope.id!r} cannot be written to SQLite ({error}): its id, headers, reply_to, options "
                "and parameters must be plain values"
            ) from error
    return bodies


def _to_body(envelope: Envelope) -> Body:
    key = to_key(envelope.id)
    if type(key) is str:
        key.encode()  # a lone surrogate is found here, not on the thread
    headers = envelope.headers
    packed = None
    if headers:
        topic = headers.get(TOPIC)
        if type(topic) is not str:
            packed = pack(headers)
        else:
            topic.encode()
            if len(headers) > 1:
                packed = pack({name: value for name, value in headers.items() if name != TOPIC})
    extra = result_key = None
    options = envelope.options
    if options is not NO_OPTIONS or envelope.reply_to is not None or envelope.parameters is not None:
        extra = pack(Extra(envelope.reply_to, options, envelope.parameters))
        if options.result_id is not None:
            result_key = to_key(options.result_id)
    content_type = envelope.content_type
    plain = key, envelope.payload, _CODES.get(content_type, content_type)
    return plain if packed is None and extra is None else (*plain, packed, extra, result_key)


def to_envelope(queue: str, topic: str | None, body: Sequence[Any]) -> Envelope:
    """The envelope of a row. Raises an error of any type if `to_bodies` has not written the row."""
    key, payload, content_type, packed, extra, _ = body
    return compose(queue, lane_headers(topic), key, payload, content_type, packed, extra)


def lane_headers(topic: str | None) -> dict[str, str]:
    """The headers that follow from the lane. All that have no others may share them."""
    return {} if topic is None else {TOPIC: topic}


def compose(
    queue: str, headers: dict[str, str], key: Any, payload: Any, content_type: Any, packed: Any, extra: Any
) -> Envelope:
    """The envelope of these columns; `headers` are those of its lane, and stay as they are. Raises as `to_envelope`."""
    if type(payload) is not bytes:
        raise TypeError(f"its payload is of the type {type(payload).__name__}, not bytes")
    if packed is not None:
        headers = headers.copy()
        headers.update(_unpack_headers(packed))
    id_ = key.hex() if type(key) is bytes else to_id(key)
    name = _CONTENT_TYPES.get(content_type, content_type)
    if extra is None:
        return Envelope(id_, queue, payload, name, headers)
    rare = _unpack_extra(extra)
    options = NO_OPTIONS if rare.options == NO_OPTIONS else rare.options
    return Envelope(id_, queue, payload, name, headers, rare.reply_to, options, rare.parameters)


def to_options(extra: bytes | None) -> Options:
    """Only the options of a row; none where they cannot be read, so that such a message can be ended."""
    if extra is None:
        return NO_OPTIONS
    try:
        return _unpack_extra(extra).options
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        return NO_OPTIONS


def lane_topic(envelope: Envelope) -> str | None:
    """The topic that decides the lane: none where the header is not text."""
    topic: object = envelope.headers.get(TOPIC)
    return topic if isinstance(topic, str) else None
