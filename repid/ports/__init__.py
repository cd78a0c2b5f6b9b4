"""The protocols between the runtime and what it runs on.

* `broker`: `Broker` and `Consumer`, with the values that cross between them and us.
* `schedules`: the part of a broker that keeps schedules.
* `backend`: `Backend`, through which any actor runs.
"""

from .backend import Backend, Home
from .broker import (
    ANYTHING,
    REFUSED,
    SETTLED,
    AtMost,
    Broker,
    BrowsedMessage,
    Cancelled,
    Capabilities,
    Category,
    Consumer,
    Counts,
    ResultStore,
    Snapshot,
    Topics,
    Verdict,
    at_most_of,
)
from .schedules import (
    CLOCK_SLACK,
    Declaration,
    DueSchedules,
    Missed,
    Origin,
    Overlap,
    Schedule,
    ScheduleStore,
    StoredSchedule,
    TickOutcome,
)

__all__ = [
    "ANYTHING",
    "CLOCK_SLACK",
    "REFUSED",
    "SETTLED",
    "AtMost",
    "Backend",
    "Broker",
    "BrowsedMessage",
    "Cancelled",
    "Capabilities",
    "Category",
    "Consumer",
    "Counts",
    "Declaration",
    "DueSchedules",
    "Home",
    "Missed",
    "Origin",
    "Overlap",
    "ResultStore",
    "Schedule",
    "ScheduleStore",
    "Snapshot",
    "StoredSchedule",
    "TickOutcome",
    "Topics",
    "Verdict",
    "at_most_of",
]
