"""Many worker processes, and the one that looks after them.

* `running`: `run_app`, which runs a worker here or has it run by a supervisor.
* `supervisor`: starts, replaces and stops processes. `restarts`: when, and when to give up; pure.
* `process`: one process as the supervisor sees it. `child`: the same from inside.
* `orphan`: how a process that is stuck ends after its supervisor was killed.
* `target`: how another process finds the app. `memory`: how much this one takes. `collector`: Python's garbage
  collector in a process that only runs jobs.

The supervisor holds one end of a pipe to each process: what it says travels there (`stop`, `cut`), and its end says
that the supervisor is no more. So a process does not have to guess what a signal means: one that came to it and to the
supervisor alike, as Ctrl-C and systemd's do, still stops it just once.
"""

from .running import ProcessOptions, run_app
from .target import failure_of_import, load_app, load_object

__all__ = ["ProcessOptions", "failure_of_import", "load_app", "load_object", "run_app"]
