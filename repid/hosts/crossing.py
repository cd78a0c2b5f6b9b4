"""One call, carried from an asyncio task to a trio task and back, and the bridge over which it goes."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from ..errors import BrokerError, ResultError
from ..process import inherits

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

CARRIER = "repid: calls from asyncio"

IDLE_CARRIERS = 100
"""How many trio tasks wait for the next call; others end when their call does."""


class TrioEndedError(RuntimeError):
    """Trio was cancelled while a call was under way: the asyncio loop is ending."""


class Crossing(Generic[T]):
    """One call, which a bridge carries. It is waited for once; a context manager pauses in the middle, and twice."""

    __slots__ = ("_answer", "_arguments", "_function", "_keywords", "bridge", "carrier", "error", "finished", "value")

    value: T
    bridge: Bridge
    carrier: Carrier

    def __init__(
        self, function: Callable[..., Awaitable[T]], arguments: tuple[Any, ...] = (), keywords: Mapping[str, Any] = {}
    ) -> None:
        self._function = function
        self._arguments = arguments
        self._keywords = keywords
        self._answer: asyncio.Future[None] | None = None
        self.error: BaseException | None = None
        self.finished = False

    async def wait(self) -> None:
        """Wait until the call has paused or finished. Raises what it raised.

        Cancelled: the call is cancelled and waited for; then the cancellation goes on, unless the call `failed`.
        """
        import asyncio  # noqa: PLC0415  it is there already; programs on trio do without

        try:
            await self.answer()
        except asyncio.CancelledError as cancelled:
            await self.call_off()
            if not self.failed:
                raise cancelled from self.error
        self.check()

    def answer(self) -> asyncio.Future[None]:
        """What is done when the call has paused or finished. To be awaited at once."""
        self._answer = self.bridge.loop.create_future()
        if self.finished:
            self._answer.set_result(None)
        return self._answer

    async def call_off(self) -> None:
        """Cancel the call and see it through."""
        import asyncio  # noqa: PLC0415  as above

        self.bridge.to_trio(self._cancel)
        while not self.finished:
            with suppress(asyncio.CancelledError):  # it is being cancelled already
                await self.answer()

    @property
    def failed(self) -> bool:
        """Whether it raised what wins over a cancellation of the caller: an error that nobody expects.

        Errors that a program handles in order to go on do not win. asyncio tells of a cancellation once: a program that
        tries again while a server is away would never hear of it.
        """
        return self.error is not None and not isinstance(self.error, (BrokerError, ResultError, TrioEndedError))

    @property
    def has_returned(self) -> bool:
        """Whether there is a result. There is none of a call that raised, that was cancelled, or that is under way."""
        return hasattr(self, "value")

    def result(self) -> T:
        """What the call returned; raises what it raised."""
        self.check()
        return self.value

    def check(self) -> None:
        """Raise what the call raised, if it did."""
        if self.error is not None:
            error, self.error = self.error, None  # or the error's traceback holds itself
            try:
                raise error
            finally:
                del error
                self._function, self._arguments = _nothing, ()

    def call(self) -> Awaitable[T]:
        """Called in trio: make the call."""
        return self._function(*self._arguments, **self._keywords)

    def _cancel(self) -> None:
        self.carrier.cancel(self)

    def pause(self) -> None:
        """Called in trio: what was called is half done, and goes on when it is told to."""
        self.bridge.to_loop(self._resume)

    def break_off(self, error: BaseException) -> None:
        """Called in trio: it has raised. A cancellation that is not the caller's is trio's end."""
        self.error = _without_cancellation(error)

    def end(self) -> None:
        """Called in trio: it is over."""
        self.bridge.to_loop(self._finished)

    def fail(self, error: BaseException) -> None:
        """Trio has broken down: the call will never end."""
        self.error = self.error or error
        self._finished()

    def _finished(self) -> None:
        self.finished = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

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


def is_run_by_trio(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether it is a loop of trio-asyncio, as every loop is that asyncio makes once trio-asyncio was imported."""
    return type(loop).__module__.partition(".")[0] == "trio_asyncio"


