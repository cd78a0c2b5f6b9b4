"""The file: how it is opened, what is in it, and how an older one is brought up to date.

Tables. `message` holds the live messages and is written once for each; where one is follows from which of `ready`,
`scheduled` and `lease` has its `seq`. `dead` holds the dead ones, so live ids are unique by a plain index. `ready` is
the claiming order itself: lane, rank, seq. A lane is one topic of one queue. `lease.n` counts the leases a message has
had, modulo 4096; with the seq, which is never used twice, it makes the fencing token. Times are in microseconds;
`until` is on the boot clock of `boot`, all others on the wall clock. Messages that must be leased alone are in lanes of
their own (`lane.suspects`), and `trail` holds what is known of who lost them.
`queue.bounds` is packed, and `dropped` counts what it has dropped because it was full.
`enqueued_at`, `since` and `worker` are NULL in rows that an older repid wrote; `died_at` is then when the file was
upgraded.
"""

from __future__ import annotations

import math
import os
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ...errors import BrokerRefused, ConfigurationError, RepidError
from .errors import STATEMENT_FAILED, explain_open, is_busy
from .schedule_names import rename_schedules

APPLICATION_ID = 0x72657064
"""The bytes "repd" in the file's header: it is ours."""

OLDEST_SQLITE = (3, 33, 0)

CHECKPOINT_PAGES = 2000
"""The WAL is moved into the file at this size (8 MB)."""

LARGEST_IDLE_WAL = 32 * 1024 * 1024
"""Bytes. A WAL that a long reader let grow is cut back to this."""

_OPENING_TIME = 10.0
"""Seconds to wait for another process that is opening or migrating the same file."""

_SHORT_WAIT = 0.05
"""Seconds for which SQLite itself waits for a lock on opening; nothing can end that wait."""

_FIRST = """
CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), directory INTEGER NOT NULL, next_seq INTEGER NOT NULL);
INSERT INTO meta VALUES (1, 0, 1);
CREATE TABLE boot (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE queue (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, paused INTEGER NOT NULL DEFAULT 0);
CREATE TABLE lane (id INTEGER PRIMARY KEY AUTOINCREMENT, queue INTEGER NOT NULL, topic TEXT);
CREATE TABLE consumer (
    id INTEGER PRIMARY KEY AUTOINCREMENT, boot INTEGER NOT NULL, until INTEGER NOT NULL, takes BLOB NOT NULL
);
CREATE TABLE message (
    seq INTEGER PRIMARY KEY, lane INTEGER NOT NULL, rank INTEGER NOT NULL, due INTEGER, expires_at INTEGER,
    id BLOB NOT NULL, payload BLOB NOT NULL, content_type, headers BLOB, extra BLOB, result_id BLOB,
    attempt INTEGER NOT NULL DEFAULT 1, lost INTEGER NOT NULL DEFAULT 0, leases INTEGER NOT NULL DEFAULT 0,
    unrouted_at INTEGER, failure BLOB, progress BLOB
);
CREATE UNIQUE INDEX message_id ON message (id);
CREATE INDEX message_expiry ON message (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE ready (
    lane INTEGER NOT NULL, rank INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (lane, rank, seq)
) WITHOUT ROWID;
CREATE TABLE scheduled (
    due INTEGER NOT NULL, seq INTEGER NOT NULL, lane INTEGER NOT NULL, PRIMARY KEY (due, seq)
) WITHOUT ROWID;
CREATE TABLE lease (
    seq INTEGER PRIMARY KEY, n INTEGER NOT NULL, lane INTEGER NOT NULL, until INTEGER NOT NULL, boot INTEGER NOT NULL,
    consumer INTEGER NOT NULL, cancelling INTEGER NOT NULL DEFAULT 0, progress BLOB
);
CREATE INDEX lease_cancelling ON lease (consumer) WHERE cancelling = 1;
CREATE TABLE dead (
    key INTEGER PRIMARY KEY AUTOINCREMENT, queue INTEGER NOT NULL, lane INTEGER NOT NULL,
    id BLOB NOT NULL, payload BLOB NOT NULL, content_type, headers BLOB, extra BLOB, result_id BLOB,
    attempt INTEGER NOT NULL, lost INTEGER NOT NULL, reason TEXT NOT NULL, failure BLOB, progress BLOB
);
CREATE INDEX dead_queue ON dead (queue);
CREATE INDEX dead_id ON dead (id);
CREATE TABLE result (
    id BLOB NOT NULL UNIQUE, state TEXT NOT NULL, payload BLOB NOT NULL, failure BLOB, finished_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
);
CREATE INDEX result_expiry ON result (expires_at);
CREATE TABLE schedule (
    name TEXT PRIMARY KEY, body BLOB NOT NULL, next_at REAL NOT NULL, paused INTEGER NOT NULL DEFAULT 0,
    fired INTEGER NOT NULL DEFAULT 0, skipped INTEGER NOT NULL DEFAULT 0, last_id BLOB
) WITHOUT ROWID;
"""

