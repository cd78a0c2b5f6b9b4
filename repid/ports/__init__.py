"""The protocols between the runtime and what it runs on.

* `broker`: `Broker` and `Consumer`: a server as the facades and the runtime see it, with the values that cross.
* `driver`: `Driver` and the roles: what one engine does, behind the front door.
* `capabilities`: what an engine claims to do, as data. `instrument`: what may watch the calls. `link`: how it stands.
* `schedules`: the part of a server that keeps schedules.
* `backend`: `Backend`, through which any actor runs.
"""

from .backend import Backend, Home
from .broker import (
    ANYTHING,
    CATEGORIES,
    REFUSED,
    SETTLED,
    UNKNOWN,
    AtMost,
    Broker,
    BrowsedMessage,
    Cancelled,
    Category,
    Consumer,
    Counts,
    LeaseEvent,
    ResultStore,
    Sight,
    Snapshot,
    Topics,
    UnderWay,
    Verdict,
    at_most_of,
)
from .capabilities import EVERYTHING, ROLES, Calls, Capabilities, Role
from .driver import (
    Claimed,
    Driver,
    FullDriver,
    News,
    QueueAdminDriver,
    ResultDriver,
    ScheduleDriver,
    SteadyDriver,
    TrackingDriver,
    WaitingDriver,
)
from .instrument import CallRecord, Instrument, Outcome
from .link import LinkState
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
    "CATEGORIES",
    "CLOCK_SLACK",
    "EVERYTHING",
    "REFUSED",
    "ROLES",
    "SETTLED",
    "UNKNOWN",
    "AtMost",
    "Backend",
    "Broker",
    "BrowsedMessage",
    "CallRecord",
    "Calls",
    "Cancelled",
    "Capabilities",
    "Category",
    "Claimed",
    "Consumer",
    "Counts",
    "Declaration",
    "Driver",
    "DueSchedules",
    "FullDriver",
    "Home",
    "Instrument",
    "LeaseEvent",
    "LinkState",
    "Missed",
    "News",
    "Origin",
    "Outcome",
    "Overlap",
    "QueueAdminDriver",
    "ResultDriver",
    "ResultStore",
    "Role",
    "Schedule",
    "ScheduleDriver",
    "ScheduleStore",
    "Sight",
    "Snapshot",
    "SteadyDriver",
    "StoredSchedule",
    "TickOutcome",
    "Topics",
    "TrackingDriver",
    "UnderWay",
    "Verdict",
    "WaitingDriver",
    "at_most_of",
]
