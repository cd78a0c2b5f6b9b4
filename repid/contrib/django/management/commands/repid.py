"""`manage.py repid`: repid's own command line for the tasks of a backend."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ..... import __main__ as command_line
from .....errors import ConfigurationError
from ... import worker


class Command(BaseCommand):
    """Hands its arguments on to `python -m repid`, with the app that they are for."""

    help = (
        "Run workers for tasks, and look after their queues: `manage.py repid worker --processes 4`, "
        "`manage.py repid queues`, `manage.py repid dead default`. The commands and options are those of "
        "`python -m repid`, without MODULE:APP. Workers run on asyncio unless --loop says otherwise."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """A backend, and whatever comes after it."""
        parser.add_argument("--backend", default="default", metavar="ALIAS", help="Which of TASKS. Default: default.")
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help="A command of repid and its options.")

    def handle(self, *, backend: str, arguments: list[str], **_: Any) -> None:
        """Run the command line. Exits with its exit code, unless that is 0."""
        try:
            found = worker.find_backend(backend)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        found.close()  # or this process would have the server open already
        command, *options = arguments or ["--help"]
        if command == "worker":
            options = ["--loop", "asyncio", *options]
        try:
            command_line.main([command, *options], "manage.py repid", f"{worker.__name__}:{backend}")
        except SystemExit as done:
            if done.code:
                raise
