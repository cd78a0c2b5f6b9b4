"""What server and consumers share: which trio run has the file open, and the thread that works on it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio
from trio.lowlevel import (
    TrioToken,
    checkpoint_if_cancelled,
    current_trio_token,
    enable_ki_protection,
)

from ...errors import NotConnected, UsageError
from ...logs import Log
from ...ports import UnderWay
from ...process import forks, inherits
from .clock import Clock, micros
from .requests import Counter, Request
from .schema import Opening
from .store import Store
from .thread import CLOSING_TIME, Thread

T = TypeVar("T")

log = Log("repid.sqlite")

ENDING_TIME = CLOSING_TIME + 2.0
"""Seconds that leaving the connection waits for the thread: only a disk that hangs can keep it for so long."""

_left_behind: list[object] = []
"""What a forked child inherited: to touch it, even to close it, could harm the parent's file."""


class Session:
    """The async side of one file. Nothing of trio's is kept when the outermost connection block has been left."""

    def __init__(self, how: Opening, lease_timeout: float, clock: Clock) -> None:
        self.lease_timeout = lease_timeout
        self.depth = 0  # how many connection blocks are open
        self.vouchers: dict[str, UnderWay] = {}
        """Of each consumer: what is under way. The thread reads it."""
        self._make_thread = partial(
            Thread, how=how, lease_timeout=micros(lease_timeout), clock=clock, vouchers=self.vouchers
        )
        self._counter: Counter | None = None
        self._thread: Thread | None = None
        self._token: TrioToken | None = None  # of the run that has it open
        self._pid = os.getpid()
        self._path = os.path.realpath(how.path)
        self._lock = threading.Lock()  # two threads may run trio; held for one step, never over an await
        inherits(self)

    # Asking

    async def look(self, operation: Callable[[Store], T]) -> T:
        """Run an operation that only looks. What it raises of repid's is raised here."""
        return await self.ask(Request(operation))

    async def change(self, operation: Callable[[Store], T], *, durable: bool = True) -> T:
        """Run an operation in a transaction that is durable when this returns. Cancelled: it was not carried out."""
        return await self.ask(Request(operation, urgent=True, durable=durable))

    @enable_ki_protection
    async def ask(self, request: Request) -> T:
        """Have a request carried out."""
        counter = self.check()
        await checkpoint_if_cancelled()
        answer: T = await counter.ask(request)
        return answer

    def check(self) -> Counter:
        """Where to ask. Raises `NotConnected` outside this run's connection block, `UsageError` in a forked child."""
        if self._counter is None:
            raise NotConnected("the SQLite broker is not connected: use `async with server.connection():`")
        if self._pid != os.getpid():
            raise UsageError(
                f"this process ({os.getpid()}) was forked from the one that opened the SQLite broker ({self._pid}): "
                "open the file anew in the child, with `async with server.connection():` in a trio run of its own"
            )
        if self._token is not current_trio_token():
            raise NotConnected(
                "the SQLite broker is connected in another trio run: use `async with server.connection():` in this one"
            )
        return self._counter

    # Connection

    @enable_ki_protection
    async def enter(self) -> TrioToken:
        """Open one connection block more; what to give to `leave`. Raises where the file cannot be used."""
        await checkpoint_if_cancelled()
        token = current_trio_token()
        with self._lock:
            self._take_over(token)
            if self._thread is None:
                self._open(token)
            self.depth += 1
        try:
            await self.look(lambda _: None)
        except BaseException:
            await self.leave(token)
            raise
        return token

    @enable_ki_protection
    async def leave(self, token: TrioToken) -> None:
        """Close one connection block; the outermost one ends the thread and waits for that."""
        with self._lock:
            if self._token is not token or self._pid != os.getpid():
                return  # that run had crashed, and another has taken over
            self.depth -= 1
            thread = self._thread
            if self.depth > 0 or thread is None:
                return
            self._forget()
        thread.close()
        with trio.CancelScope(shield=True):
            ended = await _join(thread)
        if not ended:
            log.error("the SQLite broker's thread has not ended after %g s: it is waiting for the disk", ENDING_TIME)

    def _open(self, token: TrioToken) -> None:
        counter = Counter(token)
        thread = self._make_thread(counter)
        try:
            thread.start()
        except BaseException:
            self._forget()  # this run has not opened it, so another one may
            raise
        self._counter, self._thread = counter, thread

    def after_fork_in_child(self) -> None:
        """Another thread may have held the lock. What the parent has open is forgotten when the child connects."""
        self._lock = threading.Lock()

    def _take_over(self, token: TrioToken) -> None:
        if self._path in forks.left_open:
            raise UsageError(
                f"{self._path} was in use in the very moment in which this process was forked from another one, so "
                "SQLite cannot open it safely here: start processes anew instead (multiprocessing's method 'spawn')"
            )
        if self._pid != os.getpid():
            _left_behind.append((self._thread, self._counter))
            self._forget()
            self._pid = os.getpid()
        if self._token is token:
            return
        if self._token is not None:
            if _is_running(self._token):
                raise UsageError("another trio run has this SQLite broker open: it belongs to one run at a time")
            if self._thread is not None:
                self._thread.close()  # that run crashed and never left its block
            self._forget()
        self._token = token

    def _forget(self) -> None:
        self.depth = 0
        self.vouchers.clear()
        self._token = self._thread = self._counter = None


async def _join(thread: Thread) -> bool:
    """Wait for the end of the thread; whether it came in time."""
    try:
        return await trio.to_thread.run_sync(thread.join, ENDING_TIME, limiter=trio.CapacityLimiter(1))
    except RuntimeError:  # no thread can be started to wait in
        return thread.join(ENDING_TIME)


def _is_running(token: TrioToken) -> bool:
    try:
        token.run_sync_soon(lambda: None)
    except trio.RunFinishedError:
        return False
    return True
