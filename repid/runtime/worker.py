"""One worker, from its first connection to its report."""

from __future__ import annotations

import contextvars
import logging
import math
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial

import msgspec
import trio

from ..actors import Actor, bounds_of, overridden
from ..calls import Exchange
from ..delivery import DeadLetterHook
from ..inject import GivenValues
from ..logs import Log
from ..ports import Broker, Consumer, HostBackend, ResultStore, name_of, where
from ..producer import Publish, Publisher
from ..tracebacks import unwrapped
from .actor_runners import ActorRunners
from .backends import LoopBackends, open_backends
from .crew import Crew
from .dead_letters import DeadLetterHooks
from .demands import NoResultStore, check_demands
from .endings import Endings
from .executor import Executor
from .filling import Filling
from .handle import Control
from .keeper import Keeper, heed_events
from .ledger import Ledger, Report
from .message_context import MessageContext
from .orphans import Orphans
from .outage import Patience
from .progress import Reporter
from .reader import Reader
from .scheduler import Scheduling, run_schedules, store_schedules
from .sending import Sending
from .settler import Settler
from .signals import check_can_listen, listen
from .statistics import statistics_of
from .vouching import Voucher
from .watching_queues import PausedQueues, UnreadQueues

log = Log("repid.worker")

LINGERING_TIME = 3.0
"""Seconds after the end of the grace in which actors should have ended; then those that have not are named."""

MOST_NAMED = 3
"""Runs that are named of those which a worker that was stopped waits for."""

SETTLING_TIME = 5.0
"""Seconds a worker that is ending gives the broker to take its last verdicts."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker works. Times are in seconds.

    graceful_shutdown_time: how long actors may go on after a stop. messages_limit: the runs after which it stops.
    tasks_limit: how many runs there may be at once. threads_limit, processes_limit: how many of these in threads, in
    processes; None: as many as trio's own limiter allows, one for each core. claim_bytes: the bytes of payloads that it
    may hold at once, or one message that is bigger. signals: the first stops, the second also ends the grace, the third
    ends the process. auto_declare: declare the queues of the actors. burst: stop when nothing is ready and nothing is
    running. log_runs: log each run at INFO; else at DEBUG.
    """

    graceful_shutdown_time: float = 25.0
    messages_limit: float = float("inf")
    tasks_limit: int = 1000
    threads_limit: float | None = None
    processes_limit: float | None = None
    claim_bytes: float = 64 * 1024 * 1024
    signals: Sequence[signal.Signals] = ()
    auto_declare: bool = True
    burst: bool = False
    log_runs: bool = False


class AppServices(msgspec.Struct, frozen=True):
    """What a worker needs of its app.

    publisher: what publishes to the server of this name (None: the worker's own); the flag says whether the sender
    chose the ids. through_middlewares: puts the app's producer middlewares around an outbox. exchange: where calls of
    actors go.
    result_store: where results are kept; None: on the worker's server. scheduling: where schedules are kept; None:
    nowhere. stores: other servers that keep results and schedules, which the worker opens. dead_letter_hooks: called
    with each message that becomes a dead letter.
    """

    publisher: Callable[[str | None, bool], Publisher]
    through_middlewares: Callable[[Publish], Publish]
    exchange: Exchange
    result_store: ResultStore | None
    scheduling: Scheduling | None
    stores: Sequence[Broker]
    dead_letter_hooks: Sequence[DeadLetterHook]


Lifespan = Callable[[HostBackend | None], AbstractAsyncContextManager[GivenValues]]
"""Opens what all runs of a worker share, on the loop where they run, and closes it after the last one."""


