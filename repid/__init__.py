"""repid: an actor-model job runtime on structured concurrency.

The map, from the edge inwards; each layer imports only from those below it:

* `contrib`: repid within other frameworks, each with an extra of its own: `contrib.django`, a backend for Django's
  tasks.
* `cli`: the commands of `python -m repid`. `pytest_plugin`: fixtures for tests of an app; `testing` is what they give.
* `app`: `Repid`, the composition root; `servers`: its brokers by name.
* `blocking`: a client for callers that block. `supervisor`: workers in processes of their own.
* `app_calls`: what an app adds to calls: jobs from functions, and waiting for values.
* `mapping`, `gathering`: many calls at once, and many results. `worker`, `job`, `queue`, `recurring`: what people
  declare and run.
* `moving`: all that waits, from one server to another. `application`: what a facade needs of an app, and which app is
  meant where none is given.
* `runtime`: a worker at work. `brokers`: where messages wait. Neither sees the other.
* `actors`: functions with a policy; `Router` collects them.
* `inject`: from a signature to arguments; `Message` and `SyncMessage`, the handles an actor gets; `Depends`.
* `calls`, `sync_calls`: enqueueing by the function itself. `handle`, `sync_handle`, `results`: what was enqueued, and
  what became of it.
* `producer`: sending. `schedule`: when schedules tick, and what declaring one changes; pure. `ports`: the protocols of
  brokers and backends.
* `delivery`: what may happen to a message and what follows; pure. `cron`: the times of cron expressions; pure.
  `retry`, `codec`, `names`, `fields`. `waiting_threads`: those of a worker that wait for jobs. `may_block`: where a
  call that blocks is refused.
* `hosts`: the bridge to asyncio. `envelope`, `errors`: values.
* `process`: its forks and its exit.
* `ctrl_c`: which `KeyboardInterrupt` is a real one.
* `run_token`: calls from anywhere into a trio run that may have ended.
* `logs`, `tracebacks`: loggers and words for errors that cannot fail, whatever an error or a handler does.
"""

import importlib as _importlib
import inspect as _inspect
import types as _types
import typing as _typing

from ._version import __version__
from .actors import (
    Actor,
    ActorMiddleware,
    ActorOptions,
    BatchOptions,
    CallNext,
    Router,
    RouterOptions,
    catch_all_routing_strategy,
    topic_based_routing_strategy,
)
from .app import Repid
from .app_calls import AppCallOptions, AppUsing
from .brokers import InMemoryMessageBroker, InMemoryServer, Server
from .calls import BatchActor, CallOptions, Using, UsingOptions
from .delivery import Bounds, DeadMessage, Failure
from .envelope import Envelope, PrioritiesT
from .errors import (
    AlreadySettled,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    DuplicateId,
    InternalError,
    JobFailed,
    LeaseLost,
    LifespanError,
    MissingExtra,
    NoAnswer,
    NoCurrentApp,
    NotConnected,
    NotSupported,
    PayloadError,
    ProcessDied,
    PublishUnknown,
    QueueFull,
    QueueNotDeclared,
    RepidError,
    ResultError,
    SomeRefused,
    UsageError,
    WorkersFailed,
)
from .handle import JobHandle, Watch
from .inject import INJECTED, Depends, Header, Message, Outbox, Payload, SyncMessage, SyncOutbox
from .job import Job, JobOptions
from .logs import log_context
from .mapping import Map
from .ports import BrowsedMessage, CallRecord, Capabilities, Counts, Instrument, LinkState, Schedule, StoredSchedule
from .producer import Outcomes, ProducerMiddleware, Publish, SendOptions
from .queue import Queue, QueueStatus
from .recurring import Schedules
from .results import Lazy, Result, Status
from .retry import RetryPolicy, RetryPolicyT, default_retry_policy_factory, with_jitter
from .runtime import Handle, Report, WorkerStatistics
from .servers import Connection, Servers
from .sync_calls import SyncUsing
from .sync_handle import SyncJobHandle
from .worker import Worker, WorkerOptions

