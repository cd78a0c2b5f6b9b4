"""What became of a message, as it is stored for whoever asks: for terminal states only."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from .dispositions import Failure

ResultState: TypeAlias = Literal["success", "failure", "dead", "expired", "cancelled"]
"""success: the actor returned. failure: it raised for the last time, said nack, or the payload did not fit. dead: no
worker could run it (unrouted, poison). expired: its ttl passed. cancelled: somebody cancelled it."""

DAY = 86_400.0
"""Seconds a result is kept where nothing else was said."""


class NewResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A result on its way to its store. `payload` is the actor's return value as JSON; `ttl` is in seconds."""

    id: str
    state: ResultState
    payload: bytes = b""
    failure: Failure | None = None
    ttl: float = DAY


class StoredResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A result as its store gives it. Times are seconds since 1970 on the store's clock."""

    id: str
    state: ResultState
    payload: bytes
    failure: Failure | None
    finished_at: float
    expires_at: float


class Progress(msgspec.Struct, frozen=True, gc=False):
    """How far a run has come: `done` of `total` (None: unknown), and a note."""

    done: float
    total: float | None = None
    note: str = ""
