"""From what sqlite3 raises to what repid raises: the only place that knows both.

What may pass by itself or by freeing space is `BrokerUnavailable`: the transaction was rolled back, the same call
may be made again. What needs somebody to repair or move a file is `BrokerRefused`, or `ConfigurationError` when it
is found on opening.
"""

from __future__ import annotations

import sqlite3

from ...errors import BrokerRefused, BrokerUnavailable, ConfigurationError, RepidError

_SPACE = "nothing was changed; make room (the WAL file beside it needs some too) and try again"
_CORRUPT = (
    "it is left as it is: restore a backup, or save what can be read with `sqlite3 FILE .recover`, "
    "and look at the disk it is on"
)


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection has the file locked just now."""
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def explain(error: sqlite3.Error, path: str) -> RepidError:
    """What happened to which file, and what to do about it, in the course of an operation."""
    code = _primary_code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return locked(path)
    if code == sqlite3.SQLITE_FULL:
        return BrokerUnavailable(f"no space left for {path}: {_SPACE}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return BrokerRefused(f"{path} is damaged ({error}): {_CORRUPT}")
    if code == sqlite3.SQLITE_TOOBIG:
        return BrokerRefused(
            f"a message is too big for SQLite ({error}): keep large payloads elsewhere, send their path"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return BrokerUnavailable(f"{path} cannot be written any more ({error}): nothing was changed; {_RIGHTS}")
    return BrokerUnavailable(f"SQLite failed on {path}: {error} ({_name(error)}); nothing was changed")


_RIGHTS = "the file, its folder and the files -wal and -shm beside it must be writable for this user"


def explain_open(error: sqlite3.Error, path: str) -> RepidError:
    """The same for what goes wrong while the file is opened."""
    code = _primary_code(error)
    if code == sqlite3.SQLITE_NOTADB:
        return ConfigurationError(f"{path} is not an SQLite database: give SQLiteServer a path of its own")
    if code == sqlite3.SQLITE_CORRUPT:
        return ConfigurationError(f"{path} is damaged ({error}): {_CORRUPT}")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return ConfigurationError(f"{path} cannot be opened for writing ({error}): {_RIGHTS}")
    return explain(error, path)


def locked(path: str) -> BrokerUnavailable:
    """Another process has held the write lock for too long."""
    return BrokerUnavailable(
        f"{path} has been locked by another process for too long: nothing was changed; "
        "look for a program that keeps a transaction open on it"
    )


def moved(path: str) -> BrokerUnavailable:
    """The file is not there any more, or another one is."""
    return BrokerUnavailable(
        f"{path} was removed or replaced while it was open: nothing was changed; put it back with its -wal file, "
        "or leave and enter `connection()` to begin with the new one"
    )


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", type(error).__name__)