class Bridge:
    """Where the calls of one asyncio loop cross: into a nursery of trio's, here one of the same thread."""

    nursery: trio.Nursery

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.is_run_by_trio = is_run_by_trio(loop)
        self.idle: list[Carrier] = []
        self.rest = Context()
        """In which idle carriers wait: a caller's context must not live longer than its call."""
        self.is_retired = False
        self.is_of_parent = False
        """Whether this is the copy in a child that was forked on the loop, which has no right to it."""
        inherits(self, Bridge._note_fork)

    def _note_fork(self) -> None:
        self.is_of_parent = True

    def enter(self, user: object) -> bool:  # noqa: ARG002
        """Somebody is about to cross; the nursery stays until they have left. False: `join` has to be awaited."""
        return True

    async def join(self, user: object) -> bool:  # noqa: ARG002
        """As `enter`, where that takes time. False: the nursery is not there any more."""
        return True

    def leave(self, user: object) -> bool:  # noqa: ARG002
        """They are done. True: with the last of them the bridge has closed, and its `end` is to be waited for."""
        return False

    async def end(self) -> None:
        """Wait until nothing of the bridge is left."""

    def contain(self) -> None:
        """From now on actors run on the loop, and may start tasks that must not end it."""

    def carry(self, crossing: Crossing[Any]) -> None:
        """Have a trio task carry out the call, in a copy of the present context; called on the loop."""
        crossing.bridge = self
        self.load(crossing, copy_context())

    def load(self, crossing: Crossing[Any], context: Context) -> None:
        """As `carry`, in this context; called in trio's thread."""
        if self.idle:
            self.idle.pop().take(crossing, context)
        else:
            carrier = crossing.carrier = Carrier(self, crossing)
            context.run(partial(self.nursery.start_soon, carrier.work, name=CARRIER))

    def retire(self) -> None:
        """Let the trio tasks end: those that wait now, the others after their call."""
        self.is_retired = True
        while self.idle:
            self.idle.pop().dismiss()

    def to_trio(self, function: Callable[[], object]) -> None:
        """Call a sync function in trio; called on the loop."""
        function()

    def to_loop(self, function: Callable[[], object]) -> None:
        """Call a sync function on the loop; called in trio."""
        function()


class Carrier:
    """A trio task that carries out one call after another: starting one for each costs more than most calls."""

    __slots__ = ("_bridge", "_crossing", "_is_cancelled", "_is_over", "_scope", "_task")

    _task: trio.lowlevel.Task

    def __init__(self, bridge: Bridge, crossing: Crossing[Any]) -> None:
        self._bridge = bridge
        self._crossing: Crossing[Any] | None = crossing
        self._scope = trio.CancelScope()
        self._is_cancelled = False
        self._is_over = False

    def take(self, crossing: Crossing[Any], context: Context) -> None:
        """Carry out this call next. To be called while the task waits for one."""
        self._crossing = crossing
        crossing.carrier = self
        self._task.context = context
        trio.lowlevel.reschedule(self._task)

    def dismiss(self) -> None:
        """There will be no more calls. To be called while the task waits for one."""
        self._is_over = True
        trio.lowlevel.reschedule(self._task)

    def cancel(self, crossing: Crossing[Any]) -> None:
        """Cancel the call, if it is still the present one."""
        if self._crossing is crossing:
            self._is_cancelled = True
            self._scope.cancel()

    async def work(self) -> None:
        """Carry out calls until dismissed or cancelled. Its cancel scope is replaced when a call has used it up."""
        self._task = trio.lowlevel.current_task()
        while not self._is_over:
            try:
                with self._scope:
                    await self._carry()
            except BaseException as error:  # whatever it is, it belongs to the caller
                if self._crossing is None:
                    raise
                self._crossing.break_off(error)
            if self._crossing is not None:
                self._end(self._crossing)
            if not self._is_over:
                self._scope, self._is_cancelled = trio.CancelScope(), False
                await self._wait()

    async def _carry(self) -> None:
        while self._crossing is not None and not self._is_cancelled:
            self._crossing.value = await self._crossing.call()
            self._end(self._crossing)
            if not self._is_cancelled:
                await self._wait()

    def _end(self, crossing: Crossing[Any]) -> None:
        self._crossing = None
        crossing.end()

    async def _wait(self) -> None:
        """Wait for the next call, or for the end."""
        bridge = self._bridge
        if bridge.is_retired or len(bridge.idle) >= IDLE_CARRIERS:
            self._is_over = True
            return
        bridge.idle.append(self)
        self._task.context = bridge.rest
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._bridge.idle.remove(self)
        return trio.lowlevel.Abort.SUCCEEDED


bridges: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Bridge] = weakref.WeakKeyDictionary()
"""The bridge of each loop that has one now."""

run_bridge: trio.lowlevel.RunVar[Bridge | None] = trio.lowlevel.RunVar("repid_bridge", default=None)
"""In a trio run that is the guest of a loop: their bridge."""

on_long_step: ContextVar[Callable[[float], None]] = ContextVar("on_long_step")
"""Called in the context of an asyncio task with the seconds of each step of it that kept its loop for long."""
