"""Signals → callbacks: one handler per signal and process, however many workers listen.

Two receivers that each install and restore a handler corrupt one another's; so the first listener installs, the last
one restores what it found, and every listener in between is called. What was found may be dead by then: `asyncio.run`
puts its own handler for SIGINT back only if nobody has replaced it, and a worker may outlive the program's main task.
Then Python's is restored, as asyncio would have done. A handler that somebody installed meanwhile stays.

Whoever sends a third signal wants no more than the end of the process, whatever hinders it: an actor that shields
itself from its cancellation, or one that blocks the loop. So that is done in the handler itself.

A worker that does not listen to SIGINT leaves Ctrl-C to the handler it finds: trio's, asyncio's, Python's or the program's. Most
of these raise `KeyboardInterrupt` in whatever code is running, which may be an actor's; and an actor's code can raise one
itself. Only the first must end the worker. They can be told apart by the traceback: a handler that is a Python function has
its frame in it. Python's own handler is written in C and has none: then the innermost frame has been interrupted at an
instruction that is no `raise`.
"""

from __future__ import annotations

import dis
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import CodeType, FrameType, MethodType
from typing import Any

import trio

from ..errors import UsageError
from ..tracebacks import is_a, leaves, traceback_of

_listeners: dict[int, list[Callable[[], None]]] = {}
_found: dict[int, Any] = {}
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
            _restore(number, _found.pop(number))
        if not _listeners:
            _received.clear()


def _restore(number: int, found: Any) -> None:
    if signal.getsignal(number) is _fan_out:
        signal.signal(number, signal.default_int_handler if _is_dead(found) else found)


def _is_dead(handler: Any) -> bool:
    """Whether it is that of an `asyncio.run` whose main task is done."""
    task = handler.keywords.get("main_task") if isinstance(handler, partial) else None
    return task is not None and task.done()


def end_process(number: int) -> None:
    """End the process as the signal does by default; also where that does nothing, for the first process of a container."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)


def _fan_out(number: int, _: FrameType | None) -> None:
    _received.append(number)
    if len(_received) > MOST_SIGNALS:
        end_process(number)
    for notify in list(_listeners.get(number, ())):
        notify()


RAISE = dis.opmap["RAISE_VARARGS"]


def comes_from_ctrl_c(error: BaseException) -> bool:
    """Whether it is, or holds, a `KeyboardInterrupt` that a signal has caused, not one that the code itself has raised."""
    return any(is_a(each, KeyboardInterrupt) and _was_interrupted(each) for each in leaves(error))


def let_ctrl_c_through(error: BaseException) -> None:
    """Raise the error if a signal has caused it, for those that take every other one as a failure."""
    if comes_from_ctrl_c(error):
        raise error


def _was_interrupted(error: BaseException) -> bool:
    handler = signal.getsignal(signal.SIGINT)
    code = _code_of(handler)
    trace = traceback_of(error)
    while trace is not None:
        if trace.tb_frame.f_code is code:
            return True
        if trace.tb_next is None and handler is signal.default_int_handler:
            return trace.tb_frame.f_code.co_code[trace.tb_lasti] != RAISE
        trace = trace.tb_next
    return False


def _code_of(handler: Any) -> CodeType | None:
    while isinstance(handler, partial):
        handler = handler.func
    if isinstance(handler, MethodType):
        handler = handler.__func__
    return getattr(handler, "__code__", None)
