"""Results in the same file, so that they are stored in the same transaction as the settlement."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from ...delivery import NewResult, StoredResult
from ...delivery.shelf import End, result_of_end
from ..shared.packing import pack, to_failure
from .clock import MICRO, micros
from .rows import LISTED, Key, to_id, to_key, to_list, to_options
from .unreadable import fetch_all, read_or

_STORE = """
INSERT OR REPLACE INTO result (id, state, payload, failure, finished_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)
"""
_PURGE = """
DELETE FROM result WHERE rowid IN (SELECT rowid FROM result WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)
"""
_CONCLUDE = """
INSERT OR REPLACE INTO result (id, state, payload, failure, finished_at, expires_at)
SELECT coalesce(result_id, id), ?, x'', ?, ?, ? FROM message WHERE seq = ?
"""
_FETCH = "SELECT id, state, payload, failure, finished_at, expires_at FROM result WHERE id = ? AND expires_at > ?"

PURGED_AT_ONCE = 1000


def store_results(connection: sqlite3.Connection, now: int, results: Sequence[NewResult]) -> None:
    """Store results in place of those with the same ids; as many expired ones and a few more are deleted."""
    connection.executemany(_STORE, [_to_row(result, now) for result in results])
    purge(connection, now, 2 * len(results))


def purge(connection: sqlite3.Connection, now: int, limit: int = PURGED_AT_ONCE) -> None:
    """Delete the first expired ones."""
    connection.execute(_PURGE, (now, limit))


def fetch(connection: sqlite3.Connection, now: int, ids: Iterable[str]) -> list[StoredResult | None]:
    """The result under each id, if it has not expired."""
    return [fetch_one(connection, now, to_key(id_)) for id_ in ids]


def fetch_one(connection: sqlite3.Connection, now: int, key: Key) -> StoredResult | None:
    """The result under one id, if it has not expired."""
    rows = fetch_all(connection, _FETCH, (key, now))
    return read_or(lambda: _to_result(rows[0]), lambda _: None) if rows else None


def _to_result(row: tuple[Any, ...]) -> StoredResult:
    id_, state, payload, failure, finished_at, expires_at = row
    return StoredResult(
        id=to_id(id_),
        state=state,
        payload=bytes(payload),
        failure=to_failure(failure),
        finished_at=finished_at / MICRO,
        expires_at=expires_at / MICRO,
    )


def forget_old(connection: sqlite3.Connection, first: int, last: int) -> bool:
    """Remove what is stored under the result ids of messages just published: it was another message's.

    Returns whether any result was stored.
    """
    if connection.execute("SELECT 1 FROM result LIMIT 1").fetchone() is None:
        return False
    connection.execute(
        "DELETE FROM result WHERE id IN (SELECT coalesce(result_id, id) FROM message WHERE seq BETWEEN ? AND ?)",
        (first, last),
    )
    return True


def conclude(connection: sqlite3.Connection, now: int, seqs: Sequence[int], end: End) -> None:
    """Store what became of messages whose end no worker had a say in, unless their senders wanted none stored."""
    if end.state is None:
        return
    sql = f"SELECT seq, CAST(extra AS BLOB) FROM message WHERE seq IN {LISTED}"  # noqa: S608
    packed = None if end.failure is None else pack(end.failure)
    rows = []
    for seq, extra in connection.execute(sql, (to_list(seqs),)).fetchall():
        result = result_of_end("", to_options(extra), end)  # the row knows under which id
        if result is not None:
            rows.append((result.state, packed, now, now + micros(result.ttl), seq))
    connection.executemany(_CONCLUDE, rows)
    purge(connection, now, 2 * len(rows))


def _to_row(result: NewResult, now: int) -> tuple[object, ...]:
    failure = None if result.failure is None else pack(result.failure)
    return to_key(result.id), result.state, result.payload, failure, now, now + micros(result.ttl)