_SCHEDULES = """
ALTER TABLE schedule ADD COLUMN declaration BLOB;
ALTER TABLE schedule ADD COLUMN every REAL;
CREATE INDEX schedule_next ON schedule (next_at) WHERE paused = 0;
CREATE INDEX schedule_last ON schedule (next_at - every) WHERE paused = 0 AND every IS NOT NULL;
"""

_SUSPECTS = """
ALTER TABLE lane ADD COLUMN suspects INTEGER NOT NULL DEFAULT 0;
ALTER TABLE message ADD COLUMN trail BLOB;
"""

_EXPIRY = """
DROP INDEX message_expiry;
CREATE INDEX message_expiry ON message (expires_at) WHERE expires_at > 0;
"""

_TIMES = """
ALTER TABLE message ADD COLUMN enqueued_at INTEGER;
ALTER TABLE lease ADD COLUMN since INTEGER;
ALTER TABLE lease ADD COLUMN worker TEXT;
ALTER TABLE dead ADD COLUMN enqueued_at INTEGER;
UPDATE lease SET cancelling = 1 WHERE cancelling > 1;
"""


_BOUNDS = """
ALTER TABLE queue ADD COLUMN bounds BLOB;
ALTER TABLE queue ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0;
"""


def _date_deaths(connection: sqlite3.Connection) -> None:
    """Give dead letters the time of their death. For those in the file it is not known: their ttl counts from now.

    A default is no change of any row, so this takes no longer for a million of them.
    """
    now = time.time_ns() // 1000
    connection.execute(f"ALTER TABLE dead ADD COLUMN died_at INTEGER NOT NULL DEFAULT {now}")
    connection.execute("CREATE INDEX dead_death ON dead (died_at)")


Migration: TypeAlias = str | Callable[[sqlite3.Connection], None]

MIGRATIONS: tuple[Migration, ...] = (
    _FIRST,
    _SCHEDULES,
    rename_schedules,
    _SUSPECTS,
    _EXPIRY,
    _TIMES,
    _date_deaths,
    _BOUNDS,
)
"""The n-th script or function makes version n of a file of version n - 1. What was released is never changed."""


class Opening(NamedTuple):
    """Which file is opened and how: `file_mode` are its permissions if it is created; `creates`: whether it may be."""

    path: str
    synchronous: str
    file_mode: int
    creates: bool = True


def open_file(how: Opening, give_up_at: Callable[[], float] = lambda: math.inf) -> sqlite3.Connection:
    """Open the file, created if it does not exist and may be, and bring it up to date.

    Raises `ConfigurationError` if it cannot be used. Waits for other processes that keep it locked, for some seconds
    or until `give_up_at` on the monotonic clock.
    """
    path = how.path
    check_place(path)
    if how.creates:
        _create(path, how.file_mode)
    elif not Path(path).exists():
        raise ConfigurationError(f"there is no file {path}")
    try:
        connection = sqlite3.connect(
            path, timeout=_SHORT_WAIT, isolation_level=None, cached_statements=256, check_same_thread=True
        )
    except STATEMENT_FAILED as error:
        raise explain_open(error, path) from error
    try:
        _set_up_patiently(connection, how, give_up_at)
    except STATEMENT_FAILED as error:
        connection.close()
        raise explain_open(error, path) from error
    except RepidError:
        connection.close()
        raise
    return connection


