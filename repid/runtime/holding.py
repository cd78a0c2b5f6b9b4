"""What a worker knows of one delivery, in one record.

A holding is made when its delivery arrives and goes through these states. The ledger alone writes `state` and the
flags below it; the fields of the run belong to the executor that runs it.

    HELD ⇄ PARKED        in the channel; or set aside until a limit lets it go, an earlier run of the same message has
                         ended, or a batch starts
    HELD → RUNNING       an executor has begun with it
    PARKED → RUNNING     it has become a member of a batch that was begun
    HELD → ENDED         turned away: it got a verdict without a run, or its lease was lost
    RUNNING → ENDED      its run has ended

Whether the lease is ours is another matter: it may be lost in any state, and is over once a verdict was settled, which
a verb may bring about while the run goes on.
"""

from __future__ import annotations

import enum
import math
from contextvars import Context

import msgspec

from ..delivery import Delivery, Disposition, Phase
from ..envelope import Envelope
from ..inject import Message
from .actor_runners import ActorRunner
from .limits import Limit


class State(enum.Enum):
    """Where a delivery is in its worker."""

    HELD = "in the channel"
    PARKED = "set aside"
    RUNNING = "running"
    ENDED = "ended"


HELD, PARKED, RUNNING, ENDED = State.HELD, State.PARKED, State.RUNNING, State.ENDED
"""For the hot path: CPython 3.11 takes 70 ns to find a member in its enumeration, and 2 to find a name of a module."""


def about(delivery: Delivery, actor: str | None = None) -> dict[str, object]:
    """What log records about a delivery have as `extra`. `actor`: its name; default: what the message says."""
    envelope = delivery.envelope
    name = envelope.topic if actor is None else actor
    return {"message_id": envelope.id, "actor": name, "queue": envelope.queue, "attempt": delivery.attempt}


class Holding(msgspec.Struct, eq=False, gc=False):
    """One delivery. Compared and hashed by identity.

    runner: the actor that takes it, found once; None if no actor here does.
    lease_ends: the moment after which the lease must be believed lost. expires_at: when the ttl ends. startable_until:
    the earlier of both where nothing else can speak against a start; otherwise minus infinity.

    Written by the ledger only:
    is_ours: whether its lease is ours. is_cancelled: whether somebody cancelled the message. is_kept: whether its
    actor, in the mode `manual`, returned without a verdict. has_verdict: whether one is on its way to the broker.
    parked_by: the limit that has it wait.

    Of the run, written by its executor only: message: what its actor was given, or will be. context: in which it is
    stepped, once it has had to wait. The ledger lets go of both when the run has ended. began: when its actor was
    called. run_ends: when its timeout ends, infinity while nobody needs to watch it. is_prepared: whether it is being
    prepared still, so that its actor is not called yet. acked_first: settled before the start. error: what it raised
    when it was cut off, if that says more than the cancellation itself. named_at: when it was last named for keeping
    its loop. All moments are in seconds on trio's clock.

    deferred: the verdict a verb gave that takes effect when the run has ended. follower: a later delivery of the same
    message that waits for the end of this run. batch: the run, if it is one of many in it.
    """

    delivery: Delivery
    runner: ActorRunner | None
    lease_ends: float
    startable_until: float
    expires_at: float = math.inf
    state: State = State.HELD
    is_ours: bool = True
    is_cancelled: bool = False
    is_kept: bool = False
    has_verdict: bool = False
    parked_by: Limit | None = None
    message: Message | None = None
    acked_first: bool = False
    is_prepared: bool = False
    context: Context | None = None
    began: float = 0.0
    run_ends: float = math.inf
    error: BaseException | None = None
    named_at: float = 0.0
    deferred: Disposition | None = None
    follower: Holding | None = None
    batch: Batch | None = None

    @property
    def phase(self) -> Phase:
        """How far its run has come."""
        if self.acked_first or (self.message is not None and self.message.is_acted_on):
            return Phase.DECIDED
        return Phase.RUNNING

    @property
    def actor_runner(self) -> ActorRunner:
        """The runner of one that runs: no other is begun."""
        assert self.runner is not None
        return self.runner

    @property
    def timeout(self) -> float:
        """Seconds that its run may take."""
        return self.actor_runner.timeout(self.delivery.envelope)

    @property
    def subject(self) -> str:
        """What it is, in words for a log."""
        return f"message {self.delivery.envelope.id!r}"

    @property
    def fields(self) -> dict[str, object]:
        """What log records about it have as `extra`."""
        return about(self.delivery, None if self.runner is None else self.runner.actor.name)


_NOTHING_YET = Delivery(Envelope("", "", b""), 1, 0, None)


class Batch(Holding, eq=False, gc=False):
    """One run of many messages, which are its `members`. It is empty until an executor begins with it.

    It has no lease: those of its members are looked at then, and their verdicts are given one by one when it ends. Of
    the fields of a holding only those of the run are its own; `is_ours` and `is_cancelled` are said of it once they are
    said of all of its members, and nothing is left for which it is worth going on. Its delivery is that of its first
    member, for logs.
    """

    members: list[Holding] = []

    @classmethod
    def of(cls, runner: ActorRunner) -> Batch:
        """An empty one."""
        return cls(_NOTHING_YET, runner, -math.inf, -math.inf)

    @property
    def is_worth_while(self) -> bool:
        """Whether the run matters still to one of its messages."""
        return any(each.is_ours and not each.is_cancelled for each in self.members)

    @property
    def phase(self) -> Phase:
        """Verdicts are its members' own."""
        return Phase.RUNNING

    @property
    def timeout(self) -> float:
        """Seconds that it may take: none of its messages runs for longer than it may."""
        timeout_of = self.actor_runner.timeout
        return min(timeout_of(each.delivery.envelope) for each in self.members)

    @property
    def subject(self) -> str:
        """What it is, in words for a log."""
        return f"a batch of {len(self.members)} messages"

    @property
    def fields(self) -> dict[str, object]:
        """What log records about it have as `extra`: of its first message, and how many there are."""
        return about(self.delivery, self.actor_runner.actor.name) | {"batch": len(self.members)}


def members_of(run: Holding) -> list[Holding]:
    """The messages of a run."""
    return run.members if isinstance(run, Batch) else [run]
