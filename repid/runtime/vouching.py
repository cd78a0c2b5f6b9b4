"""What a worker is working on, told to an engine whose own thread extends leases while the event loop is blocked.

An actor that blocks the loop keeps the keeper from extending leases: its own, and those of all runs beside it. The
engine's thread does it then. It must not keep alive what nobody works on any more, so:

* A run is vouched for until its timeout ends. After that others may have its message, whatever it does.
* What has ended and waits for the loop to settle it is vouched for as long as any run is: one of them blocks the loop.
* What is held and was not started is not: others may run it sooner.
* A lease is named only when its keeper is late by one round: while all is well the engine has nothing to do.
* A process that is frozen as a whole loses its leases, since the engine's thread is frozen too.

It is called from that other thread: it only reads, in single steps, and what it finds may be old by one step.
"""

from __future__ import annotations

from ..delivery import Token
from .crew import Crew

IN_DANGER = 0.5
"""A lease of which less than this part is left: its keeper should have extended it twice by now."""


class Voucher:
    """Says which leases of one worker are to be extended, and for how long. Made in the trio run of the worker."""

    def __init__(self, crew: Crew, lease_timeout: float) -> None:
        self._crew = crew
        self._holdings = crew.ledger.holdings
        self._margin = IN_DANGER * lease_timeout

    def __call__(self) -> dict[Token, float]:
        """The tokens of the leases in danger, each with the seconds for which it may be extended at most."""
        crew, now = self._crew, self._crew.clock.current_time()
        presents = [present for executor in list(crew.executors) for present in executor.present]
        left = {delivery: deadline - now for delivery, deadline in presents if deadline > now}
        longest = max(left.values(), default=0.0)
        if longest > 0:
            left.update(dict.fromkeys([*crew.settler.handed_over, *crew.kept], longest))
        horizon = now + self._margin
        return {
            delivery.token: seconds
            for delivery, seconds in left.items()
            if (holding := self._holdings.get(delivery)) is not None and holding.lease_ends < horizon
        }
