"""The command line: `python -m repid --help` teaches it.

Exit codes: 0 after a drain (all that was started has ended or was given back), also one that a second signal cut
short; 1 if it failed: an error came out of the worker, a process crashed too often or had to be killed; 2 for what
trying again would not change: a wrong use of the command line, no such app, an app that is not set up right. A signal
that comes before the worker, or its supervisor, listens ends it as it ends any program.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._version import __version__
from .app import Repid
from .envelope import TOPIC
from .errors import ConfigurationError, RepidError, UsageError
from .ports import Broker, Counts
from .producer import raise_refused
from .supervisor import load_app
from .supervisor.child import FORMAT
from .worker import WorkerOptions

T = TypeVar("T")

EXAMPLES = """\b
Examples:
  repid worker shop.jobs:app                  one worker, here, until Ctrl-C or SIGTERM
  repid worker shop.jobs:app --processes 4    four processes; one that crashes is replaced
  repid worker shop.jobs:app --max-memory 512MB --max-jobs 10000
  repid worker shop.jobs:app --reload         for development: anew when the code changes
  repid worker shop.jobs:app --burst          until nothing is ready
  repid queues shop.jobs:app                  what waits, runs and is dead
  repid dead shop.jobs:app mail               the dead messages of the queue mail, and why
  repid requeue shop.jobs:app mail            let them run again
"""

EXITS = """\b
Signals:
  The first SIGTERM or SIGINT drains, all processes within one grace. The second
  cuts short: what was not done goes back to its queue and uses no attempt.
  A process that crashes is replaced, after 0.1 s, then 0.2 s and so on. If the
  supervisor itself is killed (SIGKILL, SIGHUP, SIGQUIT), its processes release
  what they run and end within seconds.
\b
Exit codes:
  0     it drained, or was cut short by a second signal; or it had nothing left
        to do (--burst, --messages-limit)
  1     the module raised an error, or one came out of the worker; or a process
        crashed more than five times within a minute, or died or had to be
        killed while it was stopping
  2     wrong usage: no such module, app or server, or one not set up right
  130   Ctrl-C before the worker had started
  128+n killed by signal n, as a shell tells it
"""

WORKER_EXAMPLES = """\b
Examples:
  repid worker shop.jobs:app                  until Ctrl-C or SIGTERM
  repid worker shop.jobs:make_app             a function that returns the app
  repid worker shop.jobs:app --processes 4 --graceful-shutdown-time 50
  repid worker shop.jobs:app --processes 4 --max-jobs 10000 --max-memory 512MB
  repid worker shop.jobs:app --reload         for development
  repid worker shop.jobs:app --burst          from cron: what is ready, and no more
"""

cli = typer.Typer(
    help=f"Run repid's workers and look after its queues.\n\n{EXAMPLES}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def show_version(wanted: bool) -> None:
    """What --version does."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@cli.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


Target = Annotated[
    str, typer.Argument(metavar="MODULE:APP", help="Where the app is, such as shop.jobs:app; or a function giving it.")
]
Server = Annotated[str | None, typer.Option(help="The server to work on. Default: the app's default one.")]


def parse_size(text: str) -> int:
    """Bytes: 512MB, 1.5G, 300000000. Units are those of memory: 1 kB = 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?|b)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size: give it as 512MB or 1.5G")
    return int(float(match[1]) * 1024 ** (" kmgt".index((match[2] or " ").lower())))


@cli.command(epilog=f"{WORKER_EXAMPLES}\n{EXITS}")
def worker(
    target: Target,
    *,
    processes: Annotated[int, typer.Option(min=1, help="So many worker processes.")] = 1,
    server: Server = None,
    tasks_limit: Annotated[int | None, typer.Option(min=1, help="At most so many runs at once, per process.")] = None,
    messages_limit: Annotated[
        int | None, typer.Option(min=0, help="End after so many runs, per process; none takes its place.")
    ] = None,
    graceful_shutdown_time: Annotated[
        float | None, typer.Option(min=0, help="Seconds that actors have to end when it is stopped. Default: 25.")
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="End when nothing is ready.")] = False,
    max_jobs: Annotated[int | None, typer.Option(min=1, help="Replace a process after so many runs.")] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Replace a process that takes more: 512MB, 1.5G.")
    ] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start anew when a Python file here changes.")] = False,
) -> None:
    """Run the app's actors until a signal comes."""
    options: WorkerOptions = {"burst": burst}
    if tasks_limit is not None:
        options["tasks_limit"] = tasks_limit
    if messages_limit is not None:
        options["messages_limit"] = messages_limit
    if graceful_shutdown_time is not None:
        options["graceful_shutdown_time"] = graceful_shutdown_time
    size = None if max_memory is None else parse_size(max_memory)
    app = find_app(target)
    logging.basicConfig(level=logging.INFO, format=FORMAT)
    app.run(
        server_name=server,
        processes=processes,
        max_jobs=max_jobs,
        max_memory=size,
        reload=reload,
        target=target,
        **options,
    )


