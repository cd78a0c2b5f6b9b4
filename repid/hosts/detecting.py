"""Which event loop the calling code runs on.

Every call of a facade asks this, so neither this module nor `crossing` loads asyncio: programs on trio do without, and
no asyncio task can run before somebody has imported it.
"""

from __future__ import annotations

from sys import modules

from trio._core._run import GLOBAL_RUN_CONTEXT  # private, and the only way to ask it cheaply
from trio.lowlevel import TrioToken, current_trio_token

from .crossing import bridges, is_run_by_trio


def trio_runs() -> bool:
    """Whether this is trio's code, and not that of an asyncio task: where one is the guest of the other, they take
    turns.
    """
    if "task" not in GLOBAL_RUN_CONTEXT.__dict__:  # as in_trio_task(), which takes seven times as long to say no
        return False
    asyncio = modules.get("asyncio")
    running_loop = getattr(asyncio, "_get_running_loop", None)  # not there yet while another thread imports asyncio
    if asyncio is None or running_loop is None:
        return True
    loop = running_loop()
    return loop is None or asyncio.current_task(loop) is None or not (loop in bridges or is_run_by_trio(loop))


def is_cancelled() -> bool:
    """Called in a trio task: whether `trio.lowlevel.checkpoint_if_cancelled` would raise. A look costs a fifth of that.

    Called elsewhere: False, or that of the trio task in whose step an asyncio task calls; see `trio_runs`.
    """
    here = GLOBAL_RUN_CONTEXT.__dict__
    task = here.get("task")
    if task is None:
        return False
    if task._cancel_status.effectively_cancelled:  # noqa: SLF001  private, and the only way to ask it cheaply
        return True
    runner = here["runner"]
    return bool(runner.ki_pending) and task is runner.main_task


def stands_in(runner: object) -> bool | None:
    """Whether this is code of this trio run (`current_runner`), as `trio_runs` says, or of an asyncio task whose loop
    is its host. None: it is neither.
    """
    here = GLOBAL_RUN_CONTEXT.__dict__
    if here.get("runner") is not runner:
        return None
    return "task" in here and trio_runs()


def current_runner() -> object:
    """What tells the trio run of this thread from all others, as its token does, and is found much faster."""
    return GLOBAL_RUN_CONTEXT.runner


def current_run() -> TrioToken | None:
    """The trio run of this thread, also where an asyncio task calls whose loop is its host. None: there is none."""
    try:
        return current_trio_token()
    except RuntimeError:
        return None
