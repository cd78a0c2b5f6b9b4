"""From what sqlite3 raises to what repid raises: the only place that knows both.

What may pass by itself or by freeing space is `BrokerUnavailable`: the transaction was rolled back, the same call
may be made again. An error that lasts until a person repairs or moves a file is `BrokerRefused`, or
`ConfigurationError` when it is found on opening.
"""

from __future__ import annotations

import sqlite3

from ...errors import BrokerRefused, BrokerUnavailable, ConfigurationError, InternalError, NoAnswer, RepidError

_SPACE = "nothing was changed; make room (the WAL file beside it needs some too) and try again"
_CORRUPT = (
    "it is left as it is: restore a backup, or save what can be read with `sqlite3 FILE .recover`, "
    "and look at the disk it is on"
)


STATEMENT_FAILED = (sqlite3.Error, MemoryError)
"""What a statement may raise: sqlite3 makes a MemoryError of SQLITE_NOMEM."""

_MAY_PASS = frozenset(  # what else is wrong lies in the statement or its values: trying again is of no use
    {
        sqlite3.SQLITE_ABORT,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_SCHEMA,
    }
)


def is_busy(error: Exception) -> bool:
    """Whether another connection has the file locked just now."""
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def explain(error: Exception, path: str) -> RepidError:
    """What happened to which file, and what to do about it, in the course of an operation."""
    if isinstance(error, MemoryError):
        return BrokerUnavailable(f"no memory left to work on {path}: nothing was changed; try again")
    if isinstance(error, UnicodeError | OverflowError):
        text = f"the text {error.object!r}" if isinstance(error, UnicodeEncodeError) else "a value"
        return ConfigurationError(f"{text} cannot be written to {path} ({error}): nothing was changed")
    if isinstance(error, sqlite3.Error):
        return locked(path) if is_busy(error) else _explain_code(_primary_code(error), error, path)
    return InternalError(f"this should not happen to {path}: {error!r}")


def _explain_code(code: int, error: sqlite3.Error, path: str) -> RepidError:
    match code:
        case sqlite3.SQLITE_FULL:
            return BrokerUnavailable(f"no space left for {path}: {_SPACE}")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return BrokerRefused(f"{path} is damaged ({error}): {_CORRUPT}")
        case sqlite3.SQLITE_TOOBIG:
            too_big = f"a message is too big for SQLite ({error})"
            return BrokerRefused(f"{too_big}: keep large payloads elsewhere, send their path")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return BrokerUnavailable(f"{path} cannot be written any more ({error}): nothing was changed; {_RIGHTS}")
    if code in _MAY_PASS:
        return BrokerUnavailable(f"SQLite failed on {path}: {error} ({_name(error)}); nothing was changed")
    return BrokerRefused(f"SQLite refused a statement on {path}: {error} ({_name(error)}); nothing was changed")


_RIGHTS = "the file, its folder and the files -wal and -shm beside it must be writable for this user"


def explain_open(error: sqlite3.Error | MemoryError, path: str) -> RepidError:
    """As `explain`, for what goes wrong while the file is opened."""
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


def wal_removed(path: str) -> BrokerUnavailable:
    """The write-ahead log is not there any more, or another one is."""
    return BrokerUnavailable(
        f"{path}-wal was removed while {path} was open: what it held was written to {path}, which is opened again; the "
        "files -wal and -shm belong to it and must stay beside it"
    )


def not_synced(path: str, error: OSError) -> NoAnswer:
    """The disk has not taken what was committed."""
    return NoAnswer(
        f"{path}-wal could not be synced ({error}): what was published last is there, and may be lost when the machine "
        "loses power; look at the disk it is on"
    )


def log_stays(path: str, reason: str) -> BrokerUnavailable:
    """What the disk has not taken is still in the log."""
    return BrokerUnavailable(
        f"{path}-wal could not be synced, and the log cannot begin anew yet ({reason}): nothing was changed; it is "
        "tried again"
    )


def _primary_code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _name(error: Exception) -> str:
    return getattr(error, "sqlite_errorname", type(error).__name__)
