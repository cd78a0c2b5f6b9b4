"""Rows that cannot be read: another program, another version or a bad disk has written them.

One such row must not keep those beside it: it is shown as far as it can be, with a failure that says what is wrong,
and a message that nobody can run is buried when its turn comes. The fast paths read rows in bulk and know nothing of
this; they come here when that fails, and then each row is read alone.
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
    """Whether it lies in what a row holds, and not in SQLite or in the file: text that is not UTF-8 has no error code."""
    if isinstance(error, sqlite3.OperationalError):
        return not hasattr(error, "sqlite_errorcode")
    if isinstance(error, sqlite3.Error | RepidError):
        return False
    return isinstance(
        error,
        TypeError | ValueError | LookupError | AttributeError | ArithmeticError | RecursionError | msgspec.MsgspecError,
    )


def to_unreadable(error: Exception) -> Failure:
    """What to tell of a row that could not be read."""
    return Failure(UNREADABLE, f"what is stored of this message cannot be read: {_show(error)}")


def read_or(read: Callable[[], T], instead: Callable[[Exception], T]) -> T:
    """What was read, or what to give where the row cannot be read. Other errors are raised."""
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
    """All rows of a query, whatever text is in them."""

    def fetch_any(_: Exception) -> list[tuple[Any, ...]]:
        with any_text(connection):
            return connection.execute(sql, parameters).fetchall()

    return read_or(lambda: connection.execute(sql, parameters).fetchall(), fetch_any)


def show_envelope(queue: str, topic: str | None, body: Sequence[Any]) -> tuple[Envelope, Failure | None]:
    """The envelope of a row; where it cannot be read, what is left of it, and why."""
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


def _show(error: Exception) -> str:
    """The error's text without what UTF-8 has no bytes for: it is stored."""
    return str(error).encode("utf-8", "backslashreplace").decode()
