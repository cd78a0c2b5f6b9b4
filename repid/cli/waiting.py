"""What waits: the queues."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from ..ports import Broker, BrowsedMessage, Counts
from .arguments import Server, Target
from .finding import ask, find_app, find_server, find_shared_server
from .printing import add_row, ago, show

COUNTS = ("ready", "scheduled", "leased", "dead", "paused")


def queues(
    target: Target,
    names: Annotated[list[str] | None, typer.Argument(help="Which queues. Default: those of the app's actors.")] = None,
    server: Server = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every queue of the server, also those that no actor of the app reads.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show how many messages are ready, scheduled, leased and dead, since when the next ready one waits, how many open
    consumers read the queue in all processes, and the bounds.
    """
    app = find_app(target)
    broker = find_server(app, server)
    wanted = names or (ask(app, broker.queues) if every else app.queues())

    async def look() -> tuple[list[Counts], list[list[BrowsedMessage]], list[int | None]]:
        heads = [await broker.browse(name, "ready", limit=1) for name in wanted]
        return await broker.counts_of(wanted), heads, await count_readers(broker, wanted)

    counts, heads, readers = ask(app, look)
    if as_json:
        found = {
            name: {key: getattr(each, key) for key in COUNTS}
            | {"next_enqueued_at": head[0].enqueued_at if head else None}
            | {"bounds": msgspec.to_builtins(each.bounds), "dropped": each.dropped, "readers": read_by}
            for name, each, head, read_by in zip(wanted, counts, heads, readers, strict=True)
        }
        typer.echo(json.dumps(found))
        return
    are_bounded = any(each.bounds for each in counts)
    table = Table("queue", *COUNTS, "next enqueued", "readers", *(["bounds"] if are_bounded else []))
    for name, each, head, read_by in zip(wanted, counts, heads, readers, strict=True):
        cells = [str(getattr(each, key)) for key in COUNTS[:-1]] + ["yes" if each.paused else ""]
        cells += [ago(head[0].enqueued_at, head[0].seen_at) if head else "", "?" if read_by is None else str(read_by)]
        add_row(table, name, *cells, *([_bounds_of(each)] if are_bounded else []))
    show(table)


async def count_readers(broker: Broker, names: Sequence[str]) -> list[int | None]:
    """How many open consumers read each of these queues; None where the server does not know."""
    if not broker.capabilities.readers:
        return [None for _ in names]
    readers = await broker.readers()
    return [sum(name in reader for reader in readers) for name in names]


def _bounds_of(counts: Counts) -> str:
    bounds = counts.bounds
    if bounds is None:
        return ""
    return f"{bounds}, {bounds.when_full}" + (f", {counts.dropped} dropped" if counts.dropped else "")


def pause(
    target: Target,
    queue: Annotated[str, typer.Argument(help="The queue.")],
    server: Server = None,
) -> None:
    """Let no worker have the messages of a queue, until repid resume. What runs goes on."""
    app = find_app(target)
    ask(app, partial(find_shared_server(app, server).pause, queue))
    typer.echo(f"queue {queue!r} is paused: its messages wait until it is resumed")


def resume(
    target: Target,
    queue: Annotated[str, typer.Argument(help="The queue.")],
    server: Server = None,
) -> None:
    """Let workers have the messages of a paused queue again."""
    app = find_app(target)
    ask(app, partial(find_shared_server(app, server).resume, queue))
    typer.echo(f"queue {queue!r} is resumed: workers get its messages")
