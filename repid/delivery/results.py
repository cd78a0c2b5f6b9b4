"""What became of a message, as it is stored: for terminal states only."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from .dispositions import Ack, Cancel, DeadLetter, Disposition, Failure

ResultState: TypeAlias = Literal["success", "failure", "dead", "expired", "cancelled", "dropped"]
"""success: the actor returned. failure: it raised for the last time, said nack, or the payload did not fit. dead: no
worker could run it (unrouted, poison). expired: its ttl passed. cancelled: it was cancelled.
dropped: its queue was full (when_full="drop_oldest")."""

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
    """How far a run has come: `done` of `total` (None: unknown), and a note.

    Whole numbers stay such where it is stored: with `float` alone msgspec would read 3 of 5 as 3.0 of 5.0.
    """

    done: int | float
    total: int | float | None = None
    note: str = ""


def result_state(disposition: Disposition) -> ResultState | None:
    """The state in which a disposition leaves a message for good; None: it goes on living."""
    match disposition:
        case Ack():
            return "success" if disposition.failure is None else "failure"
        case Cancel():
            return "cancelled"
        case DeadLetter():
            return _OF_DEAD.get(disposition.reason, "failure")
        case _:
            return None


_OF_DEAD: dict[str, ResultState] = {"expired": "expired", "unrouted": "dead", "poison": "dead"}


def make_result(id_: str, ttl: float, disposition: Disposition, payload: bytes = b"null") -> NewResult | None:
    """What to store for a disposition; None: nothing, because the message goes on living."""
    state = result_state(disposition)
    if state is None:
        return None
    failure = disposition.failure if isinstance(disposition, Ack | DeadLetter) else None
    return NewResult(id=id_, state=state, payload=payload if state == "success" else b"", failure=failure, ttl=ttl)
