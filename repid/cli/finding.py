"""What a command works on: the app, one of its servers, what is asked of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import typer

from ..app import Repid
from ..brokers import Server as AnyServer
from ..brokers import server_at
from ..errors import ConfigurationError, QueueNotDeclared, RepidError, UsageError, did_you_mean
from ..ports import Broker
from ..supervisor import failure_of_import, load_app, load_object

T = TypeVar("T")


def find_modules_here() -> None:
    """Like `python -m`, find modules of the working directory."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def load(find: Callable[[str], T], target: str) -> T:
    """What MODULE:NAME is. An error that the program itself raises is shown from where the program begins; then this
    process ends with exit code 1.
    """
    find_modules_here()
    try:
        return find(target)
    except RepidError:
        raise
    except Exception as error:  # noqa: BLE001  whatever the program raises
        typer.echo(failure_of_import(target, error), err=True)
        sys.exit(1)


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
        typer.echo(f"repid: warning: {of_little_use(name)}", err=True)
    return broker


def find_shared_server(app: Repid, name: str | None) -> Broker:
    """The server of that name. Raises `UsageError` for one that only this process can see: it is empty here."""
    broker = app.server(name)
    if not broker.capabilities.shared:
        raise UsageError(of_little_use(name))
    return broker


def of_little_use(name: str | None) -> str:
    """Why a command is of little use on a server that only this process can see."""
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


def find_place(text: str) -> AnyServer:
    """The server that an address, a path or MODULE:NAME means."""
    if Path(text).exists() or not re.fullmatch(r"[\w.]+:[\w.]+", text):
        try:
            return server_at(text)
        except ConfigurationError as error:
            if "?" not in text:
                raise
            raise ConfigurationError(
                f"{error}; a server that has options, such as schema= or prefix=, is given as MODULE:NAME here"
            ) from None
    found = load(load_object, text)
    found = found.server() if isinstance(found, Repid) else found
    if not isinstance(found, AnyServer):
        raise ConfigurationError(f"{text!r} is no server and no app, but {found!r}")
    return found
