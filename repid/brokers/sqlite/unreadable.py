"""Rows that cannot be read: another program, another version or a faulty disk has written them.

One such row must not block the rows beside it. It is shown as far as it can be read, with a failure that says what is
wrong, and a message that cannot be run becomes a dead letter when its turn comes. The fast paths read rows in bulk and
do not look for this; if that fails, the functions here read each row alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from ...delivery import Failure
from ...envelope import TOPIC, Envelope
from ...errors import RepidError
from .rows import to_envelope, unpack

T = TypeVar("T")

UNREADABLE = "UnreadableRow"
"""The type of the failure of what could not be read."""


def is_unreadable(error: Exception) -> bool:
    """Whether a row causes the error, and not SQLite or the file: text that is not UTF-8 has no error code."""
    if isinstance(error, sqlite3.OperationalError):
        return not hasattr(error, "sqlite_errorcode")
    if isinstance(error, sqlite3.Error | RepidError):
        return False
    return isinstance(
        error,
        TypeError | ValueError | LookupError | AttributeError | ArithmeticError | RecursionError | msgspec.MsgspecError,
    )


def to_unreadable(error: Exception) -> Failure:
    """The failure that describes a row that could not be read."""
    return Failure(UNREADABLE, f"what is stored of this message cannot be read: {error}")


def read_or(read: Callable[[], T], instead: Callable[[Exception], T]) -> T:
    """Return what `read` returns or, if the row cannot be read, what `instead` returns. Other errors are raised."""
    try:
        return read()
    except Exception as error:
        if not is_unreadable(error):
            raise
        return instead(error)


@contextmanager
def any_text(connection: sqlite3.Connection) -> Iterator[None]:
    """Read text that is not UTF-8 with escapes in the place of what is wrong."""
    connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
    try:
        yield
    finally:
        connection.text_factory = str


def fetch_all(connection: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query, also those with text that is not UTF-8."""

    def fetch_any(_: Exception) -> list[tuple[Any, ...]]:
        with any_text(connection):
            return connection.execute(sql, parameters).fetchall()

    return read_or(lambda: connection.execute(sql, parameters).fetchall(), fetch_any)


def show_envelope(queue: str, topic: str | None, body: Sequence[Any]) -> tuple[Envelope, Failure | None]:
    """The envelope of a row. If it cannot be read: what is left of it, and why."""
    return read_or(
        lambda: (to_envelope(queue, topic, body), None),
        lambda error: (_salvage(queue, topic, body), to_unreadable(error)),
    )


def _salvage(queue: str, topic: object, body: Sequence[Any]) -> Envelope:
    key, payload, content_type, packed, *_ = body
    headers = {TOPIC: topic} if isinstance(topic, str) else {}
    found = read_or(lambda: unpack(packed), lambda _: None)
    if isinstance(found, dict):
        headers.update({str(name): value for name, value in found.items() if isinstance(value, str)})
    return Envelope(
        id=key.hex() if isinstance(key, bytes) else str(key),
        queue=queue,
        payload=payload if isinstance(payload, bytes) else str(payload).encode("utf-8", "backslashreplace"),
        content_type=content_type if isinstance(content_type, str) else None,
        headers=headers,
    )
