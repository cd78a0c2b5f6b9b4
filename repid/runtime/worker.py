"""One worker, from its first connection to its report."""

from __future__ import annotations

import contextvars
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack

import msgspec
import trio

from ..actors import Actor
from ..errors import UsageError
from ..logs import Log
from ..ports import Broker, Consumer, ResultStore
from ..producer import Publish
from .backends import HERE, Elsewhere, open_backends
from .crew import Crew, Desk
from .demands import Nowhere, check_demands
from .executor import Executor
from .keeper import Keeper, heed_events
from .ledger import Ledger, Report
from .patience import Patience
from .progress import Reporter
from .reader import Reader
from .roles import Roles, check_actors
from .scheduler import report_unhandled, run_schedules, store_schedules
from .settler import Settler
from .signals import check_can_listen, listen
from .statistics import WorkerStatistics, statistics_of
from .vouching import Voucher

CLAIM_BYTES = 64 * 1024 * 1024
"""What a worker holds of payloads at most, where nothing else was said."""

log = Log("repid.worker")

LINGERING_TIME = 3.0
"""Seconds after the end of the grace in which actors should have ended; then those that have not are named."""

SETTLING_TIME = 5.0
"""Seconds a worker that is ending gives the broker to take its last verdicts."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker works. Times are in seconds.

    graceful_shutdown_time: how long actors may go on after a stop. messages_limit: stop after so many runs.
    tasks_limit: at most so many runs at once. threads_limit, processes_limit: of these so many in threads, in processes;
    None: as many as trio's own limiter allows, one for each core. claim_bytes: of payloads at most so many bytes at once,
    or one message that is bigger. signals: the first stops, the second also ends the grace,
    the third ends the process.
    auto_declare: declare the queues of the actors. burst: stop when nothing is ready and nothing is running.
    """

    graceful_shutdown_time: float = 25.0
    messages_limit: float = float("inf")
    tasks_limit: int = 1000
    threads_limit: float | None = None
    processes_limit: float | None = None
    claim_bytes: float = CLAIM_BYTES
    signals: Sequence[signal.Signals] = ()
    auto_declare: bool = True
    burst: bool = False


class Outlet(msgspec.Struct, frozen=True):
    """Where what actors produce goes: the publisher of a server by its name (None: the worker's own), what puts the
    app's producer middlewares around an outbox, and the store of results if that is not the worker's server.
    """

    publisher: Callable[[str | None], Publish]
    around: Callable[[Publish], Publish]
    result_store: ResultStore | None = None


class Handle:
    """A worker as the one who started it sees it: ways to end it, what it is doing, and what it has done."""

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None
        self._cut_short: Callable[[], None] | None = None
        self._stopped = False
        self._signalled = False
        self._read: Callable[[], WorkerStatistics] = _not_started
        self._ended = trio.Event()

    def statistics(self) -> WorkerStatistics:
        """What the worker is doing now. It costs no call to the server and may be asked at any rate, in its trio run."""
        return self._read()

    @property
    def report(self) -> Report:
        """What the worker has done so far; when it has ended, what `run` returned."""
        return self.statistics().report

    async def wait(self) -> Report:
        """Wait until nothing of the worker is running any more; returns what it has done. Cancelling only ends the waiting.

        What the worker raised, if it failed, is raised where it was started, not here.
        """
        await self._ended.wait()
        return self.report

    def stop(self) -> None:
        """Start nothing more, release what was not started, give the actors their grace. May be called again."""
        self._stopped = True
        if self._stop is not None:
            self._stop()

    def cut_short(self) -> None:
        """Stop, and end the grace: what still runs is cancelled and released."""
        self.stop()
        if self._cut_short is not None:
            self._cut_short()

    def on_signal(self) -> None:
        """The first signal stops, the second ends the grace; a stop by other means does not count. See `signals` for a third."""
        if self._signalled:
            self.cut_short()
        else:
            self._signalled = True
            self.stop()

    def observe(self, read: Callable[[], WorkerStatistics]) -> None:
        """Where the statistics come from, from now on."""
        self._read = read

    def ended(self) -> None:
        """Nothing of the worker is running any more: keep its last statistics, and nothing else of it."""
        last = msgspec.structs.replace(self._read(), state="ended")
        self._read = lambda: last
        self._stop = self._cut_short = None
        self._ended.set()

    def attach(self, stop: Callable[[], None], cut_short: Callable[[], None]) -> None:
        """What to call. A stop that was asked for before now takes effect."""
        self._stop, self._cut_short = stop, cut_short
        if self._stopped:
            stop()


def _not_started() -> WorkerStatistics:
    raise UsageError("this worker has not been started: a handle is given by nursery.start(app.run_worker)")


