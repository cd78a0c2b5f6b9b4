"""The one thread that works on the file.

While somebody waits for something to happen it looks every five milliseconds whether another connection has changed
the file, which costs 0.5 % of a core; while nobody does, it sleeps.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

from ...errors import InternalError, NotConnected, RepidError
from .clock import MICRO, Clock
from .requests import Counter, Request
from .schema import open_file
from .store import Store
from .transactions import Transactions

POLL = 0.005

_ASLEEP = 5.0
"""Seconds between two looks at whether the program still runs, so that a crashed one is not kept alive."""

_CHECK = 1.0
"""Seconds between two looks at whether the file is still there, while somebody waits, and at how large the WAL is."""

_SHARE_OF_WATCHING = 0.2
"""Looking after those who watch takes at most this part of the thread's time."""

_AFTER_FAILURE = 0.1


class Thread:
    """Works on one file until it is closed. Then everybody is answered, and nothing of it is left once it is joined."""

    def __init__(self, counter: Counter, path: str, synchronous: str, lease_timeout: int, clock: Clock) -> None:
        self._counter = counter
        self._path = path
        self._synchronous = synchronous
        self._lease_timeout = lease_timeout
        self._clock = clock
        self._closing = False
        self._stirred = False
        self._watching_late = False
        self._data_version = 0
        self._watch_at = 0.0
        self._check_at = 0.0
        self._shrink_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"repid sqlite {Path(path).name}")

    def start(self) -> None:
        """Open the file and work."""
        self._thread.start()

    def close(self) -> None:
        """Finish what waits and end."""
        self._closing = True
        self._counter.bell.ring()

    def join(self, timeout: float) -> bool:
        """Wait for the end; whether it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # The thread

    def _run(self) -> None:
        reason: RepidError = NotConnected("the SQLite broker was closed while this call was waiting")
        try:
            connection = open_file(self._path, self._synchronous)
            try:
                self._work(connection)
            finally:
                connection.close()
        except RepidError as error:
            reason = error
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            reason = InternalError(f"the thread of {self._path} ended: {error!r}")
            reason.__cause__ = error
        finally:
            self._counter.close(reason)

    def _work(self, connection: sqlite3.Connection) -> None:
        store = Store(connection, self._clock, self._lease_timeout)
        transactions = Transactions(store, self._counter, self._path)
        counter = self._counter
        while True:
            waits, urgent = counter.look()
            if urgent or store.beat_due <= self._clock.boot():
                self._stirred = True
                if not transactions.write() and not urgent:
                    counter.bell.wait(_AFTER_FAILURE)
                self._shrink_wal(transactions)
            elif waits:
                transactions.read(counter.take())
            elif self._closing or self._is_left_over():
                break
            elif counter.has_wishes and self._is_stirred(store):
                self._stir(transactions)
            else:
                counter.bell.wait(self._timeout(store))
        self._leave(store, transactions)

    def _is_left_over(self) -> bool:
        """Whether the program has ended without closing us."""
        return not threading.main_thread().is_alive() and not self._counter.has_anybody()

    def _timeout(self, store: Store) -> float:
        beat = (store.beat_due - self._clock.boot()) / MICRO
        if not self._counter.has_wishes:
            return max(0.0, min(_ASLEEP, beat))
        event = (store.next_event - self._clock.wall()) / MICRO
        return max(0.0, min(POLL, event, beat))

    def _is_stirred(self, store: Store) -> bool:
        """Whether something may have changed for those who wait."""
        version = store.execute("PRAGMA data_version").fetchone()[0]
        if version != self._data_version:
            self._data_version = version
            self._stirred = True
        now = time.monotonic()
        return (
            self._stirred
            or (self._watching_late and now >= self._watch_at)
            or store.next_event <= self._clock.wall()
            or now >= self._check_at
        )

    def _stir(self, transactions: Transactions) -> None:
        """Look for each of those who wait whether there is something for it."""
        now = time.monotonic()
        watching = now >= self._watch_at
        self._stirred, self._watching_late = False, not watching
        self._check_at = now + _CHECK
        transactions.read(self._counter.take_wishes(claims=None if watching else True))
        if watching:
            self._watch_at = now + (time.monotonic() - now) / _SHARE_OF_WATCHING

    def _shrink_wal(self, transactions: Transactions) -> None:
        now = time.monotonic()
        if now >= self._shrink_at:
            self._shrink_at = now + _CHECK
            transactions.shrink_wal()

    def _leave(self, store: Store, transactions: Transactions) -> None:
        """Strike our consumers off; if that fails they are believed dead before long."""
        if store.consumers:
            transactions.each_alone([Request(lambda store: store.close(list(store.consumers)))])
