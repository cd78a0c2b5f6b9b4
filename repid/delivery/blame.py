"""Whose fault a lost lease is.

A lease that ends without a verdict ends together with all that its worker held: the process was killed, or its event
loop was blocked. It is not known which of these messages was the cause, and most of them are innocent. So:

* A message that was lost twice is a *suspect*. It is leased only to a worker that holds nothing else, as the only one,
  and that worker claims nothing else until its verdict is settled. Innocent suspects end well then, each on its own.
* A message that was lost ten times is dead as poison. Eight of these times it was a suspect, so nothing else was held
  that could have been the cause.
* A settlement that says `survived` makes the count 0 again: a run of the message has ended, and its worker lives.

Counting only runs that had begun was considered. It needs a mark for each start, and does not help the neighbours that
run beside the cause, in other threads or tasks.
"""

from __future__ import annotations

from .dispositions import Failure
from .events import Event, Stopping

SUSPECT_FROM = 2
"""Lost leases that make a message a suspect."""

MOST_LOST = 10
"""Lost leases that make a message poison."""


def is_suspect(lost: int) -> bool:
    """Whether a message that was lost so often must be leased alone."""
    return lost >= SUSPECT_FROM


def is_poison(lost: int) -> bool:
    """Whether a message that was lost so often is dead."""
    return lost >= MOST_LOST


def is_survived(lost: int, event: Event | None = None) -> bool:
    """Whether a verdict forgives that a message was lost so often: a run of it has ended, and its worker lives.

    `event`: what ended the run; None: its actor gave the verdict itself. A run that was cut short because its worker
    stops proves nothing.
    """
    return lost > 0 and not isinstance(event, Stopping)


def poison_failure(lost: int, worker: str, held_for: float, since_first: float) -> Failure:
    """What is known of the end of a message: who leased it last, how long before its end, and when it was suspected.

    Times are in seconds. `since_first`: since the message became a suspect.
    """
    return Failure(
        "WorkerLost",
        f"{lost} leases of this message ended without a verdict, the last {lost - SUSPECT_FROM} while its worker held "
        f"nothing else and within {since_first:.1f} s: it seems to kill its worker, or to block the event loop. The "
        f"last one was leased by {worker}, {held_for:.1f} s before it was given up",
    )
