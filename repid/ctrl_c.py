"""Ctrl-C, and a `KeyboardInterrupt` that is none.

A worker that does not listen to SIGINT leaves Ctrl-C to the handler it finds: trio's, asyncio's, Python's or the
program's. Most of these raise `KeyboardInterrupt` in whatever code is running, which may be an actor's; and an actor's
code can raise one itself. Only the first must end the worker. They can be told apart by the traceback: a handler that
is a Python function has its frame in it. Python's own handler is written in C and has none: then the innermost frame
has been interrupted at an instruction that is no `raise`. While all tasks wait, trio raises it in its main task, by the
function with which it raises cancellations there.
"""

from __future__ import annotations

import dis
import signal
from functools import partial
from types import CodeType, MethodType
from typing import Any

import trio

from .tracebacks import is_a, leaves, traceback_of

RAISE = dis.opmap["RAISE_VARARGS"]

TRIO = trio.run.__code__.co_filename
"""Where trio wakes tasks, and raises what was sent to them."""


def comes_from_ctrl_c(error: BaseException) -> bool:
    """Whether it is, or holds, a `KeyboardInterrupt` that a signal has caused, not one that the code itself
    has raised.
    """
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
        if trace.tb_next is None and trace.tb_frame.f_code.co_filename == TRIO:
            return True
        trace = trace.tb_next
    return False


def _code_of(handler: Any) -> CodeType | None:
    while isinstance(handler, partial):
        handler = handler.func
    if isinstance(handler, MethodType):
        handler = handler.__func__
    return getattr(handler, "__code__", None)
