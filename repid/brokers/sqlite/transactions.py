"""Requests in, transactions on the file, answers out: group commit.

Everything that waits goes into one transaction. If that fails it is rolled back and each request gets a transaction
of its own, so that one's failure never harms a neighbour.

A transaction that was rolled back leaves no trace in memory. Answers live here until it is committed (`Answer`), and
what the store remembers becomes valid with `Store.committed` or is dropped by `Store.forget`. A rollback that fails is
for the thread: it closes the connection, which undoes the transaction, and opens another one.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from copy import copy

from ...errors import RepidError
from .errors import explain, is_busy, moved
from .publishing import publish
from .requests import Answer, Counter, Publication, Request
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
        self._identity = identify(path)

    def write(self, *, durable: bool) -> bool:
        """Take all that waits, as soon as the file is ours, and carry it out in one transaction; False: it failed.

        Not `durable`: all but what must be durable. Then the transaction does not wait for the disk.
        """
        try:
            self._begin(write=True, durable=durable)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
            self._read_what_waits()
            self._refuse(self._counter.take(lambda request: request.urgent), error)
            return False
        return self._finish(self._counter.take(lambda request: durable or not request.durable), join=True)

    def read(self, requests: Sequence[Request]) -> None:
        """Answer what only looks, without locking others out. What needs more is handed in again, as urgent."""
        outside = [Answer(request, request.operation(self._store)) for request in requests if request.in_memory]
        if outside:
            self._hand_out(outside)
            requests = [request for request in requests if not request.in_memory]
        if not requests:
            return
        try:
            self._begin(write=False)
            answers, wanting = self._look(requests)
            self._end()
        except Exception as error:  # noqa: BLE001 - as above
            self._roll_back()
            if is_busy(error):  # being recovered: a writer has the patience
                self._counter.put_back(requests, urgent=True)
            elif len(requests) > 1:
                for request in requests:
                    self.read([request])
            else:
                self._refuse(requests, error)
            return
        self._counter.put_back(wanting, urgent=True)
        self._hand_out(answers)

    def _read_what_waits(self) -> None:
        self.read(self._counter.take(lambda request: not request.urgent))

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

    def _begin(self, *, write: bool, durable: bool = False) -> None:
        check_identity(self._path, self._identity)
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
                self._read_what_waits()

    def _finish(self, requests: Sequence[Request], *, join: bool) -> bool:
        """Carry out in the transaction that is open; those who wait for what becomes ready by that may join."""
        store = self._store
        joined: list[Request] = []
        store.arrived = False
        try:
            store.look()
            store.advance()
            answers = self._run(requests)
            if join and store.arrived:
                joined = self._counter.take_wishes(claims=True)
                answers += self._run(joined)
            self._execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - as above
            self._roll_back()
            self._counter.put_back(joined)
            if join and requests:
                self.each_alone(requests)
                return True
            self._refuse(requests, error)
            return False
        store.committed()
        self._hand_out(answers)
        return True

    def _look(self, requests: Sequence[Request]) -> tuple[list[Answer], list[Request]]:
        """What the operations of those that only look say, and which of them want a transaction that writes."""
        store = self._store
        store.look()
        if store.is_due:
            return [], list(requests)
        answers: list[Answer] = []
        wanting: list[Request] = []
        for request in requests:
            try:
                if request.peek is None:
                    answers.append(Answer(request, request.operation(store)))
                elif request.peek(store):
                    wanting.append(request)
                else:
                    answers.append(Answer(request))
            except RepidError as error:
                answers.append(Answer(request, error=error))
            except Exception as error:
                if is_busy(error) or not store.connection.in_transaction:
                    raise
                answers.append(Answer(request, error=self.explain(error)))
        return answers, wanting

    def _run(self, requests: Sequence[Request]) -> list[Answer]:
        publications = [request for request in requests if isinstance(request, Publication)]
        answers: list[Answer] = []
        if len(publications) > 1:
            answers += self._publish(publications)
            requests = [request for request in requests if not isinstance(request, Publication)]
        for request in requests:
            try:
                answers.append(Answer(request, request.operation(self._store)))
            except RepidError as error:  # it says no, and has changed nothing
                answers.append(Answer(request, error=error))
        return answers

    def _publish(self, publications: Sequence[Publication]) -> list[Answer]:
        envelopes = [envelope for publication in publications for envelope in publication.envelopes]
        bodies = [body for publication in publications for body in publication.bodies]
        outcomes = publish(self._store, envelopes, bodies)
        answers = []
        start = 0
        for publication in publications:
            end = start + len(publication.envelopes)
            answers.append(Answer(publication, outcomes[start:end]))
            start = end
        return answers

    def _end(self) -> None:
        if self._store.connection.in_transaction:
            self._execute("ROLLBACK")

    def _roll_back(self) -> None:
        self._store.forget()
        self._end()

    def _hand_out(self, answers: Sequence[Answer]) -> None:
        self._counter.put_back([answer.request for answer in answers if not answer.is_final])
        self._counter.answer([answer for answer in answers if answer.is_final])

    def _refuse(self, requests: Sequence[Request], error: Exception) -> None:
        self._counter.answer([Answer(request, error=self.explain(error)) for request in requests])

    def explain(self, error: Exception) -> RepidError:
        """What to tell a caller whose request failed with this."""
        if isinstance(error, RepidError):
            return copy(error)
        explained = explain(error, self._path)
        explained.__cause__ = error
        return explained


def identify(path: str) -> tuple[int, int]:
    """What tells this file from another one at the same path."""
    found = os.stat(path)  # noqa: PTH116 - called often
    return found.st_dev, found.st_ino


def check_identity(path: str, identity: tuple[int, int]) -> None:
    """Raise `BrokerUnavailable` where the file is not there any more: writing to it would help nobody."""
    try:
        if identify(path) == identity:
            return
    except OSError:
        pass
    raise moved(path)
