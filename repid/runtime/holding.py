"""What a worker knows of one delivery, in one record.

A holding is made when its delivery arrives and goes through these states. The ledger alone writes `state` and the
flags below it; the fields of the run belong to the executor that runs it, and nobody else writes those.

    HELD ⇄ PARKED        in the channel; or set aside until a limit, or an earlier run of the same message, lets it go
    HELD → RUNNING       an executor has begun with it
    HELD → ENDED         turned away: it got a verdict without a run, or its lease was lost
    RUNNING → ENDED      its run has ended

Whether the lease is ours is another matter: it may be lost in any state, and is over once a verdict was settled, which
a verb may bring about while the run goes on.
"""

from __future__ import annotations

import enum
import math
from contextvars import Context
from typing import Any

import msgspec

from ..delivery import Delivery, Disposition, Phase
from ..inject import Message
from .limits import Limit
from .roles import Role


class State(enum.Enum):
    """Where a delivery is in its worker."""

    HELD = "in the channel"
    PARKED = "set aside"
    RUNNING = "running"
    ENDED = "ended"


NO_ARGUMENTS: dict[str, Any] = {}


class Holding(msgspec.Struct, eq=False, gc=False):
    """One delivery. Compared and hashed by identity.

    role: the actor that takes it, found once; None if no actor here does.
    lease_ends: the moment after which the lease must be believed lost. expires_at: when the ttl ends.

    Written by the ledger only:
    is_ours: whether its lease is ours. is_cancelled: whether somebody cancelled the message. is_kept: whether its
    actor, in the mode `manual`, returned without a verdict. has_verdict: whether one is on its way to the broker.
    parked_by: the limit that has it wait.

    Of the run, written by its executor only:
    began: when its actor was called. run_ends: when its timeout ends, infinity while nobody needs to watch it. called:
    whether the actor was called. acked_first: settled before the start. error: what it raised when it was cut off, if
    that says more than the cancellation itself. named_at: when it was last named for keeping its loop. All moments are in seconds on trio's clock.

    deferred: the verdict a verb gave that takes effect when the run has ended. follower: a later delivery of the same
    message that waits for the end of this run.
    """

    delivery: Delivery
    role: Role | None
    lease_ends: float
    expires_at: float = math.inf
    state: State = State.HELD
    is_ours: bool = True
    is_cancelled: bool = False
    is_kept: bool = False
    has_verdict: bool = False
    parked_by: Limit | None = None
    message: Message | None = None
    arguments: dict[str, Any] = NO_ARGUMENTS
    acked_first: bool = False
    called: bool = False
    context: Context | None = None
    began: float = 0.0
    run_ends: float = math.inf
    error: BaseException | None = None
    named_at: float = 0.0
    deferred: Disposition | None = None
    follower: Holding | None = None

    @property
    def phase(self) -> Phase:
        """How far its run has come."""
        if self.acked_first or (self.message is not None and self.message.is_acted_on):
            return Phase.DECIDED
        return Phase.RUNNING

    @property
    def actor_role(self) -> Role:
        """The role of one that runs: no other is begun."""
        assert self.role is not None
        return self.role
