"""The command line: `python -m repid --help` teaches it.

Exit codes: 0 after a drain (all that was started has ended or was given back), also one that a second signal cut
short; 1 if it failed: an error came out of the worker, a process crashed too often or had to be killed; 2 for what
trying again would not change: a wrong use of the command line, no such app, an app that is not set up right. A signal
that comes before the worker, or its supervisor, listens ends it as it ends any program.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import msgspec
import trio
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperGroup

from ._version import __version__
from .app import Repid
from .brokers import Server as AnyServer
from .brokers import server_at
from .delivery import Failure, StoredResult
from .envelope import TOPIC
from .errors import (
    BrokerRefused,
    ConfigurationError,
    DuplicateId,
    QueueNotDeclared,
    RepidError,
    UsageError,
    did_you_mean,
    shown,
)
from .handle import JobHandle
from .hosts import LoopName
from .moving import Account, Move
from .ports import Broker, BrowsedMessage, Counts, Migrating, name_of
from .producer import Outcomes
from .results import Status
from .supervisor import load_app, load_object
from .supervisor.child import configure_logging
from .tracebacks import inert, without_passwords
from .worker import WorkerOptions

T = TypeVar("T")

log = logging.getLogger("repid")

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
        process crashed more than five times within
        a minute, or died or had to be killed while it was stopping; or some
        messages were not requeued
  2     wrong usage: no such module, app, server, queue or message, or one not
        set up right; an app without actors
  130   Ctrl-C while the program was imported, or the server was waited for
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
  repid worker shop.jobs:app --loop asyncio   for actors that use asyncio, httpx, asyncpg
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
        str | None,
        typer.Option(metavar="SIZE", help="Hold messages of at most this size together, per process. Default: 64MB."),
    ] = None,
    messages_limit: Annotated[
        int | None,
        typer.Option(min=0, help="End after this number of runs, per process; no other process takes its place."),
    ] = None,
    graceful_shutdown_time: Annotated[
        float | None, typer.Option(min=0, help="Seconds that actors have to end when it is stopped. Default: 25.")
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="End when nothing is ready, or no server for 30 s.")] = False,
    log_runs: Annotated[bool, typer.Option("--log-runs", help="Log a line for each run.")] = False,
    loop: Annotated[
        str,
        typer.Option(metavar="trio|asyncio|uvloop", help="The event loop that async actors and middlewares run on."),
    ] = "trio",
    max_jobs: Annotated[int | None, typer.Option(min=1, help="Replace a process after this number of runs.")] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Replace a process that takes more: 512MB, 1.5G.")
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
        options["claim_bytes"] = parse_size(claim_bytes)
    if messages_limit is not None:
        options["messages_limit"] = messages_limit
    if graceful_shutdown_time is not None:
        options["graceful_shutdown_time"] = graceful_shutdown_time
    size = None if max_memory is None else parse_size(max_memory)
    app = find_app(target)
    broker = app.server(server)
    configure_logging()
    if not broker.capabilities.shared:
        log.warning(
            "%s is in the memory of this process: no other process can send to this worker, and its messages end with it; take a server "
            "that processes share, such as SQLiteServer",
            name_of(broker),
        )
    app.run(
        server_name=server,
        processes=processes,
        max_jobs=max_jobs,
        max_memory=size,
        reload=reload,
        target=target,
        loop=cast("LoopName", loop),  # `run` checks it
        **options,
    )


@cli.command()
def queues(
    target: Target,
    names: Annotated[list[str] | None, typer.Argument(help="Which queues. Default: those of the app's actors.")] = None,
    server: Server = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every queue of the server, also such as no actor of the app reads.")
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


COUNTS = ("ready", "scheduled", "leased", "dead", "paused")


def ago(moment: float | None, now: float) -> str:
    """How long ago a moment was, in the largest unit that fits; nothing if the moment is not known."""
    if moment is None:
        return ""
    passed = max(0, round(now - moment))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if passed >= size:
            return f"{passed // size} {unit} ago"
    return f"{passed} s ago"


@cli.command()
def schedules(
    target: Target,
    *,
    pause: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="First hold this one's ticks until it is resumed.")
    ] = None,
    resume: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="First let this one tick again, after a pause or its end.")
    ] = None,
) -> None:
    """Show the schedules: when each ticks next, how often it has ticked and skipped, and which are paused or have ended.
    With --pause or --resume, change some before; give NAME as it is shown, such as mail:remind.
    """
    app = find_app(target)
    if pause or resume:
        find_shared_server(app, None)
    else:
        find_server(app, None)
    for name in pause or ():
        ask(app, partial(app.schedules.pause, name))
    for name in resume or ():
        ask(app, partial(app.schedules.resume, name))
    table = Table("schedule", "actor", "queue", "rule", "next", "fired", "skipped", "state")
    for stored in ask(app, app.schedules.list):
        schedule, model = stored.schedule, stored.schedule.envelope
        rule = f"every {schedule.every:g} s" if schedule.every is not None else f"{schedule.cron} {schedule.timezone}"
        next_at = "" if stored.paused else moment(stored.next_at)
        state = "" if not stored.paused else "paused" if stored.ended_at is None else f"ended {moment(stored.ended_at)}"
        counts = [str(stored.fired), str(stored.skipped)]
        add_row(table, schedule.name, model.topic or "", model.queue, rule, next_at, *counts, state)
    show(table)


def moment(at: float) -> str:
    """A moment in UTC, to the second."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}Z"