@cli.command()
def queues(
    target: Target,
    names: Annotated[list[str] | None, typer.Argument(help="Which queues. Default: those of the app's actors.")] = None,
    server: Server = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show how many messages are ready, scheduled, leased and dead."""
    app = find_app(target)
    broker = app.server(server)

    async def look() -> dict[str, Counts]:
        return {name: await broker.counts(name) for name in names or app.queues()}

    counts = ask(app, look)
    if as_json:
        typer.echo(json.dumps({name: {key: getattr(each, key) for key in COUNTS} for name, each in counts.items()}))
        return
    table = Table("queue", *COUNTS)
    for name, each in counts.items():
        add_row(table, name, *[str(getattr(each, key)) for key in COUNTS[:-1]], "yes" if each.paused else "")
    show(table)


COUNTS = ("ready", "scheduled", "leased", "dead", "paused")


@cli.command()
def dead(
    target: Target,
    queue: Annotated[str, typer.Argument(help="The queue.")],
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    server: Server = None,
) -> None:
    """Show the dead messages of a queue, and why they are dead."""
    app = find_app(target)
    messages = ask(app, partial(app.server(server).browse, queue, "dead", limit=limit))
    table = Table("id", "actor", "attempt", "reason", "error")
    for message in messages:
        failure = message.failure
        error = "" if failure is None else f"{failure.type}: {failure.text}"
        topic = message.envelope.headers.get(TOPIC, "")
        add_row(table, message.envelope.id, topic, str(message.attempt), message.reason or "", error)
    show(table)


@cli.command()
def requeue(
    target: Target,
    queue: Annotated[str, typer.Argument(help="The queue.")],
    ids: Annotated[list[str] | None, typer.Argument(help="Which messages. Default: all dead ones.")] = None,
    server: Server = None,
) -> None:
    """Make dead messages ready again, as new ones."""
    app = find_app(target)
    broker = app.server(server)

    async def revive() -> int:
        outcomes = await broker.revive(queue, await find_dead(broker, queue, ids) if ids else None)
        raise_refused(outcomes)
        return len(outcomes)

    typer.echo(f"{ask(app, revive)} message(s) are ready again")


async def find_dead(broker: Broker, queue: str, ids: list[str]) -> list[int]:
    """The keys of the dead messages with these ids. Raises `UsageError` if one of them is not there."""
    found = [each for each in await broker.browse(queue, "dead", limit=sys.maxsize) if each.envelope.id in ids]
    missing = set(ids) - {each.envelope.id for each in found}
    if missing:
        raise UsageError(f"queue {queue!r} has no dead message {', '.join(sorted(missing))}")
    return [each.key for each in found]


@cli.command()
def version() -> None:
    """Show the version."""
    typer.echo(__version__)


def find_app(target: str) -> Repid:
    """The app; like `python -m`, modules of the working directory are found."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    app = load_app(target)
    if not isinstance(app, Repid):
        raise ConfigurationError(f"{target!r} is no Repid app, but {app!r}")
    return app


def ask(app: Repid, function: Callable[[], Awaitable[T]]) -> T:
    """Carry one call out where the app's servers are open."""
    with app.sync() as client:
        return client.call(function)


def add_row(table: Table, *cells: str) -> None:
    """Add a row of what it says: brackets in it are no markup."""
    table.add_row(*map(Text, cells))


def show(table: Table) -> None:
    """Print a table; where the output is no terminal, at its full width."""
    console = Console()
    if not console.is_terminal:
        console.width = 1000
    console.print(table)


def run() -> None:
    """The command line. What is wrong with its use is one line, and exit code 2."""
    try:
        cli()
    except (ConfigurationError, UsageError) as error:
        _fail(error, 2)
    except RepidError as error:
        _fail(error, 1)


def _fail(error: BaseException, code: int) -> None:
    typer.echo(f"repid: {error}", err=True)
    sys.exit(code)
