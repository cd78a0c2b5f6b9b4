"""The one thread that works on the file: it opens it, carries out requests, tells news, and closes it.

Theory. Everything of the file belongs to this thread: the connection, the store, the transactions. Other threads reach
it only through the request queue and the news box. The loop (`_work`) always does the first of these that there is:
requests that write, a heartbeat of our consumers, requests that only look, news, sleep. Where news says that something
may be ready, the claims that rest are requests again. It ends when it was told to close and no request waits.

A connection that fails in a way that a rollback does not mend is given up: the requests that were taken are answered
with the error, and the file is opened again. For a fork it is closed and opened again too: the file must not be open
while the process forks (`repid.process` says why). The callers notice only the time that takes. The requests stay in
the queue, the consumers stay registered (the next `Store` takes them over from the one before), and everything is told
to have changed.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ...errors import BrokerUnavailable, InternalError, NoAnswer, NotConnected, RepidError
from ...logs import Log
from ...ports import UnderWay
from ...process import forks
from .change_watch import CHECK, ChangeWatch
from .clock import MICRO, Clock
from .errors import STATEMENT_FAILED, explain, moved
from .file_events import Watch, watch_file
from .news import NewsBox
from .requests import NEVER, Operation, RequestQueue, Waiting, touches_any
from .schema import Opening, open_file
from .store import Store
from .transactions import Transactions, check_identity
from .wal import begin_anew, identify, open_wal

log = Log("repid.sqlite")

_AFTER_FAILURE = 0.1

_BETWEEN_BITES = 0.01
"""Seconds. Who waits for the lock looks for it every few milliseconds."""

CLOSING_TIME = 2.0
"""Seconds after which a thread that is told to end stops waiting for the lock of another process, even if a task waits
for it."""

FETCHING_TIME = 1.0
"""Seconds that a caller has to fetch what was claimed for it while it waited, or half of the time of a lease if that is
less. Then its event loop counts as blocked, and others are to have the messages."""

_GATHERING = 0.0005
"""Seconds. A disk takes about as long to make a transaction durable."""


class Thread:
    """Works on one file until it is closed. Then everybody is answered, and nothing of it is left once it is joined."""

    def __init__(
        self,
        queue: RequestQueue,
        news: NewsBox,
        how: Opening,
        lease_timeout: int,
        clock: Clock,
        vouchers: Mapping[str, UnderWay],
    ) -> None:
        self._queue = queue
        self._news = news
        self._how = how
        self._path = how.path
        self._lease_timeout = lease_timeout
        self._fetching_time = min(FETCHING_TIME, lease_timeout / MICRO / 2)
        self._clock = clock
        self._vouchers = vouchers
        self._closing = False
        self._give_up_at = math.inf  # no lock is waited for any longer than that
        self._expected = 0  # how many were answered together at last
        self._shrink_at = 0.0
        self._store: Store | None = None
        self._identity: tuple[int, int] | None = None  # of the file that was opened first
        self._has_gap = False  # whether the disk may lack a part of the log
        self._thread = threading.Thread(target=self._run, name=f"repid sqlite {Path(how.path).name}")

    def start(self) -> None:
        """Open the file and work. Raises `BrokerUnavailable` where the system lets no thread start."""
        try:
            self._thread.start()
        except (RuntimeError, MemoryError) as error:
            raise BrokerUnavailable(
                f"{self._path} was not opened, because the thread that works on it cannot be started ({error}): look "
                "at the limits of processes and memory of this user or container, and try again"
            ) from error

    def close(self) -> None:
        """Finish what waits and end; what needs a lock of another process has `CLOSING_TIME` left."""
        self._give_up_at = time.monotonic() + CLOSING_TIME
        self._closing = True
        self._queue.wake_up.signal()

    def join(self, timeout: float) -> bool:
        """Wait for the end; whether it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # The thread

    def _run(self) -> None:
        reason: RepidError = NotConnected("the SQLite server was closed while this call was waiting")
        try:
            pause: float | None = 0.0
            while pause is not None:
                time.sleep(pause)
                with forks.holding(os.path.realpath(self._path), self._queue.wake_up.signal):
                    pause = self._serve()
        except RepidError as error:
            reason = error
        except BaseException as error:  # noqa: BLE001  whatever it is, nobody may wait for ever
            reason = InternalError(f"the thread of {self._path} ended: {error!r}")
            reason.__cause__ = error
        finally:
            self._queue.close(reason)
            self._news.note_everything()

    def _serve(self) -> float | None:
        """Open the file and work on it. Returns None at the end, or seconds after which it must be opened again."""
        try:
            connection, identity = self._open()
        except BrokerUnavailable as error:
            if self._store is None or self._closing or self._is_left_over():
                raise
            self._queue.refuse_all(error)
            self._news.note_everything()  # those who wait for it ask, and are told of the error
            return _AFTER_FAILURE
        store = self._store = Store(connection, self._clock, self._lease_timeout, self._store, vouchers=self._vouchers)
        try:
            with open_wal(self._path) as wal:
                transactions = Transactions(
                    store,
                    self._queue,
                    self._news,
                    self._path,
                    identity,
                    wal,
                    self._how.synchronous,
                    lambda: self._give_up_at,
                )
                with watch_file(wal.path) as watch_log:
                    if not self._work(store, transactions, watch_log):
                        return 0.0
                self._strike_off(store, transactions)
        except BrokerUnavailable as error:
            self._has_gap = isinstance(error, NoAnswer)
            log.error("%s", error)  # noqa: TRY400  the text says it all
            self._queue.refuse_taken(error)
            return _AFTER_FAILURE
        except Exception as error:
            log.exception("the connection to %s is given up and opened again", self._path)
            self._queue.refuse_taken(explain(error, self._path))
            return _AFTER_FAILURE
        finally:
            with suppress(*STATEMENT_FAILED):  # everything is in the file or its WAL already
                connection.close()
        return None

    def _open(self) -> tuple[sqlite3.Connection, tuple[int, int]]:
        """Open the file, and what tells it from others; after a failure of the disk, begin its log anew."""
        connection: sqlite3.Connection | None = None
        try:
            if self._identity is not None:
                check_identity(self._path, self._identity)
            connection = open_file(self._how, lambda: self._give_up_at)
            self._identity = identity = self._identify()
            if self._has_gap:
                begin_anew(connection, self._path)
                self._has_gap = False
        except BrokerUnavailable:
            if connection is not None:
                with suppress(*STATEMENT_FAILED):
                    connection.close()
            raise
        return connection, identity

    def _identify(self) -> tuple[int, int]:
        """What tells the file that was opened just now from others. Raises `BrokerUnavailable` if it is not the former
        one.
        """
        try:
            found = identify(self._path)
        except OSError:
            raise moved(self._path) from None
        if self._identity not in (None, found):
            raise moved(self._path)
        return found

    def _work(self, store: Store, transactions: Transactions, watch_log: Watch) -> bool:
        """Work until the end, or until the process is about to fork. Returns whether it is the end."""
        watch = ChangeWatch(store, self._clock, transactions, self._news, watch_log)
        queue, news = self._queue, self._news
        while not forks.is_wanted:
            for undo in queue.recall(time.monotonic() - self._fetching_time):
                transactions.each_alone([Operation(undo, urgent=True, touches=touches_any)])
            waiting = queue.look()
            if news.is_wanted and (watch.is_late() or not waiting.anything):
                watch.look()
            if news.is_ready:
                news.is_ready = False
                if queue.stir():
                    waiting = queue.look()
            if waiting.urgent or (watch.is_beat_due() and not self._closing):
                self._write(transactions, waiting)
                watch.note_change()
                if store.is_due:  # one transaction moved as much as it may: now others may have the lock
                    queue.wake_up.wait(_BETWEEN_BITES)
            elif waiting.anything:
                transactions.read(queue.take(lambda request: not request.urgent))
            elif self._closing or self._is_left_over():
                return True
            else:
                watch.sleep(queue.wake_up)
        return False

    def _strike_off(self, store: Store, transactions: Transactions) -> None:
        """Tell the others that our consumers are gone; should that fail they are believed dead before long."""
        store.close(list(store.consumers))
        if store.has_consumers:
            transactions.each_alone([Operation(lambda _: None)])

    def _write(self, transactions: Transactions, waiting: Waiting) -> None:
        if waiting.durable > NEVER:
            self._gather()
        if not transactions.write(durable=waiting.durable) and not waiting.urgent:
            self._queue.wake_up.wait(_AFTER_FAILURE)
        now = time.monotonic()
        if now >= self._shrink_at:
            self._shrink_at = now + CHECK
            transactions.look_after_wal()

    def _gather(self) -> None:
        """Those who were answered together often ask together again: the disk is waited for once if they all come."""
        queue = self._queue
        if len(queue) < self._expected:
            deadline = time.monotonic() + _GATHERING
            while len(queue) < self._expected and (left := deadline - time.monotonic()) > 0:
                queue.wake_up.wait(left)
        self._expected = len(queue)

    def _is_left_over(self) -> bool:
        """Whether the program has ended without closing us."""
        return not threading.main_thread().is_alive() and self._queue.is_left_over()
