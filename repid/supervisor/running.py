"""Running an app from blocking code: here, or in processes of its own."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import trio

from ..application import Application
from ..errors import ConfigurationError, MissingExtra, UsageError, did_you_mean
from ..hosts import LOOP_NAMES, LoopName, run_on_loop
from ..names import check_count, check_flag, check_known
from ..runtime import Handle, Report
from ..runtime.outage import Patience
from ..worker import WorkerOptions, make_settings
from . import child
from .collector import spared_collector
from .memory import resident
from .process import Brief
from .supervisor import Supervisor, SupervisorSettings
from .target import Target, find_target

log = logging.getLogger("repid.processes")


class ProcessOptions(TypedDict, total=False):
    """In what processes a worker runs. With any of these a supervisor looks after them.

    processes: how many run at once. Default 1.
    max_jobs: the runs after which a process ends and another takes its place. Default: no limit.
    max_memory: likewise, the bytes that it takes; looked at twice a second. Default: no limit.
    reload: start anew when a Python file in or below the working directory changes (extra: reload). Default False.
    loop: the event loop of the worker, in each process: "trio" (the default), "asyncio", or "uvloop" (extra: uvloop).
        Async actors and middlewares run on it.
    target: where processes find the app, as "module:attribute". Default: it is looked for among the globals of the
        program and of all modules.
    """

    processes: int
    max_jobs: int | None
    max_memory: int | None
    reload: bool
    target: str | None
    loop: LoopName


def run_app(app: Application, server_name: str | None, processes: ProcessOptions, options: WorkerOptions) -> Report:
    """Run the app's actors until they are stopped or done; what was done, by all processes together."""
    if child.is_child:
        raise UsageError(
            "run() was reached while a worker process imports the program: put it under "
            '`if __name__ == "__main__":`, or every process would start others'
        )
    known = {*WorkerOptions.__annotations__, *ProcessOptions.__annotations__, "server_name"}
    check_known("app.run()", options, known)
    settings = make_settings(options, embedded=False)
    loop = _check_loop(processes.get("loop", "trio"))
    count = int(_check_finite("processes", processes.get("processes", 1)))
    if not app.server(server_name).capabilities.shared and count > 1:
        raise ConfigurationError(
            f"{count} processes need a server that processes share, and this one is in the memory of each: "
            "take another one, such as SQLiteServer"
        )
    max_jobs, max_memory = processes.get("max_jobs"), processes.get("max_memory")
    reload = check_flag("reload", processes.get("reload", False))
    if max_jobs is not None:
        _check_finite("max_jobs", max_jobs)
    if max_memory is not None and resident() > _check_finite("max_memory", max_memory):
        raise ConfigurationError(f"max_memory of {max_memory} bytes is less than the app takes when it starts")
    target = processes.get("target")
    if not app.queues():
        raise ConfigurationError(
            f"the app {'' if target is None else f'{target!r} '}has no actors to run: add them to it with "
            "app.include_router(router); those of a Worker are run by its own run() only, or by "
            "app.include_router(worker)"
        )
    child.configure_logging()
    if count == 1 and max_jobs is None and max_memory is None and not reload:
        here: WorkerOptions = {**options, "handle_signals": settings.signals}
        with spared_collector(settings.tasks_limit):
            return run_on_loop(loop, _run_here, app, server_name, here)
    if reload and importlib.util.find_spec("watchfiles") is None:
        raise MissingExtra("reload", "reload")
    brief = Brief(
        target=find_target(app) if target is None else Target(target),
        argv=sys.argv,
        loop=loop,
        server_name=server_name,
        tasks_limit=settings.tasks_limit,
        worker=_plain(options),
        signals=list(map(int, settings.signals)),
        messages_limit=None if settings.messages_limit == math.inf else int(settings.messages_limit),
        max_jobs=max_jobs,
        max_memory=max_memory,
    )
    supervisor = Supervisor(
        SupervisorSettings(
            brief=brief,
            processes=count,
            grace=settings.graceful_shutdown_time,
            signals=settings.signals,
            burst=settings.burst,
            watched=[Path.cwd()] if reload else [],
        )
    )
    return trio.run(supervisor.run)


async def _run_here(app: Application, server_name: str | None, options: WorkerOptions) -> Report:
    async with AsyncExitStack() as stack:
        await Patience(burst=options.get("burst", False))(lambda: stack.enter_async_context(app.magic()))
        report: Report = await app.run_worker(server_name=server_name, task_status=_LogStart(), **options)
    return report


class _LogStart:
    """Where a worker says that it has started, or will not any more."""

    def started(self, handle: Handle) -> None:
        """Its start is over."""
        is_stopped = handle.statistics().state != "running"
        log.info("the worker %s", "was stopped before it had started" if is_stopped else "has started")


def _check_loop(loop: LoopName) -> LoopName:
    if loop not in LOOP_NAMES:
        raise ConfigurationError(
            f"loop must be one of {', '.join(map(repr, LOOP_NAMES))}, but is "
            f"{loop!r}{did_you_mean(str(loop), LOOP_NAMES)}"
        )
    if loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        raise MissingExtra("the loop 'uvloop'", "uvloop")
    return loop


def _check_finite(name: str, value: float) -> float:
    if check_count(name, value, least=1) == math.inf:
        raise ConfigurationError(f"{name} must be finite: leave it out for no limit")
    return value


def _plain(options: WorkerOptions) -> dict[str, Any]:
    """The options that go to the processes as they are, as JSON can hold them."""
    apart: Iterable[str] = ("handle_signals", "messages_limit", "tasks_limit")
    plain = {
        name: value.total_seconds() if isinstance(value, timedelta) else value
        for name, value in options.items()
        if name not in apart
    }
    for name, value in plain.items():
        if value == math.inf:
            plain[name] = sys.float_info.max if name == "graceful_shutdown_time" else sys.maxsize
    msgspec.json.encode(plain)
    return plain
