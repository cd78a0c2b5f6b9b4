"""Cancelling a call at each of its awaits, one after the other, and at any time between them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from types import coroutine
from typing import Any, Generic, TypeVar, cast

import msgspec
import trio

T = TypeVar("T")

AWAITS = 10
"""The number of awaits at which a call is cancelled, and the most turns of the scheduler after its start."""

PAUSES = (0.0001, 0.0005, 0.001, 0.003, 0.01)
"""After how many seconds a call is cancelled whose broker works elsewhere: in a thread, in another process."""


class Interruption(msgspec.Struct, frozen=True):
    """When to cancel: at the await number `at` (from 0), `turns` of the scheduler after the start, or after `pause`."""

    at: int | None = None
    turns: int | None = None
    pause: float = 0.0

    def __str__(self) -> str:
        if self.at is not None:
            return f"at await {self.at}"
        return f"after {self.pause} s" if self.turns is None else f"after {self.turns} turns"


class Interrupted(msgspec.Struct, Generic[T], frozen=True):
    """How a call ended that was cancelled: `value` holds what it returned, if it returned all the same."""

    value: list[T]

    @property
    def was_cancelled(self) -> bool:
        """Whether the cancellation got through."""
        return not self.value


def interruptions() -> list[Interruption]:
    """All of them."""
    return [
        *(Interruption(at=n) for n in range(AWAITS)),
        *(Interruption(turns=n) for n in range(AWAITS)),
        *(Interruption(pause=pause) for pause in PAUSES),
    ]


async def interrupt(call: Callable[[], Awaitable[T]], when: Interruption) -> Interrupted[T]:
    """Make the call and cancel it then. What it raises is raised."""
    value: list[T] = []
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        if when.at is None:
            nursery.start_soon(_cancel_later, scope, when)
        with scope:
            value.append(await (call() if when.at is None else _cancel_at(call(), scope, when.at)))
        nursery.cancel_scope.cancel()
    return Interrupted(value)


async def _cancel_later(scope: trio.CancelScope, when: Interruption) -> None:
    if when.turns is None:
        await trio.sleep(when.pause)
    for _ in range(when.turns or 0):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@coroutine
def _cancel_at(call: Awaitable[T], scope: trio.CancelScope, at: int) -> Generator[Any, Any, T]:
    """Await the call; cancel the scope when it is about to wait for the time number `at`."""
    steps = call.__await__()
    waits = 0
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            trap = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as stop:
            return cast("T", stop.value)
        if waits == at:
            scope.cancel()
        waits += 1
        try:
            value, error = (yield trap), None
        except BaseException as raised:  # noqa: BLE001  it is thrown into the call
            value, error = None, raised
