"""The worker at work. Nesting is the order of shutdown:

    connection, consumer                          close last
      upkeep: `settler`, `keeper`, `vouching`, `progress`
        actors: executors (`crew`, `executor`), their `timer`
          intake: `reader`, `scheduler`           cancelled first
                  `orphans`: schedules without an actor; `unread`: queues without a reader

* `worker`: `serve`, which nests all of this; `ledger`: the account of every delivery, and the report.
* `holding`: what is known of one delivery. `limits`: how many runs may go on at once, and what waits for that;
  `quarantine`: messages that must run alone.
* `actor_runners`: actors as this worker runs them, and which message goes to which.
* `drive`: coroutines stepped by hand; `look_ahead`: how much is claimed ahead. `filling`: what has gathered becomes a
  batch.
* `endings`: from how a run ended to the verdicts on its messages. `verbs`: where those of messages go.
* `lifespan`: what lives as long as the worker; `dead_letters`: the app's hooks for these.
* `handle`: how its owner sees and stops a worker. `statistics`: what it is doing.
* `backends`: functions that run elsewhere: in a thread, in a process, whose messages' verbs come by `process_verbs`.
  `failures`: what an actor raises.
"""

from .backends import LoopBackends
from .handle import Control, Handle
from .ledger import Report
from .statistics import WorkerStatistics
from .worker import AppServices, Settings, serve

__all__ = ["AppServices", "Control", "Handle", "LoopBackends", "Report", "Settings", "WorkerStatistics", "serve"]
