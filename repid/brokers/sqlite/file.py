"""The file as trio's tasks see it: opened for a block, asked, closed.

One thread works on the file while it is open (`thread`). Nothing of a trio run is kept when the block has been left. A
block that was never left belongs to a run that crashed, or to the process that this one was forked from; then the next
block starts anew.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from trio.lowlevel import current_trio_token

from ...errors import NotConnected, UsageError
from ...logs import Log
from ...ports import News, UnderWay
from ...process import forks
from .clock import Clock, micros
from .news import NewsBox
from .requests import BEFORE_SIGHT, Durability, Operation, RequestQueue, Touched, touches_nothing
from .schema import Opening
from .store import Store
from .thread import CLOSING_TIME, Thread

T = TypeVar("T")

log = Log("repid.sqlite")

ENDING_TIME = CLOSING_TIME + 2.0
"""Seconds that leaving the block waits for the thread: only a disk that hangs can keep the thread for so long."""

_left_behind: list[object] = []
"""What a forked child inherited: to touch it, even to close it, could harm the parent's file."""


class File:
    """One file. All but what opens it is for the time in which it is open."""

    def __init__(self, how: Opening, lease_timeout: float, clock: Clock) -> None:
        self._how = how
        self._lease_timeout = micros(lease_timeout)
        self._clock = clock
        self._path = os.path.realpath(how.path)
        self._pid = os.getpid()
        self._thread: Thread | None = None
        self._queue: RequestQueue | None = None
        self._news: NewsBox | None = None
        self.vouchers: dict[str, UnderWay] = {}
        """What is under way, by consumer. The thread reads it."""

    def create_nothing(self) -> None:
        """Raise `ConfigurationError` where the file is not there when it is opened, from the next time on."""
        self._how = self._how._replace(creates=False)

    @asynccontextmanager
    async def opened(
        self, watched: Collection[str], tell: Callable[[News], bool] | None = None
    ) -> AsyncGenerator[None, None]:
        """Open the file for a block. Raises where it cannot be used. `watched`: see `Driver.link`; `tell`: see
        `TellingDriver`.
        """
        thread = self._start(watched, tell)
        try:
            await self.look(lambda _: None)
            yield
        except GeneratorExit:  # the trio run has crashed, so nothing can be waited for
            if self._pid == os.getpid():
                thread.close()
            raise
        except BaseException:
            await self._end(thread)
            raise
        else:
            await self._end(thread)

    # Asking

    async def look(self, operation: Callable[[Store], T]) -> T:
        """Run an operation that only looks. Its errors of repid's own are raised here."""
        answer: T = await self.queue.ask(Operation(operation))
        return answer

    async def change(
        self,
        operation: Callable[[Store], T],
        *,
        durable: Durability = BEFORE_SIGHT,
        touched: Touched = touches_nothing,
    ) -> T:
        """Run an operation in a transaction. `durable`: when that is on the disk. Cancelled: it was not carried out."""
        answer: T = await self.queue.ask(Operation(operation, urgent=True, durable=durable, touches=touched))
        return answer

    @property
    def queue(self) -> RequestQueue:
        """Where requests are handed in."""
        if self._queue is None:
            raise NotConnected(f"{self._path} is not open: use `async with server.connection():`")
        return self._queue

    def stir(self) -> None:
        """Have the requests that rest, or are about to, looked at again."""
        if self._news is not None and self._queue is not None:
            self._news.is_ready = True  # at what is about to rest, too: the thread looks at this when it has done so
            self._queue.wake_up.signal()

    @property
    def news(self) -> NewsBox:
        """What has changed."""
        if self._news is None:
            raise NotConnected(f"{self._path} is not open: use `async with server.connection():`")
        return self._news

    # Opening and closing

    def _start(self, watched: Collection[str], tell: Callable[[News], bool] | None) -> Thread:
        if self._path in forks.left_open:
            raise UsageError(
                f"{self._path} was in use in the very moment in which this process was forked from another one, so "
                "SQLite cannot open it safely here: start processes anew instead (multiprocessing's method 'spawn')"
            )
        self._drop_earlier()
        token = current_trio_token()
        queue = RequestQueue(token)
        news = NewsBox(token, queue, watched, tell)
        self.vouchers = {}
        thread = Thread(queue, news, self._how, self._lease_timeout, self._clock, self.vouchers)
        thread.start()
        self._thread, self._queue, self._news = thread, queue, news
        return thread

    def _drop_earlier(self) -> None:
        """Drop what a block left that was never left itself."""
        if self._pid != os.getpid():
            _left_behind.append((self._thread, self._queue, self._news))
            self._pid = os.getpid()
        elif self._thread is not None:
            self._thread.close()
        self._thread = self._queue = self._news = None

    async def _end(self, thread: Thread) -> None:
        if self._pid != os.getpid():
            return  # the thread is that of the parent process
        if self._thread is thread:
            self._thread = self._queue = self._news = None
            self.vouchers.clear()
        thread.close()
        with trio.CancelScope(shield=True):
            ended = await _join(thread)
        if not ended:
            log.error("the thread that works on %s has not ended after %g s: the disk hangs", self._path, ENDING_TIME)


async def _join(thread: Thread) -> bool:
    """Wait for the end of the thread. Returns whether it came in time."""
    try:
        return await trio.to_thread.run_sync(thread.join, ENDING_TIME, limiter=trio.CapacityLimiter(1))
    except RuntimeError:  # no thread can be started to wait in
        return thread.join(ENDING_TIME)
