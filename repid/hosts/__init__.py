"""Other hosts than trio: the bridge between asyncio and the trio run that repid works in.

Knows only trio and asyncio; the facades call it, the runtime does not know about it. From the bottom:

* `crossing`: one call carried from an asyncio task to trio and back, with its result, exception and cancellation; the
  bridge it crosses, and the trio tasks that carry it.
* `detecting`: which of them the calling code runs on.
* `guest`: trio as a guest of the running asyncio loop; one per loop, alive while somebody uses it.
* `carrying`: how an asyncio task calls a function of trio's, and enters its context managers.
* `hosted`: what the facades put around their functions and context managers; detects the host at each call.
* `tasks`: the other direction: a function that runs as an asyncio task while a trio task waits for it.
* `running`: a whole run from blocking code, on trio, asyncio or uvloop.
* `loops`: the loops on which asyncio functions run: the host's, or where trio is the host one for them alone;
  `backends` opens them.

Importing the package does not import asyncio. What needs it is imported where an asyncio loop is used: `guest`,
`carrying`, `tasks`, `loops`.
"""

from .backends import MissingTrioAsyncioError, host_backend, open_asyncio
from .crossing import on_long_step
from .detecting import current_run, current_runner, is_cancelled, stands_in, trio_runs
from .hosted import Turns, async_block, crossing, hosted, hosted_context, hosted_start, hosted_unless, on_host, within
from .running import LOOP_NAMES, LoopName, run_on_loop

__all__ = [
    "LOOP_NAMES",
    "LoopName",
    "MissingTrioAsyncioError",
    "Turns",
    "async_block",
    "crossing",
    "current_run",
    "current_runner",
    "host_backend",
    "hosted",
    "hosted_context",
    "hosted_start",
    "hosted_unless",
    "is_cancelled",
    "on_host",
    "on_long_step",
    "open_asyncio",
    "run_on_loop",
    "stands_in",
    "trio_runs",
    "within",
]
