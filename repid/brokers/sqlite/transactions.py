"""Requests in, transactions on the file, answers and news out: group commit.

Theory. All requests that wait go into one transaction. If that fails it is rolled back, and each request gets a
transaction of its own, so one request's failure never harms another one. Requests that only read get a read
transaction, which blocks no other process; while a writer waits for the lock of another process, readers are served.

What a rollback undoes: the file, by SQLite. In memory, the answers (`Answer`, which live in local variables here until
the commit) and what the store remembers, which becomes valid with `Store.committed` or is dropped by `Store.forget`.
What it does not undo: the state of the requests (they are still taken, and are carried out again or answered) and
numbers that were reserved for messages. A rollback that fails is raised to the thread, which closes the connection;
that undoes the transaction.

The order at the end of a transaction that writes: commit, tell other processes, remember (`committed`), note news, sync
what SQLite has not synced (`wal`), answer. So news is never told of what a rollback may still undo, and a caller who
has its answer finds the news already noted.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy

from ...errors import RepidError
from .clock import MICRO
from .errors import explain, is_busy, moved, not_synced, wal_removed
from .file_events import tell_done
from .news import NewsBox
from .publishing import publish
from .requests import BEFORE_ANSWER, NEVER, Answer, Durability, Publication, Request, RequestQueue
from .schema import LARGEST_IDLE_WAL
from .store import Store
from .wal import Wal, identify

PATIENCE = 10.0
"""Seconds that others may keep the file locked."""

_FAIR_WAIT = 8
"""Milliseconds for which SQLite itself tries again, after 1, 2 and 5: short waits are what gets a lock under load."""


_NEWS = """
SELECT EXISTS (SELECT 1 FROM ready), EXISTS (SELECT 1 FROM lease INDEXED BY lease_cancelling WHERE cancelling = 1),
    (SELECT min(next_at) FROM schedule WHERE paused = 0),
    (SELECT min(next_at) FROM schedule WHERE paused = 0 AND next_at > ?)
