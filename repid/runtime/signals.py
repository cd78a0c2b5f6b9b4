"""Signals → callbacks: one handler per signal and process, however many workers listen.

Two receivers that each install and restore a handler corrupt one another's; so the first listener installs, the last
one restores what it found, and every listener in between is called.

A worker that does not listen to SIGINT leaves Ctrl-C to the handler it finds: trio's, asyncio's, Python's or the program's. Most
of these raise `KeyboardInterrupt` in whatever code is running, which may be an actor's; and an actor's code can raise one
itself. Only the first must end the worker. They can be told apart by the traceback: a handler that is a Python function has
its frame in it. Python's own handler is written in C and has none: then the innermost frame has been interrupted at an
instruction that is no `raise`.
"""

from __future__ import annotations

import dis
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
