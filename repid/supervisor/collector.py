"""Python's garbage collector in a process that does nothing but run jobs."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS_PER_RUN = 50
"""The youngest objects are looked through after this many new ones for each run that may be under way, where Python
looks after 700. A run that waits holds some thirty, executor and all, so with 1000 at once the collector would
walk them a hundred times a second, for a fifth of the processor's time, and find nothing: they are freed without it."""


MOST_OBJECTS = 2**31 - 1
"""The most that `gc.set_threshold` takes."""


@contextmanager
def spared_collector(tasks_limit: int) -> Iterator[None]:
    """For the block: what is there already is never looked at again, and what is new more rarely.

    The collector is one for the whole process, so this is for processes that are ours, and changes nothing outside
    the main thread. It is left as it was found.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    thresholds, freeze = gc.get_threshold(), not gc.get_freeze_count()
    if freeze:
        gc.freeze()
    if thresholds[0]:
        objects = min(OBJECTS_PER_RUN * tasks_limit, MOST_OBJECTS)
        gc.set_threshold(max(thresholds[0], objects), *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if freeze:
            gc.unfreeze()
