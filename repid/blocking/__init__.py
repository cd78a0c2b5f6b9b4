"""Repid for blocking callers: a client whose calls go to the trio run that has the app open, or to one of its own.

* `client`: `Client`, what belongs to the thread that calls.
* `loop`: what belongs to the run. A call goes over to it and comes back as a future; nothing else crosses.
* `may_block`: where a call is refused, because it would wait for ever.
"""

from .client import BlockingApplication, Client
from .loop import CLOSING_TIME
from .may_block import check_may_block

__all__ = ["CLOSING_TIME", "BlockingApplication", "Client", "check_may_block"]
