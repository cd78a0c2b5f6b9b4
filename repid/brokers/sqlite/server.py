"""The server in an SQLite file, as users open it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeAlias

from ...errors import ConfigurationError
from ...names import brief, check_one_of
from ...ports import Instrument
from ..checks import check_dead_ttl, check_lease_timeout
from ..door import Server
from .clock import Clock
from .driver import SQLiteDriver
from .schema import Opening

Synchronous: TypeAlias = Literal["NORMAL", "FULL", "EXTRA"]
"""When what was committed is safe. FULL, EXTRA: at once. NORMAL: at once if this process or another dies; if the
machine loses power, the last transactions before that may be lost, whole. The file is never damaged.

If the disk fails at the very end of a commit (in fsync), the caller is told that nothing was changed. That is so from
the next commit of any process on; but if every process with the file dies before that, SQLite may find the transaction
in its log and carry it out. No program can prevent this: the log is then on the disk, and the disk has said that it is
not."""


class SQLiteServer(Server):
    """A broker in one file, for any number of processes on one machine. The file is made if it does not exist.

    `synchronous`: with FULL, the default, what `publish` accepted survives a loss of power; see `Synchronous`.
    `lease_timeout`: a lease that was neither settled nor extended for this many seconds may be rescued. `dead_ttl`:
    workers remove dead letters after this many seconds, those of other programs too; by default they stay. `file_mode`:
    the permissions of the file, and of the files -wal and -shm beside it, if it is created. By default only its owner
    can read them; 0o660 lets its group, too. The permissions of an existing file are not changed. `clock` is for tests.
    The file must be on a local disk: SQLite's locks do not work over a network.

    One thread works on the file while a connection is open. Calls that wait at the same time share a transaction, so
    many concurrent publishers cost little more than one. A call that is cancelled while it waits has changed nothing;
    one that is being carried out when it is cancelled is finished, and returns.

    What one call publishes is one transaction: all of it is in the file or nothing, and others wait for the file
    meanwhile, some 10 to 80 ms for each 1000 messages. They wait for 10 seconds at most, so give tens of thousands in
    several calls.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "FULL",
        lease_timeout: float | timedelta = 60.0,
        dead_ttl: float | timedelta | None = None,
        file_mode: int = 0o600,
        clock: Clock | None = None,
        instruments: Iterable[Instrument] = (),
    ) -> None:
        check_one_of("synchronous", synchronous, ("NORMAL", "FULL", "EXTRA"))
        self.path = _check_path(path)
        _check_mode(file_mode)
        opening = Opening(self.path, synchronous, file_mode)
        timeout, ttl = check_lease_timeout(lease_timeout), check_dead_ttl(dead_ttl)
        driver = SQLiteDriver(opening, timeout, clock or Clock(), ttl)
        super().__init__(driver, instruments=instruments, place=self.path)


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # "c://" is a drive


def _check_path(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or not _can_be_path(text):
        raise ConfigurationError(f"SQLiteServer needs the path of a file, such as 'jobs.db', but got {brief(text)}")
    if _ADDRESS.match(text):
        raise ConfigurationError(
            f"SQLiteServer needs the path of a file, but got the address {text!r}: give the path in it alone, such as "
            "'jobs.db'"
        )
    if text in {"", ":memory:"} or text.startswith("file:"):
        raise ConfigurationError(
            f"SQLiteServer needs the path of a file, but got {text!r}: for messages that live in this process only "
            "there is InMemoryServer"
        )
    return str(Path(text).absolute())


def _can_be_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _check_mode(mode: int) -> None:
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o777 or mode & 0o600 != 0o600:
        shown = oct(mode) if type(mode) is int else repr(mode)
        raise ConfigurationError(
            f"file_mode must be permissions with which the owner may read and write, such as 0o600 or "
            f"0o660, but is {shown}"
        )


SQLiteMessageBroker = SQLiteServer
