"""The write-ahead log of SQLite (the WAL) as a file: synced after a commit, and watched for being removed.

Theory. A commit of SQLite's at FULL writes to the log, waits for the disk, and only then can be seen. For a message
that is published the order may be another one: it is committed at NORMAL, so that other processes see it and begin, the
log is synced here, and then its sender is answered. The disk takes longer than all the rest, and the message is already
on its way meanwhile. What was seen before it was on the disk can be lost with the power; then its sender had no answer
yet, so it does not count as sent. No later transaction outlasts it: the log is a sequence, and a sync covers all that
was written before. For settlements and all else this is not done: a result that somebody has seen could be lost.

A sync of a file covers what any descriptor has written to it, so the one here covers SQLite's. If another process moves
the log into the database meanwhile, it syncs both first. If a sync fails, the system may have dropped what it could not
write, and the next sync succeeds without it. After a loss of power SQLite reads the log up to such a gap, so nothing
may be written behind it: the log is moved into the database and begins anew (`begin_anew`).

This is done on Linux only: elsewhere other processes are not told of commits, so they would not begin earlier.

The descriptor may be closed at any time: closing a file gives up the POSIX locks that the process has on it, and SQLite
locks the database and its `-shm` file, but never the log.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .errors import log_stays


class Wal:
    """The log of one open database; it belongs to the file's thread."""

    def __init__(self, database: str) -> None:
        self.path = f"{os.path.realpath(database)}-wal"  # SQLite follows links before it names it
        self._identity = identify(self.path) if os.path.exists(self.path) else None  # noqa: PTH110  as SQLite names it
        self._descriptor: int | None = None
        if sys.platform == "linux":
            with suppress(OSError):  # no more open files are allowed
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def can_sync(self) -> bool:
        """Whether `sync` works here."""
        return self._descriptor is not None

    def sync(self) -> None:
        """Return when the disk has all that was committed so far. Raises `OSError` if it does not take it."""
        assert self._descriptor is not None
        if sys.platform == "linux":
            os.fdatasync(self._descriptor)

    def look(self) -> tuple[bool, int]:
        """Whether the log was removed or replaced, and its size in bytes. Raises `OSError` if that cannot be seen."""
        try:
            found = os.stat(self.path)  # noqa: PTH116  called often
        except FileNotFoundError:
            return self._identity is not None, 0
        return self._identity not in (None, (found.st_dev, found.st_ino)), found.st_size

    def close(self) -> None:
        """Close what was opened for syncing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def open_wal(database: str) -> Iterator[Wal]:
    """The log of a database that SQLite has open in this process, for a block."""
    wal = Wal(database)
    try:
        yield wal
    finally:
        wal.close()


def begin_anew(connection: sqlite3.Connection, path: str) -> None:
    """Move all of the log into the database. Raises `BrokerUnavailable` if that cannot be done now."""
    try:
        is_busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.Error as error:
        raise log_stays(path, str(error)) from error
    if is_busy:
        raise log_stays(path, "another program reads or writes in it")


def identify(path: str) -> tuple[int, int]:
    """What tells this file from another one at the same path."""
    found = os.stat(path)  # noqa: PTH116  called often
    return found.st_dev, found.st_ino
