"""One seed decides everything: the order of tasks, ids, jitter and the wall clock.

Theory. trio runs the tasks of one turn in random order, from a generator of its own. Two private names of trio decide
about that: `_ALLOW_DETERMINISTIC_SCHEDULING` sorts the tasks by age before they are shuffled, and `_r` is the
generator. Nothing public does the same, so this module is the only one that touches them, and one test says so when
trio changes them. What else differs between two runs of one program is the time of day, the generator of ids and
Python's own generator (jitter): all three are replaced or seeded for a block, and put back after it. Hash seeds change
nothing: where the order of a set could be seen, trio's shuffle comes after it. Python's collector of cycles rests
meanwhile: it runs finalizers at moments that depend on all that the process did before, and takes a fifth of the time.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trio._core import _run as trio_run

from ... import envelope


@contextmanager
def seeded(seed: str, wall: Callable[[], float]) -> Iterator[None]:
    """Within the block everything random follows from `seed`, and `time.time()` is `wall()`. For one thread only."""
    real_time, real_time_ns = time.time, time.time_ns
    python_state, id_state = random.getstate(), envelope._chance.getstate()  # noqa: SLF001  ids have no public seed
    was_collecting = gc.isenabled()
    was_deterministic, trio_state = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()  # noqa: SLF001  see above
    try:
        gc.disable()
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # noqa: SLF001  declared final
        trio_run._r.seed(f"order {seed}")  # noqa: SLF001  see above
        random.seed(f"jitter {seed}")
        envelope._chance.seed(f"ids {seed}")  # noqa: SLF001  see above
        time.time = wall
        time.time_ns = lambda: int(wall() * 1_000_000_000)
        yield
    finally:
        if was_collecting:
            gc.enable()
        time.time, time.time_ns = real_time, real_time_ns
        random.setstate(python_state)
        envelope._chance.setstate(id_state)  # noqa: SLF001  see above
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = was_deterministic  # type: ignore[misc]  # noqa: SLF001  see above
        trio_run._r.setstate(trio_state)  # noqa: SLF001  see above
