"""How the file's thread wakes one task of trio's directly: by an eventfd, on Linux.

Theory. `TrioToken.run_sync_soon` wakes a task of trio's own, and that one wakes the task that is meant in the next turn
of the loop. A task that waits for a file descriptor itself is woken in the first turn: that saves a third of what a
call to a thread costs and its answer (measured). A descriptor has one reader, so one task at a time may listen; all
others are woken in the usual way, or by the one that listens.

`trio.lowlevel.wait_readable` lets its task be cancelled at any time, and a caller must not be cancelled once its
request is taken. So only the first step of it is made, by hand: it notes the present task as the reader, and says how
that is taken back. What the task does next is up to its caller: to wait until it is rescheduled, which trio does when
the bell is rung, and then to call `hear`; or to call `leave`, after which the bell does not wake it.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from trio.lowlevel import RaiseCancelT, wait_readable


class Bell:
    """Wakes the task that listens. All but `ring` is for trio's side."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._take_back: Callable[[RaiseCancelT], object] | None = None
        if sys.platform == "linux":
            with suppress(OSError):  # no more open files are allowed
                self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                weakref.finalize(self, os.close, self._fd)

    def listen(self) -> bool:
        """Have the bell wake the present task, which is about to wait. False: it cannot, or another task listens."""
        if self._fd is None or self._take_back is not None:
            return False
        waiting: Any = wait_readable(self._fd)  # noqa: ASYNC105  its first step by hand
        try:
            self._take_back = waiting.send(None).abort_func
        except OSError:  # the system watches no more descriptors
            return False
        finally:
            waiting.close()
        return True

    def hear(self) -> None:
        """The task was woken by the bell."""
        assert self._fd is not None
        os.eventfd_read(self._fd)
        self._take_back = None

    def leave(self, raise_cancel: RaiseCancelT) -> None:
        """The task listens no longer. The bell was not rung."""
        assert self._take_back is not None
        self._take_back(raise_cancel)
        self._take_back = None

    def ring(self) -> None:
        """Wake the task that listens, from any thread."""
        assert self._fd is not None
        os.eventfd_write(self._fd, 1)
