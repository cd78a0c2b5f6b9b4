"""The children of process actors: an actor that runs in a process of a pool may fork processes of its own.

A forked child inherits the pipes of the pool's process. As long as it has them open, the pool takes a killed process
for one that is alive: a timeout would be without effect, and the end of the worker would wait for the child. So a child
closes them first of all. On Linux the kernel also kills it when the process dies that forked it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2). The parent is a thread there: only that of the process' main one is of use."""

_PLACES = (Path("/proc/self/fd"), Path("/dev/fd"))


def prepare_for_children() -> bool:
    """Called in a new process of the pool, before any actor: what is open now belongs to the pool."""
    if hasattr(os, "register_at_fork"):
        family = _Family(_open_files(), prctl())
        os.register_at_fork(before=family.before_fork, after_in_child=family.after_fork_in_child)
    return True


class _Family:
    def __init__(self, pipes: frozenset[int], prctl: Callable[[int, int], int] | None) -> None:
        self._pipes = pipes
        self._prctl = prctl
        self._parent = os.getpid()
        self._forks_in_main_thread = False

    def before_fork(self) -> None:
        """The process is about to fork."""
        self._forks_in_main_thread = threading.current_thread() is threading.main_thread()

    def after_fork_in_child(self) -> None:
        """Leave the pool's pipes, once: a child of the child has other files under these numbers."""
        for number in self._pipes:
            with suppress(OSError):
                os.close(number)
        self._pipes = frozenset()
        parent, self._parent = self._parent, os.getpid()
        if self._prctl is not None and self._forks_in_main_thread:
            self._prctl(DIE_WITH_PARENT, signal.SIGKILL)
            if os.getppid() != parent:  # it has died before that
                os._exit(1)


def _open_files() -> frozenset[int]:
    """The numbers of all open files, except the standard ones and that of multiprocessing's resource tracker."""
    from multiprocessing import resource_tracker  # noqa: PLC0415  loaded in processes of a pool only

    kept = {0, 1, 2, getattr(resource_tracker._resource_tracker, "_fd", None)}  # noqa: SLF001  it has no other name
    for place in _PLACES:
        with suppress(OSError):
            listed = {int(entry.name) for entry in place.iterdir()} - kept
            for number in list(listed):
                try:
                    os.fstat(number)
                except OSError:  # the listing itself was a file, too
                    listed.discard(number)
            return frozenset(listed)
    return frozenset()


def prctl() -> Callable[[int, int], int] | None:
    """The system call of this name; None: other systems than Linux have none."""
    with suppress(OSError, AttributeError):
        function: Callable[[int, int], int] = ctypes.CDLL(None).prctl
        return function
    return None
