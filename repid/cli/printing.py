"""How the commands print what they have found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..delivery import Failure, StoredResult
from ..errors import shown
from ..ports import BrowsedMessage
from ..results import Status
from ..tracebacks import inert


def ago(moment: float | None, now: float) -> str:
    """How long ago a moment was, in the largest unit that fits; nothing if the moment is not known."""
    if moment is None:
        return ""
    passed = max(0, round(now - moment))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if passed >= size:
            return f"{passed // size} {unit} ago"
    return f"{passed} s ago"


def moment(at: float) -> str:
    """A moment in UTC, to the second."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}Z"


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


def add_row(table: Table, *cells: str) -> None:
    """Add a row of what it says: brackets in it are no markup, and what cannot be printed is escaped."""
    table.add_row(*[Text(shown(cell)) for cell in cells])


def show(table: Table) -> None:
    """Print a table; where the output is no terminal, at its full width."""
    console = Console()
    if not console.is_terminal:
        console.width = 1000
    console.print(table)
