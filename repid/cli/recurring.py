"""What recurs: the schedules."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from rich.table import Table

from .arguments import Target
from .finding import ask, find_app, find_server, find_shared_server
from .printing import add_row, moment, show


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
    """Show the schedules: when each ticks next, how often it has ticked and skipped, and which are paused or have
    ended. With --pause or --resume, first change some; give NAME as it is shown, such as mail:remind.
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
