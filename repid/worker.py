"""The worker as people use it: a router that runs."""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypedDict, Unpack

import msgspec
import trio

from .actors import Actor, Callees, Router, overridden, without_namesakes
from .actors.options import DEFAULTS, inherit
from .application import (
    Application,
    check_app,
    find_app,
    open_apps,
    publisher,
    schedules_of,
    stores,
    through_middlewares,
)
from .brokers.shared.ticking import tick_elsewhere
from .calls import Callee
from .errors import ConfigurationError, MissingExtra
from .fields import Field
from .hosts import MissingTrioAsyncioError, crossing, host_backend, hosted_start, on_long_step, open_asyncio
from .inject import GivenValues
from .logs import Log
from .names import check_count, check_duration, check_flag, check_iterable, check_known, show_options
from .ports import Broker
from .producer import check_compares_ids
from .runtime import AppServices, Control, Handle, LoopBackends, Report, Settings, serve
from .runtime.backends import IN_TASK
from .runtime.lifespan import open_lifespan
from .runtime.scheduler import Scheduling
from .runtime.signals import can_listen
from .runtime.statistics import statistics_of

log = Log("repid.worker")

DEFAULT_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerOptions(TypedDict, total=False):
    """How a worker works.

    graceful_shutdown_time: how long actors may go on after a stop, seconds or timedelta. Default 25: Kubernetes
        kills after 30.
    messages_limit: how many runs are started, exactly, before it stops; like any stop, that gives them the grace. What
        became a dead letter or was cancelled without a run counts, too: a payload that does not fit, say. Default: no
        limit.
    tasks_limit: how many runs there may be at once. Default 1000.
    threads_limit: how many of them in threads, where sync actors run. Default: what trio's own limiter allows, 40.
        A sync actor that waits for another message's result keeps its thread: if all threads wait for messages that
        need one, none of them ends before its timeout. Let an async actor do the waiting, or have another worker run
        the others.
    processes_limit: how many of them in processes, for actors with `run_in_process`. Default: one for each core.
    claim_bytes: how many bytes of payload the messages may have that a worker holds at one time. A message bigger than
        what is left is taken when half of it is free. Default 64 MiB.
    handle_signals: the first one stops, the second one ends the grace, the third one the process. Default: SIGINT and
        SIGTERM where the worker runs in the main thread and was not started into a nursery; else none.
    auto_declare: declare the queues of the actors. Default True.
    burst: return when nothing is ready and nothing is running; what is scheduled does not count. A server that is away
        for 30 seconds while nothing is running raises `BrokerUnavailable`; without burst it is waited for. Default
        False.
    log_runs: log a line for each run, at INFO. Default: at DEBUG, if that level is enabled when the worker starts. Its
        `extra` fields are message_id, actor, queue, attempt, duration in seconds, and fate; `repid.log_context()` gives
        the first four in every run then, for filters of records that actors log.
    """

    graceful_shutdown_time: float | timedelta
    messages_limit: float
    tasks_limit: int
    threads_limit: float
    processes_limit: float
    claim_bytes: float
    handle_signals: Iterable[signal.Signals] | None
    auto_declare: bool
    burst: bool
    log_runs: bool


