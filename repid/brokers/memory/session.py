"""What server and consumers share: the store, its clock, the waiting consumers, and which trio run has it open."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TypeVar

import trio
from trio.lowlevel import (
    TrioToken,
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_trio_token,
    enable_ki_protection,
)

from ...errors import NotConnected, UsageError
from ...ports import Snapshot
from ...process import inherits
from .clock import Clock
from .store import Store
from .taker import Taker
from .views import look
from .waiting import Line

T = TypeVar("T")


class Session:
    """The async side of one store. Nothing of trio's is kept when the outermost connection block has been left."""

    def __init__(self, lease_timeout: float) -> None:
        self.store = Store(lease_timeout)
        self.clock = Clock()
        self.line = Line(self.store, self.clock)
        self.depth = 0  # how many connection blocks are open
        self._token: TrioToken | None = None  # of the run that has it open
        self._last_run: weakref.ref[TrioToken] | None = None
        self._lock = threading.Lock()  # two threads may run trio; held for one step, never over an await
        inherits(self)

    @enable_ki_protection
    async def step(self, operation: Callable[[float], T]) -> T:
        """Check for cancellation, change the store in one synchronous step, then let other tasks run.

        The last pause cannot be cancelled: a cancelled call has changed nothing, and what a call did it reports.
        """
        self.check()
        await checkpoint_if_cancelled()
        result = self.now(operation)
        await cancel_shielded_checkpoint()
        return result

    @enable_ki_protection
    async def watch(self, id_: str, result_id: str, seen: Snapshot | None) -> Snapshot:
        """How the message stands, as soon as that differs from `seen`. Cancelling loses nothing."""
        while True:
            self.check()
            await checkpoint_if_cancelled()
            snapshot, until = self.now(lambda now: look(self.store, id_, result_id, now, self.clock.epoch))
            if snapshot != seen:
                await cancel_shielded_checkpoint()
                return snapshot
            await self._wait_for_change((id_, result_id), until)

    async def _wait_for_change(self, keys: Iterable[str], until: float) -> None:
        """Until something of these ids has changed, or until then."""
        watchlist, changed = self.store.watchlist, trio.Event()
        with trio.CancelScope(deadline=self.clock.in_trio(until)) as scope:
            for key in keys:
                watchlist.add(key, changed.set)
            try:
                await changed.wait()
            finally:
                for key in keys:
                    watchlist.remove(key, changed.set)
        if scope.cancelled_caught:
            self.clock.reach(until)

    @enable_ki_protection
    async def take_requests(self, taker: Taker) -> list[int]:
        """Wait until somebody cancels what this consumer leased; the tokens. Cancelled: it is told the next time."""
        self.check_open(taker)
        await checkpoint_if_cancelled()
        if tokens := taker.take_requests():
            await cancel_shielded_checkpoint()
        while not tokens:
            requested = trio.Event()
            taker.waiting[requested.set] = None
            try:
                await requested.wait()
            finally:
                taker.waiting.pop(requested.set, None)
            self.check_open(taker)
            tokens = taker.take_requests()
        return tokens

    def now(self, operation: Callable[[float], T]) -> T:
        """Change the store and serve those who wait for what that made ready."""
        now = self.clock.look()
        try:
            return operation(now)
        finally:
            self.line.stir(now)

    def check(self) -> None:
        """Raise `NotConnected` outside this run's connection block."""
        if self._token is None:
            raise NotConnected("the memory broker is not connected: use `async with server.connection():`")
        if self._token is not current_trio_token():
            raise NotConnected(
                "the memory broker is connected in another trio run: use `async with server.connection():` in this one"
            )

    def check_open(self, taker: Taker) -> None:
        """Raise `NotConnected` as `check`, and `UsageError` when the consumer is closed."""
        self.check()
        if not self.store.directory.is_open(taker):
            raise UsageError("this consumer is closed: use it inside its `async with server.consume(...)` block")

    @enable_ki_protection
    def enter(self) -> TrioToken:
        """Open one connection block more; what to give to `leave`."""
        with self._lock:
            self._take_over(current_trio_token())
            self.depth += 1
            return current_trio_token()

    @enable_ki_protection
    def leave(self, token: TrioToken) -> None:
        """Close one connection block; the outermost one closes the consumers too."""
        with self._lock:
            if self._token is not token:
                return  # that run had crashed, and another has taken over
            self.depth -= 1
            if self.depth == 0:
                self.clock.look()
                self._close()

    @enable_ki_protection
    def close_consumer(self, taker: Taker) -> None:
        """Close a consumer, unless it is closed; all who wait look again, because its topics are strays now."""
        if self.store.directory.is_open(taker):
            self.store.directory.close(taker)
            self.line.wake_all()

    def after_fork_in_child(self) -> None:
        """Close what the parent has open: the child has a copy of the messages, and none of the tasks."""
        self._lock = threading.Lock()  # another thread may have held it
        if self._token is not None:
            self._abandon()

    def _take_over(self, token: TrioToken) -> None:
        if self._token is token:
            return
        if self._token is not None:
            if _is_running(self._token):
                raise UsageError("another trio run has this memory broker open: it belongs to one run at a time")
            self._abandon()
        if self._last_run is None or self._last_run() is not token:
            self.clock.attach()
            self._last_run = weakref.ref(token)
        self._token = token

    def _close(self) -> None:
        self.depth = 0
        self._token = None
        self.store.directory.close_all()
        self.line.wake_all()
        self.store.watchlist.wake_all()

    def _abandon(self) -> None:
        """Close what a run that crashed had open. Its tasks are no more: nobody may wake them."""
        self.line.abandon()
        self.store.watchlist.clear()
        self.store.directory.abandon_waiting()
        self._close()


def _is_running(token: TrioToken) -> bool:
    try:
        token.run_sync_soon(lambda: None)
    except trio.RunFinishedError:
        return False
    return True
