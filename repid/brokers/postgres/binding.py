"""Statements and how their arguments are written in PostgreSQL's binary format.

Each statement names the types of its arguments, so the server guesses nothing, and whole columns travel as arrays: a
batch of a hundred messages is one statement with a few arguments. Writing arrays here is several times faster than
handing lists to a general adapter, which looks at each element.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias, cast

Encode: TypeAlias = Callable[[Any], bytes]

_SHORT = struct.Struct(">i").pack
_LONG = struct.Struct(">q").pack
_REAL = struct.Struct(">d").pack
_ELEMENT = struct.Struct(">iq").pack
_ARRAY = struct.Struct(">iiIii").pack
_NULL = _SHORT(-1)


class Statement(NamedTuple):
    """SQL with the types of its arguments; `{s}` in it stands for the schema.

    Theory. Plans are made once and kept, and PostgreSQL takes a table for empty that was empty when it was last
    analyzed: our tables mostly are. The scan of a whole table, or of a whole index in its order, then seems as cheap as
    looking up one key, and goes on when the table has grown. The settings of a session forbid some of that (see
    `PostgresServer`). The rest a statement rules out by itself, since no part of it may have two ways to its rows:

    * `OFFSET 0` has a subquery planned alone: neither an order nor a join outside of it makes another index attractive.
    * A `LATERAL` subquery with `OFFSET 0` looks up one key for each row of what stands before it.
    * `key = ANY(...)` with an array, where rows of the table itself are updated or deleted.
    * `queue + 0` where the index of the queue must not be used.
    * `(queue, key) > ($1, $2) AND queue <= $1 ORDER BY queue, key` is in the order of one index only.
    """

    text: str
    types: tuple[str, ...] = ()
    is_hint: bool = False
    """Whether it only tells others to look soon. They look by themselves later: it may fail, and its call does not."""


def statement(text: str, *types: str, is_hint: bool = False) -> Statement:
    """A statement whose arguments are of these types."""
    return Statement(text, types, is_hint)


class Step(NamedTuple):
    """A statement with its arguments."""

    statement: Statement
    arguments: tuple[Any, ...] = ()


def _numbers(values: Sequence[int | None]) -> bytes:
    if None in values:
        return _many(20, [None if value is None else _LONG(value) for value in values])
    if not values:
        return _many(20, ())
    if values.count(values[0]) == len(values):
        body = _ELEMENT(8, values[0]) * len(values)
    else:
        body = struct.pack(">" + "iq" * len(values), *chain.from_iterable((8, value) for value in values))
    return _ARRAY(1, 0, 20, len(values), 1) + body


def _reals(values: Sequence[float | None]) -> bytes:
    return _many(701, [None if value is None else _REAL(value) for value in values])


def _texts(values: Sequence[str | None]) -> bytes:
    return _many(25, [None if value is None else value.encode() for value in values])


def _blobs(values: Sequence[bytes | None]) -> bytes:
    return _many(17, values)


def _many(element: int, values: Sequence[bytes | None]) -> bytes:
    if not values:
        return struct.pack(">iiI", 0, 0, element)
    parts = [_ARRAY(1, 1, element, len(values), 1)]
    if None not in values:
        found = cast("Sequence[bytes]", values)
        sizes = list(map(len, found))
        heads = {size: _SHORT(size) for size in set(sizes)}  # most batches have few different sizes
        parts += [b""] * (2 * len(sizes))
        parts[1::2], parts[2::2] = map(heads.__getitem__, sizes), found
        return b"".join(parts)
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts.append(_SHORT(len(value)))
            parts.append(value)
    return b"".join(parts)


def _flag(value: bool) -> bytes:
    return b"\x01" if value else b"\x00"


_TYPES: dict[str, tuple[int, Encode]] = {
    "int8": (20, _LONG),
    "float8": (701, _REAL),
    "text": (25, str.encode),
    "bytea": (17, bytes),
    "bool": (16, _flag),
    "int8[]": (1016, _numbers),
    "float8[]": (1022, _reals),
    "text[]": (1009, _texts),
    "bytea[]": (1001, _blobs),
}
"""By name: the number that PostgreSQL has for the type, and how a value is written."""


class Bound(NamedTuple):
    """A statement as it is sent: its text, the numbers of its types, and how its arguments are written."""

    text: bytes
    oids: list[int]
    encoders: tuple[Encode, ...]
    formats: list[int]

    def encode(self, arguments: Sequence[Any]) -> list[bytes | None]:
        """The arguments as they are sent."""
        return [
            None if value is None else encode(value) for encode, value in zip(self.encoders, arguments, strict=True)
        ]


def bind(statement: Statement, schema: str) -> Bound:
    """The statement for one schema, whose name is quoted already."""
    text = statement.text.replace("{s}", schema).encode()
    found = [_TYPES[name] for name in statement.types]
    return Bound(text, [oid for oid, _ in found], tuple(encode for _, encode in found), [1] * len(found))
