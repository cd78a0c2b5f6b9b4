"""The server in an SQLite file, as users open it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeAlias

from ...errors import ConfigurationError
from ...names import check_one_of
from ...ports import Instrument
from ..checks import check_lease_timeout
from ..door import Server
from .clock import Clock
from .driver import SQLiteDriver
from .schema import Opening

Synchronous: TypeAlias = Literal["NORMAL", "FULL", "EXTRA"]
"""When what was committed is safe. FULL, EXTRA: at once. NORMAL: at once if this process or another dies; if the
machine loses power, the last transactions before that may be lost, whole. The file is never damaged."""


class SQLiteServer(Server):
    """A broker in one file, for any number of processes on one machine. The file is made if it does not exist.

    `synchronous`: with FULL, the default, what `publish` accepted survives a loss of power; see `Synchronous`.
    `lease_timeout`: a lease that was neither settled nor extended for this many seconds may be rescued. `file_mode`: the
    permissions of the file, and of the files -wal and -shm beside it, if it is created. By default only its owner can
    read them; 0o660 lets its group, too. The permissions of an existing file are not changed. `clock` is for tests. The
    file must be on a local disk: SQLite's locks do not work over a network.

    One thread works on the file while a connection is open. Calls that wait at the same time share a transaction, so
    many concurrent publishers cost little more than one. Of a cancelled call nothing has happened; a call that was
    being carried out when it was cancelled is seen through and returns.

    What one call publishes is one transaction: all of it is in the file or nothing, and others wait for the file meanwhile,
    some 10 to 80 ms for each 1000 messages. They wait for 10 seconds at most, so give tens of thousands in several calls.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "FULL",
        lease_timeout: float | timedelta = 60.0,
        file_mode: int = 0o600,
        clock: Clock | None = None,
        instruments: Iterable[Instrument] = (),
    ) -> None:
        check_one_of("synchronous", synchronous, ("NORMAL", "FULL", "EXTRA"))
        self.path = _check_path(path)
        _check_mode(file_mode)
        opening = Opening(self.path, synchronous, file_mode)
        super().__init__(
            SQLiteDriver(opening, check_lease_timeout(lease_timeout), clock or Clock()), instruments=instruments
        )


def _check_path(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    if text in {"", ":memory:"} or text.startswith("file:"):
        raise ConfigurationError(
            f"SQLiteServer needs the path of a file, but got {text!r}: for messages that live in this process only "
            "there is InMemoryServer"
        )
    return str(Path(text).absolute())


def _check_mode(mode: int) -> None:
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o777 or mode & 0o600 != 0o600:
        shown = oct(mode) if type(mode) is int else repr(mode)
        raise ConfigurationError(
            f"file_mode must be permissions with which the owner may read and write, such as 0o600 or 0o660, but is {shown}"
        )


SQLiteMessageBroker = SQLiteServer
