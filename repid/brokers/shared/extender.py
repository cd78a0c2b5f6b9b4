"""Leases of a remote engine while the event loop is blocked: a thread of the driver extends them.

Theory. A worker extends its leases from its event loop. An actor that blocks the loop for longer than a lease would
lose its message and those of all runs beside it, to workers that run them a second time meanwhile. So a thread asks now
and then what is under way (`repid.runtime.vouching`): while the worker's own keeper is in time that is nothing, and the
thread has nothing to do. What is named is extended over a connection that is made for that and closed again, since the
driver's own connections belong to the blocked loop. It is used in an event loop of the thread's own, which bounds what
the driver does: a connection that is half-open says nothing.

It relies on fencing: a lease is extended only under its token, and only to a later end. So whatever it does too late,
since the loop went on or somebody else has the message, does nothing. A thread that holds Python's lock in C code stops
this thread as well: its leases end.

The thread is there while the link is open and a worker vouches for something. What fails is tried again in the next
round.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import trio

from ...delivery import Token
from ...errors import NoAnswer
from ...logs import Log
from ...ports import UnderWay
from .calls import CALL_TIME

log = Log("repid.server")

ROUNDS = 8
"""How often in each lease the thread asks. A lease is named when less than half of it is left, so three rounds may
fail.
"""

LONGEST_ROUND = 1e6
"""Seconds; a lease may be endless."""


class Extender:
    """Extends what `under_way` names. `extend` does that for these tokens, each by the seconds at the most, and may be
    cancelled.
    """

    def __init__(self, lease_timeout: float, extend: Callable[[Mapping[Token, float]], Awaitable[None]]) -> None:
        self._interval = min(lease_timeout / ROUNDS, LONGEST_ROUND)
        self._bound = min(2 * self._interval, CALL_TIME)  # two tries fit into the half of a lease that is left
        self._extend = extend
        self._under_way: dict[str, UnderWay] = {}
        self._ends: threading.Event | None = None
        """Ends the thread of the open link; None while the link is closed."""
        self._has_thread = False

    def vouch(self, consumer: str, under_way: UnderWay) -> None:
        """From now on extend what this consumer's worker names."""
        self._under_way[consumer] = under_way
        self._start()

    def forget(self, consumer: str) -> None:
        """Ask for it no more."""
        self._under_way.pop(consumer, None)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work for a block, in which the link is open. A round that is under way at its end is not waited for."""
        if self._ends is not None:
            self._ends.set()  # the link of a run that crashed
        ends = self._ends = threading.Event()
        self._has_thread = False
        self._start()
        try:
            yield
        finally:
            ends.set()
            if self._ends is ends:
                self._ends = None

    def _start(self) -> None:
        if self._ends is not None and self._under_way and not self._has_thread:
            self._has_thread = True
            threading.Thread(target=self._work, args=(self._ends,), name="repid leases", daemon=True).start()

    def _work(self, ends: threading.Event) -> None:
        while not ends.wait(self._interval):
            named: dict[Token, float] = {}
            try:
                for under_way in list(self._under_way.values()):
                    named.update(under_way())
                if named:
                    trio.run(self._extend_in_time, named)
            except Exception as error:  # noqa: BLE001  the next round may succeed
                log.warning("cannot extend %d leases while the event loop is blocked: %s", len(named), error)

    async def _extend_in_time(self, named: Mapping[Token, float]) -> None:
        with trio.move_on_after(self._bound) as scope:
            await self._extend(named)
        if scope.cancelled_caught:
            raise NoAnswer(f"the server did not answer within {self._bound:g} s")
