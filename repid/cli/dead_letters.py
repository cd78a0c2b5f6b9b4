"""What is dead: to be shown, made ready again, or removed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer
from rich.table import Column, Table

from ..envelope import TOPIC
from ..errors import BrokerRefused, DuplicateId, UsageError, shown
from ..ports import Broker, BrowsedMessage
from ..producer import Outcomes
from .arguments import Server, Target
from .finding import ask, find_app, find_server
from .printing import add_row, ago, in_full, show

WHOLE_ID = 32
"""Ids of this length, and the ids that repid makes have it, stand in one line also where the terminal is narrow: they
are given to other commands.
"""

MOST_LINES = 20
"""How many of the messages that stay dead are listed."""


def dead(
    target: Target,
    queue: Annotated[str, typer.Argument(help="The queue.")],
    ids: Annotated[
        list[str] | None, typer.Argument(help="Which messages, in full. Default: all, in a line each.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most lines to show.")] = 20,
    server: Server = None,
) -> None:
    """Show the dead messages of a queue, and why they are dead. With IDS, all that is known of these, with payload and
    traceback.
    """
    app = find_app(target)
    broker = find_server(app, server)
    if ids:
        typer.echo("\n".join(map(in_full, ask(app, partial(find_dead, broker, queue, ids)))), nl=False)
        return
    messages = ask(app, partial(broker.browse, queue, "dead", limit=min(limit, sys.maxsize)))
    whole = Column(
        "id", min_width=min(WHOLE_ID, max((len(each.envelope.id) for each in messages), default=0)), overflow="fold"
    )
    table = Table(whole, "actor", "attempt", "enqueued", "died", "reason", "error")
    for message in messages:
        failure = message.failure
        error = "" if failure is None else f"{failure.type}: {failure.text}"
        topic = message.envelope.headers.get(TOPIC, "")
        error = error.replace("\n", " ")  # the faults of a payload are lines
        times = [ago(moment, message.seen_at) for moment in (message.enqueued_at, message.died_at)]
        add_row(table, message.envelope.id, topic, str(message.attempt), *times, message.reason or "", error)
    show(table)


def requeue(
    target: Target,
    queue: Annotated[str, typer.Argument(help="The queue.")],
    ids: Annotated[list[str] | None, typer.Argument(help="Which messages. Default: all dead ones.")] = None,
    server: Server = None,
) -> None:
    """Make dead messages ready again, as new ones."""
    app = find_app(target)
    broker = find_server(app, server)

    async def revive() -> Outcomes:
        keys = [each.key for each in await find_dead(broker, queue, ids)] if ids else None
        return await broker.revive(queue, keys)

    outcomes = ask(app, revive)
    refused = [outcome for outcome in outcomes if outcome is not None]
    typer.echo(f"{len(outcomes) - len(refused)} message(s) are ready again")
    if refused:
        raise BrokerRefused(f"{len(refused)} message(s) stay dead:{list_refused(refused)}")


def list_refused(refused: Sequence[BrokerRefused]) -> str:
    """A line for each of the first, why it was refused."""
    lines = [
        f"{each.id!r}: a message with the same id is alive" if isinstance(each, DuplicateId) else shown(str(each))
        for each in refused
    ]
    more = [f"… and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return "".join(f"\n  {line}" for line in [*lines[:MOST_LINES], *more])


def delete(
    target: Target,
    queue: Annotated[str, typer.Argument(help="The queue.")],
    ids: Annotated[list[str] | None, typer.Argument(help="Which messages.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All dead messages of the queue.")] = False,
    server: Server = None,
) -> None:
    """Remove dead messages for good."""
    if every == bool(ids):
        raise UsageError("name the dead messages to remove by their ids, or say --all: one of the two")
    app = find_app(target)
    broker = find_server(app, server)

    async def remove() -> int:
        keys = [each.key for each in await find_dead(broker, queue, ids)] if ids else None
        return await broker.delete_messages(queue, keys)

    typer.echo(f"{ask(app, remove)} dead message(s) are removed")


async def find_dead(broker: Broker, queue: str, ids: list[str]) -> list[BrowsedMessage]:
    """The dead messages with these ids. Raises `UsageError` if one of them is not there."""
    found = [each for each in await broker.browse(queue, "dead", limit=sys.maxsize) if each.envelope.id in ids]
    missing = set(ids) - {each.envelope.id for each in found}
    if missing:
        raise UsageError(f"queue {queue!r} has no dead message {', '.join(map(repr, sorted(missing)))}")
    return found
