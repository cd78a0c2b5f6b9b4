"""repid: an actor-model job runtime on structured concurrency.

The map, from the edge inwards; each layer imports only from those below it:

* `cli`: the commands of `python -m repid`.
* `app`: `Repid`, the composition root; `servers`: its brokers by name.
* `blocking`: a client for callers that block. `supervisor`: workers in processes of their own.
* `worker`, `job`, `queue`, `results`, `recurring`: what people declare, run and ask about.
* `runtime`: a worker at work. `brokers`: where messages wait. Neither sees the other.
* `actors`: functions with a policy; `Router` collects them.
* `inject`: from a signature to arguments; `Message` and `SyncMessage`, the handles an actor gets; `Depends`.
* `producer`: sending. `schedule`: when schedules tick, and what declaring one changes; pure. `ports`: the protocols of
  brokers and backends.
* `delivery`: what may happen to a message and what follows; pure. `cron`: the times of cron expressions; pure.
  `retry`, `codec`, `names`.
* `envelope`, `errors`: values. `hosts`: the bridge to asyncio.
* `process`: its forks and its exit.
* `logs`, `tracebacks`: loggers and words for errors that cannot fail, whatever an error or a handler does.
"""

from ._version import __version__
from .actors import (
    Actor,
    ActorMiddleware,
    CallNext,
    Router,
    catch_all_routing_strategy,
    topic_based_routing_strategy,
)
from .app import Repid
from .blocking import Client
from .brokers import InMemoryMessageBroker, InMemoryServer, Server, SQLiteMessageBroker, SQLiteServer
from .delivery import Failure
from .envelope import Envelope, PrioritiesT
from .errors import (
    AlreadySettled,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    DuplicateId,
    InternalError,
    LeaseLost,
    MissingExtra,
    NoAnswer,
    NoCurrentApp,
    NotConnected,
    NotSupported,
    PayloadError,
    PublishUnknown,
    QueueNotDeclared,
    RepidError,
    ResultError,
    UsageError,
    WorkersFailed,
)
from .inject import Depends, Message, SyncMessage
from .job import Job, JobHandle, Watch
from .ports import BrowsedMessage, Counts, Schedule, StoredSchedule
from .producer import Outcomes, ProducerMiddleware, Publish
from .queue import Queue
from .recurring import Schedules
from .results import Lazy, Result, Status
from .retry import RetryPolicy, default_retry_policy_factory, with_jitter
from .runtime import Handle, Report
from .servers import Connection
from .worker import Worker

__all__ = [
    "Actor",
    "ActorMiddleware",
    "AlreadySettled",
    "BrokerError",
    "BrokerRefused",
    "BrokerUnavailable",
    "BrowsedMessage",
    "CallNext",
    "Client",
    "ConfigurationError",
    "Connection",
    "Counts",
    "Depends",
    "DuplicateId",
    "Envelope",
    "Failure",
    "Handle",
    "InMemoryMessageBroker",
    "InMemoryServer",
    "InternalError",
    "Job",
    "JobHandle",
    "Lazy",
    "LeaseLost",
    "Message",
    "MissingExtra",
    "NoAnswer",
    "NoCurrentApp",
    "NotConnected",
    "NotSupported",
    "Outcomes",
    "PayloadError",
    "PrioritiesT",
    "ProducerMiddleware",
    "Publish",
    "PublishUnknown",
    "Queue",
    "QueueNotDeclared",
    "Repid",
    "RepidError",
    "Report",
    "Result",
    "ResultError",
    "RetryPolicy",
    "Router",
    "SQLiteMessageBroker",
    "SQLiteServer",
    "Schedule",
    "Schedules",
    "Server",
    "Status",
    "StoredSchedule",
    "SyncMessage",
    "UsageError",
    "Watch",
    "Worker",
    "WorkersFailed",
    "__version__",
    "catch_all_routing_strategy",
    "default_retry_policy_factory",
    "topic_based_routing_strategy",
    "with_jitter",
]