if _typing.TYPE_CHECKING:
    from .blocking import Client, ClientUsing, SyncMap
    from .brokers import SQLiteMessageBroker, SQLiteServer
    from .brokers.postgres import PostgresServer as PostgresServer
    from .brokers.redis import RedisServer as RedisServer

__all__ = [
    "INJECTED",
    "Actor",
    "ActorMiddleware",
    "ActorOptions",
    "AlreadySettled",
    "AppCallOptions",
    "AppUsing",
    "BatchActor",
    "BatchOptions",
    "Bounds",
    "BrokerError",
    "BrokerRefused",
    "BrokerUnavailable",
    "BrowsedMessage",
    "CallNext",
    "CallOptions",
    "CallRecord",
    "Capabilities",
    "Client",
    "ClientUsing",
    "ConfigurationError",
    "Connection",
    "Counts",
    "DeadMessage",
    "Depends",
    "DuplicateId",
    "Envelope",
    "Failure",
    "Handle",
    "Header",
    "InMemoryMessageBroker",
    "InMemoryServer",
    "Instrument",
    "InternalError",
    "Job",
    "JobFailed",
    "JobHandle",
    "JobOptions",
    "Lazy",
    "LeaseLost",
    "LifespanError",
    "LinkState",
    "Map",
    "Message",
    "MissingExtra",
    "NoAnswer",
    "NoCurrentApp",
    "NotConnected",
    "NotSupported",
    "Outbox",
    "Outcomes",
    "Payload",
    "PayloadError",
    "PrioritiesT",
    "ProcessDied",
    "ProducerMiddleware",
    "Publish",
    "PublishUnknown",
    "Queue",
    "QueueFull",
    "QueueNotDeclared",
    "QueueStatus",
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
    "SomeRefused",
    "Status",
    "StoredSchedule",
    "SyncJobHandle",
    "SyncMap",
    "SyncMessage",
    "SyncOutbox",
    "SyncUsing",
    "UsageError",
    "Using",
    "UsingOptions",
    "Watch",
    "Worker",
    "WorkerOptions",
    "WorkerStatistics",
    "WorkersFailed",
    "__version__",
    "catch_all_routing_strategy",
    "default_retry_policy_factory",
    "log_context",
    "topic_based_routing_strategy",
    "with_jitter",
]


_AT_FIRST_USE = {
    "Client": "repid.blocking",
    "ClientUsing": "repid.blocking",
    "SyncMap": "repid.blocking",
    "PostgresServer": "repid.brokers.postgres",
    "RedisServer": "repid.brokers.redis",
    "SQLiteMessageBroker": "repid.brokers.sqlite",
    "SQLiteServer": "repid.brokers.sqlite",
}
"""Public names whose modules are loaded when they are asked for: most programs use none or one of them.

A star import asks for all that `__all__` names, so it leaves out what needs an extra.
"""


if not _typing.TYPE_CHECKING:  # a checker that saw it would accept every misspelt name

    def __getattr__(name: str) -> object:
        if name not in _AT_FIRST_USE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(_importlib.import_module(_AT_FIRST_USE[name]), name)
        _name_as_public(found, __name__)
        globals()[name] = found
        return found


def _name_as_public(value: object, module: str) -> None:
    """Let what is public say that it is `repid.X` or `repid.testing.X`, wherever it is written: in reprs, tracebacks,
    pickles, documentation.

    Annotations that are texts are read in the module that a class names, so they are resolved before. Those of a
    `TypedDict` are no texts: each knows its module.
    """
    if isinstance(value, type) and not _typing.is_typeddict(value):
        value.__annotations__ = _inspect.get_annotations(value, eval_str=True)
    if isinstance(value, type | _types.FunctionType):
        value.__module__ = module


for _name in set(__all__).difference(_AT_FIRST_USE):
    _name_as_public(globals()[_name], __name__)
