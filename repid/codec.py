"""Content types ↔ bytes: JSON and MessagePack, both through msgspec. Pure.

What can be encoded is what msgspec knows natively: None, bool, int, float, str, bytes (base64 in JSON), dict, list,
tuple, set, datetime and its kin, UUID, Decimal, Enum, `msgspec.Struct`, dataclass, attrs. Two rules follow from JSON:

* NaN and the infinities are refused: JSON has no such numbers, and null in their place would be another value.
  MessagePack keeps them.
* A dict's keys must be strings or become strings (numbers, dates, UUIDs, enums). MessagePack keeps any key.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from .envelope import Envelope
from .errors import PayloadError, shown

JSON = "application/json"
MESSAGE_PACK = "application/msgpack"

DEEPEST_SEARCH = 32
"""How many levels down the culprit of a failed encoding is looked for."""


class Codec(msgspec.Struct, frozen=True, eq=False):
    """One way to write values as bytes. `encode` raises `PayloadError` where a value cannot be written.

    `bare_decoder(type)` compiles a function from bytes to a value of that type; it raises whatever msgspec raises,
    for those who explain errors themselves. All others use `decoder`.
    """

    name: str
    encode: Callable[[Any], bytes]
    bare_decoder: Callable[[Any], Callable[[bytes | msgspec.Raw], Any]]

    def decoder(self, type: Any) -> Callable[[bytes], Any]:  # noqa: A002  the word that msgspec uses
        """Compile a function from bytes to a value of `type`, which raises `PayloadError` for bytes that do not fit."""
        decode = self.bare_decoder(type)

        def decode_or_explain(payload: bytes) -> Any:
            try:
                return decode(payload)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  whatever it is, the bytes do not fit
                text = f"these bytes cannot be decoded from {self.name}"
                raise PayloadError(text, [fault_of(error)]) from origin_of(error)

        return decode_or_explain


def codec_for(content_type: str | None) -> Codec:
    """The codec of a content type; None means JSON. Raises `PayloadError` for one that is not known."""
    if content_type is None or content_type == JSON:
        return JSON_CODEC
    return _codec_for(content_type)


def codec_and_payload(envelope: Envelope) -> tuple[Codec, bytes]:
    """How to read an envelope's payload, and what: no payload at all is an empty object in JSON."""
    return (codec_for(envelope.content_type), envelope.payload) if envelope.payload else (JSON_CODEC, b"{}")


def encode_json(value: Any) -> bytes:
    """The value as JSON. Raises `PayloadError` naming what could not be encoded, and where in the value it is."""
    if value is None:
        return b"null"
    try:
        payload = _plain_json(value)
    except MemoryError:
        raise
    except Exception as error:
        raise _refusal("JSON", _plain_json, value, error) from error
    if _N not in payload:  # nor any of the words below
        return payload
    split = payload.partition  # several times faster than `in`, and than `find`, which unpacks its arguments first
    if split(b"null")[1] or split(b'nan":')[1] or split(b'inf":')[1]:  # as keys they become text
        _refuse_no_json(value)
    return payload


def encode_each_as_json(values: Sequence[Any]) -> list[bytes]:
    """`encode_json` of each value; None becomes no payload."""
    encode = _plain_json
    try:
        payloads = [b"" if value is None else encode(value) for value in values]
    except Exception:  # noqa: BLE001  it is told which value, and why
        return [b"" if value is None else encode_json(value) for value in values]
    find = b"".join(payloads).find  # one search for all of them: a search takes longer to start than to find nothing
    if find(b"null") >= 0 or find(b'nan":') >= 0 or find(b'inf":') >= 0:
        for value in values:
            _refuse_no_json(value)
    return payloads


def origin_of(error: Exception) -> BaseException | None:
    """The cause of a `PayloadError` whose fault this error is. The fault tells all of an error of msgspec's, so in its
    place this returns what code of the program has raised, if anything.
    """
    return error.__cause__ if isinstance(error, msgspec.MsgspecError) else error


def fault_of(error: Exception, payload: bytes = b"") -> tuple[str, str]:
    """Where msgspec failed and why, as a fault of a `PayloadError`; a position in bytes where `payload` tells one.

    It is one line that can be printed, and tells of the payload's values nothing but their types.
    """
    if isinstance(error, RecursionError):
        return "$", "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        start = payload.find(error.object)
        where = f" (byte {start + error.start})" if start >= 0 else ""
        return "$", f"a string is not UTF-8: {error.reason}{where}"
    if not isinstance(error, msgspec.MsgspecError):
        return "$", f"{type(error).__name__}: {error}"
    text = str(error)
    if text == "Input data was truncated":
        return "$", f"the data ends too early (byte {len(payload)})" if payload else text
    text, _, place = text.rpartition(" - at `") if text.endswith("`") and " - at `" in text else (text, "", "$`")
    text = _ALLOWED.sub("Not one of the values that are allowed", shown(text))
    place = shown(place)
    if place.startswith("key` in `"):
        return place.removeprefix("key` in `")[:-1], f"{text} (as a key)"
    return place[:-1], text


_ALLOWED = re.compile("^Invalid (?:enum )?value .*")
"""What msgspec says of enums, literals and tags. It holds the value, which may be nobody's to read in a log."""


def path_to(path: str, key: object) -> str:
    """The path of `key` in what is at `path`: `$.name`, `$[2]`, `$["odd name"]`; very long keys are cut."""
    if not isinstance(key, str):
        try:
            return f"{path}[{key!r:.80}]"
        except Exception:  # noqa: BLE001  a repr may raise anything; numbers of many digits do
            return f"{path}[…]"
    if key.isidentifier() and len(key) <= 80:
        return f"{path}.{key}"
    quoted = key.encode("utf-8", "backslashreplace").decode()
    quoted = shown(msgspec.json.encode(quoted if len(quoted) <= 80 else f"{quoted[:79]}…").decode())
    return f"{path}[{quoted}]"


