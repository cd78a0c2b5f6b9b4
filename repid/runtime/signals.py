"""Signals → callbacks: one handler per signal and process, however many workers listen.

Two receivers that each install and restore a handler corrupt one another's; so the first listener installs, the last
one restores what it found, and every listener in between is called. What was found may be dead by then: `asyncio.run`
puts its own handler for SIGINT back only if nobody has replaced it, and a worker may outlive the program's main task.
Then Python's is restored, as asyncio would have done. A handler that somebody installed meanwhile stays.

A third signal ends the process, even if an actor shields itself from its cancellation or blocks the loop. So the
handler itself does that.

A process is started with signals held back, and lets them in when it has said what becomes of them. Else one that comes
meanwhile ends it with a traceback, since Python's own handler raises `KeyboardInterrupt` in whatever is imported.

What an actor forks gets the handlers that stood before ours: it has no worker to stop, and whoever forked it may end it
with SIGTERM, as `multiprocessing.Pool` does. From just before the fork until that is done our signals are held back,
since Python forgets those that come to a child so early.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any

import trio

from ..errors import UsageError
from ..run_token import call_soon_in

_listeners: dict[int, list[Callable[[], None]]] = {}
_found: dict[int, Any] = {}
"""What stood in the place of our handlers."""
_ours: dict[int, Any] = {}
_of_thread = threading.local()  # several may fork at once
_received: list[int] = []
"""The signals that came since somebody has begun to listen."""

MOST_SIGNALS = 2
"""The first stops, the second ends the grace; one more ends the process."""


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
    """Call `callback` in the current trio run for each of these signals that arrives during the block. In the main
    thread only.
    """
    token = trio.lowlevel.current_trio_token()

    def notify() -> None:
        call_soon_in(token, callback)

    with ExitStack() as stack:
        for number in signals:
            stack.enter_context(_listening(number, notify))
        yield


@contextmanager
def _listening(number: int, notify: Callable[[], None]) -> Iterator[None]:
    listeners = _listeners.setdefault(number, [])
    if not listeners:
        take(number, _fan_out)
    listeners.append(notify)
    try:
        yield
    finally:
        listeners.remove(notify)
        if not listeners:
            del _listeners[number]
            found = _found.pop(number)
            del _ours[number]
            if signal.getsignal(number) is _fan_out:
                main_task = found.keywords.get("main_task") if isinstance(found, partial) else None
                is_dead = main_task is not None and main_task.done()  # of an `asyncio.run` that has ended
                signal.signal(number, signal.default_int_handler if is_dead else found)
        if not _listeners:
            _received.clear()


def take(number: int, handler: Callable[[int, FrameType | None], None]) -> None:
    """Have the handler called for this signal from now on, but not in forked children."""
    _found[number], _ours[number] = signal.signal(number, handler), handler


@contextmanager
def held_back(signals: Iterable[int]) -> Iterator[None]:
    """Block these signals in this thread, so that processes which it starts in the block have them blocked, too.

    What comes to this process meanwhile goes to another thread, or comes when the block has been left. Windows blocks
    none.
    """
    if sys.platform == "win32":
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def let_in(signals: Iterable[int]) -> None:
    """In a process that was started with these signals held back: one that has come is taken now."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def end_process(number: int) -> None:
    """End the process as the signal does by default; also where that does nothing, for the first process of a
    container.
    """
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)


def _fan_out(number: int, _: FrameType | None) -> None:
    _received.append(number)
    if len(_received) > MOST_SIGNALS:
        end_process(number)
    for notify in list(_listeners.get(number, ())):
        notify()


def _before_fork() -> None:
    _of_thread.mask = signal.pthread_sigmask(signal.SIG_BLOCK, list(_found))


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _of_thread.mask)


def _after_fork_in_child() -> None:
    for number, found in _found.items():
        if signal.getsignal(number) == _ours[number]:  # and not one of the program's own
            signal.signal(number, signal.SIG_DFL if found is None else found)  # None: not one of Python's
    _found.clear()
    _ours.clear()
    _listeners.clear()
    _received.clear()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
