"""Single jobs, by their ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import typer

from ..app import Repid
from ..errors import UsageError, shown
from ..handle import JobHandle
from ..ports import Broker
from .arguments import Server, Target
from .finding import ask, find_app, find_shared_server
from .printing import in_full, result_in_full


def show_jobs(
    target: Target,
    ids: Annotated[list[str], typer.Argument(help="The ids of jobs, which are those of their messages.")],
    server: Server = None,
) -> None:
    """Show what is there under an id: a job that waits, runs or is dead, with its queue, attempt, progress and payload;
    or the result of one that has ended.
    """
    app = find_app(target)
    found = ask(app, partial(find_jobs, app, find_shared_server(app, server), ids))
    typer.echo("\n".join([text for texts in found for text in texts]), nl=False)
    unknown = [id_ for id_, texts in zip(ids, found, strict=True) if not texts]
    if unknown:
        raise UsageError(
            f"nothing is known of {', '.join(map(repr, unknown))} on this server: no job of that id was enqueued "
            "there, or it has ended and no result was stored (store_result), or none any more (result_ttl)"
        )


async def find_jobs(app: Repid, broker: Broker, ids: Sequence[str]) -> list[list[str]]:
    """For each id, in words, all that is known of the messages that have it, or of its result if there is none."""
    store = app.result_store or (broker if broker.capabilities.has("results") else None)
    results = [None for _ in ids] if store is None else await store.fetch_results(ids)
    texts: list[list[str]] = []
    for messages, result in zip(await broker.find(ids), results, strict=True):
        texts.append([])
        for each in messages:
            is_tracked = each.category != "dead" and broker.capabilities.has("tracking")
            status = await JobHandle[Any](broker, each.envelope, store).status() if is_tracked else None
            texts[-1].append(in_full(each, status))
        if not messages and result is not None:
            texts[-1].append(result_in_full(result))
    return texts


def cancel(
    target: Target,
    ids: Annotated[list[str], typer.Argument(help="The ids of jobs, which are those of their messages.")],
    server: Server = None,
) -> None:
    """Remove jobs that wait, and cancel the runs of those that run, in any process."""
    app = find_app(target)
    answers = ask(app, partial(find_shared_server(app, server).cancel_each, ids))
    for id_, answer in zip(ids, answers, strict=True):
        if answer != "unknown":
            how = "was waiting, and is removed" if answer == "cancelled" else "is running, and is being cancelled"
            typer.echo(f"{shown(id_)} {how}")
    if unknown := [id_ for id_, answer in zip(ids, answers, strict=True) if answer == "unknown"]:
        raise UsageError(f"no message {', '.join(map(repr, unknown))} waits or runs on this server")