WHOLE_ID = 32
"""Ids of this length, and the ids that repid makes have it, stand in one line also where the terminal is narrow: they
are given to other commands.
"""


@cli.command()
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


@cli.command("show")
def show_jobs(
    target: Target,
    ids: Annotated[list[str], typer.Argument(help="The ids of jobs, which are those of their messages.")],
    server: Server = None,
) -> None:
    """Show what is there under an id: a job that waits, runs or is dead, with its queue, attempt, progress and payload; or
    the result of one that has ended.
    """
    app = find_app(target)
    found = ask(app, partial(find_jobs, app, find_shared_server(app, server), ids))
    typer.echo("\n".join([text for texts in found for text in texts]), nl=False)
    unknown = [id_ for id_, texts in zip(ids, found, strict=True) if not texts]
    if unknown:
        raise UsageError(
            f"nothing is known of {', '.join(map(repr, unknown))} on this server: no job of that id was enqueued there, or it "
            "has ended and no result was stored (store_result), or none any more (result_ttl)"
        )


async def find_jobs(app: Repid, broker: Broker, ids: Sequence[str]) -> list[list[str]]:
    """For each id all that is known of the messages that have it, in words; where there is none, of its result."""
    store = app.result_store or (broker if broker.capabilities.has("results") else None)
    results = [None for _ in ids] if store is None else await store.fetch_results(ids)
    texts: list[list[str]] = []
    for messages, result in zip(await broker.find(ids), results, strict=True):
        texts.append([])
        for each in messages:
            is_dead = each.category == "dead" or not broker.capabilities.has("tracking")
            status = None if is_dead else await JobHandle[Any](broker, each.envelope, store).status()
            texts[-1].append(in_full(each, status))
        if not messages and result is not None:
            texts[-1].append(result_in_full(result))
    return texts


@cli.command()
def cancel(
    target: Target,
    ids: Annotated[list[str], typer.Argument(help="The ids of jobs, which are those of their messages.")],
    server: Server = None,
) -> None:
    """Remove jobs that wait, and have the runs of those cancelled that run, in whatever process."""
    app = find_app(target)
    answers = ask(app, partial(find_shared_server(app, server).cancel_each, ids))
    for id_, answer in zip(ids, answers, strict=True):
        if answer != "unknown":
            how = "was waiting, and is removed" if answer == "cancelled" else "is running, and is being cancelled"
            typer.echo(f"{shown(id_)} {how}")
    if unknown := [id_ for id_, answer in zip(ids, answers, strict=True) if answer == "unknown"]:
        raise UsageError(f"no message {', '.join(map(repr, unknown))} waits or runs on this server")