async def serve(
    broker: Broker,
    actors: Sequence[Actor],
    outlet: Outlet,
    settings: Settings,
    handle: Handle,
    on_started: Callable[[], None],
    elsewhere: Elsewhere = HERE,
) -> Report:
    """Run a worker until it is stopped, has reached its limit, or in burst mode until nothing is left.

    When it returns or raises, nothing of it is running any more but threads reported as abandoned. Cancelling it
    skips the grace: what runs is cancelled, what was leased is released, within the five seconds a broker may take.
    A broker that is not available when it starts is waited for.
    """
    check_actors(actors)
    check_demands(broker, actors, outlet.result_store)
    check_can_listen(settings.signals)
    patiently = Patience()
    opened = open_backends(actors, elsewhere, threads=settings.threads_limit, processes=settings.processes_limit)
    ledger = Ledger(settings.tasks_limit, settings.messages_limit, settings.claim_bytes)
    handle.observe(lambda: statistics_of(broker, ledger))
    with trio.CancelScope() as starting:
        handle.attach(starting.cancel, starting.cancel)  # a stop ends the start, until there is a worker to stop
        async with AsyncExitStack() as stack:
            await patiently(lambda: stack.enter_async_context(broker.connection()))
            roles = Roles(actors, await stack.enter_async_context(opened), settings.tasks_limit)
            topics = roles.topics
            if settings.auto_declare:
                await patiently(lambda: broker.declare(topics))
            if broker.capabilities.has("schedules"):
                await patiently(lambda: store_schedules(broker, roles.schedules))
                await patiently(lambda: report_unhandled(broker, roles.find))
            consumer = await patiently(lambda: stack.enter_async_context(broker.consume(topics)))
            await trio.lowlevel.checkpoint_if_cancelled()  # the last moment at which a stop ends the start
            try:
                await _keep_up(broker, consumer, roles, ledger, outlet, settings, handle, on_started)
            except BaseExceptionGroup as group:
                raise unwrapped(group) from None
    if starting.cancelled_caught:
        on_started()
    return ledger.report()


async def _keep_up(
    broker: Broker,
    consumer: Consumer,
    roles: Roles,
    ledger: Ledger,
    outlet: Outlet,
    settings: Settings,
    handle: Handle,
    on_started: Callable[[], None],
) -> None:
    """The outer nursery: what must go on until the last verdict is settled."""
    claimed = broker.capabilities
    store = outlet.result_store
    if store is None and not claimed.has("results"):
        store = Nowhere(type(broker).__name__)
    settler = Settler(consumer, ledger, store, can_delay=claimed.delays != "none")
    crew = Crew(roles, ledger, settler, contextvars.copy_context())
    reporter = Reporter(consumer)
    desk = Desk(crew, reporter, outlet.publisher, outlet.around)
    consumer.vouch(Voucher(crew, consumer.lease_timeout))
    async with trio.open_nursery() as upkeep:
        upkeep.start_soon(settler.run)
        upkeep.start_soon(Keeper(consumer, crew).keep)
        if claimed.delays == "none":
            upkeep.start_soon(settler.postponed.run)
        if claimed.has("tracking") or claimed.leases == "connection":
            upkeep.start_soon(heed_events, consumer, crew)
        upkeep.start_soon(reporter.run)
        try:
            await _run_actors(broker, consumer, crew, desk, settings, handle, on_started)
        finally:
            crew.release_kept()
            await settler.close(SETTLING_TIME)
        upkeep.cancel_scope.cancel()


def unwrapped(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to raise for what came out of the nurseries, which are nobody's business but ours.

    An order to stop the process comes first, a single error comes bare, several stay a group.
    """
    orders = group.subgroup((KeyboardInterrupt, SystemExit))
    leaves = list(_leaves(orders or group))
    return leaves[0] if orders or len(leaves) == 1 else group


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


async def _run_actors(
    broker: Broker,
    consumer: Consumer,
    crew: Crew,
    desk: Desk,
    settings: Settings,
    handle: Handle,
    on_started: Callable[[], None],
) -> None:
    """The inner nurseries: the intake, the executors, and around them what leaves threads behind when cancelled."""
    reader = Reader(consumer, crew, burst=settings.burst)
    handle.observe(lambda: statistics_of(broker, crew.ledger, crew, reader.look_ahead))
    with listen(settings.signals, handle.on_signal):  # during the grace too: the second signal ends it
        async with trio.open_nursery() as actors:
            ended = trio.Event()
            actors.start_soon(_see_off, crew, ended)
            actors.start_soon(crew.timer.run)
            try:
                async with trio.open_nursery() as executors:
                    crew.open(lambda: executors.start_soon(Executor(crew, desk).work))
                    try:
                        async with trio.open_nursery() as intake:
                            handle.attach(lambda: _stop(crew, intake), actors.cancel_scope.cancel)
                            if broker.capabilities.has("schedules"):
                                intake.start_soon(run_schedules, broker, crew.roles.schedules)
                            intake.start_soon(crew.give_back_parked)
                            intake.start_soon(reader.read, intake.cancel_scope.cancel)
                            on_started()
                    finally:
                        crew.close()
                    actors.cancel_scope.deadline = trio.current_time() + settings.graceful_shutdown_time
            finally:
                ended.set()
            actors.cancel_scope.cancel()


def _stop(crew: Crew, intake: trio.Nursery) -> None:
    crew.close()
    intake.cancel_scope.cancel()


async def _see_off(crew: Crew, ended: trio.Event) -> None:
    """When the actors are cancelled, leave threads behind, and name those actors that do not end."""
    try:
        await trio.sleep_forever()
    finally:
        crew.roles.backends.abandon()
        with trio.move_on_after(LINGERING_TIME, shield=True) as patience:
            await ended.wait()
        if patience.cancelled_caught:
            log.warning(
                "%g s after its actors were cancelled the worker still waits for %s, which may be shielded from that or "
                "handle it: a third signal ends the process",
                LINGERING_TIME,
                ", ".join(executor.name for executor in crew.executors if executor.is_busy),
            )


def usable_signals(wanted: Iterable[signal.Signals], platform: str = sys.platform) -> tuple[signal.Signals, ...]:
    """The signals this platform can deliver: none on emscripten."""
    return () if platform == "emscripten" else tuple(wanted)
