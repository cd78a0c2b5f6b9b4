"""Calls from anywhere into a trio run that may have ended meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio.lowlevel import TrioToken


def call_soon_in(run: TrioToken, function: Callable[[], object], *, idempotent: bool = False) -> bool:
    """Have a trio run call a function soon. May be called in any thread, and in a signal handler.

    Returns False if the run has ended, or if it was the guest of a loop that was closed while it went on, and Python
    has freed it since.
    """
    try:
        run.run_sync_soon(function, idempotent=idempotent)
    except (trio.RunFinishedError, OSError):  # OSError: the pipe that wakes the run is closed
        return False
    return True


def is_running(run: TrioToken) -> bool:
    """Whether a trio run has not ended yet."""
    return call_soon_in(run, _nothing)


def _nothing() -> None: ...
