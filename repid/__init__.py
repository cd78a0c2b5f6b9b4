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
  `retry`, `codec`, `names`, `fields`.
* `envelope`, `errors`: values. `hosts`: the bridge to asyncio.
* `process`: its forks and its exit.
* `logs`, `tracebacks`: loggers and words for errors that cannot fail, whatever an error or a handler does.
"""

import inspect as _inspect
import types as _types
import typing as _typing

from ._version import __version__
from .actors import (
    Actor,
    ActorMiddleware,
    ActorOptions,
    CallNext,
    Router,
    RouterOptions,
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
from .job import Job, JobHandle, JobOptions, Watch
from .ports import BrowsedMessage, CallRecord, Capabilities, Counts, Instrument, LinkState, Schedule, StoredSchedule
from .producer import Outcomes, ProducerMiddleware, Publish, SendOptions
from .queue import Queue
from .recurring import Schedules
from .results import Lazy, Result, Status
from .retry import RetryPolicy, RetryPolicyT, default_retry_policy_factory, with_jitter
from .runtime import Handle, Report, WorkerStatistics
from .servers import Connection, Servers
from .worker import Worker, WorkerOptions

__all__ = [
    "Actor",
    "ActorMiddleware",
    "ActorOptions",
    "AlreadySettled",
    "BrokerError",
    "BrokerRefused",
    "BrokerUnavailable",
    "BrowsedMessage",
    "CallNext",
    "CallRecord",
    "Capabilities",
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
    "Instrument",
    "InternalError",
    "Job",
    "JobHandle",
    "JobOptions",
    "Lazy",
    "LeaseLost",
    "LinkState",
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
    "RetryPolicyT",
    "Router",
    "RouterOptions",
    "SQLiteMessageBroker",
    "SQLiteServer",
    "Schedule",
    "Schedules",
    "SendOptions",
    "Server",
    "Servers",
    "Status",
    "StoredSchedule",
    "SyncMessage",
    "UsageError",
    "Watch",
    "Worker",
    "WorkerOptions",
    "WorkerStatistics",
    "WorkersFailed",
    "__version__",
    "catch_all_routing_strategy",
    "default_retry_policy_factory",
    "topic_based_routing_strategy",
    "with_jitter",
]


def _name_as_public() -> None:
    """Let what is public say that it is `repid.X`, wherever it is written: in reprs, tracebacks, pickles, documentation.

    Annotations that are texts are read in the module that a class names, so they are resolved before.
    """
    for name in __all__:
        value = globals()[name]
        if isinstance(value, type):
            own = _inspect.get_annotations(value)
            hints = _typing.get_type_hints(value, include_extras=True) if own else {}
            value.__annotations__ = {field: hints[field] for field in own}
        if isinstance(value, type | _types.FunctionType):
            value.__module__ = __name__


_name_as_public()
