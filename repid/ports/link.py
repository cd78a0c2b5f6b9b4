"""The state of a server's link to its engine."""

from __future__ import annotations

from typing import Literal

import msgspec


class LinkState(msgspec.Struct, frozen=True):
    """The state of the link of a server.

    `state`: "closed" outside connection blocks, "up", or "down" while the server reconnects. `since`: the moment of the
    last change in seconds on trio's clock. `error`: why it is down, or None.
    """

    state: Literal["closed", "up", "down"]
    since: float
    error: str | None = None
