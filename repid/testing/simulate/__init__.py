"""Whole fleets in virtual time: one seed, one history.

`simulate(make, seeds)` lets a fleet of workers, a producer and callers live through one history for each seed. All of
it is the real code, over an engine that loses answers, holds calls up, restarts, and is cut off; workers are killed,
frozen and replaced. After every call the account of all messages is checked, and when all is quiet the account must add
up. A seed decides everything, so a history that fails can be seen again, byte for byte, and is made as small as it can
be.

`docs/simulate.md` shows how to test actors of your own with it.

* `plan`: what goes wrong, drawn from a seed; pure. `scenario`: the actors and their messages, as a test describes them.
* `seeding`: the seed decides the order of trio's tasks, ids, jitter and the wall clock. `freezing`: stopping a process.
* `clock`: virtual time, which notices a fleet that spins.
* `account`: where every message must be; pure. `runs`: every second run is explained; pure. `history`: what happened.
* `engine`: the memory driver behind an unreliable line. `world`: one history. `fleet`: the fleet that judges repid.
* `shrinking`: to the fewest faults and messages; pure. `simulation`: many seeds. `__main__`: the command line.
"""

from .account import Violation
from .fleet import fleet
from .plan import FAULTS, Fault, FaultKind
from .runs import RunRules
from .scenario import MakeScenario, Operation, Recurring, Scenario, Send, Step, note, running
from .simulation import BadHistory, simulate

__all__ = [
    "FAULTS",
    "BadHistory",
    "Fault",
    "FaultKind",
    "MakeScenario",
    "Operation",
    "Recurring",
    "RunRules",
    "Scenario",
    "Send",
    "Step",
    "Violation",
    "fleet",
    "note",
    "running",
    "simulate",
]