def in_full(message: BrowsedMessage, status: Status | None = None) -> str:
    """All that is known of a message; `status` tells how a run of it stands. What cannot be printed is escaped."""
    envelope, failure, now = message.envelope, message.failure, message.seen_at
    facts = {
        "id": envelope.id,
        "state": status.state if status else message.category,
        "queue": envelope.queue,
        "actor": envelope.topic or "",
        "attempt": str(message.attempt),
        "enqueued": ago(message.enqueued_at, now),
    }
    if message.category == "scheduled" and message.due_at is not None:
        facts["due"] = moment(message.due_at)
    if message.leased_at is not None:
        facts["began"] = f"{ago(message.leased_at, now)}, by {message.leased_by}"
    if status is not None and status.done is not None:
        total = "" if status.total is None else f" of {status.total:g}"
        facts["progress"] = f"{status.done:g}{total} {status.note}".rstrip()
    if message.category == "dead":
        facts |= {"died": ago(message.died_at, now), "reason": message.reason or ""}
    facts |= {"headers": json.dumps(envelope.headers, ensure_ascii=False), "payload": as_text(envelope.payload)}
    return in_lines(facts, failure)


def result_in_full(result: StoredResult) -> str:
    """All that is known of a message that has ended."""
    facts = {"id": result.id, "state": result.state, "ended": moment(result.finished_at)}
    facts["result is kept until"] = moment(result.expires_at)
    if result.payload:
        facts["result"] = as_text(result.payload)
    return in_lines(facts, result.failure)


def in_lines(facts: Mapping[str, str], failure: Failure | None) -> str:
    """A line for each fact, and the error behind them."""
    lines = [f"{name}: {shown(fact)}\n" for name, fact in facts.items()]
    if failure is not None:
        lines.append(inert((failure.traceback or f"{failure.type}: {failure.text}").rstrip()) + "\n")
    return "".join(lines)


def as_text(payload: bytes) -> str:
    """A payload as it is shown."""
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return repr(payload)


@cli.command()
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


MOST_LINES = 20


@cli.command()
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


@cli.command()
def pause(
    target: Target,
    queue: Annotated[str, typer.Argument(help="The queue.")],
    server: Server = None,
) -> None:
    """Let no worker have the messages of a queue, until repid resume. What runs goes on."""
    app = find_app(target)
    ask(app, partial(find_shared_server(app, server).pause, queue))
    typer.echo(f"queue {queue!r} is paused: its messages wait until it is resumed")


@cli.command()
def resume(
    target: Target,
    queue: Annotated[str, typer.Argument(help="The queue.")],
    server: Server = None,
) -> None:
    """Let workers have the messages of a paused queue again."""
    app = find_app(target)
    ask(app, partial(find_shared_server(app, server).resume, queue))
    typer.echo(f"queue {queue!r} is resumed: workers get its messages")


@cli.command()
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


PLACE = "An address (postgresql://…, redis://…), the path of a SQLite file, or MODULE:NAME of an app or a server."


@cli.command()
def move(
    source: Annotated[str, typer.Argument(metavar="FROM", help=PLACE)],
    target: Annotated[str, typer.Argument(metavar="TO", help=PLACE)],
    names: Annotated[list[str] | None, typer.Argument(help="Which queues. Default: all, and the schedules.")] = None,
) -> None:
    """Move all that waits, dead letters and schedules from one server to another. If it is cut off, run it again:
    nothing is lost or doubled.

    Stop the workers on FROM first; no file and no schema is made there. Queues are paused on TO until they have moved, and stay paused on FROM.
    """
    old, new = find_place(source), find_place(target)
    account = trio.run(carry_over, old, new, names or None)
    if not account.queues and not account.schedules:
        typer.echo(
            f"repid: warning: nothing has moved: there is no queue on {name_of(old)}. Is it the right one? A server that has "
            "options, such as schema= or prefix=, is given as MODULE:NAME",
            err=True,
        )
    table = Table("queue", "ready", "scheduled", "dead", "there before", "left on FROM", "paused")
    for moved in account.queues:
        counts = (moved.ready, moved.scheduled, moved.dead, moved.was_there, moved.left + moved.leased)
        add_row(table, moved.name, *map(str, counts), "yes" if moved.is_paused else "")
    show(table)
    typer.echo(f"{len(account.schedules)} schedule(s) moved")
    if account.left_behind:
        lines = "".join(f"\n  {shown(line)}" for line in account.left_behind)
        raise BrokerRefused(f"not everything has moved:{lines}")


