"""What may happen to a delivery: a closed set."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from .dispositions import Failure


class Starting(msgspec.Struct, frozen=True):
    """It is about to be started by an actor that acknowledges first."""


class Returned(msgspec.Struct, frozen=True):
    """The actor returned. `word` is what it returned, looked at in the mode `manual_explicit` only."""

    word: object = None


class Raised(msgspec.Struct, frozen=True):
    """The actor raised. `word` is what `on_error` made of it: a verb, or None."""

    failure: Failure
    word: str | None = None


class TimedOut(msgspec.Struct, frozen=True):
    """The actor ran past its timeout, was cancelled, and has ended. `word` is what `on_error` made of it."""

    failure: Failure
    word: str | None = None


class PayloadRefused(msgspec.Struct, frozen=True):
    """The payload cannot be decoded or does not fit the actor's signature.

    `age`: where another version of the program may take it, the seconds since it was first found not to fit, or to be
    taken by no actor; else None. `chance` is in [0, 1).
    """

    failure: Failure
    age: float | None = None
    chance: float = 0.0


class Unrouted(msgspec.Struct, frozen=True):
    """No actor of this worker takes it. `age`: seconds since that was first so; `chance`: a number in [0, 1)."""

    age: float
    chance: float


class Crowded(msgspec.Struct, frozen=True):
    """Its actor runs as often as it may, and enough of its messages wait here already. `chance` is in [0, 1)."""

    chance: float


class Expired(msgspec.Struct, frozen=True):
    """Its ttl passed before it was started."""


class Stopping(msgspec.Struct, frozen=True):
    """The worker is stopping: the delivery was not started, or its actor was cancelled for it."""


class CancelRequested(msgspec.Struct, frozen=True):
    """The message was cancelled; if its actor was running, the actor was cancelled and has ended."""


class LeaseExpired(msgspec.Struct, frozen=True):
    """The lease ended without a verdict: another worker owns the message now."""


Event: TypeAlias = (
    Starting
    | Returned
    | Raised
    | TimedOut
    | PayloadRefused
    | Unrouted
    | Crowded
    | Expired
    | Stopping
    | CancelRequested
    | LeaseExpired
)
