"""A message that has become a dead letter, as hooks are told of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

from ..envelope import Envelope
from .dispositions import Failure, Reason


class DeadMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that has become a dead letter: itself, the attempt it died in, why, and the error if there was one."""

    envelope: Envelope
    attempt: int
    reason: Reason
    failure: Failure | None = None

    @property
    def actor(self) -> str | None:
        """The name of the actor that it was for."""
        return self.envelope.topic


DeadLetterHook: TypeAlias = Callable[[DeadMessage], Awaitable[None] | None]
"""What is called with each message that becomes a dead letter in a worker."""
