"""What may happen to a delivery and what follows from it: pure, without I/O, clock, chance or trio.

* `lease`: `Delivery`, one lease of one envelope.
* `dispositions`: what the broker must do with a delivery.
* `events`: what may happen to one.
* `fate`: the table from the one to the other, and what an actor's words mean.
"""

from .dispositions import ACK, KEEP, Ack, DeadLetter, Disposition, Failure, Keep, Reason, Release, Retry
from .events import (
    Crowded,
    Event,
    Expired,
    LeaseExpired,
    PayloadRefused,
    Raised,
    Returned,
    Stopping,
    TimedOut,
    Unrouted,
)
from .fate import MODES, VERBS, Mode, Phase, Terms, Verb, decide, say, unrouted_delay
from .lease import Delivery, Settlement

__all__ = [
    "ACK",
    "KEEP",
    "MODES",
    "VERBS",
    "Ack",
    "Crowded",
    "DeadLetter",
    "Delivery",
    "Disposition",
    "Event",
    "Expired",
    "Failure",
    "Keep",
    "LeaseExpired",
    "Mode",
    "PayloadRefused",
    "Phase",
    "Raised",
    "Reason",
    "Release",
    "Retry",
    "Returned",
    "Settlement",
    "Stopping",
    "Terms",
    "TimedOut",
    "Unrouted",
    "Verb",
    "decide",
    "say",
    "unrouted_delay",
]
