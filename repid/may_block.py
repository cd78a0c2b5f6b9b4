"""Where a call that blocks is refused, because it would wait for ever or stop others."""

from __future__ import annotations

import sys
import threading
from sys import modules
from types import FrameType

import trio

from .errors import UsageError
from .process import inherits

_OWN_THREADS = ("repid client", "repid sqlite")
"""How the names of threads begin in which no code of callers runs, finalizers apart."""


def check_may_block() -> None:
    """Raises `UsageError` where blocking would be for ever, or stop others: see `Client`."""
    thread = threading.current_thread()
    if thread is threading.main_thread() and not thread.is_alive():
        raise UsageError("the process is ending, and nothing can be started any more: call before the program's end")
    if thread.name.startswith(_OWN_THREADS):
        raise UsageError(
            f"this call blocks, and {thread.name!r} is a thread of repid's own: it was made by a finalizer (__del__), "
            "which may run in any thread, or by a function that client.run was given, which may only make calls that "
            "it awaits"
        )
    library = _running_library()
    if library is not None:
        raise UsageError(
            f"this call blocks, and would stop the {library} loop that runs in this thread: await the app's own "
            "methods here, or make the call in a thread"
        )


def _running_library() -> str | None:
    """Whose loop runs here: that of the code that calls, where trio is a guest of asyncio or asyncio one of trio."""
    is_in_trio = trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is not mine.parents_run
    if is_in_trio and trio.lowlevel.in_trio_task():
        return "trio"
    running_loop = getattr(modules.get("asyncio"), "_get_running_loop", None)  # programs on trio do without asyncio
    if running_loop is not None and running_loop() is not None:
        return "asyncio"
    return "trio" if is_in_trio else None


class _Mine(threading.local):
    """What each thread knows of itself."""

    caller: FrameType | None = None
    """Where its call in progress was made. Ctrl-C can leave a frame here that has ended, see `OneCall`."""
    parents_run: trio.lowlevel.TrioToken | None = None
    """In a forked child: the trio run that this thread was in when it was the parent's. It goes on there alone."""

    def start_anew(self) -> None:
        """Called in the only thread that there is."""
        self.caller = None
        self.parents_run = trio.lowlevel.current_trio_token() if trio.lowlevel.in_trio_run() else None


mine = _Mine()
inherits(mine, _Mine.start_anew)


class OneCall:
    """A call of this thread. One that interrupts it could wait for a lock that it holds, so that is refused.

    Ctrl-C may raise an exception between any two steps, so also where a call has ended and that is not noted yet. So
    the note alone proves nothing: a call is in progress if the frame that made it is still on the stack of the thread.
    """

    def __enter__(self) -> None:
        if mine.caller is not None and _is_on_stack(mine.caller):
            raise UsageError(
                "this call interrupted another one of the same thread, and both might wait for ever: call neither in "
                "signal handlers nor in finalizers (__del__)"
            )
        mine.caller = sys._getframe(1)  # noqa: SLF001  what traceback and inspect use, too

    def __exit__(self, *_: object) -> None:
        mine.caller = None


def _is_on_stack(frame: FrameType) -> bool:
    here: FrameType | None = sys._getframe(1)  # noqa: SLF001  as above
    while here is not None and here is not frame:
        here = here.f_back
    return here is not None


def is_worker_thread_of(run: trio.lowlevel.TrioToken) -> bool:
    """Whether this is a worker thread of that run. Raises `trio.Cancelled` where its task has been cancelled."""
    try:
        return trio.from_thread.run_sync(trio.lowlevel.current_trio_token) is run
    except RuntimeError:
        return False
