"""The pool of processes where actors run: trio-parallel's, whose processes are started so that they obey their worker.

* **Signals are the worker's.** Ctrl-C in a terminal, and systemd unless it is told otherwise, signal every process
  there is. The worker then gives its actors their grace, so a process of the pool must not end by the same signal.
  trio-parallel ignores SIGINT where a process has started, which takes a second. So it is started with both signals
  blocked, and lets them in when it ignores the one, and leaves the other to its worker: twice, as that stops at the
  first and ends the grace at the second. The third ends the process, as it ends the worker. A handler is taken for
  SIGTERM, since what is ignored stays ignored in the programs that an actor starts.
* **It ends with its worker.** A worker that is killed loses its leases, and another one runs its messages. What ran
  here must not go on beside that. Linux tells a process of the death of the thread that started it; so it is
  started in the thread of the loop, which lives as long as the worker, and not in one of trio's. That takes the loop
  some milliseconds. A process that is still starting, or idle, sees the end of its pipe.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

import trio
import trio_parallel

from .offspring import DIE_WITH_PARENT, prctl, prepare_for_children
from .signals import MOST_SIGNALS, end_process, held_back, let_in, take

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@asynccontextmanager
async def open_pool() -> AsyncIterator[Any]:
    """A worker context of trio-parallel; its processes end with the block."""
    async with trio_parallel.open_worker_context(init=_prepare) as pool:
        inside = vars(pool)  # it has no other way to say how processes are started
        inside["_worker_class"] = type("Worker", (inside["_worker_class"],), {"mp_context": _Spawning()})
        yield pool


class _Process(SpawnProcess):
    """One that gets signals only when `_prepare` lets them in. trio-parallel starts it in a thread."""

    def start(self) -> None:
        resource_tracker.ensure_running()  # it would let the signals in if it were started with the first process
        trio.from_thread.run_sync(self._start_here)

    def _start_here(self) -> None:
        with held_back(_SIGNALS):
            super().start()


class _Spawning(SpawnContext):
    Process = _Process


def _prepare() -> bool:
    """Called in a new process of the pool, before any actor. SIGINT is ignored already."""
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent is not None and (ask := prctl()) is not None:
        ask(DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it has died before that
            os._exit(1)
    _leave_to_worker()
    let_in(_SIGNALS)
    return prepare_for_children()


def _leave_to_worker() -> None:
    """Leave SIGTERM to the worker, as the head of this module says."""
    received: list[int] = []

    def on_signal(number: int, _: object) -> None:
        received.append(number)
        if len(received) > MOST_SIGNALS:
            end_process(number)

    take(signal.SIGTERM, on_signal)
