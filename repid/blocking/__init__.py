"""Repid for blocking callers: a client whose calls go to the trio run that has the app open, or to one of its own.

* `client`: `Client`, what belongs to the thread that calls.
* `calls`: its verbs that call actors; `mapping`: many calls, and their results in a loop.
* `loop`: what belongs to the run. A call goes over to it and comes back as a future; nothing else crosses.
"""

from .calls import ClientUsing
from .client import Client
from .mapping import SyncMap

__all__ = ["Client", "ClientUsing", "SyncMap"]
