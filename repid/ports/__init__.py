"""The protocols between the runtime and what it runs on.

* `broker`: `Broker` and `Consumer`, with the values that cross between them and us.
* `backend`: `Backend`, through which any actor runs.
"""

from .backend import Backend
from .broker import (
    REFUSED,
    SETTLED,
    Broker,
    BrowsedMessage,
    Capabilities,
    Category,
    Consumer,
    Counts,
    Topics,
    Verdict,
)

__all__ = [
    "REFUSED",
    "SETTLED",
    "Backend",
    "Broker",
    "BrowsedMessage",
    "Capabilities",
    "Category",
    "Consumer",
    "Counts",
    "Topics",
    "Verdict",
]
