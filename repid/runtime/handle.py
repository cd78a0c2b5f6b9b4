"""A worker as others see it: the handle for its owner, and the control behind it, for the worker itself."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

import msgspec
import trio

from ..errors import UsageError
from ..logs import Log
from ..run_token import call_soon_in
from .ledger import Report
from .statistics import WorkerStatistics

log = Log("repid.worker")


class Control:
    """Connects a handle with its worker, which tells here how it is stopped and where its statistics come from."""

    def __init__(self) -> None:
        self.handle = Handle(self)
        self.read_statistics: Callable[[], WorkerStatistics] = _not_started
        """Gives the statistics."""
        self.on_started: Callable[[], None] = _nothing
        """Called once the worker consumes, or has been stopped before it did."""
        self.has_ended = trio.Event()
        self.wait_for_end: Callable[[], Awaitable[object]] = self.has_ended.wait
        """The facade replaces it by what may be awaited under any host."""
        self._stop: Callable[[], None] | None = None
        self._cut_short: Callable[[], None] | None = None
        self._drain: Callable[[], None] = _nothing
        self.is_draining = False
        """Whether it is to end when nothing is left."""
        self._run: trio.lowlevel.TrioToken | None = None
        """Where the three above must be called, in the thread `_thread`."""
        self._thread = 0
        self.is_stopped = False
        """Whether somebody asked for the end, by a call or a signal."""
        self.is_signalled = False
        """Whether a signal has come: another one ends the grace."""

    def attach(self, stop: Callable[[], None], cut_short: Callable[[], None]) -> None:
        """Call these from now on. A stop that was asked for before takes effect now."""
        self._run, self._thread = trio.lowlevel.current_trio_token(), threading.get_ident()
        self._stop, self._cut_short = stop, cut_short
        if self.is_stopped:
            stop()

    def stop(self) -> None:
        """Stop the worker, or let it stop as soon as it has started. In any thread."""
        self.is_stopped = True  # before the look at the run: a start that comes between sees it
        if self._is_elsewhere(self.stop):
            return
        if self._stop is not None:
            self._stop()

    def drain(self) -> None:
        """Have the worker end when nothing is left. In any thread."""
        self.is_draining = True  # before the look at the run, as in `stop`
        if not self._is_elsewhere(self.drain):
            self._drain()

    def attach_drain(self, drain: Callable[[], None]) -> None:
        """Call this from now on when it is to end with what is left. One that was asked for before takes effect now."""
        self._drain = drain
        if self.is_draining:
            drain()

    def cut_short(self) -> None:
        """Stop, and end the grace. In any thread."""
        if self._is_elsewhere(self.cut_short):
            return
        self.stop()
        if self._cut_short is not None:
            self._cut_short()

    def _is_elsewhere(self, call: Callable[[], None]) -> bool:
        """Whether the worker runs in another thread, where the call is then made, unless the run has ended."""
        run = self._run
        if run is None or self._thread == threading.get_ident():
            return False
        call_soon_in(run, call)
        return True

    def on_signal(self) -> None:
        """Stop at the first signal, end the grace at the second; a stop by other means does not count. See `signals`
        for a third.
        """
        if self.is_signalled:
            log.info("stopping at once, without waiting for the grace: another signal has come")
            self.cut_short()
        else:
            self.is_signalled = True
            self.stop()

    def end(self) -> None:
        """Nothing of the worker is running any more: keep its last statistics, and nothing else of it."""
        last = msgspec.structs.replace(self.read_statistics(), state="ended")
        self.read_statistics = lambda: last
        self._stop = self._cut_short = self._run = None
        self._drain = _nothing
        self.on_started = _nothing
        self.has_ended.set()


class Handle:
    """A worker as the one who started it sees it: ways to end it, what it is doing, and what it has done."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def __repr__(self) -> str:
        control = self._control
        state = "ended" if control.has_ended.is_set() else "stopping" if control.is_stopped else "running"
        return f"<Handle of a worker, {state}>"

    def statistics(self) -> WorkerStatistics:
        """What the worker is doing now. It costs no call to the server and may be asked often, in its trio run."""
        return self._control.read_statistics()

    @property
    def report(self) -> Report:
        """What the worker has done so far; when it has ended, what `run` returned."""
        return self.statistics().report

    async def wait(self) -> Report:
        """Wait until nothing of the worker is running any more; returns what it has done. Cancelling only ends the
        waiting.

        What the worker raised, if it failed, is raised where it was started, not here.
        """
        await self._control.wait_for_end()
        return self.report

    def stop(self) -> None:
        """Start nothing more, release what was not started, give the actors their grace. May be called again, and from
        any thread.
        """
        self._control.stop()

    def drain(self) -> None:
        """Go on as a burst: finish what is there, and end when nothing is ready and nothing is running. What is
        scheduled does not count, and a server that is away for 30 seconds raises `BrokerUnavailable`. May be called
        again, and from any thread, and a stop may follow.
        """
        self._control.drain()

    def cut_short(self) -> None:
        """Stop, and end the grace: what still runs is cancelled and released. May be called from any thread."""
        self._control.cut_short()


def _nothing() -> None:
    """Do nothing: no caller waits for the start."""


def _not_started() -> WorkerStatistics:
    raise UsageError("this worker has not been started: a handle is given by nursery.start(app.run_worker)")
