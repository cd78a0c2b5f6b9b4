"""What happens to the whole process: it forks, and it ends. Everything that must know of either is told here.

**Forks.** A fork copies one thread, and the memory of all of them. What another thread had open is in the child too,
as far as it had come, and what another thread had locked stays locked. Three rules follow.

1. *Some things must not be open while the process forks.* SQLite keeps in memory which locks on a file it holds, once
   for all connections of the process. The operating system does not give these locks to the child, but the child's
   SQLite believes that it has them. When parent or child then closes the file, it sees no other user, removes the
   write-ahead log, and what the other one has committed is gone. Opening the file anew in the child does not help,
   since SQLite finds the old entry. So the code that opens such a thing does it in a `Forks.holding` block and leaves
   that as soon as `is_wanted` is True. A fork waits until nothing is held, and while it is under way nothing is opened.
   The rest of the process goes on: no loop is closed, no call is refused.
2. *The child starts with fresh locks and forgets what belongs to its parent.* Each `Inheritor` is told so.
3. *A child does not return into its parent's worker.* Where the code of a run has forked, the child ends with that
   code: `end_child`.

If a holder does not leave in time, or the fork was made in C past Python's hooks, the child is told what was open
(`Forks.left_open`), and must refuse to use that.

**The end.** Python waits for all threads that are no daemons before it runs `atexit` functions, so whatever keeps such
a thread alive must be closed earlier: when the main thread has ended. `Exit` does that.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

from .tracebacks import explain

T = TypeVar("T")

HOLDING_TIME = 15.0
"""Seconds for which a fork waits for those that hold something open; SQLite may be waiting for another process."""


class Forks:
    """Keeps apart forks and what must not be open during one. All fields are changed under `_changed` only.

    The lock is one that a thread may take twice: a signal handler or a finalizer may fork in the middle of anything.
    """

    def __init__(self) -> None:
        self.left_open: frozenset[str] = frozenset()
        """What was open when this process, or one that it descends from, was forked."""
        self._changed = threading.Condition()
        self._held: dict[int, tuple[str, Callable[[], None]]] = {}  # by thread: its name, how to ask for it
        self._forker: int | None = None  # the thread that forks now
        self._depth = 0  # how many forks of that thread are under way, each in a handler that interrupted the last

    @property
    def is_wanted(self) -> bool:
        """Whether a fork waits for what is held."""
        return self._forker is not None

    @contextmanager
    def holding(self, name: str, ask: Callable[[], None]) -> Iterator[None]:
        """For what must not be open during a fork, in this thread. Waits for a fork that is under way.

        A fork that comes during the block calls `ask`, in another thread, and waits until the block has been left.
        """
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._forker in (None, me))
            self._held[me] = name, ask
        try:
            yield
        finally:
            with self._changed:
                self._held.pop(me, None)
                self._changed.notify_all()

    def before(self) -> None:
        """The process is about to fork, in this thread."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._forker in (None, me))
            self._forker, self._depth = me, self._depth + 1
            for _, ask in self._held.values():
                ask()
            self._changed.wait_for(lambda: self._held.keys() <= {me}, HOLDING_TIME)

    def after_in_parent(self) -> None:
        """It has forked, or could not."""
        with self._changed:
            if self._forker != threading.get_ident():
                return  # `before` was interrupted (Ctrl-C) before it had begun
            self._depth -= 1
            if not self._depth:
                self._forker = None
                self._changed.notify_all()

    def after_in_child(self) -> None:
        """Start anew in the new process. Nothing of the parent's locks is touched: another thread may have
        held them.
        """
        left = frozenset(name for name, _ in self._held.values())
        self._changed, self._held, self._forker, self._depth = threading.Condition(), {}, None, 0
        self.left_open |= left


forks = Forks()
"""Those of this process."""

_inherited: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def inherits(owner: T, start_anew: Callable[[T], None]) -> None:
    """Have `start_anew(owner)` called in a forked child, as long as the owner lives: a function of its class, or
    another one that does not hold it.

    It replaces locks and forgets what only the parent has. No other thread runs yet.
    """
    _inherited[owner] = start_anew


def _after_fork_in_child() -> None:
    forks.after_in_child()
    for owner, start_anew in list(_inherited.items()):
        start_anew(owner)


def end_child(error: BaseException | None) -> NoReturn:
    """End this process, a forked child, where the code that forked it has ended: by returning, or with this error.

    Its caller belongs to the parent, and so do the event loop, the connections and the leases behind that: a child that
    went on would run what the parent runs. It ends as a child of multiprocessing does, without the parent's `finally`
    blocks and `atexit` functions.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    elif error is not None:
        code = 1
        sys.stderr.write(explain(error))
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or there is nobody to read it
            stream.flush()
    os._exit(code & 0xFF)


class Exit:
    """What is closed when the program has ended and nobody has closed it.

    What is opened in a thread that lives longer than the main one is closed at that thread's end.
    """

    def __init__(self) -> None:
        self._closing: set[Callable[[], None]] = set()
        self._lock = threading.Lock()
        self._watched: threading.Thread | None = None

    def add(self, close: Callable[[], None]) -> None:
        """Have `close` called then, in a thread of its own."""
        main = threading.main_thread()
        thread = main if main.is_alive() else threading.current_thread()
        with self._lock:
            self._closing.add(close)
            if self._watched is not thread:
                threading.Thread(target=self._close_after, args=[thread], name="repid at exit").start()
                self._watched = thread

    def discard(self, close: Callable[[], None]) -> None:
        """It is closed already."""
        with self._lock:
            self._closing.discard(close)

    def start_anew(self) -> None:
        """What the parent closes is not the child's to close."""
        self._closing, self._lock, self._watched = set(), threading.Lock(), None

    def _close_after(self, thread: threading.Thread) -> None:
        thread.join()
        with self._lock:
            closing = list(self._closing)
        for close in closing:
            close()


at_exit = Exit()
"""That of this process."""

inherits(at_exit, Exit.start_anew)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=forks.before, after_in_parent=forks.after_in_parent, after_in_child=_after_fork_in_child)
