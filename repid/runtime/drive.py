"""Running a coroutine in a context of its own, as part of the task that is there already."""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any


@types.coroutine
def drive(context: Context, coroutine: Coroutine[Any, Any, Any], trap: Any) -> Generator[Any, Any, Any]:
    """Go on with a coroutine that has yielded `trap`; what it returns or raises is returned or raised here.

    Each of its steps runs in `context`, so that what it sets there is seen by nobody else.
    """
    step, send = context.run, coroutine.send
    try:
        while True:
            try:
                outcome = yield trap
            except BaseException as error:  # noqa: BLE001  whatever is thrown in belongs to the coroutine
                trap = step(coroutine.throw, error)
            else:
                trap = step(send, outcome)
    except StopIteration as stop:
        return stop.value