"""

LARGEST_WAL = 4 * LARGEST_IDLE_WAL
"""Bytes. Only a reader that stays in one transaction for long lets it grow so far."""


class Transactions:
    """Carries out the requests of one queue, on one file. From the moment `give_up_at` no lock is waited for."""

    def __init__(
        self,
        store: Store,
        queue: RequestQueue,
        news: NewsBox,
        path: str,
        identity: tuple[int, int],
        wal: Wal,
        synchronous: str,
        give_up_at: Callable[[], float],
    ) -> None:
        self._store = store
        self._queue = queue
        self._news = news
        self._path = path
        self._wal = wal
        self._syncs = wal.can_sync and synchronous != "NORMAL"
        self._execute = (
            store.connection.cursor().execute
        )  # one cursor for all: no answer is read after the next statement
        self._give_up_at = give_up_at
        self._execute(f"PRAGMA busy_timeout = {_FAIR_WAIT}")
        self._synchronous = self._present = synchronous
        self._identity = identity

    def write(self, *, durable: Durability) -> bool:
        """Take what waits, as soon as the file is ours, and carry it out in one transaction; False: it failed.

        What needs more than `durable` is left, because the transaction must not wait for the disk more than that.
        """
        try:
            self._begin(write=True, durable=durable)
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait are told
            self._read_what_waits()
            self._refuse(self._queue.take(lambda request: request.urgent), error)
            return False
        requests = self._queue.take(lambda request: request.durable <= durable)
        return self._finish(requests, durable=durable, may_repeat=True)

    def read(self, requests: Sequence[Request]) -> None:
        """Answer what only looks, without locking others out. What needs more is handed in again, as urgent."""
        outside = [Answer(request, request.carry_out(self._store)) for request in requests if request.in_memory]
        if outside:
            self._queue.answer(outside)
            requests = [request for request in requests if not request.in_memory]
        if not requests:
            return
        try:
            self._begin(write=False)
            answers, wanting = self._look(requests)
            self._end()
        except Exception as error:  # noqa: BLE001  as above
            self._roll_back()
            if is_busy(error):  # being recovered: a writer has the patience
                self._queue.put_back(requests)
            elif len(requests) > 1:
                for request in requests:
                    self.read([request])
            else:
                self._refuse(requests, error)
            return
        self._queue.put_back(wanting)
        self._queue.answer(answers)

    def _read_what_waits(self) -> None:
        self.read(self._queue.take(lambda request: not request.urgent))

    def each_alone(self, requests: Sequence[Request]) -> None:
        """Carry out each request in a transaction of its own."""
        for place, request in enumerate(requests):
            try:
                self._begin(write=True, durable=request.durable)
            except Exception as error:  # noqa: BLE001  as above
                self._refuse(requests[place:], error)
                return
            self._finish([request], durable=request.durable, may_repeat=False)

    def look_after_wal(self) -> None:
        """Move a WAL that has grown far beyond its limit into the file, if no process is reading in it.

        Raises `BrokerUnavailable` if somebody has removed it: no other process sees what is written to it, and it is
        lost when this one is killed. What it holds is moved into the file first.
        """
        try:
            is_lost, size = self._wal.look()
        except OSError:
            return
        is_lost = is_lost and _is_still(self._path, self._identity)
        if is_lost or size > LARGEST_WAL:
            with suppress(sqlite3.Error):  # the next one will do it
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if is_lost:
            raise wal_removed(self._path)

    def _begin(self, *, write: bool, durable: Durability = NEVER) -> None:
        check_identity(self._path, self._identity)
        synchronous = self._synchronous if durable > (BEFORE_ANSWER if self._syncs else NEVER) else "NORMAL"
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
            if write:  # a process that holds the lock does not block readers
                self._read_what_waits()

    def _finish(self, requests: Sequence[Request], *, durable: Durability, may_repeat: bool) -> bool:
        """Carry requests out in the transaction that is open. Returns False if it failed and nothing was repeated."""
        store = self._store
        directory, changes = store.begin_noting(), store.connection.total_changes
        try:
            store.look()
            store.advance()
            answers = self._run(requests)
            self._execute("COMMIT")
        except Exception as error:  # noqa: BLE001  as above
            self._roll_back()
            if may_repeat and requests:
                self.each_alone(requests)
                return True
            self._refuse(requests, error)
            return False
        if durable > NEVER:  # the others find at once only what takes a while to write
            tell_done(self._wal.path)
        store.committed()
        self._tell(answers, has_new_directory=store.directory.version != directory)
        # SQLite syncs nothing where nothing was written; but what was seen, such as a message with the same id, may be
        # another process's that is not on the disk yet
        if self._syncs and (
            durable == BEFORE_ANSWER or (durable > NEVER and store.connection.total_changes == changes)
        ):
            self._sync(requests)
        self._queue.answer(answers)
        return True

    def _sync(self, requests: Sequence[Request]) -> None:
        """Sync what was committed. If that fails, others see it all the same, and it may be lost with the power: nobody
        is told that it is safe, and the file is opened anew.
        """
        try:
            self._wal.sync()
        except OSError as error:
            publications = [one for one in requests if isinstance(one, Publication)]
            self._queue.answer([Answer(one, error=one.unknown()) for one in publications])
            raise not_synced(self._path, error) from error

    def _tell(self, answers: Sequence[Answer], *, has_new_directory: bool) -> None:
        """Note what the transaction that was committed has changed."""
        store, news = self._store, self._news
        ids: set[str] | None = set()
        if news.watched:
            ids = _touched_by(answers)
            if store.has_moved:
                ids = None
        news.note(ready=store.arrived or has_new_directory, events=store.has_requests, ids=ids)

    def look_for_news(self) -> tuple[bool, bool, object]:
        """Bring the store up to date, and find out whether anything is ready and any cancellation requested, and when
        schedules are due: the first one of all, which may never tick, and the first that is not due yet.
        """
        try:
            self._begin(write=False)
            self._store.look()
            ready, events, *ticks = self._execute(_NEWS, (self._store.now / MICRO,)).fetchone()
            self._end()
        except Exception:  # noqa: BLE001  those who wait ask for themselves, and are told what is wrong
            self._roll_back()
            return True, True, None
        return bool(ready), bool(events), ticks

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
                    answers.append(Answer(request, request.carry_out(store)))
                elif request.peek(store):
                    wanting.append(request)
                else:
                    answers.append(Answer(request))
            except RepidError as error:
                answers.append(Answer(request, error=error))
        return answers, wanting

    def _run(self, requests: Sequence[Request]) -> list[Answer]:
        answers: list[Answer] = []
        publications = [] if len(requests) == 1 else [one for one in requests if isinstance(one, Publication)]
        if len(publications) > 1:
            answers += self._publish(publications)
            requests = [request for request in requests if not isinstance(request, Publication)]
        for request in requests:
            try:
                answers.append(Answer(request, request.carry_out(self._store)))
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

    def _refuse(self, requests: Sequence[Request], error: Exception) -> None:
        self._queue.answer([Answer(request, error=self.explain(error)) for request in requests])

    def explain(self, error: Exception) -> RepidError:
        """What to tell a caller whose request failed with this."""
        if isinstance(error, RepidError):
            return copy(error)
        explained = explain(error, self._path)
        explained.__cause__ = error
        return explained


def _touched_by(answers: Iterable[Answer]) -> set[str] | None:
    """The ids that these requests have changed; None if that may be any."""
    ids: set[str] = set()
    for answer in answers:
        touched = () if answer.error is not None else answer.request.touched(answer.result)
        if touched is None:
            return None
        ids.update(touched)
    return ids


def check_identity(path: str, identity: tuple[int, int]) -> None:
    """Raise `BrokerUnavailable` if the file does not exist any more: what was written to it would be lost."""
    if not _is_still(path, identity):
        raise moved(path)


def _is_still(path: str, identity: tuple[int, int]) -> bool:
    try:
        return identify(path) == identity
    except OSError:
        return False