class Worker(Router):
    """Runs actors: its own (`@worker.actor`) and those of its routers, on the default server of its app.

    Of two with one channel and name the first gets the messages (see `Router`). Without `app=`, the app is the one
    whose `magic()` block encloses `run()`. Options as in `WorkerOptions`. Raises `ConfigurationError` for bad ones.
    Each option can be read as a field, with its default where it was not given, and not assigned.
    """

    __slots__ = ("_app", "_controls", "_options", "_settings")

    graceful_shutdown_time = Field[float](lambda worker: worker._settings.graceful_shutdown_time)  # noqa: SLF001
    messages_limit = Field[float](lambda worker: worker._settings.messages_limit)  # noqa: SLF001
    tasks_limit = Field[int](lambda worker: worker._settings.tasks_limit)  # noqa: SLF001
    threads_limit = Field[float | None](lambda worker: worker._settings.threads_limit)  # noqa: SLF001
    processes_limit = Field[float | None](lambda worker: worker._settings.processes_limit)  # noqa: SLF001
    claim_bytes = Field[float](lambda worker: worker._settings.claim_bytes)  # noqa: SLF001
    auto_declare = Field[bool](lambda worker: worker._settings.auto_declare)  # noqa: SLF001
    burst = Field[bool](lambda worker: worker._settings.burst)  # noqa: SLF001
    log_runs = Field[bool](lambda worker: worker._settings.log_runs)  # noqa: SLF001
    handle_signals = Field[tuple[signal.Signals, ...]](lambda worker: worker._signals())  # noqa: SLF001
    app = Field[Application | None](lambda worker: worker._app)  # noqa: SLF001

    def __init__(
        self, routers: Sequence[Router] = (), *, app: Application | None = None, **options: Unpack[WorkerOptions]
    ) -> None:
        super().__init__()
        self._app = check_app("the worker", app)
        signals: Any = options.get("handle_signals")
        if isinstance(signals, Iterable):
            options["handle_signals"] = tuple(signals)  # each run reads them
        self._options = options
        self._settings = make_settings(options, embedded=False)  # complains now rather than later
        self._controls: list[Control] = []
        check_iterable("routers of a worker", routers)
        for router in routers:
            self.include_router(router)

    def __repr__(self) -> str:
        return f"Worker({show_options(self._options)})"

    def _signals(self) -> tuple[signal.Signals, ...]:
        wanted = self._options.get("handle_signals")
        return DEFAULT_SIGNALS if wanted is None else tuple(wanted)

    def actors(self) -> list[Actor]:
        """Every actor, in the order of declaration, with what it inherits filled in."""
        return self._actors_under(())

    def stop(self) -> None:
        """Stop every run of it gracefully; `run()` returns when it is done. Without one in progress: nothing
        happens.
        """
        for control in self._controls:
            control.stop()

    def drain(self) -> None:
        """Make the rest of every run of it a burst, as `Handle.drain`. Without one in progress: nothing happens."""
        for control in self._controls:
            control.drain()

    @hosted_start
    async def run(self, *, task_status: trio.TaskStatus[Handle] = trio.TASK_STATUS_IGNORED) -> Report:
        """Work until stopped, cancelled, or done (`messages_limit`, `burst`); what was done is returned.

        When this returns or raises, nothing of the worker is running any more. Without actors it returns at once, and
        raises `ConfigurationError` if the app has some. A server that is not available at the start is waited for, as
        it is later; the log says so once.

        Cancelling skips the grace: runs in progress are cancelled and released. With `nursery.start(worker.run)` the
        start is over when the worker really consumes; it gives a `Handle` with `stop()`, `statistics()` and `wait()`.
        """
        app = find_app(self._app, "the worker")
        actors = self._actors_under(app.middlewares)
        if not actors and app.queues():
            raise ConfigurationError(
                "the worker has no actors, and those of its app are run by app.run_worker(): call that, or give the "
                "worker the routers whose actors it shall run, Worker(routers=[...])"
            )
        control = Control()
        self._controls.append(control)
        try:
            return await run_actors(app, app.server(), actors, self._options, control, task_status)
        finally:
            self._controls.remove(control)

    def _actors_under(self, middlewares: Sequence[Any]) -> list[Actor]:
        inherited = inherit(DEFAULTS, {"middlewares": tuple(middlewares)})
        return list(self._resolve(inherited))


async def run_actors(
    app: Application,
    broker: Broker,
    actors: Sequence[Actor],
    options: WorkerOptions,
    control: Control,
    task_status: trio.TaskStatus[Handle],
    given: GivenValues = (),
) -> Report:
    """Run these actors on this broker until they are stopped or done. `given`: what is open already of what
    they share.
    """
    settings = make_settings(options, embedded=task_status is not trio.TASK_STATUS_IGNORED)
    control.read_statistics = lambda: statistics_of(broker)
    control.wait_for_end = crossing(control.has_ended.wait)
    try:
        report = await _run_actors(app, broker, without_namesakes(actors), settings, control, task_status, given)
    finally:
        control.end()
    log.info("the worker has ended: %s", report.in_words())
    return report


async def _run_actors(
    app: Application,
    broker: Broker,
    actors: Sequence[Actor],
    settings: Settings,
    control: Control,
    task_status: trio.TaskStatus[Handle],
    given: GivenValues,
) -> Report:
    if not actors:
        log.warning("the worker has no actors, so it ends at once: add them to its app with app.include_router(router)")
        task_status.started(control.handle)
        await trio.lowlevel.checkpoint()
        return Report()
    own = publisher(app, broker, declare=True)

    def publisher_to(server_name: str | None, named: bool) -> Any:
        there = broker if server_name is None else app.server(server_name)
        if named:
            check_compares_ids(there)
        return own if there is broker else publisher(app, there, declare=True)

    exchange = _WorkerExchange(app, broker, actors)
    services = AppServices(
        publisher_to,
        partial(through_middlewares, app),
        exchange,
        app.result_store,
        _scheduling(app, broker),
        stores(app),
        app.dead_letter_hooks,
    )
    actors = [overridden(actor, app.overrides) for actor in actors]
    control.on_started = partial(task_status.started, control.handle)
    lifespan = partial(open_lifespan, app.lifespans, actors, given=given)
    async with _loop_backends(actors) as loop_backends:
        with open_apps.entered(app):  # for the actors: each finds the app of its worker
            return await serve(broker, actors, services, settings, control, loop_backends, lifespan)


