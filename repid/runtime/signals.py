"""Signals → callbacks: one handler per signal and process, however many workers listen.

Two receivers that each install and restore a handler corrupt one another's; so the first listener installs, the last
one restores what it found, and every listener in between is called.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

import trio

from ..errors import UsageError

_listeners: dict[int, list[Callable[[], None]]] = {}
_found: dict[int, Any] = {}


def can_listen() -> bool:
    """Whether this is the thread that Python delivers signals to."""
    return threading.current_thread() is threading.main_thread()


def check_can_listen(signals: Iterable[int]) -> None:
    """Raises `UsageError` for signals outside the main thread, where Python cannot receive any."""
    if list(signals) and not can_listen():
        raise UsageError(
            "signals reach only the main thread, and this worker runs in another: give it handle_signals=[] "
            "and call its stop() instead"
        )


@contextmanager
def listen(signals: Iterable[int], callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` in the current trio run for each of these signals that arrives during the block. In the main thread only."""
    token = trio.lowlevel.current_trio_token()

    def notify() -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(callback)

    with ExitStack() as stack:
        for number in signals:
            stack.enter_context(_listening(number, notify))
        yield


@contextmanager
def _listening(number: int, notify: Callable[[], None]) -> Iterator[None]:
    listeners = _listeners.setdefault(number, [])
    if not listeners:
        _found[number] = signal.signal(number, _fan_out)
    listeners.append(notify)
    try:
        yield
    finally:
        listeners.remove(notify)
        if not listeners:
            del _listeners[number]
            signal.signal(number, _found.pop(number))


def _fan_out(number: int, _: FrameType | None) -> None:
    for notify in list(_listeners.get(number, ())):
        notify()
