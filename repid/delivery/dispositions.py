"""What the broker must do with a delivery: a closed set."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from msgspec.structs import force_setattr

Reason: TypeAlias = Literal["failed", "nacked", "payload", "unrouted", "expired", "poison"]
"""Why a message is dead: the actor failed for the last time; the actor said nack; the payload does not fit;
no actor takes it; its ttl passed; too many workers died holding it."""


class Failure(msgspec.Struct, frozen=True, gc=False):
    """An error as it is stored: its type's name, its text, its traceback as text.

    Every error of an actor must be recorded, so lone surrogates, which UTF-8 cannot write, become escapes.
    """

    type: str
    text: str
    traceback: str = ""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            text: str = getattr(self, name)
            if not text.isascii():
                force_setattr(self, name, text.encode("utf-8", "backslashreplace").decode())


class Ack(msgspec.Struct, frozen=True):
    """Done: the message is removed. `failure` is set where an exception was acknowledged on purpose."""

    failure: Failure | None = None


class Retry(msgspec.Struct, frozen=True):
    """Make it ready again in `delay` seconds, with the next attempt. It was started, so it has no ttl any more."""

    delay: float
    failure: Failure | None = None


class Release(msgspec.Struct, frozen=True):
    """Make it ready again in `delay` seconds; no attempt is used.

    `unrouted`: note the time if it is the first pass on which no actor took it. `started`: a run of it had begun, so
    its ttl, which is about the first start, is over.
    """

    delay: float = 0.0
    unrouted: bool = False
    started: bool = False


class DeadLetter(msgspec.Struct, frozen=True):
    """Keep it as a dead letter, which no worker gets, until it is revived or removed."""

    reason: Reason
    failure: Failure | None = None


class Cancel(msgspec.Struct, frozen=True):
    """The message was cancelled: remove it."""


Disposition: TypeAlias = Ack | Retry | Release | DeadLetter | Cancel


class Keep(msgspec.Struct, frozen=True):
    """Not a disposition: the lease stays with the worker, which goes on extending it until it ends."""


ACK = Ack()
KEEP = Keep()
