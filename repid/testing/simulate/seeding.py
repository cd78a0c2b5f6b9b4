"""One seed decides everything: the order of tasks, ids, jitter and the wall clock.

Theory. trio runs the tasks of one turn in random order, from a generator of its own. Two private names of trio decide
about that: `_ALLOW_DETERMINISTIC_SCHEDULING` sorts the tasks by age before they are shuffled, and `_r` is the
generator. Nothing public does the same, so this module is the only one that touches them, and one test says so when
trio changes them. What else differs between two runs of one program is the time of day, the generator of ids and
Python's own generator (jitter): all three are replaced or seeded for a block, and put back after it. Hash seeds change
nothing: where the order of a set could be seen, trio's shuffle comes after it. Python's collector of cycles rests
meanwhile: it runs finalizers at moments that depend on all that the process did before, and takes a fifth of the time.

`trio.sleep` and `trio.sleep_until` are those of the virtual clock in the block: a task wakes in the same turn as with
trio's own, which open a cancel scope for each sleep and end it with an exception, and take three times as long. A
program that has imported trio's own by name gets the same history, a little later.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from trio._core import _run as trio_run

from ... import envelope
from .clock import VirtualClock


@contextmanager
def seeded(seed: str, wall: Callable[[], float], clock: VirtualClock) -> Iterator[None]:
    """Within the block everything random follows from `seed`, `time.time()` is `wall()`, and tasks sleep by `clock`.
    For one thread only.
    """
    real_time, real_time_ns, sleep, sleep_until = time.time, time.time_ns, trio.sleep, trio.sleep_until
    python_state, ids = random.getstate(), envelope._chance  # noqa: SLF001  ids have no public seed
    was_collecting = gc.isenabled()
    was_deterministic, order = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r  # noqa: SLF001  see above
    try:
        gc.disable()
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # noqa: SLF001  declared final
        trio_run._r = _Order(f"order {seed}")  # noqa: SLF001  see above
        random.seed(f"jitter {seed}")
        envelope._chance = type(ids)(f"ids {seed}")  # noqa: SLF001  see above
        time.time = wall
        time.time_ns = lambda: int(wall() * 1_000_000_000)
        trio.sleep, trio.sleep_until = clock.sleep, clock.sleep_until
        yield
    finally:
        if was_collecting:
            gc.enable()
        time.time, time.time_ns, trio.sleep, trio.sleep_until = real_time, real_time_ns, sleep, sleep_until
        random.setstate(python_state)
        envelope._chance = ids  # noqa: SLF001  see above
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = was_deterministic  # type: ignore[misc]  # noqa: SLF001  see above
        trio_run._r = order  # noqa: SLF001  see above


class _Order(random.Random):
    """Shuffles as `Random` does, with the same numbers, in half the time: each turn of trio's begins with it."""

    def shuffle(self, x: Any) -> None:
        """Put what is in the list into another order."""
        draw = self.getrandbits
        for last in range(len(x) - 1, 0, -1):
            bits = (last + 1).bit_length()
            place = draw(bits)
            while place > last:
                place = draw(bits)
            x[last], x[place] = x[place], x[last]
