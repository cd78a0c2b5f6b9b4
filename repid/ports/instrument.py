"""What may watch the calls to a server. An instrument sees every call and can change none."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import msgspec

Outcome: TypeAlias = Literal["done", "refused", "failed", "cancelled"]
"""done: the server carried it out. refused: it raised an error that blames the caller or the message. failed: the
server could not be reached, or the call went wrong. cancelled: the caller was cancelled first."""


class CallRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One call to a server, when it has ended. `duration` is in seconds.

    `name` is that of the method; `server` what errors call the server (its class); `queue` is set where the call is
    about one queue; `count` says how many messages, ids or leases it was about. A claim in memory or on SQLite may wait
    for messages, which is in its `duration`; on a remote engine the waiting is no call.
    """

    name: str
    server: str
    queue: str | None
    count: int
    duration: float
    outcome: Outcome


class Instrument(Protocol):
    """Called on the event loop with each call to a server that has ended. It must be quick. Its errors are logged."""

    def __call__(self, call: CallRecord, /) -> None:
        """Look at a call."""
        ...