async def serve(
    broker: Broker,
    actors: Sequence[Actor],
    services: AppServices,
    settings: Settings,
    control: Control,
    loop_backends: LoopBackends,
    lifespan: Lifespan,
) -> Report:
    """Run a worker until it is stopped, has reached its limit, or in burst mode until nothing is left.

    When it returns or raises, nothing of it is running any more but threads reported as abandoned. Cancelling it skips
    the grace: what runs is cancelled, what was leased is released, within the five seconds a broker may take. A broker
    that is not available when it starts is waited for. `lifespan` opens, before it consumes, what all runs share.
    """
    bounds = bounds_of(actors)
    check_demands(broker, actors, services.result_store, has_schedules=services.scheduling is not None)
    check_can_listen(settings.signals)
    patiently = Patience(burst=settings.burst)
    opened = open_backends(actors, loop_backends, threads=settings.threads_limit, processes=settings.processes_limit)
    ledger = Ledger(settings.tasks_limit, settings.messages_limit, settings.claim_bytes)
    control.read_statistics = lambda: statistics_of(broker, ledger)
    with trio.CancelScope() as starting:
        control.attach(starting.cancel, starting.cancel)  # a stop ends the start, until there is a worker to stop
        async with AsyncExitStack() as stack:
            # Until all is closed: a second signal must not kill a worker that settles or closes a lifespan.
            stack.enter_context(listen(settings.signals, control.on_signal))
            await patiently(partial(_open, stack, broker))
            given = await stack.enter_async_context(lifespan(loop_backends.host))
            actors = [overridden(actor, {}, given) for actor in actors]
            runners = ActorRunners(actors, await stack.enter_async_context(opened), settings.tasks_limit)
            topics = runners.topics
            if settings.auto_declare:
                await patiently(lambda: broker.declare(topics))
                if bounds:
                    await patiently(lambda: broker.set_bounds(bounds))
            for other in services.stores:
                await patiently(partial(_open, stack, other))
            orphans = None
            if services.scheduling is not None:
                orphans = Orphans(services.scheduling, runners, broker)
                await patiently(partial(store_schedules, services.scheduling.store, runners.schedules))
                await patiently(orphans.report)
            consumer = await patiently(lambda: stack.enter_async_context(broker.consume(topics)))
            await trio.lowlevel.checkpoint_if_cancelled()  # the last moment at which a stop ends the start
            try:
                await _keep_up(broker, consumer, runners, ledger, orphans, services, settings, control)
            except BaseExceptionGroup as group:
                raise unwrapped(group) from None
    if starting.cancelled_caught:
        control.on_started()
    return ledger.report()


async def _open(stack: AsyncExitStack, server: Broker) -> None:
    await stack.enter_async_context(server.connection())


async def _keep_up(
    broker: Broker,
    consumer: Consumer,
    runners: ActorRunners,
    ledger: Ledger,
    orphans: Orphans | None,
    services: AppServices,
    settings: Settings,
    control: Control,
) -> None:
    """The outer nursery: what must go on until the last verdict is settled."""
    claimed = broker.capabilities
    store = services.result_store
    if store is None and not claimed.has("results"):
        store = NoResultStore(name_of(broker))
    sending = Sending(runners.topics)
    settler = Settler(
        consumer, ledger, sending, store, can_delay=claimed.delays != "none", is_local=claimed.calls == "local"
    )
    crew = Crew(runners, ledger, settler, sending, contextvars.copy_context())
    level = logging.INFO if settings.log_runs else logging.DEBUG
    crew.log_level = level if log.is_enabled(level) else None
    reporter = Reporter(consumer)
    message_context = MessageContext(
        crew, reporter, services.publisher, services.through_middlewares, services.exchange
    )
    consumer.vouch(Voucher(crew, consumer.lease_timeout))
    async with trio.open_nursery() as upkeep:
        upkeep.start_soon(settler.run)
        keeper = Keeper(consumer, crew)
        upkeep.start_soon(keeper.keep)
        upkeep.start_soon(keeper.watch)
        if claimed.delays == "none":
            upkeep.start_soon(settler.postponed.run)
        if claimed.has("tracking") or claimed.leases == "connection":
            upkeep.start_soon(heed_events, consumer, crew)
        upkeep.start_soon(reporter.run)
        hooks = None
        if services.dead_letter_hooks:
            hooks = DeadLetterHooks(services.dead_letter_hooks, runners.backends.host)
            ledger.on_dead = hooks.note
            upkeep.start_soon(hooks.run)
        try:
            await _run_actors(broker, consumer, crew, message_context, orphans, settings, control)
        finally:
            crew.release_kept()
            await settler.close(SETTLING_TIME)
            if hooks is not None:
                await hooks.close(SETTLING_TIME)
        upkeep.cancel_scope.cancel()


