"""The write-ahead log of SQLite (the WAL) as a file: synced, made longer ahead, and watched for being removed.

Theory. A commit of SQLite's at FULL writes to the log, waits for the disk, and only then can be seen. For a message that
is published the order may be another one: it is committed at NORMAL, so that other processes see it and begin, the log is
synced here, and then its sender is answered. The disk, which takes longer than all the rest, is waited for while the
message is already on its way. What was seen before it was on the disk can be lost with the power; then its sender had no
answer yet, so it does not count as sent. No later transaction outlasts it: the log is a sequence, and what is synced is
synced with all that was written before. For settlements and all else this is not done: a result that somebody has seen
would not be there any more.

A sync of a file covers what any descriptor has written to it, so the one here covers SQLite's. If another process moves
the log into the database meanwhile, it syncs both before. If a sync fails the system may have dropped what it could not
write, and the next sync succeeds without it. After a loss of power SQLite reads the log up to such a gap, so nothing may be
written behind it: the log is moved into the database and begins anew (`begin_anew`). This is done on Linux only, where other processes are told of
commits, so that they would begin earlier.

A file system takes twice as long to sync a file that has grown (measured on ext4: 250 us, else 130), since it writes its own
notes of it, too. SQLite lets the log grow with each commit until it begins anew at its start. So zeros are written ahead of
small commits. SQLite takes them for the end of the log, because the salts of the log are not in them. They may be written
by whoever has the write lock, as only a writer lengthens or shortens the log.

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
from .schema import CHECKPOINT_PAGES

_STEP = 256 * 1024
"""Bytes that are written ahead at once. That takes half as long again as a commit that lets the file grow (measured)."""

_SMALL = _STEP // 8
"""Bytes of a commit. Where they are more, as of many messages in one call, this gains less than it costs (measured)."""

_FULL_LENGTH = CHECKPOINT_PAGES * (4096 + 24)
"""Bytes of a log that is moved into the database."""


class Wal:
    """The log of one open database; it belongs to the file's thread."""

    def __init__(self, database: str) -> None:
        self.path = f"{os.path.realpath(database)}-wal"  # SQLite follows links before it names it
        self._identity = identify(self.path) if os.path.exists(self.path) else None  # noqa: PTH110  as SQLite names it
        self._length: int | None = None  # when `reserve` had been called last
        self._used_from = 0  # how long it was before it was made longer
        self._calls = 0  # of `reserve` since then
        self._descriptor: int | None = None
        if sys.platform == "linux":
            with suppress(OSError):  # no more open files are allowed
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    @property
    def can_sync(self) -> bool:
        """Whether `sync` works here."""
        return self._descriptor is not None

    def sync(self) -> None:
        """Return when the disk has all that was committed so far. Raises `OSError` if it does not take it."""
        assert self._descriptor is not None
        if sys.platform == "linux":
            os.fdatasync(self._descriptor)

    def reserve(self) -> None:
        """Make the log longer if it has grown since the last call, by small commits. This connection must have the write lock.

        The length is not asked by `stat`: Linux notes that somebody has seen the file's times, and the next sync takes half as
        long again, because the times change (measured on 6.18).
        """
        assert self._descriptor is not None
        self._calls += 1
        length = os.lseek(self._descriptor, 0, os.SEEK_END)
        if length == self._length:
            return
        is_first, used, calls = self._length is None, length - self._used_from, self._calls
        self._length, self._used_from, self._calls = length, length, 0
        if not is_first and 0 < used <= calls * _SMALL and length < _FULL_LENGTH:
            with suppress(OSError):  # no room: SQLite may find some for less
                self._length += os.pwrite(self._descriptor, bytes(_STEP), length)

    def look(self) -> tuple[bool, int]:
        """Whether the log was removed or replaced, and how many bytes it has. Raises `OSError` if that cannot be seen."""
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
    """Move all of the log into the database. Closes the connection and raises `BrokerUnavailable` if it cannot be done now."""
    try:
        is_busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.Error as error:
        connection.close()
        raise log_stays(path, str(error)) from error
    if is_busy:
        connection.close()
        raise log_stays(path, "another program reads or writes in it")


def identify(path: str) -> tuple[int, int]:
    """What tells this file from another one at the same path."""
    found = os.stat(path)  # noqa: PTH116  called often
    return found.st_dev, found.st_ino
