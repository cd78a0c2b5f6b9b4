"""Makes statements fail as SQLite would fail them, on the real connections of the real `sqlite3`.

`sqlite3.connect` gives connections of a class of ours while `Faults.injected` is open; they do what any connection
does, and raise where a rule says so. The product does not know of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias
from unittest.mock import patch

Kind: TypeAlias = Literal["IOERR", "FULL", "BUSY", "NOMEM", "CORRUPT"]

KINDS: dict[Kind, tuple[type[sqlite3.Error], int, str]] = {
    "IOERR": (sqlite3.OperationalError, sqlite3.SQLITE_IOERR_WRITE, "disk I/O error"),
    "FULL": (sqlite3.OperationalError, sqlite3.SQLITE_FULL, "database or disk is full"),
    "BUSY": (sqlite3.OperationalError, sqlite3.SQLITE_BUSY, "database is locked"),
    "NOMEM": (sqlite3.Error, sqlite3.SQLITE_NOMEM, ""),  # which sqlite3 reports as a MemoryError
    "CORRUPT": (sqlite3.DatabaseError, sqlite3.SQLITE_CORRUPT, "database disk image is malformed"),
}

Rule: TypeAlias = Callable[[str], bool]
"""Whether this step fails: the statement's text, or "fetch"."""


class Faults:
    """Which step fails, and how.

    `undoes`: SQLite has rolled the transaction back by itself, as it may do after most errors. `steps` holds every
    step since the rule was set, `failed` those that failed.
    """

    def __init__(self, kind: Kind = "IOERR", *, undoes: bool = False) -> None:
        self.kind: Kind = kind
        self.undoes = undoes
        self.steps: list[str] = []
        self.failed: list[str] = []
        self._rule: Rule | None = None

    def fail(self, rule: Rule) -> None:
        """From now on what the rule chooses fails."""
        self.steps.clear()
        self.failed.clear()
        self._rule = rule

    def fail_step(self, number: int) -> None:
        """Of the steps from now on, this one fails (counted from 0)."""
        self.fail(lambda _: len(self.steps) == number + 1)

    def fail_commits(self, number: int, times: int) -> None:
        """From this step on so many commits fail, one after the other."""
        self.fail(lambda step: step == "COMMIT" and len(self.steps) > number and len(self.failed) < times)

    def fail_once(self, beginning: str) -> None:
        """The next statement that begins like this fails."""
        self.fail(lambda step: step.startswith(beginning) and not self.failed)

    def heal(self) -> None:
        """From now on nothing fails."""
        self._rule = None

    @contextmanager
    def injected(self) -> Iterator[None]:
        """While this is open, new connections are ours."""
        factory = partial(_Connection, self)
        with patch.object(sqlite3, "connect", partial(sqlite3.connect, factory=factory)):
            yield

    def step(self, connection: sqlite3.Connection, text: str) -> None:
        """One step is about to be carried out."""
        if self._rule is None:
            return
        self.steps.append(text)
        if not self._rule(text):
            return
        self.failed.append(text)
        if self.undoes and connection.in_transaction:
            sqlite3.Cursor(connection).execute("ROLLBACK")
        raise self.error(self.kind)

    @staticmethod
    def error(kind: Kind) -> Exception:
        """What `sqlite3` raises where a statement fails like this."""
        if kind == "NOMEM":
            return MemoryError()
        error_type, code, text = KINDS[kind]
        error = error_type(text)
        error.sqlite_errorcode = code
        error.sqlite_errorname = f"SQLITE_{kind}"
        return error


class _Connection(sqlite3.Connection):
    def __init__(self, faults: Faults, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.faults = faults

    def cursor(self, *_: Any) -> _Cursor:  # type: ignore[override]  # no factory of others is used
        return super().cursor(_Cursor)

    def execute(self, sql: str, parameters: Any = ()) -> _Cursor:
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, rows: Any) -> _Cursor:
        return self.cursor().executemany(sql, rows)


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, parameters: Any = ()) -> _Cursor:
        self._step(sql)
        super().execute(sql, parameters)
        return self

    def executemany(self, sql: str, rows: Any) -> _Cursor:
        self._step(sql)
        super().executemany(sql, rows)
        return self

    def fetchone(self) -> Any:
        self._step_in_fetch()
        return super().fetchone()

    def fetchall(self) -> Sequence[Any]:  # type: ignore[override]
        self._step_in_fetch()
        return super().fetchall()

    def _step_in_fetch(self) -> None:
        try:
            self._step("fetch")
        except Exception:
            super().fetchall()  # a statement that fails is reset
            raise

    def _step(self, text: str) -> None:
        if isinstance(self.connection, _Connection):
            self.connection.faults.step(self.connection, text.strip())