async def _run_actors(
    broker: Broker,
    consumer: Consumer,
    crew: Crew,
    message_context: MessageContext,
    orphans: Orphans | None,
    settings: Settings,
    control: Control,
) -> None:
    """The inner nurseries: the intake, the executors, and around them what leaves threads behind when cancelled."""
    endings = Endings(crew)
    filling = Filling(crew, endings, message_context)
    reader = Reader(consumer, crew, burst=settings.burst, is_local=broker.capabilities.calls == "local")
    if log.is_enabled(logging.INFO):
        names = crew.runners.names
        queues = [f"{queue!r} ({', '.join(dict.fromkeys(names(queue)))})" for queue in crew.runners.topics]
        log.info("the worker reads %s on %s", ", ".join(queues), where(broker))
    control.read_statistics = lambda: statistics_of(broker, crew.ledger, crew, reader.look_ahead)
    async with trio.open_nursery() as actors:
        ended = trio.Event()
        actors.start_soon(_see_off, crew, ended)
        actors.start_soon(crew.timer.run)
        try:
            async with trio.open_nursery() as executors:
                crew.open(lambda: executors.start_soon(Executor(crew, message_context, endings, filling).work))
                try:
                    async with trio.open_nursery() as intake:

                        def stop() -> None:
                            crew.close()
                            intake.cancel_scope.cancel()

                        control.attach(stop, actors.cancel_scope.cancel)
                        control.attach_drain(reader.drain)
                        await _start_intake(intake, broker, crew, reader, orphans, burst=settings.burst)
                        control.on_started()
                finally:
                    crew.close()
                actors.cancel_scope.deadline = trio.current_time() + settings.graceful_shutdown_time
                if control.is_stopped and not actors.cancel_scope.cancel_called:
                    _tell_of_grace(crew, settings.graceful_shutdown_time, by_signal=control.is_signalled)
        finally:
            ended.set()
        actors.cancel_scope.cancel()


async def _start_intake(
    intake: trio.Nursery, broker: Broker, crew: Crew, reader: Reader, orphans: Orphans | None, *, burst: bool
) -> None:
    """Start what brings new work, and what goes on only as long as that does."""
    if orphans is not None:
        intake.start_soon(run_schedules, orphans.scheduling, crew.runners.schedules)
        intake.start_soon(orphans.watch)
    if broker.capabilities.readers and broker.capabilities.has("queue_admin"):
        paused = PausedQueues(broker, list(crew.runners.topics))
        await Patience(burst=burst)(paused.look)  # before the reader, which ends a burst that gets nothing
        intake.start_soon(paused.watch)
        intake.start_soon(UnreadQueues(broker).watch)
    if crew.runners.limits:
        intake.start_soon(crew.give_back_parked)
    if crew.runners.batching:
        intake.start_soon(crew.start_due_batches)
    if any(runner.actor.mode == "manual" for runner in crew.runners):
        intake.start_soon(reader.tell_of_kept)
    intake.start_soon(reader.read, intake.cancel_scope.cancel)


def _tell_of_grace(crew: Crew, grace: float, *, by_signal: bool) -> None:
    """Log what a worker that was stopped waits for: it would be silent until that has ended."""
    busy = [executor.name for executor in crew.executors if executor.is_busy]
    if busy:
        limit = "as long as it takes" if grace == math.inf else f"{grace:g} s"
        named = [*busy[:MOST_NAMED], *(["..."] if len(busy) > MOST_NAMED else [])]
        until = ", or until another signal comes" if by_signal else ""
        log.info("stopping: %d run(s) have %s to end%s: %s", len(busy), limit, until, ", ".join(named))


async def _see_off(crew: Crew, ended: trio.Event) -> None:
    """When the actors are cancelled, leave threads behind, and name those actors that do not end."""
    try:
        await trio.sleep_forever()
    finally:
        crew.runners.backends.abandon()
        with trio.move_on_after(LINGERING_TIME, shield=True) as patience:
            await ended.wait()
        if patience.cancelled_caught:
            log.warning(
                "%g s after its actors were cancelled the worker still waits for %s, which may be shielded from "
                "that or handle it: a third signal ends the process",
                LINGERING_TIME,
                ", ".join(executor.name for executor in crew.executors if executor.is_busy),
            )
