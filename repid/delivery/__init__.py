"""What may happen to a delivery and what follows from it: pure, without I/O, clock, chance or trio.

* `lease`: `Delivery`, one lease of one envelope.
* `events`: what may happen to a delivery. `dispositions`: what the broker must do with it then.
* `fate`: the table from events to dispositions, and what an actor's words mean.
* `shelf`: the rules for a stored message: where it goes, and when it comes to its end. Brokers import it by its name.
* `bounds`: what a bounded queue has room for. `blame`: whose fault a lost lease is.
* `results`: what is stored of a message that has come to its end, and on the way there.
* `dead`: a message that has become a dead letter, as hooks are told of it.
"""

from .blame import MOST_LOST, SUSPECT_FROM, is_poison, is_survived, is_suspect, poison_failure
from .bounds import UNBOUNDED, WHEN_FULL, Bounds, WhenFull, ever_fits, has_room, is_over, refusal
from .dead import DeadLetterHook, DeadMessage
from .dispositions import ACK, KEEP, Ack, Cancel, DeadLetter, Disposition, Failure, Keep, Reason, Release, Retry
from .events import (
    CancelRequested,
    Crowded,
    Event,
    Expired,
    LeaseExpired,
    PayloadRefused,
    Raised,
    Returned,
    Starting,
    Stopping,
    TimedOut,
    Unrouted,
)
from .fate import (
    MODES,
    ON_PLAIN_RETURN,
    VERBS,
    Mode,
    Phase,
    Terms,
    Verb,
    decide,
    disposition_for,
    disposition_on,
    unless_cancelled,
    unrouted_delay,
    with_failure,
)
from .lease import Delivery, Settlement, Token
from .results import DAY, NewResult, Progress, ResultState, StoredResult, make_result

__all__ = [
    "ACK",
    "DAY",
    "KEEP",
    "MODES",
    "MOST_LOST",
    "ON_PLAIN_RETURN",
    "SUSPECT_FROM",
    "UNBOUNDED",
    "VERBS",
    "WHEN_FULL",
    "Ack",
    "Bounds",
    "Cancel",
    "CancelRequested",
    "Crowded",
    "DeadLetter",
    "DeadLetterHook",
    "DeadMessage",
    "Delivery",
    "Disposition",
    "Event",
    "Expired",
    "Failure",
    "Keep",
    "LeaseExpired",
    "Mode",
    "NewResult",
    "PayloadRefused",
    "Phase",
    "Progress",
    "Raised",
    "Reason",
    "Release",
    "ResultState",
    "Retry",
    "Returned",
    "Settlement",
    "Starting",
    "Stopping",
    "StoredResult",
    "Terms",
    "TimedOut",
    "Token",
    "Unrouted",
    "Verb",
    "WhenFull",
    "decide",
    "disposition_for",
    "disposition_on",
    "ever_fits",
    "has_room",
    "is_over",
    "is_poison",
    "is_survived",
    "is_suspect",
    "make_result",
    "poison_failure",
    "refusal",
    "unless_cancelled",
    "unrouted_delay",
    "with_failure",
]
