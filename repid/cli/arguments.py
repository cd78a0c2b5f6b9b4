"""Arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Target = Annotated[
    str, typer.Argument(metavar="MODULE:APP", help="Where the app is, such as shop.jobs:app; or a function giving it.")
]

Server = Annotated[str | None, typer.Option(help="The server to work on. Default: the app's default one.")]
