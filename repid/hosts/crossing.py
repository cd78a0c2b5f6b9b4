"""One call, carried from an asyncio task to a trio task and back."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import trio

T = TypeVar("T")

NAME = "repid: a call from asyncio"


class TrioEndedError(RuntimeError):
    """Trio was cancelled while a call was under way: the asyncio loop is ending."""


class Bridge:
    """Where the calls of one asyncio loop cross: into a nursery of trio's, here one of the same thread."""

    nursery: trio.Nursery

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    async def join(self, user: object) -> bool:  # noqa: ARG002
        """Somebody is about to cross; the nursery stays until they `leave`. False: it is not there any more."""
        return True

    async def leave(self, user: object) -> None:
        """They are done."""

    def spawn(self, function: Callable[[], Awaitable[None]]) -> None:
        """Start a trio task in the context of the caller; called on the loop."""
        self.nursery.start_soon(function, name=NAME)

    def to_trio(self, function: Callable[[], object]) -> None:
        """Call a sync function in trio; called on the loop."""
        function()

    def to_loop(self, function: Callable[[], object]) -> None:
        """Call a sync function on the loop; called in trio."""
        function()


bridges: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Bridge] = weakref.WeakKeyDictionary()
"""The bridge of each loop that has one now."""

run_bridge: trio.lowlevel.RunVar[Bridge | None] = trio.lowlevel.RunVar("repid_bridge", default=None)
"""In a trio run that is the guest of a loop: their bridge."""


class Crossing(Generic[T]):
    """One call. `start` and `wait` make all of it; a context manager pauses in the middle, and is waited for twice."""

    __slots__ = ("_answer", "_bridge", "_call", "_scope", "error", "finished", "value")

    value: T

    _bridge: Bridge

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._scope = trio.CancelScope()
        self._answer: asyncio.Future[None] | None = None
        self.error: BaseException | None = None
        self.finished = False

    def start(self, bridge: Bridge) -> None:
        """Start the trio task."""
        self._bridge = bridge
        bridge.spawn(self._carry_out)

    async def wait(self) -> None:
        """Wait until the call has paused or finished. Raises what it raised.

        Cancelled: the call is cancelled and waited for; then the cancellation goes on, unless the call raised.
        """
        self._answer = self._bridge.loop.create_future()
        if not self.finished:
            try:
                await self._answer
            except asyncio.CancelledError:
                await self._see_through()
                if self.error is None or isinstance(self.error, TrioEndedError):
                    raise
        if self.error is not None:
            try:
                raise self.error
            finally:
                self._call = _nothing  # or the error's traceback holds itself

    async def _see_through(self) -> None:
        self._bridge.to_trio(self._scope.cancel)
        while not self.finished:
            self._answer = self._bridge.loop.create_future()
            with suppress(asyncio.CancelledError):  # it is being cancelled already
                await self._answer

    def pause(self) -> None:
        """Called in trio: what was called is half done, and goes on when it is told to."""
        self._bridge.to_loop(self._resume)

    def fail(self, error: BaseException) -> None:
        """Trio has broken down: the call will never end."""
        self.error = self.error or error
        self._finished()

    async def _carry_out(self) -> None:
        try:
            with self._scope:
                self.value = await self._call()
        except BaseException as error:  # noqa: BLE001  whatever it is, it belongs to the caller
            self.error = _without_cancellation(error)
        self._bridge.to_loop(self._finished)

    def _finished(self) -> None:
        self.finished = True
        self._resume()

    def _resume(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)


def _without_cancellation(error: BaseException) -> BaseException:
    """A cancellation that is not the caller's is trio's end; it means nothing in asyncio."""
    if isinstance(error, BaseExceptionGroup):
        _, rest = error.split(trio.Cancelled)
        if rest is not None:
            return rest
    elif not isinstance(error, trio.Cancelled):
        return error
    ended = TrioEndedError("the call was cut off: the asyncio loop it came from is ending")
    ended.__cause__ = error
    return ended


async def _nothing() -> Any:
    """In place of a call that is over."""


async def until(done: asyncio.Future[Any]) -> None:
    """Wait until a future is done, come what may; a cancellation in between is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    if cancelled is not None:
        raise cancelled
