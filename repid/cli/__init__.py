"""The command line: `python -m repid --help` teaches it.

Exit codes: 0 after a drain (all that was started has ended or was given back), also one that a second signal cut
short; 1 if it failed: an error came out of the worker, a process crashed too often or had to be killed; 2 for what
trying again would not change: a wrong use of the command line, no such app, an app that is not set up right. A signal
that comes before the worker, or its supervisor, listens ends it as it ends any program.

Here the commands come together, in the order in which `--help` shows them. Each module has those about one thing:

* `workers`, `servers`; `waiting`: queues, `jobs`, `dead_letters`, `recurring`: schedules.
* `arguments`: what several of them take. `finding`: the app and the server that are meant. `printing`: what was found.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from .._version import __version__
from ..errors import ConfigurationError, RepidError, UsageError
from ..tracebacks import without_passwords
from .arguments import Target
from .dead_letters import dead, delete, requeue
from .jobs import cancel, show_jobs
from .recurring import schedules
from .servers import migrate, move
from .waiting import pause, queues, resume
from .workers import EXITS, WORKER_EXAMPLES, worker

EXAMPLES = """\b
Examples:
  repid worker shop.jobs:app                  one worker, here, until Ctrl-C or SIGTERM
  repid worker shop.jobs:app --processes 4    four processes; one that crashes is replaced
  repid worker shop.jobs:app --max-memory 512MB --max-jobs 10000
  repid worker shop.jobs:app --reload         for development: anew when the code changes
  repid worker shop.jobs:app --burst          until nothing is ready
  repid queues shop.jobs:app                  what waits, runs and is dead
  repid show shop.jobs:app 42                 the job with the id 42: its state and result
  repid cancel shop.jobs:app 42               remove it, or cancel its run
  repid dead shop.jobs:app mail               the dead messages of the queue mail, and why
  repid requeue shop.jobs:app mail            let them run again
  repid delete shop.jobs:app mail --all       remove them for good
  repid pause shop.jobs:app mail              no worker gets its messages, until
  repid resume shop.jobs:app mail             they may have them again
  repid schedules shop.jobs:app               what recurs, when next, and what has ended
  repid schedules shop.jobs:app --pause mail:remind    hold it until --resume
  repid migrate shop.jobs:app --sql           the SQL that makes the tables in PostgreSQL
  repid move jobs.db postgresql://db/shop     all that waits, to another server
"""


class Commands(TyperGroup):
    """The commands. What is said of a wrong use shows no password of an address that was given."""

    def invoke(self, ctx: Any) -> Any:
        """Carry out the command that was named."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(message := getattr(error, "message", None), str):
                error.message = without_passwords(message)  # type: ignore[attr-defined]  # it has one
            raise


cli = typer.Typer(
    cls=Commands,
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


def version() -> None:
    """Show the version."""
    typer.echo(__version__)


cli.command(epilog=f"{WORKER_EXAMPLES}\n{EXITS}")(worker)
cli.command()(queues)
cli.command()(schedules)
cli.command()(dead)
cli.command("show")(show_jobs)
for command in (cancel, requeue, delete, pause, resume, migrate, move, version):
    cli.command()(command)


def commands_about_apps() -> set[str]:
    """The names of the commands that take MODULE:APP."""
    return {
        command.name or command.callback.__name__
        for command in cli.registered_commands
        if command.callback is not None and Target in get_type_hints(command.callback, include_extras=True).values()
    }


def run(arguments: Sequence[str] | None = None, program: str | None = None, target: str | None = None) -> None:
    """The command line. What is wrong with its use is one line, and exit code 2."""
    if arguments and target is not None and arguments[0] in commands_about_apps():
        arguments = [arguments[0], target, *arguments[1:]]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may have what the encoding of the output has not
    try:
        cli(arguments, program)
    except (ConfigurationError, UsageError) as error:
        _fail(error, 2)
    except RepidError as error:
        _fail(error, 1)
    except OSError as error:
        if not comes_from_printing(error):
            raise
        # what was not written would be tried again at the end of the process, and fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"the output cannot be written: {error.strerror}", 1)


def comes_from_printing(error: OSError) -> bool:
    """Whether it was raised by what prints for us: the disk is full, say, that the output goes to."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in {"typer", "click", "rich"}


def _fail(error: object, code: int) -> None:
    typer.echo(f"repid: {error}", err=True)
    sys.exit(code)
