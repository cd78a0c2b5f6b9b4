"""The worker at work. Nesting is the order of shutdown:

    connection, consumer                          close last
      upkeep: `settler`, `keeper`, `vouching`, `progress`
        actors: executors (`crew`, `executor`), their `timer`
          intake: `reader`, `scheduler`           cancelled first

* `worker`: `serve`, which nests all of this; `ledger`: the account of every delivery, and the report.
* `holding`: what is known of one delivery. `limits`: how many runs may go on at once, and what waits for that; `quarantine`: messages that must run alone.
* `roles`: actors as this worker runs them, and which message goes to which.
* `drive`: coroutines stepped by hand; `look_ahead`: how much is claimed ahead.
* `statistics`: what a worker is doing, for its handle.
* `backends`: functions that run elsewhere: in a thread, in a process. `failures`: what an actor raises.
"""

from .backends import Elsewhere
from .ledger import Report
from .statistics import WorkerStatistics
from .worker import Handle, Outlet, Settings, serve

__all__ = ["Elsewhere", "Handle", "Outlet", "Report", "Settings", "WorkerStatistics", "serve"]
