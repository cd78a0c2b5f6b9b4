"""Requests in, transactions on the file, answers out: group commit.

Everything that waits goes into one transaction. If that fails it is rolled back and each request gets a transaction
of its own, so that one's failure never harms a neighbour.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence

from ...errors import InternalError, RepidError
from .errors import explain, is_busy, moved
from .publishing import publish
from .requests import Counter, Publication, Request, anew
from .schema import LARGEST_IDLE_WAL
from .store import Store

PATIENCE = 10.0
"""Seconds that others may keep the file locked."""

_FAIR_WAIT = 8
"""Milliseconds for which SQLite itself tries again, after 1, 2 and 5: short waits are what gets a lock under load."""


LARGEST_WAL = 4 * LARGEST_IDLE_WAL
"""Bytes. Only a reader that stays in one transaction for long lets it grow so far."""


class Transactions:
    """Carries out what is handed in at one counter, on one file. From the moment `give_up_at` no lock is waited for."""

    def __init__(
        self, store: Store, counter: Counter, path: str, synchronous: str, give_up_at: Callable[[], float]
    ) -> None:
        self._store = store
        self._counter = counter
        self._path = path
        self._execute = store.connection.execute
        self._give_up_at = give_up_at
        self._execute(f"PRAGMA busy_timeout = {_FAIR_WAIT}")
        self._synchronous = self._present = synchronous
        self._identity = _identify(path)

    def write(self, *, durable: bool) -> bool:
        """Take all that waits, as soon as the file is ours, and carry it out in one transaction; False: it failed.

        Not `durable`: all but what must be durable. Then the transaction does not wait for the disk.
        """
        try:
            self._begin(write=True, durable=durable)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
            self._refuse(self._counter.take(), error)
            return False
        return self._finish(self._counter.take(durable=durable), join=True)

    def read(self, requests: Sequence[Request]) -> None:
        """Answer what only looks, without locking others out. What needs more is handed in again, as urgent."""
        store = self._store
        if not requests:
            return
        try:
            self._begin(write=False)
            store.look()
            wanting = requests
            if not store.is_due:
                self._run([request for request in requests if request.peek is None])
                wanting = [request for request in requests if request.peek is not None and request.peek(store)]
            self._execute("ROLLBACK")
        except Exception as error:  # noqa: BLE001 - as above
            self._roll_back()
            if isinstance(error, sqlite3.Error) and is_busy(error):  # being recovered: a writer has the patience
                self._counter.put_back(requests, urgent=True)
            else:
                self._refuse(requests, error)
            return
        self._counter.put_back(wanting, urgent=True)
        self._hand_out([request for request in requests if not request.urgent])

    def each_alone(self, requests: Sequence[Request]) -> None:
        """Carry out each request in a transaction of its own."""
        for place, request in enumerate(requests):
            try:
                self._begin(write=True, durable=request.durable)
            except Exception as error:  # noqa: BLE001 - as above
                self._refuse(requests[place:], error)
                return
            self._finish([request], join=False)

    def shrink_wal(self) -> None:
        """Move a WAL that has grown far beyond its limit into the file, if nobody is reading in it just now."""
        try:
            if os.stat(f"{self._path}-wal").st_size > LARGEST_WAL:  # noqa: PTH116 - called often
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except (OSError, sqlite3.Error):
            return  # the next one will do it

    def _check_file(self) -> None:
        """Raise `BrokerUnavailable` where the file is not there any more: writing to it would help nobody."""
        try:
            if _identify(self._path) == self._identity:
                return
        except OSError:
            pass
        raise moved(self._path)

    def _begin(self, *, write: bool, durable: bool = False) -> None:
        self._check_file()
        synchronous = self._synchronous if durable else "NORMAL"
        if write and synchronous != self._present:
            self._execute(f"PRAGMA synchronous = {synchronous}")
            self._present = synchronous
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._execute("BEGIN IMMEDIATE" if write else "BEGIN")
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() > min(deadline, self._give_up_at()):
                    raise
            else:
                return
            if write:  # whoever holds the lock keeps nobody from reading
                self.read(self._counter.take_readers())

    def _finish(self, requests: Sequence[Request], *, join: bool) -> bool:
        """Carry out in the transaction that is open; those who wait for what becomes ready by that may join."""
        store = self._store
        joined: list[Request] = []
        store.arrived = False
        try:
            store.look()
            store.advance()
            self._run(requests)
            if join and store.arrived:
                joined = self._counter.take_wishes(claims=True)
                self._run(joined)
            self._execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - as above
            self._roll_back()
            self._counter.put_back(joined)
            if join and requests:
                self.each_alone(requests)
                return True
            self._refuse(requests, error)
            return False
        self._hand_out([*requests, *joined])
        return True

    def _run(self, requests: Sequence[Request]) -> None:
        publications = [request for request in requests if isinstance(request, Publication)]
        if len(publications) > 1:
            self._publish(publications)
        else:
            publications = []
        for request in requests:
            if publications and isinstance(request, Publication):
                continue
            request.result = request.error = None
            try:
                request.result = request.operation(self._store)
            except RepidError as error:  # it says no, and has changed nothing
                request.error = error

    def _publish(self, publications: Sequence[Publication]) -> None:
        envelopes = [envelope for publication in publications for envelope in publication.envelopes]
        bodies = [body for publication in publications for body in publication.bodies]
        outcomes = publish(self._store, envelopes, bodies)
        start = 0
        for publication in publications:
            end = start + len(publication.envelopes)
            publication.result, publication.error = outcomes[start:end], None
            start = end

    def _roll_back(self) -> None:
        if self._store.connection.in_transaction:
            self._execute("ROLLBACK")
        self._store.forget()

    def _hand_out(self, requests: Sequence[Request]) -> None:
        still_open = [request for request in requests if request.is_open]
        if still_open:
            self._counter.put_back(still_open)
            requests = [request for request in requests if not request.is_open]
        self._counter.answer(requests)

    def _refuse(self, requests: Sequence[Request], error: Exception) -> None:
        for request in requests:
            request.result = None
            request.error = self._explain(error)
        self._counter.answer(requests)

    def _explain(self, error: Exception) -> RepidError:
        if isinstance(error, sqlite3.Error):
            explained = explain(error, self._path)
        elif isinstance(error, RepidError):
            return anew(error)
        else:
            explained = InternalError(f"this should not happen to {self._path}: {error!r}")
        explained.__cause__ = error
        return explained


def _identify(path: str) -> tuple[int, int]:
    found = os.stat(path)  # noqa: PTH116 - called often
    return found.st_dev, found.st_ino
