"""One call, carried from an asyncio task to a trio task and back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from .bridge import Bridge, Carrier

T = TypeVar("T")


class TrioEndedError(RuntimeError):
    """Trio was cancelled while a call was under way: the asyncio loop is ending."""


class Crossing(Generic[T]):
    """One call. `start` and `wait` make all of it; a context manager pauses in the middle, and is waited for twice."""

    __slots__ = ("_answer", "_bridge", "call", "carrier", "error", "finished", "value")

    value: T
    carrier: Carrier

    _bridge: Bridge

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self.call = call
        self._answer: asyncio.Future[None] | None = None
        self.error: BaseException | None = None
        self.finished = False

    def start(self, bridge: Bridge) -> None:
        """Have a trio task carry it out, in a copy of the present context."""
        self._bridge = bridge
        bridge.carry(self)

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
                self.call = _nothing  # or the error's traceback holds itself

    async def _see_through(self) -> None:
        self._bridge.to_trio(self._cancel)
        while not self.finished:
            self._answer = self._bridge.loop.create_future()
            with suppress(asyncio.CancelledError):  # it is being cancelled already
                await self._answer

    def _cancel(self) -> None:
        self.carrier.cancel(self)

    def pause(self) -> None:
        """Called in trio: what was called is half done, and goes on when it is told to."""
        self._bridge.to_loop(self._resume)

    def break_off(self, error: BaseException) -> None:
        """Called in trio: it has raised. A cancellation that is not the caller's is trio's end."""
        self.error = _without_cancellation(error)

    def end(self) -> None:
        """Called in trio: it is over."""
        self._bridge.to_loop(self._finished)

    def fail(self, error: BaseException) -> None:
        """Trio has broken down: the call will never end."""
        self.error = self.error or error
        self._finished()

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
