"""The servers themselves: their tables, and moving from one to another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated

import trio
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..brokers import Server as AnyServer
from ..errors import BrokerRefused, ConfigurationError, UsageError, shown
from ..moving import Move, MoveReport
from ..ports import Migrating, where
from .arguments import Server, Target
from .finding import find_app, find_place
from .printing import add_row, show

PLACE = "An address (postgresql://…, redis://…), the path of a SQLite file, or MODULE:NAME of an app or a server."


def migrate(
    target: Target,
    server: Server = None,
    as_sql: Annotated[bool, typer.Option("--sql", help="Only print the SQL, and change nothing.")] = False,
) -> None:
    """Make the tables of a server, or bring them up to date, with a role that may (PostgresServer(migrate=False))."""
    broker = find_app(target).server(server)
    if not isinstance(broker, Migrating):
        raise UsageError(f"{type(broker).__name__} has nothing to migrate: it keeps itself up to date")
    if as_sql:
        typer.echo(trio.run(broker.migration_sql), nl=False)
    else:
        typer.echo(
            "the tables are up to date now" if trio.run(broker.migrate) else "the tables were up to date already"
        )


def move(
    source: Annotated[str, typer.Argument(metavar="FROM", help=PLACE)],
    target: Annotated[str, typer.Argument(metavar="TO", help=PLACE)],
    names: Annotated[list[str] | None, typer.Argument(help="Which queues. Default: all, and the schedules.")] = None,
) -> None:
    """Move all that waits, dead letters and schedules from one server to another. If it is cut off, run it again:
    nothing is lost or doubled.

    Stop the workers on FROM first; no file and no schema is made there. Queues are paused on TO until they have moved,
    and stay paused on FROM.
    """
    old, new = find_place(source), find_place(target)
    report = trio.run(carry_over, old, new, names or None)
    if not report.queues and not report.schedules:
        typer.echo(
            f"repid: warning: nothing has moved: there is no queue on {where(old)}. Is it the right one? A server "
            "that has options, such as schema= or prefix=, is given as MODULE:NAME",
            err=True,
        )
    table = Table("queue", "ready", "scheduled", "dead", "there before", "left on FROM", "paused")
    for moved in report.queues:
        counts = (moved.ready, moved.scheduled, moved.dead, moved.was_there, moved.left + moved.leased)
        add_row(table, moved.name, *map(str, counts), "yes" if moved.is_paused else "")
    show(table)
    typer.echo(f"{len(report.schedules)} schedule(s) moved\nfrom {where(old)}\nto {where(new)}")
    if report.left_behind:
        lines = "".join(f"\n  {shown(line)}" for line in report.left_behind)
        raise BrokerRefused(f"not everything has moved:{lines}")


async def carry_over(old: AnyServer, new: AnyServer, names: Sequence[str] | None) -> MoveReport:
    """Open both servers and move, and show how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {name: progress.add_task(shown(name), total=None) for name in names or ()}

        def tell(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(shown(name))
            progress.update(tasks[name], completed=done, total=max(done, total))

        old.create_nothing()
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(old.connection())
            except ConfigurationError as error:
                raise ConfigurationError(f"nothing can be moved from FROM: {error}") from None
            await stack.enter_async_context(new.connection())
            return await Move(old, new, tell).run(names)
