"""The worker at work. Nesting is the order of shutdown:

    connection, consumer                          close last
      upkeep: `settler`, `keeper`, `progress`, `dead_letters`
        actors: executors (`crew`, `executor`), their `timer`
          intake: `reader`, `scheduler`           cancelled first
                  `orphans`: schedules without an actor; `watching_queues`: paused ones, and those without a reader

* `worker`: `serve`, which nests all of this; `ledger`: the account of every delivery, and the report.
* `holding`: what is known of one delivery. `limits`: how many runs may go on at once, and what waits for that;
  `quarantine`: messages that must run alone.
* `actor_runners`: actors as this worker runs them, and which message goes to which. `starting`: how the run of one is
  started.
* `drive`: coroutines stepped by hand; `look_ahead`: how much is claimed ahead. `filling`: what has gathered becomes a
  batch.
* `endings`: from how a run ended to the verdicts on its messages. `message_context`: where the verbs of messages go.
  `failures`: what an actor raises; `wrong_loop`: a hint where it called the library of the other loop.
* `set_aside`, `postponed`: verdicts that wait, for room in a full queue or for their delay. `sending`: which sends wait
  for room.
* `lifespan`: what lives as long as the worker; `dead_letters`: the app's hooks for these.
* `handle`: how its owner sees and stops a worker; `signals`: how a process does. `statistics`: what it is doing.
* `backends`: functions that run elsewhere: in a thread, or in a process. `parcels`: what goes there and comes back;
  verbs come from there by `process_verbs`. `pool`: the processes, and `offspring`: what the actors there fork.
* `demands`: what the server must be able to do. `outage`: waiting for it. `vouching`: what its thread may extend while
  the loop is blocked.
"""

from .backends import LoopBackends
from .handle import Control, Handle
from .ledger import Report
from .statistics import WorkerStatistics
from .worker import AppServices, Settings, serve

__all__ = ["AppServices", "Control", "Handle", "LoopBackends", "Report", "Settings", "WorkerStatistics", "serve"]
