"""The link to the engine: opening it, noticing that it broke, opening it again.

Theory. One task holds the link for as long as the server is connected: clients of remote engines have nurseries of
their own, which one task must enter and leave. It is a system task of trio's, because connection blocks are counted and
the last one to leave may be another than the first one that came; `close` ends it and waits for that, within a bound,
so it never outlives the connection. No error leaves the task: the first opening hands it to the caller. Later ones are
logged once for each outage, and tried again whatever the driver raises: a wrong password may be put right. While the
link is down, calls fail at once and waiting consumers go on waiting.

A link that broke is left with `BrokerUnavailable`, one that is closed without an error. So a driver can tell whether to
take leave of the engine: one that is away, and says nothing, would make it wait for an answer before the link is opened
again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal

import trio

from ...errors import BrokerUnavailable, InternalError, RepidError
from ...logs import Log
from ...ports import LinkState

log = Log("repid.link")

SHORTEST_PAUSE = 0.1
LONGEST_PAUSE = 0.75
"""Seconds from the beginning of one attempt to open the link again to the next one; they double, and each is jittered
by half. An attempt that lasts longer is followed by another one after the shortest. So an engine that refuses while it
is away, and lets in within 0.8 seconds when it is back, is in use within two seconds.
"""

CLOSING_TIME = 20.0
"""Seconds that leaving the connection waits for the engine; then the link is cut."""

COMING_TIME = 5.0
"""Seconds within which all consumers must be subscribed anew; then the link is given up and opened once more."""

CLOSED = LinkState("closed", -math.inf)


class Link:
    """The link of one connected server. `open_link` opens it once; `on_up` is called whenever it is open again."""

    def __init__(
        self,
        name: str,
        open_link: Callable[[], AbstractAsyncContextManager[None]],
        on_up: Callable[[], Awaitable[None]],
    ) -> None:
        self._name = name
        self._open_link = open_link
        self._on_up = on_up
        self.state = CLOSED
        self.losses = 0
        """How often the link broke. Leases that end with the connection are those of the same count."""
        self._is_held = False
        self._scope = trio.CancelScope()
        self._opened = trio.Event()
        self._ended = trio.Event()
        self._broken = trio.Event()
        self._changed = trio.Event()
        self._closing = trio.Event()
        self._error: BaseException | None = None

    async def open(self) -> None:
        """Open the link, or wait until another task has. Raises what the driver raised; then nothing of the link is
        left.
        """
        if not self._is_held:
            self._is_held = True
            trio.lowlevel.spawn_system_task(self._hold, name=f"link of {self._name}")
        await self._opened.wait()
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Close the link, and cut it should that take too long."""
        self._closing.set()
        self._broken.set()
        if not self._is_held:
            return
        if not self._opened.is_set():
            self._scope.cancel()
        with trio.move_on_after(CLOSING_TIME, shield=True):
            await self._ended.wait()
        if not self._ended.is_set():
            log.error("%s did not close its link within %g s; the link is cut", self._name, CLOSING_TIME)
            self._scope.cancel()
            with trio.CancelScope(shield=True):
                await self._ended.wait()

    def broke(self, error: Exception) -> None:
        """A call failed because the engine was away: open the link anew. Does nothing while that is under way."""
        if self.state.state == "up" and not self._closing.is_set():
            log.warning("%s lost its link and reconnects: %s", self._name, error)
            self.losses += 1
            self._set("down", str(error))
            self._broken.set()

    def check_up(self) -> None:
        """Raises `BrokerUnavailable` while the link is down."""
        if self.state.state == "down":
            error = BrokerUnavailable(
                f"{self._name} is not reachable now ({self.state.error}); it reconnects by itself"
            )
            error.is_logged = True
            raise error

    async def wait_change(self) -> None:
        """Wait until the state changes."""
        await self._changed.wait()

    async def _hold(self) -> None:
        try:
            with self._scope:
                await self._keep_open()
        except Exception as error:  # noqa: BLE001  a system task must not raise
            self._error = error if isinstance(error, RepidError) else _wrapped(self._name, error)
        finally:
            self._set("closed")
            self._opened.set()
            self._ended.set()

    async def _keep_open(self) -> None:
        pause, told = SHORTEST_PAUSE, ""
        while not self._closing.is_set():
            began = trio.current_time()
            try:
                async with self._open_link():
                    self._broken = trio.Event()
                    await self._came_up()
                    pause, told = SHORTEST_PAUSE, ""
                    await self._stay_open()
            except Exception as error:
                if not self._opened.is_set():
                    raise
                known = _as_foreseen(error)
                self.broke(known or error)  # a driver may notice it before any call does
                self._set("down", str(known or error))
                if str(known or error) != told and not isinstance(known, BrokerUnavailable):
                    told = str(known or error)
                    if known is None:
                        log.exception("the driver of %s raised what it should not", self._name)
                    else:
                        text = "%s cannot reconnect, and tries again until it can: %s"
                        log.error(text, self._name, known)  # noqa: TRY400  no fault of ours
            if not self._closing.is_set():
                await self._pause(began, pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _came_up(self) -> None:
        with trio.move_on_after(COMING_TIME) as scope:
            await self._on_up()
        if scope.cancelled_caught:
            raise BrokerUnavailable(f"{self._name} did not answer within {COMING_TIME:g} s")
        if self._opened.is_set():
            log.info("%s has its link again", self._name)
        self._set("up")
        self._opened.set()

    async def _stay_open(self) -> None:
        """Wait until the link is to be closed. Raises `BrokerUnavailable` if it broke before."""
        if not self._closing.is_set():
            await self._broken.wait()
        if self.state.state == "down" or not self._closing.is_set():
            raise BrokerUnavailable(self.state.error or "the link broke")

    async def _pause(self, began: float, pause: float) -> None:
        """Wait until the next attempt, or until the link is closed. `began`: when the last one did."""
        jitter = 0.5 + random.random()  # noqa: S311  so that a fleet does not come at once
        until = max(began + pause * jitter, trio.current_time() + SHORTEST_PAUSE * jitter)
        with trio.move_on_at(until):
            await self._closing.wait()

    def _set(self, state: Literal["closed", "up", "down"], error: str | None = None) -> None:
        since = self.state.since if state == self.state.state else trio.current_time()
        self.state = LinkState(state, since, error)
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def _as_foreseen(error: Exception) -> RepidError | None:
    """What says why the link is not open; None: something else was raised, too. The nursery of a driver makes
    groups.
    """
    if isinstance(error, RepidError) and not isinstance(error, InternalError):
        return error
    if not isinstance(error, ExceptionGroup):
        return None
    found = [_as_foreseen(each) for each in error.exceptions]
    return None if None in found else found[0]


def _wrapped(name: str, error: Exception) -> InternalError:
    wrapped = InternalError(f"the link of {name} ended: {error!r}")
    wrapped.__cause__ = error
    return wrapped
