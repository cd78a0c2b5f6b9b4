"""Other hosts than trio: the bridge between asyncio and the trio run that repid works in.

Knows only trio and asyncio; the facades call it, the runtime does not know about it. From the bottom:

* `crossing`: one call carried from an asyncio task to trio and back, with its result, exception and cancellation; the
  bridge it crosses, and the trio tasks that carry it.
* `guest`: trio as a guest of the running asyncio loop; one per loop, alive while somebody uses it.
* `hosted`: what the facades put around their functions and context managers; detects the host at each call.
* `tasks`: the other direction: a function that runs as an asyncio task while a trio task waits for it.
* `running`: a whole run from blocking code, on trio, asyncio or uvloop.
* `loops`: the loops on which asyncio functions run: the host's, or where trio is the host one for them alone.
"""

from .hosted import Turns, at_home, crossing, current_run, hosted, hosted_context, hosted_unless, is_running, within
from .loops import MissingTrioAsyncioError, home, open_asyncio
from .running import LOOP_NAMES, LoopName, run_on_loop
from .tasks import on_long_step

__all__ = [
    "LOOP_NAMES",
    "LoopName",
    "MissingTrioAsyncioError",
    "Turns",
    "at_home",
    "crossing",
    "current_run",
    "home",
    "hosted",
    "hosted_context",
    "hosted_unless",
    "is_running",
    "on_long_step",
    "open_asyncio",
    "run_on_loop",
    "within",
]