def _scheduling(app: Application, broker: Broker) -> Scheduling | None:
    store = schedules_of(app, broker)
    if store is None:
        return None
    return Scheduling(store, broker.tick if store is broker else partial(tick_elsewhere, broker, store))


class _WorkerExchange:
    """Where calls go that actors of a worker make: to its own server, for its own actors and those of its app."""

    def __init__(self, app: Application, broker: Broker, actors: Sequence[Actor]) -> None:
        self._app = app
        self._broker = broker
        self._callees = Callees(lambda: actors, lambda: len(actors))
        self.result_store = app.result_store

    def server(self, server_name: str | None = None) -> Broker:
        return self._broker if server_name is None else self._app.server(server_name)

    def callee(self, function: Callable[..., Any]) -> Callee:
        return self._callees.find(function) or self._app.callee(function)


@asynccontextmanager
async def _loop_backends(actors: Iterable[Actor]) -> AsyncIterator[LoopBackends]:
    """Where async actors run if not in trio: on the host's loop, if that is asyncio's; else on one made for those
    that say backend="asyncio".
    """
    host = host_backend()
    if host is not None:
        yield LoopBackends({"host": host, "asyncio": host}, host, on_long_step)
    elif any(actor.is_async and actor.backend == "asyncio" for actor in actors):
        try:
            loop = open_asyncio()
        except MissingTrioAsyncioError:
            raise MissingExtra('backend="asyncio"', "asyncio") from None
        async with loop as tasks:
            yield LoopBackends({"asyncio": tasks}, on_long_step=on_long_step)
    else:
        yield IN_TASK


def _optional_count(name: str, value: float | None) -> float | None:
    return None if value is None else check_count(name, value, least=1)


_OF_PROCESSES = "it is for whole processes: python -m repid worker MODULE:APP --{}, or app.run({}), which blocks"

_ELSEWHERE = {
    "processes": _OF_PROCESSES.format("processes 4", "processes=4"),
    "workers": _OF_PROCESSES.format("processes 4", "processes=4"),
    "max_jobs": _OF_PROCESSES.format("max-jobs 10000", "max_jobs=10000"),
    "max_memory": _OF_PROCESSES.format("max-memory 512MB", "max_memory=512 * 2**20"),
    "reload": _OF_PROCESSES.format("reload", "reload=True"),
    "loop": _OF_PROCESSES.format("loop asyncio", 'loop="asyncio"'),
    "concurrency": "a worker runs at most tasks_limit=… at once, and an actor its concurrency=… in each worker",
    "server": "name a registered server with app.run_worker(server_name=…)",
    "queues": "a worker reads the queues of its actors: give it others with Worker(routers=[…])",
}
"""What people take for options of a worker, and what to do instead."""


def make_settings(options: WorkerOptions, *, embedded: bool) -> Settings:
    """The settings that follow from the options. Raises `ConfigurationError` naming the one that is wrong."""
    check_known("a worker", options, WorkerOptions.__annotations__, _ELSEWHERE)
    given: dict[str, Any] = {**msgspec.structs.asdict(Settings()), **options}
    tasks_limit = check_count("tasks_limit", given["tasks_limit"], least=1)
    if tasks_limit == math.inf:
        raise ConfigurationError("tasks_limit must be finite: every run takes memory")
    wanted = options.get("handle_signals")
    if wanted is None:
        wanted = DEFAULT_SIGNALS if can_listen() and not embedded else ()
    check_iterable("handle_signals", wanted)
    wanted = tuple(dict.fromkeys(wanted))  # one given twice would count twice when it comes
    for number in wanted:
        if not isinstance(number, signal.Signals):
            raise ConfigurationError(f"handle_signals must be signals such as signal.SIGTERM, but hold {number!r}")
        if number.name in {"SIGKILL", "SIGSTOP"}:
            raise ConfigurationError(f"handle_signals hold {number.name}, which no program can handle: leave it out")
    return Settings(
        graceful_shutdown_time=check_duration("graceful_shutdown_time", given["graceful_shutdown_time"]),
        messages_limit=check_count("messages_limit", given["messages_limit"]),
        tasks_limit=int(tasks_limit),
        threads_limit=_optional_count("threads_limit", given["threads_limit"]),
        processes_limit=_optional_count("processes_limit", given["processes_limit"]),
        claim_bytes=check_count("claim_bytes", given["claim_bytes"], least=1),
        signals=wanted,
        auto_declare=check_flag("auto_declare", given["auto_declare"]),
        burst=check_flag("burst", given["burst"]),
        log_runs=check_flag("log_runs", given["log_runs"]),
    )
