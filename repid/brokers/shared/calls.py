"""One call to a driver: checked, shielded and bounded where the engine is remote, and timed.

What cancelling does depends on the driver (`Capabilities.calls`). A *local* driver works in place, under any host:
before the call there is a cancellation point; nothing can interrupt the call; and there is a pause if there was none
for a while (`Turns`). An *exact* driver keeps that promise itself. A call of a *remote* driver is shielded: it is seen
through within `CALL_TIME` although its caller was cancelled, so its outcome is known and reported. If the driver cannot
give the answer, or not in time, this raises `NoAnswer`: the engine may have carried out the call. Then the link is
opened anew. While it is known to be down, nothing is sent: that is `BrokerUnavailable`. A driver may see its publishes
through itself (`SureDriver`); then no scope is opened for each of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from trio.lowlevel import (
    TrioToken,
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_trio_token,
    enable_ki_protection,
)

from ...ctrl_c import let_ctrl_c_through
from ...errors import BrokerError, BrokerUnavailable, NoAnswer, NotConnected, RepidError, UsageError
from ...hosts import Turns, current_runner, is_cancelled, stands_in, trio_runs
from ...logs import Log
from ...ports import CallRecord, Driver, Instrument, LinkState, News, Outcome, SureDriver
from .link import CLOSED, Link

T = TypeVar("T")
Ask = Callable[[], Awaitable[T]]

log = Log("repid.server")

_NOBODY = object()
"""In place of a trio run."""

CALL_TIME = 5.0
"""Seconds within which a remote engine must have answered a call."""

CALLS_PER_PAUSE = 16
"""Calls of a remote engine after which others have their turn, whatever the driver does."""


class Calls:
    """The calls of one server to its driver. `link` and `token` are set while the server is connected."""

    def __init__(self, driver: Driver, server: str) -> None:
        self.server = server
        self.instruments: list[Instrument] = []
        self.link: Link | None = None
        self.token: TrioToken | None = None
        """Of the trio run that has the server open."""
        self._runner: object = _NOBODY
        """The same run, which is found faster than its token."""
        self.pid = os.getpid()
        self._driver = driver
        self._is_local = driver.capabilities.calls == "local"
        self.turns = Turns()
        """The pauses of a local driver's callers."""
        self._is_exact = driver.capabilities.calls == "exact"
        self._is_remote = driver.capabilities.calls == "remote"
        self._carry = {"local": self._in_place, "exact": _as_it_is, "remote": self._see_through}[
            driver.capabilities.calls
        ]
        self._carry_shared = self._bounded if self._is_remote else self._shielded
        is_sure = self._is_remote and isinstance(driver, SureDriver) and driver.sees_publishes_through
        self._carry_publish = self._through_driver if is_sure else self._carry_shared
        self._calls_since_pause = 0

    def attach(self, token: TrioToken) -> None:
        """The present trio run, which has this token, opens the server."""
        self.token, self._runner = token, current_runner()

    def detach(self) -> None:
        """No trio run has the server open."""
        self.link = self.token = None
        self._runner = _NOBODY

    @property
    def state(self) -> LinkState:
        """How the link stands."""
        return CLOSED if self.link is None else self.link.state

    @property
    def is_down(self) -> bool:
        """Whether the link is broken and is being opened again."""
        return self.link is not None and self.link.state.state == "down"

    async def wait_up(self) -> None:
        """Wait until the link is up again. For ever if it is not down."""
        link = self.link
        if link is None or link.state.state != "down":
            await trio.sleep_forever()
        while link.state.state == "down":
            await link.wait_change()

    def check(self) -> None:
        """Raise `NotConnected` outside this run's connection block."""
        if self.token is None or self.token is not current_trio_token():
            raise self._not_usable()

    def _not_usable(self) -> UsageError | NotConnected:
        """Why. A forked child begins without a token, so that no call has to ask for the number of its process."""
        if self.pid != os.getpid():
            return UsageError(
                f"this process ({os.getpid()}) was forked from the one that opened {self.server} ({self.pid}): open "
                "the server anew in the child, with `async with server.connection():` in a trio run of its own"
            )
        if self.token is None:
            return NotConnected(
                f"{self.server} is not connected: open the app with `async with app.magic():`, or the server alone "
                "with `async with server.connection():`"
            )
        return NotConnected(
            f"{self.server} is connected in another event loop: use `async with server.connection():` in this one; a "
            "thread beside that loop calls through `app.sync()`, and a sync actor through its message, too"
        )

    @enable_ki_protection
    async def __call__(
        self, name: str, ask: Ask[T], *, queue: str | None = None, count: int = 1, is_shared: bool = False
    ) -> T:
        """Have the driver carry out one call. `name`, `queue` and `count` are for instruments. `is_shared`: several
        tasks wait for its answer, so it is not ended when this one is cancelled.
        """
        self.check()
        carry = self._carry
        if is_shared:
            carry = self._carry_publish if name == "publish" else self._carry_shared
        if not self.instruments:
            return await carry(ask)
        started = time.perf_counter()
        outcome: Outcome = "failed"
        try:
            answer = await carry(ask)
            outcome = "done"
        except RepidError as error:
            outcome = "failed" if isinstance(error, BrokerUnavailable) else "refused"
            raise
        except trio.Cancelled:
            outcome = "cancelled"
            raise
        finally:
            self._tell(
                CallRecord(
                    name=name,
                    server=self.server,
                    queue=queue,
                    count=count,
                    duration=time.perf_counter() - started,
                    outcome=outcome,
                )
            )
        return answer

    async def news(self, wait: float) -> News | None:
        """The driver's news. If the link was down, everything may have changed when it is up again."""
        link = self.link
        if link is None or link.state.state != "up":
            with trio.move_on_after(wait):
                if link is None:
                    await trio.sleep_forever()
                else:
                    await link.wait_change()
            return News()
        try:
            return await self._driver.news(wait)
        except BrokerError as error:
            self._broke(error)
            await trio.sleep(min(wait, 0.1))
            return News()

    def looks_around(self) -> bool | None:
        """Whether a call needs nothing of `__call__`: no instrument watches, and either it stays and needs no pause
        before it, or an exact driver is called in a task of its own run. None: it needs more. True: it needs the look
        at a cancellation, and the pause after it.
        """
        if self.instruments:
            return None
        is_in_trio = stands_in(self._runner)
        if self._is_local:
            if is_in_trio is False and time.perf_counter() >= self.turns.due:
                return None  # an asyncio task pauses before the call
            return is_in_trio
        return False if self._is_exact and is_in_trio else None

    def is_at_once(self) -> bool:
        """Whether a local call may be made here and now, without an await: nothing has to cross, to pause or to be
        cancelled, and no instrument watches.
        """
        is_in_trio = stands_in(self._runner)
        return (
            is_in_trio is not None
            and time.perf_counter() < self.turns.due
            and not self.instruments
            and not (is_in_trio and is_cancelled())
        )

    @property
    def stays(self) -> bool:
        """Whether calls can be made without crossing to trio: the driver is local, and its trio run is that of this
        thread.
        """
        return self._is_local and stands_in(self._runner) is not None

    async def _in_place(self, ask: Ask[T]) -> T:
        if not trio_runs():
            if await self.turns.take():
                self.check()  # the connection may have been closed meanwhile
            return await ask()
        if is_cancelled():
            await checkpoint_if_cancelled()
        try:
            return await ask()
        finally:
            if time.perf_counter() >= self.turns.due:
                await self.turns.give()

    async def _see_through(self, ask: Ask[T]) -> T:
        await checkpoint_if_cancelled()
        return await self._bounded(ask)

    async def _shielded(self, ask: Ask[T]) -> T:
        with trio.CancelScope(shield=True):
            return await self._carry(ask)
        raise AssertionError  # nobody cancels the scope

    async def _bounded(self, ask: Ask[T]) -> T:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CALL_TIME):
            return await self._through_driver(ask)
        silence = NoAnswer(f"{self.server} did not answer within {CALL_TIME:g} s")
        self._broke(silence)
        raise silence

    async def _through_driver(self, ask: Ask[T]) -> T:
        """Ask the driver, which bounds the call itself or is called in a scope that does. Pauses now and then.

        A driver waits for its engine, as a rule; but one may have its answer at hand, and while the link is down none
        is asked. Who calls in a loop then must not keep the link from being opened, nor a time limit from ending.
        """
        self._calls_since_pause += 1
        if self._calls_since_pause >= CALLS_PER_PAUSE:
            self._calls_since_pause = 0
            await cancel_shielded_checkpoint()
            self.check()  # the connection may have been closed meanwhile
        assert self.link is not None
        self.link.check_up()
        try:
            return await ask()
        except BrokerUnavailable as error:
            self._broke(error)
            raise NoAnswer(str(error)) from error

    def _broke(self, error: Exception) -> None:
        if self._is_remote and self.link is not None:
            self.link.broke(error)

    def _tell(self, call: CallRecord) -> None:
        for instrument in self.instruments:
            try:
                instrument(call)
            except BaseException as error:
                let_ctrl_c_through(error)
                log.exception("an instrument failed; the call it watched is not affected", in_program=True)


async def _as_it_is(ask: Ask[T]) -> T:
    return await ask()
