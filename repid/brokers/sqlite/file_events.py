"""The system's word that a file was written to, where it gives one: inotify on Linux.

Theory. A thread that looks at the file many times a second to see what other processes do costs one or two per cent of
a core. Linux can tell it instead. Each commit appends to the write-ahead log (the WAL), and the log stays the same file
while any connection is open. So one watch on the log tells of every commit, our own included, as soon as it begins to
be written (`BEGUN`); the thread that is told must look a few times until the commit is complete. Nothing that SQLite
does then touches the log, so repid itself says that it is: it opens the log for reading, as nobody else does, and
closes it (`tell_done`, four microseconds), and the same watch tells of that (`DONE`).

What is told is a hint. Not every file system tells what is done elsewhere (those of networks do not, nor do some mounts
of containers). So nobody may rely on it who has not seen that it works: see `ChangeWatch`.

A program that only sends watches nothing: each watch makes all writes to the log a little slower, and a user may have
only 128 instances of inotify.

The standard library has no call for inotify, and the packages that have are threads or event loops of their own; three
functions of the C library are enough.
"""

from __future__ import annotations

import os
import select
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeAlias

BEGUN = 0x2
"""Inotify's `IN_MODIFY`: something was written to the file."""
DONE = 0x10
"""Inotify's `IN_CLOSE_NOWRITE`: somebody who only could read the file has closed it."""

_EVENT = struct.Struct("iIII")
"""Watch, mask, cookie, and the length of a name, which is 0 where a file is watched and not a folder."""
_MOST_AT_ONCE = 65536
"""Bytes of events that are read in one call."""


class FileEvents:
    """The events of one file. It belongs to the thread that waits; `interrupt` may be called from any other."""

    def __init__(self, events: int, bell: int) -> None:
        self._events = events
        self._bell = bell
        self._lock = threading.Lock()
        self._is_closed = False
        self._poll = select.poll()
        self._poll.register(events, select.POLLIN)
        self._poll.register(bell, select.POLLIN)

    def wait(self, timeout: float) -> None:
        """Wait for an event, an interruption, or `timeout` seconds. The event is still there for `take`."""
        self._poll.poll(max(0.0, timeout) * 1000)
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def take(self) -> int:
        """Forget all events so far. Returns their bits, those of `BEGUN` and `DONE` among them; 0: there were none."""
        try:
            told = os.read(self._events, _MOST_AT_ONCE)
        except BlockingIOError:
            return 0
        bits = 0
        for _, mask, _, _ in _EVENT.iter_unpack(told):
            bits |= mask
        return bits

    def interrupt(self) -> None:
        """End the present wait, or the next one. After `close` it does nothing."""
        with self._lock:
            if not self._is_closed:
                os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Watch the file no longer."""
        with self._lock:
            self._is_closed = True
            os.close(self._events)
            os.close(self._bell)


def tell_done(path: str) -> None:
    """Tell all who watch this log that what was begun is done. Where the system tells nobody, nothing happens.

    It must be the log. Closing a file gives up every POSIX lock that the process has on it, through whichever
    descriptor; SQLite locks the database and its `-shm` file, but never the log.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


Watch: TypeAlias = Callable[[], FileEvents | None]
"""Gives the events of a file. None where the system cannot tell them, or has too many watches."""


@contextmanager
def watch_file(path: str) -> Iterator[Watch]:
    """Watch a file that exists from the first call of what this gives until the end of the block.

    The first event is one of our own: it shows whether the system tells anything.
    """
    opened: list[FileEvents | None] = []

    def watch() -> FileEvents | None:
        if not opened:
            opened.append(_open(path) if sys.platform == "linux" else None)
            tell_done(path)
        return opened[0]

    try:
        yield watch
    finally:
        for events in opened:
            if events is not None:
                events.close()


def _open(path: str) -> FileEvents | None:
    import ctypes  # noqa: PLC0415  takes some milliseconds, and is needed here only

    library = ctypes.CDLL(None)
    try:
        open_events, add_watch = library.inotify_init1, library.inotify_add_watch
    except AttributeError:
        return None
    events = open_events(os.O_NONBLOCK | os.O_CLOEXEC)
    if events < 0:
        return None
    try:
        if add_watch(events, os.fsencode(path), BEGUN | DONE) >= 0:
            return FileEvents(events, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    except OSError:  # no more open files are allowed
        pass
    os.close(events)
    return None