def _create(path: str, file_mode: int) -> None:
    """Create an empty file, if there is none: the permissions are set before anything is in it.

    SQLite gives the files -wal and -shm those of the file itself. Where this fails SQLite says what is wrong.
    """
    real = os.path.realpath(path)  # O_EXCL does not follow a link to a file that does not exist yet
    with suppress(OSError):
        os.close(os.open(real, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        os.chmod(real, file_mode)  # noqa: PTH101  what was asked for, whatever the umask is


def check_place(path: str) -> None:
    """Say what is wrong with the path in plainer words than SQLite would."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        needed = ".".join(map(str, OLDEST_SQLITE))
        raise ConfigurationError(
            f"this Python has SQLite {sqlite3.sqlite_version}; SQLiteServer needs {needed} or newer"
        )
    try:
        _check_folder_and_file(path, Path(path))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be the path of a file here: {error.strerror}") from error


def _check_folder_and_file(path: str, place: Path) -> None:
    if place.is_dir():
        raise ConfigurationError(
            f"{path} is a folder: give SQLiteServer the path of a file, such as {place / 'repid.db'}"
        )
    if not place.parent.is_dir():
        advice = f"make {place.parent} first"
        if any(part.startswith("~") for part in place.parts):
            advice = "a ~ is not taken for a home: give SQLiteServer Path(...).expanduser()"
        raise ConfigurationError(f"the folder of {path} does not exist: {advice}")
    if place.exists() and not place.is_file():
        raise ConfigurationError(f"{path} is a device, pipe or socket: give SQLiteServer the path of a file")
    for found, what in ((place, "file"), (place.parent, "folder")):
        if found.exists() and not os.access(found, os.W_OK):
            raise ConfigurationError(
                f"{path} cannot be opened for writing: the {what} {found} is read-only for this user"
            )


def _set_up_patiently(connection: sqlite3.Connection, how: Opening, give_up_at: Callable[[], float]) -> None:
    """Try again while others have the file: to change the journal's mode SQLite itself does not wait for them."""
    deadline = time.monotonic() + _OPENING_TIME
    while True:
        try:
            return _set_up(connection, how)
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > min(deadline, give_up_at()):
                raise
        time.sleep(random.uniform(0.001, 0.01))  # noqa: S311  so that they do not meet again


def _set_up(connection: sqlite3.Connection, how: Opening) -> None:
    execute, path = connection.execute, how.path
    _check_owner(connection, path)
    if not _version(connection, path) and not how.creates:  # before anything is changed
        raise ConfigurationError(f"{path} is empty: no repid has ever used it")
    if execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise BrokerRefused(f"{path} cannot be used in WAL mode: put it on a local file system")
    execute(f"PRAGMA synchronous = {how.synchronous}")
    execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    execute(f"PRAGMA journal_size_limit = {LARGEST_IDLE_WAL}")
    execute("PRAGMA cache_size = -16000")
    execute("PRAGMA temp_store = MEMORY")
    migrate(connection, path)


_KNOWN_BY = {"queue", "lane", "lease", "dead"}


def _check_owner(connection: sqlite3.Connection, path: str) -> None:
    execute = connection.execute
    is_ours = execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    if is_ours and execute("PRAGMA user_version").fetchone()[0] > 0:
        return
    tables = {name for (name,) in execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return
    if tables >= _KNOWN_BY and execute("PRAGMA user_version").fetchone()[0] <= 0:
        raise ConfigurationError(
            f"{path} has the tables of repid but no version, as if it was made from a dump: copy the file itself "
            "instead, with VACUUM INTO or .backup, or add what is missing, PRAGMA application_id = "
            f"{APPLICATION_ID}; PRAGMA user_version = {len(MIGRATIONS)} (the version of this repid, which is right if "
            "this repid has written the file)"
        )
    # looked at again: another process may have been making it ours between the two looks
    if execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise ConfigurationError(f"{path} is the database of another program: give SQLiteServer a path of its own")


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Run the migrations the file lacks, all in one transaction: another process sees none of them or all."""
    execute = connection.execute
    if _version(connection, path) == len(MIGRATIONS):
        return
    execute("BEGIN EXCLUSIVE")
    try:
        version = _version(connection, path)  # looked at again: another process may have been quicker
        for migration in MIGRATIONS[version:]:
            _run(connection, migration)
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            execute("ROLLBACK")
        raise


def _run(connection: sqlite3.Connection, migration: Migration) -> None:
    if callable(migration):
        migration(connection)
        return
    for statement in migration.split(";\n"):
        if statement.strip():
            connection.execute(statement)


def _version(connection: sqlite3.Connection, path: str) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise ConfigurationError(
            f"{path} was written by a newer repid (version {version} of the file, this one knows {len(MIGRATIONS)}): "
            "update repid here; the file was not touched"
        )
    return version