@lru_cache(maxsize=256)  # bounded: content types come from outside
def _codec_for(content_type: str) -> Codec:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type.endswith("+json"):
        return JSON_CODEC
    try:
        return CODECS[media_type]
    except KeyError:
        known = ", ".join(CODECS)
        text = f"unknown content type {content_type!r:.120}; known are {known} and those that end in +json"
        raise PayloadError(text) from None


def _refuse_no_json(value: Any) -> None:
    """Raises `PayloadError` for a number that JSON does not have; msgspec writes null for one, or text for a key.

    Called where the encoded value has a word that may have been such a number: the search takes longer than the
    encoding.
    """
    found = _find_no_json(value)
    if found is not None:
        path, number = found
        text = f"{number!r} is a number that JSON does not have: send None or text in its place"
        raise PayloadError(f"cannot encode a value of type {_name_of(value)} as JSON", [(path, text)])


_NO_FLOATS = frozenset({str, int, bool, bytes, type(None)})


def _find_no_json(value: Any) -> tuple[str, float] | None:
    """The path and the value of a number in `value` that JSON does not have, if there is one."""
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(value, ())]
    while waiting:
        value, place = waiting.pop()
        if isinstance(value, enum.Enum):
            value = value.value
        if isinstance(value, float) and not math.isfinite(value):
            return _path_of(place), value
        for key, child in _children(value):
            if isinstance(key, float) and not math.isfinite(key):
                return _path_of((place, key)), key
            if type(child) not in _NO_FLOATS:
                waiting.append((child, (place, key)))
    return None


def _path_of(place: tuple[Any, ...]) -> str:
    keys = []
    while place:
        place, key = place
        keys.append(key)
    path = "$"
    for key in reversed(keys):
        path = path_to(path, key)
    return path


def encode_message_pack(value: Any) -> bytes:
    """The value as MessagePack. Raises `PayloadError` as `encode_json` does."""
    try:
        return _plain_message_pack(value)
    except MemoryError:
        raise
    except Exception as error:
        raise _refusal("MessagePack", _plain_message_pack, value, error) from error


def _refusal(name: str, encode: Callable[[Any], bytes], value: Any, error: Exception) -> PayloadError:
    """What to raise for a value that cannot be encoded."""
    path, culprit, cause = _culprit(encode, value, error)
    return PayloadError(
        f"cannot encode a value of type {_name_of(value)} as {name}", [(path, _encoding_fault(culprit, cause))]
    )


def _encoding_fault(culprit: object, error: Exception) -> str:
    name = _name_of(culprit)
    if isinstance(error, RecursionError):
        return f"this {name} contains itself or is nested too deeply"
    if isinstance(error, UnicodeEncodeError):
        return f"this {name} holds a lone surrogate, which UTF-8 cannot write"
    if isinstance(error, TypeError) and str(error).startswith("Encoding objects of type "):
        return f"objects of type {name} cannot be encoded"
    return f"this {name} cannot be encoded: {error}"


def _culprit(encode: Callable[[Any], bytes], value: Any, error: Exception) -> tuple[str, Any, Exception]:
    """The innermost value that cannot be encoded: its path, itself, and the error it gives on its own."""
    path = "$"
    if isinstance(error, RecursionError):  # it may be anywhere or everywhere
        return path, value, error
    for _ in range(DEEPEST_SEARCH):
        for key, child in _children(value):
            child_error = _attempt(encode, child)
            if child_error is not None:
                path, value, error = path_to(path, key), child, child_error
                break
        else:
            break
    return path, value, error


def _attempt(encode: Callable[[Any], bytes], value: Any) -> Exception | None:
    try:
        encode(value)
    except Exception as error:  # noqa: BLE001  any of them is the answer
        return error
    return None


def _children(value: Any) -> Iterable[tuple[object, Any]]:
    import dataclasses  # noqa: PLC0415  needed only where a value cannot be encoded

    if isinstance(value, dict):
        return value.items()
    if isinstance(value, (list, tuple, set, frozenset)):
        return enumerate(value)
    if isinstance(value, msgspec.Struct):
        return ((name, getattr(value, name, None)) for name in value.__struct_fields__)
    if dataclasses.is_dataclass(value) or hasattr(type(value), "__attrs_attrs__"):
        names = getattr(type(value), "__attrs_attrs__", None) or dataclasses.fields(value)
        return ((field.name, getattr(value, field.name, None)) for field in names)
    return ()


def _name_of(value: object) -> str:
    return type(value).__qualname__


def _json_decoder(type: Any) -> Callable[[bytes | msgspec.Raw], Any]:  # noqa: A002
    return msgspec.json.Decoder(type).decode


def _message_pack_decoder(type: Any) -> Callable[[bytes | msgspec.Raw], Any]:  # noqa: A002
    return msgspec.msgpack.Decoder(type).decode


_N = ord("n")
_plain_json = msgspec.json.Encoder().encode
_plain_message_pack = msgspec.msgpack.Encoder().encode

JSON_CODEC = Codec("JSON", encode_json, _json_decoder)
MESSAGE_PACK_CODEC = Codec("MessagePack", encode_message_pack, _message_pack_decoder)

CODECS = {
    JSON: JSON_CODEC,
    MESSAGE_PACK: MESSAGE_PACK_CODEC,
    "application/x-msgpack": MESSAGE_PACK_CODEC,
    "application/vnd.msgpack": MESSAGE_PACK_CODEC,
}
"""The known content types; `+json` suffixes come on top."""
