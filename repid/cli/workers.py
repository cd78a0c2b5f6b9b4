"""Running workers."""

from __future__ import annotations

import logging
import re
from typing import Annotated

import typer

from ..hosts import LOOP_NAMES, LoopName
from ..ports import name_of
from ..supervisor.child import configure_logging
from ..worker import WorkerOptions
from .arguments import Server, Target
from .finding import find_app

WORKER_EXAMPLES = """\b
Examples:
  repid worker shop.jobs:app                  until Ctrl-C or SIGTERM
  repid worker shop.jobs:make_app             a function that returns the app
  repid worker shop.jobs:app --processes 4 --graceful-shutdown-time 50
  repid worker shop.jobs:app --processes 4 --max-jobs 10000 --max-memory 512MB
  repid worker shop.jobs:app --reload         for development
  repid worker shop.jobs:app --burst          from cron: what is ready, and no more
  repid worker shop.jobs:app --loop asyncio   for actors that use asyncio, httpx, asyncpg
"""

EXITS = """\b
Signals:
  The first SIGTERM or SIGINT drains, all processes within one grace. The second
  cuts short: what was not done goes back to its queue and uses no attempt.
  The third ends the process at once. A lifespan that opens is cancelled by the first.
  A process that crashes is replaced, after 0.1 s, then 0.2 s and so on. If the
  supervisor itself is killed (SIGKILL, SIGHUP, SIGQUIT), its processes release
  what they run and end within seconds.
\b
Exit codes:
  0     it drained, or was cut short by a second signal; or it had nothing left
        to do (--burst, --messages-limit)
  1     the module raised an error, or one came out of the worker, as when a
        lifespan failed to open; or --burst found no server for 30 seconds; or a
        process crashed more than five times within a minute, or died or had to
        be killed while it was stopping; or some messages were not requeued
  2     wrong usage: no such module, app, server, queue or message, or one not
        set up right; an app without actors
  130   Ctrl-C while the program was imported, or the server was waited for
  128+n killed by signal n, as a shell tells it
"""

log = logging.getLogger("repid")


def parse_size(text: str) -> int:
    """Bytes: 512MB, 1.5G, 300000000. Units are those of memory: 1 kB = 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?|b)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size: give it as 512MB or 1.5G")
    size = int(float(match[1]) * 1024 ** (" kmgt".index((match[2] or " ").lower())))
    if not size:
        raise typer.BadParameter("it must be at least one byte")
    return size


def parse_loop(text: str) -> LoopName:
    """The name of an event loop."""
    if text not in LOOP_NAMES:
        raise typer.BadParameter(f"{text!r} is no event loop here: give one of {', '.join(LOOP_NAMES)}")
    return text


def worker(
    target: Target,
    *,
    processes: Annotated[int, typer.Option(min=1, help="The number of worker processes.")] = 1,
    server: Server = None,
    tasks_limit: Annotated[
        int | None, typer.Option(min=1, help="The most runs at once, per process. Default: 1000.")
    ] = None,
    threads_limit: Annotated[
        int | None, typer.Option(min=1, help="The most of these in threads, per process. Default: 40.")
    ] = None,
    processes_limit: Annotated[
        int | None,
        typer.Option(min=1, help="The most child processes for run_in_process, per process. Default: one per core."),
    ] = None,
    claim_bytes: Annotated[
        int | None,
        typer.Option(
            parser=parse_size,
            metavar="SIZE",
            help="Hold messages of at most this size together, per process. Default: 64MB.",
        ),
    ] = None,
    messages_limit: Annotated[
        int | None,
        typer.Option(min=0, help="End after this number of runs, per process; no other process takes its place."),
    ] = None,
    graceful_shutdown_time: Annotated[
        float | None, typer.Option(min=0, help="Seconds that actors have to end when it is stopped. Default: 25.")
    ] = None,
    burst: Annotated[
        bool, typer.Option("--burst", help="End when nothing is ready, or no server answers for 30 s.")
    ] = False,
    log_runs: Annotated[bool, typer.Option("--log-runs", help="Log a line for each run.")] = False,
    loop: Annotated[
        LoopName,
        typer.Option(
            parser=parse_loop,
            metavar="trio|asyncio|uvloop",
            help="The event loop that async actors and middlewares run on.",
        ),
    ] = "trio",
    max_jobs: Annotated[int | None, typer.Option(min=1, help="Replace a process after this number of runs.")] = None,
    max_memory: Annotated[
        int | None,
        typer.Option(parser=parse_size, metavar="SIZE", help="Replace a process that takes more: 512MB, 1.5G."),
    ] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start anew when a Python file here changes.")] = False,
) -> None:
    """Run the app's actors until a signal comes."""
    options: WorkerOptions = {"burst": burst, "log_runs": log_runs}
    if tasks_limit is not None:
        options["tasks_limit"] = tasks_limit
    if threads_limit is not None:
        options["threads_limit"] = threads_limit
    if processes_limit is not None:
        options["processes_limit"] = processes_limit
    if claim_bytes is not None:
        options["claim_bytes"] = claim_bytes
    if messages_limit is not None:
        options["messages_limit"] = messages_limit
    if graceful_shutdown_time is not None:
        options["graceful_shutdown_time"] = graceful_shutdown_time
    app = find_app(target)
    broker = app.server(server)
    configure_logging()
    if not broker.capabilities.shared:
        log.warning(
            "%s is in the memory of this process: no other process can send to this worker, and its messages end with "
            "it; take a server that processes share, such as SQLiteServer",
            name_of(broker),
        )
    app.run(
        server_name=server,
        processes=processes,
        max_jobs=max_jobs,
        max_memory=max_memory,
        reload=reload,
        target=target,
        loop=loop,
        **options,
    )
