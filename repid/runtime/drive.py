"""Running a coroutine in a context of its own, as part of the task that is there already."""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any

import trio

CHECKPOINT: Any = trio.lowlevel.cancel_shielded_checkpoint().send(None)  # noqa: ASYNC105  its first step by hand
"""What a coroutine yields that waits for nothing and only lets others run: it is resumed in the next turn."""


@types.coroutine
def forward(trap: Any) -> Generator[Any, Any, Any]:
    """Yield one trap to trio; what trio answers is to be sent to the coroutine that yielded it."""
    return (yield trap)


@types.coroutine
def drive(context: Context, coroutine: Coroutine[Any, Any, Any], trap: Any) -> Generator[Any, Any, Any]:
    """Go on with a coroutine that has yielded `trap`; what it returns or raises is returned or raised here.

    Each of its steps runs in `context`, so that what it sets there is seen by nobody else.
    """
    try:
        while True:
            try:
                outcome = yield trap
            except BaseException as error:  # noqa: BLE001  whatever is thrown in belongs to the coroutine
                trap = context.run(coroutine.throw, error)
            else:
                trap = context.run(coroutine.send, outcome)
    except StopIteration as stop:
        return stop.value