async def carry_over(old: AnyServer, new: AnyServer, names: Sequence[str] | None) -> Account:
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


def find_place(text: str) -> AnyServer:
    """The server that an address, a path or MODULE:NAME means."""
    if Path(text).exists() or not re.fullmatch(r"[\w.]+:[\w.]+", text):
        return server_at(text)
    found = load(load_object, text)
    found = found.server() if isinstance(found, Repid) else found
    if not isinstance(found, AnyServer):
        raise ConfigurationError(f"{text!r} is no server and no app, but {found!r}")
    return found


@cli.command()
def version() -> None:
    """Show the version."""
    typer.echo(__version__)


def find_modules_here() -> None:
    """Like `python -m`, find modules of the working directory."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def load(find: Callable[[str], T], target: str) -> T:
    """What MODULE:NAME is. An error that the program itself raises is shown from where the program begins, exit code 1."""
    find_modules_here()
    try:
        return find(target)
    except RepidError:
        raise
    except Exception as error:  # noqa: BLE001  whatever the program raises
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _MACHINERY:
            trace = trace.tb_next
        lines = traceback.format_exception(type(error), error, trace)
        typer.echo(without_passwords("".join(lines)) + f"repid: {target} cannot be loaded: see above", err=True)
        sys.exit(1)


_MACHINERY = {"repid", "importlib"}


def find_app(target: str) -> Repid:
    """The app that MODULE:APP names."""
    app = load(load_app, target)
    if not isinstance(app, Repid):
        raise ConfigurationError(f"{target!r} is no Repid app, but {app!r}")
    return app


def find_server(app: Repid, name: str | None) -> Broker:
    """The server of that name; warns of one that only this process can see."""
    broker = app.server(name)
    if not broker.capabilities.shared:
        typer.echo(f"repid: warning: {of_memory(name)}", err=True)
    return broker


def find_shared_server(app: Repid, name: str | None) -> Broker:
    """The server of that name, for what would be of no use on one that only this process can see. Raises `UsageError`."""
    broker = app.server(name)
    if not broker.capabilities.shared:
        raise UsageError(of_memory(name))
    return broker


def of_memory(name: str | None) -> str:
    """Why little can be done about such a server."""
    return (
        f"the server {name or 'that is the default'} keeps its messages in the memory of each "
        "process: this command sees none of what other processes send; take another server, such as SQLiteServer"
    )


def ask(app: Repid, function: Callable[[], Awaitable[T]]) -> T:
    """Carry one call out where the app's servers are open. Raises `UsageError` for a queue that does not exist."""
    try:
        with app.sync() as client:
            return client.run(function)
    except QueueNotDeclared as error:
        known = app.queues()
        hint = did_you_mean(error.queue, known) or f"; the app's actors read {', '.join(known) or 'none'}"
        raise UsageError(f"there is no queue {error.queue!r} on this server{hint}") from None


def add_row(table: Table, *cells: str) -> None:
    """Add a row of what it says: brackets in it are no markup, and what cannot be printed is escaped."""
    table.add_row(*[Text(shown(cell)) for cell in cells])


def show(table: Table) -> None:
    """Print a table; where the output is no terminal, at its full width."""
    console = Console()
    if not console.is_terminal:
        console.width = 1000
    console.print(table)


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
