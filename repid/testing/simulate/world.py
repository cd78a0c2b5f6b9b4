"""One history: a fleet lives through its plan in virtual time, and everything is judged.

Each worker process has an app and a server of its own over the one engine, and something that starts it again, as a
supervisor does. A producer sends the jobs as a careful program would: what it gets no answer for it sends again under
the same id. When the plan is over, all faults are healed, and the fleet must come to rest: no message alive, every
worker stopped within its bounds, every report in agreement with the account.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from itertools import groupby
from random import Random
from typing import TypeVar

import msgspec
import trio

from ...app import Repid
from ...errors import BrokerUnavailable, DuplicateId, PublishUnknown, QueueFull, ResultError, UsageError
from ...job import Job
from ...ports import LONGEST_REST
from ...queue import Queue
from ...runtime import Report, Settings
from ...runtime.scheduler import GATHERING
from ...servers import Connection
from ...worker import Worker
from . import scenario as scenarios
from .account import AFTERMATH, Disturbances, Violation
from .clock import VirtualClock
from .engine import Engine, Line
from .freezing import Freezer
from .history import History
from .plan import CALL_FAULTS, Fault, Stage, draw_plan
from .scenario import MakeScenario, Scenario
from .seeding import seeded

T = TypeVar("T")

WALL = 1_800_000_000.0
"""The wall clock at the start of each history: some moment in 2027."""

PATIENCE = 300.0
"""Seconds in which the callers must have their answers, and after that the fleet must have come to rest."""

HARMLESS = frozenset({"deploy", "step_clock", "step_engine_clock"})
"""What goes wrong without losing anything: a worker that is stopped settles and gives back what it holds."""

OVERDUE = 0.5
"""Seconds within which a schedule that is due has ticked, where a worker had nothing to suffer. `TRIPS` more of the
time that a trip takes are allowed.
"""

TRIPS = 10
WATCHED_EVERY = 0.25

PAUSE = 0.5
"""Seconds until a worker is started again that has ended of itself."""

ENDING_TIME = 60.0
"""Seconds in which a worker must have ended once its grace is over: what actors, verdicts and the link may take
together.
"""


class Outcome(msgspec.Struct, frozen=True):
    """What one seed led to. `plan` is what it gives; `kept` and `sends` are the indexes of the faults and messages that
    were not left out. `error`: what was found, if anything was.
    """

    seed: int
    plan: tuple[Fault, ...]
    kept: tuple[int, ...]
    sends: tuple[int, ...]
    history: History
    error: BaseException | None = None

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults that were not left out."""
        return tuple(self.plan[n] for n in self.kept)


def live(
    make: MakeScenario, seed: int, faults: Sequence[int] | None = None, sends: Sequence[int] | None = None
) -> Outcome:
    """Live through one history. `faults`, `sends`: the indexes of those to keep, of all that the seed gives.

    What is left out still takes its turns and does nothing, so that the others happen in the same order as before.
    """
    scenario = make(Random(f"scenario {seed}"))  # noqa: S311  the same every time is what is wanted
    workers = [f"worker-{n}" for n in range(1, scenario.workers + 1)]
    stage = Stage(workers, ["producer"], scenario.lasts, scenario.lease_timeout)
    plan = draw_plan(Random(f"plan {seed}"), stage, scenario.kinds, scenario.faults)  # noqa: S311  as above
    kept = tuple(range(len(plan)) if faults is None else faults)
    kept_sends = tuple(range(len(scenario.sends)) if sends is None else sends)
    world = World(scenario, plan, frozenset(kept), frozenset(kept_sends), Random(f"trips {seed}"))  # noqa: S311  as above
    with seeded(str(seed), world.wall, world.clock), _quiet_logs():
        error: BaseException | None = None
        try:
            trio.run(world.live, clock=world.clock, instruments=world.instruments)
            if scenario.check is not None and world.violation is None:
                sent = [scenario.sends[n] for n in kept_sends]
                scenario.check([send for send in sent if isinstance(send, scenarios.Send)])
        except Exception as caught:  # noqa: BLE001  whatever it is, it is what this seed has found
            error = caught
    return Outcome(seed, plan, kept, kept_sends, world.history, world.violation or error)


class World:
    """A fleet that lives through one plan."""

    def __init__(
        self, scenario: Scenario, plan: Sequence[Fault], kept: Collection[int], sends: Collection[int], chance: Random
    ) -> None:
        self.clock = VirtualClock(self._stop)
        self._chance = chance
        self.history = History()
        self.violation: Violation | None = None
        self.wall_step = 0.0
        self._scenario = scenario
        self._plan = plan
        self._kept = kept
        self._sends = sends
        self._faults = Disturbances()
        self._scope = trio.CancelScope()
        self._is_ending = False
        self._workers: dict[str, _Process] = {}
        self._freezer = Freezer()
        freezes = any(fault.kind == "freeze" for fault in plan)
        self.instruments: list[trio.abc.Instrument] = [self._freezer] if freezes else []

    def wall(self) -> float:
        """What `time.time()` is in this history."""
        return WALL + self.clock.current_time() + self.wall_step

    async def live(self) -> None:
        """From the start to the rest."""
        scenario = self._scenario
        self._engine = engine = Engine(
            scenario.lease_timeout,
            self.clock,
            self.history,
            self._faults,
            self._chance,
            self._stop,
            scenario.latency,
            scenario.without,
        )
        with self._scope:
            async with engine.driver.link({}), trio.open_nursery() as nursery:
                async with trio.open_nursery() as self._couriers:
                    for n in range(1, scenario.workers + 1):
                        process = self._workers[f"worker-{n}"] = _Process(f"worker-{n}")
                        nursery.start_soon(self._keep_running, process)
                    with trio.move_on_after(PATIENCE) as patience:
                        async with trio.open_nursery() as plan:
                            plan.start_soon(self._produce)
                            for n in range(len(self._plan)):
                                plan.start_soon(self._strike, n)
                    if patience.cancelled_caught:
                        self._stop(Violation("callers still wait long after the last fault"))
                    for line in engine.lines:
                        line.disarm()
                self._say("world", "no more faults")
                await self._come_to_rest()
                await self._end()
            await self._audit()

    def _stop(self, violation: Violation) -> None:
        if self.violation is None:
            self.violation = violation
        self._scope.cancel()

    def _say(self, process: str, text: str) -> None:
        self.history.event(trio.current_time(), process, text)

    # Workers

    async def _keep_running(self, process: _Process) -> None:
        """What a supervisor does: when the process ends, start another one."""
        scenarios.process.set(process.name)
        scenarios.note_in.set(lambda text: self._say(process.name, text))
        scenarios.runs_of.set(self._engine.runs)
        while not self._is_ending:
            process.stopped_at = None
            process.line = Line(self._engine, process.name, self._couriers)
            await self._run_once(process)
            if not self._is_ending and process.is_killed:
                await trio.sleep_until(process.back_at)
            elif process.stopped_at is None:  # it had done enough
                await trio.sleep(PAUSE)
            process.was_deployed = process.was_deployed or process.stopped_at is not None
            process.is_killed = False

    async def _run_once(self, process: _Process) -> None:
        app = Repid(Connection(process.line.server()))
        routers = (process.was_deployed and self._scenario.later) or self._scenario.routers
        options = {"handle_signals": (), **self._scenario.options}
        process.worker = Worker(routers, app=app, **options)  # type: ignore[arg-type]
        process.began = trio.current_time()
        self._say(process.name, "starts")
        counts = self._engine.account.settled[process.name] = Counter()
        begun = self._engine.runs.begun[process.name]
        report: Report | None = None

        async def run(worker: Worker) -> None:  # in a task of its own, so that it can be frozen
            nonlocal report
            if process.stopped_at is None:  # else it was stopped before it could hear of it
                report = await worker.run()

        async with trio.open_nursery() as nursery:
            process.scope = nursery.cancel_scope
            nursery.start_soon(run, process.worker)
        del self._engine.lines[process.line]
        self._say(process.name, "is gone" if report is None else f"has ended: {_brief(report)}")
        if process.stopped_at is not None:
            self._check_ending(process, trio.current_time() - process.stopped_at)
        if report is not None:
            self._check_report(process, report, counts)
            begun = self._engine.runs.begun[process.name] - begun
            most = self._scenario.options.get("messages_limit", math.inf)
            if max(begun, report.processed) > most:
                raise Violation(
                    f"{process.name} began {begun} runs and reports {report.processed}, of {most:g} at most"
                )

    def _check_ending(self, process: _Process, took: float) -> None:
        grace = self._scenario.options.get("graceful_shutdown_time", Settings().graceful_shutdown_time)
        assert isinstance(grace, float | int)
        if took > grace + ENDING_TIME:
            raise Violation(f"{process.name} took {took:.1f} s to end, with a grace of {grace:g} s")

    def _check_report(self, process: _Process, report: Report, counts: Counter[str]) -> None:
        """What a worker reports as settled is what the engine has accepted from it, except for answers that
        were lost.
        """
        leases, verdicts = counts.pop("leases", 0), counts.pop("verdicts", 0)
        if report.refused > leases - verdicts:
            raise Violation(
                f"{process.name} reports {report.refused} leases as lost, and of {leases} it settled {verdicts}"
            )
        if report.unsettled and not process.was_struck(self._faults):
            raise Violation(f"{process.name} left {report.unsettled} verdicts unsettled, and no fault explains that")
        for word, accepted in counts.items():
            told = getattr(report, word)
            if told > accepted or (told < accepted and not process.was_struck(self._faults)):
                raise Violation(f"{process.name} reports {told} messages as {word}, and the engine accepted {accepted}")

    # The plan

    async def _strike(self, n: int) -> None:
        fault = self._plan[n]
        await self.clock.wait_until(fault.at)
        if n not in self._kept:
            return
        now = trio.current_time()
        process = self._workers.get(fault.process)
        if fault.kind in CALL_FAULTS:
            line = self._producer_line if process is None else process.line
            line.arm(fault)
            return
        self._say(fault.process or "world", f"fault: {fault}")
        if fault.kind not in HARMLESS:
            self._faults.add(fault.process, now, now + fault.seconds + AFTERMATH)
        if fault.kind == "restart":
            self._engine.restart(fault.seconds)
        elif fault.kind == "step_clock":
            self.wall_step += fault.seconds
        elif fault.kind == "step_engine_clock":
            self._engine.driver.step += fault.seconds
            self._engine.driver.stepped_at = now
        elif fault.kind == "freeze":
            self._engine.runs.freezes.add(fault.process, now, now + fault.seconds + AFTERMATH)
            self._freezer.freeze(fault.process)
            try:
                await trio.sleep(fault.seconds)
            finally:
                self._freezer.thaw(fault.process)
            self._say(fault.process, "is thawed")
        elif process is not None:
            self._strike_process(process, fault, now)

    def _strike_process(self, process: _Process, fault: Fault, now: float) -> None:
        line = process.line
        if fault.kind == "partition":
            line.cut_until = max(line.cut_until, now + fault.seconds)
        elif fault.kind == "slow":
            line.slow_until, line.trip = now + fault.seconds, 1.5
        elif fault.kind == "deploy" and process.worker is not None:
            self._deploy(process, now)
        elif fault.kind == "kill":
            line.is_dead, process.is_killed, process.back_at = True, True, now + fault.seconds
            line.break_link()
            process.scope.cancel()

    def _deploy(self, process: _Process, now: float) -> None:
        self._engine.runs.stops.add(process.name, now, now + 90.0)
        process.stop(now)

    # Producers and callers

    async def _produce(self) -> None:
        scenarios.process.set("producer")
        self._producer_line = Line(self._engine, "producer", self._couriers)
        app = Repid(Connection(self._producer_line.server()))
        async with _opened(app), trio.open_nursery() as nursery:
            queues = sorted({step.queue for step in self._scenario.sends})
            await _patiently(lambda: app.server().declare(queues))
            if self._scenario.bounds:
                await _patiently(lambda: app.server().set_bounds(self._scenario.bounds))
            for at, steps in groupby(self._by_moment(), lambda n: self._scenario.sends[n].at):
                await self.clock.wait_until(at)
                for n in steps:
                    nursery.start_soon(self._do, app, n)
        del self._engine.lines[self._producer_line]

    def _by_moment(self) -> list[int]:
        """The indexes of all steps, in the order of their moments."""
        return sorted(range(len(self._scenario.sends)), key=lambda n: self._scenario.sends[n].at)

    async def _do(self, app: Repid, n: int) -> None:
        step = self._scenario.sends[n]
        if n in self._sends:
            if isinstance(step, scenarios.Send):
                await self._send(app, n, step)
            elif isinstance(step, scenarios.Recurring):
                await self._recur(app, n, step)
            else:
                await self._operate(app, step)

    async def _recur(self, app: Repid, n: int, step: scenarios.Recurring) -> None:
        name = f"every-{n}"
        job = Job(
            step.actor, queue=step.queue, args=dict(step.args), app=app, id_=name, every=step.every, **step.options
        )
        await _patiently(job.enqueue)
        began, paused = trio.current_time(), 0.0
        if step.pause_at is not None and began < step.pause_at < step.until:
            await self._watch_ticks(name, step.pause_at)
            await _patiently(lambda: app.schedules.pause(name))
            await trio.sleep(1.5)
            await _patiently(lambda: app.schedules.resume(name))
            paused = trio.current_time() - step.pause_at
        await self._watch_ticks(name, step.until)
        self._check_ticks(name, began, paused, step.every)
        with suppress(UsageError):  # it was removed, and the answer to that was lost
            await _patiently(lambda: app.schedules.remove(name))

    async def _watch_ticks(self, name: str, until: float) -> None:
        """Until that moment: each tick is made soon after its time."""
        while (now := trio.current_time()) < until:
            await trio.sleep_until(min(now + WATCHED_EVERY, until))
            await self._check_overdue(name)

    async def _check_overdue(self, name: str) -> None:
        """A tick is as late as that only where each worker had something to suffer, or the engine's clock was set."""
        now, driver = trio.current_time(), self._engine.driver
        late = self._engine.account.overdue(name, now, await driver.now())
        if late <= OVERDUE + TRIPS * self._engine.latency or driver.stepped_at >= now - late - LONGEST_REST:
            return
        is_any_well = any(
            process.is_well(now - late, self._faults, self._engine.runs.stops) for process in self._workers.values()
        )
        if is_any_well and self._ticks_on:
            self._stop(Violation(f"{name} is due for {late:.2f} s, and has not ticked"))

    @property
    def _ticks_on(self) -> bool:
        """Whether workers go on until they are stopped: one that ends ticks nothing."""
        return not self._scenario.options.keys() & {"messages_limit", "burst"}

    def _check_ticks(self, name: str, began: float, paused: float, every: float) -> None:
        """As many ticks as are due, where the producer, one of the workers and the engine's clock had nothing to
        suffer.
        """
        now, ticked = trio.current_time(), self._engine.account.ticked[name]
        due = (now - began - paused) / every
        late = GATHERING / every if paused else 0.0  # workers may have looked just before they hear that it was resumed
        struck = [
            process
            for process in self._workers
            if self._faults.excuse(process, 0.0, now) or self._engine.runs.stops.excuse(process, 0.0, now)
        ]
        is_calm = self._ticks_on and len(struck) < len(self._workers) and not self._faults.excuse("producer", 0.0, now)
        was_stepped = self._engine.driver.step or self._engine.driver.stepped_at >= began
        if is_calm and not was_stepped and not due - 2 - late < ticked <= due + 1:
            self._stop(Violation(f"{name} ticked {ticked} times, and {due:.1f} are due"))

    async def _operate(self, app: Repid, step: scenarios.Operation) -> None:
        queue = Queue(step.queue, app=app)
        if step.kind == "pause":
            await _patiently(queue.pause)
            await trio.sleep(step.seconds)
            await _patiently(queue.resume)
        elif step.kind == "requeue":
            with suppress(ExceptionGroup):  # of duplicates
                await _patiently(queue.requeue)
        elif step.kind == "flush":
            await _patiently(queue.flush)
        else:
            await _patiently(queue.delete_messages)

    async def _send(self, app: Repid, n: int, send: scenarios.Send) -> None:
        job = Job(send.actor, queue=send.queue, args=dict(send.args), app=app, id_=f"job-{n}", **send.options)
        if not await self._enqueue(job):
            self._say("producer", f"knows that job-{n} had no room")
            return
        self._say("producer", f"knows that job-{n} was accepted")
        if f"job-{n}" not in self._engine.account.entries:
            self._stop(Violation(f"job-{n} was confirmed to its producer, and the engine never accepted it"))
        if send.then:
            await self._follow(job, n, send)

    async def _enqueue(self, job: Job) -> bool:
        """Again under the same id, until there is an answer. Refused as a duplicate after that: it was accepted before.

        False: a full queue had no room.
        """
        is_unknown = False
        while True:
            try:
                await job.enqueue()
            except DuplicateId:
                if not is_unknown:
                    raise
            except QueueFull:
                if not is_unknown and job.id_ in self._engine.account.entries:
                    self._stop(Violation(f"{job.id_} was refused for want of room, and the engine has accepted it"))
                return False
            except (PublishUnknown, BrokerUnavailable):
                is_unknown = True
                await trio.sleep(0.5)
                continue
            return True

    async def _follow(self, job: Job, n: int, send: scenarios.Send) -> None:
        if send.then == "again":
            await trio.sleep(send.after)
            self._engine.account.sent_again.add(f"job-{n}")
            with suppress(DuplicateId, QueueFull, BrokerUnavailable, PublishUnknown):
                await job.enqueue()
        elif send.then == "cancel":
            await trio.sleep(send.after)
            await _patiently(job.cancel)
        elif send.then == "watch":
            await _patiently(lambda: self._watch(job))
        else:
            try:
                result = await _patiently(job.wait)
                self._say("producer", f"has the result of {job.id_}: {result.state}")
            except ResultError:
                self._say("producer", f"finds no result of {job.id_}")

    async def _watch(self, job: Job) -> None:
        async for status in job.watch():
            self._say("producer", f"sees {job.id_} {status.state}")

    # The rest

    async def _come_to_rest(self) -> None:
        """Let a version that has begun to come be everywhere, and wait until no message is alive."""
        for process in self._workers.values():
            if self._scenario.later and not process.was_deployed:
                self._deploy(process, trio.current_time())
        with trio.move_on_after(PATIENCE) as patience:
            while self._engine.account.alive():
                await self._engine.changed.park()
        if patience.cancelled_caught:
            alive = ", ".join(self._engine.account.alive())
            raise Violation(f"long after the last fault these messages are still alive: {alive}")

    async def _end(self) -> None:
        self._is_ending = True
        for process in self._workers.values():
            process.stop(trio.current_time())

    async def _audit(self) -> None:
        """After quiet: every message is where the account says, and the results agree with the fates."""
        driver, account = self._engine.driver, self._engine.account
        for queue in await driver.queues():
            [counts] = await driver.counts([queue])
            found = (counts.ready, counts.scheduled, counts.leased, counts.dead)
            if found != (0, 0, 0, account.buried(queue)):
                raise Violation(f"at rest queue {queue} has (ready, scheduled, leased, dead) = {found}")
            if counts.dropped != account.dropped[queue]:
                raise Violation(
                    f"queue {queue} has dropped {account.dropped[queue]} messages, and counts {counts.dropped}"
                )
        results = await driver.fetch_results(list(account.entries))
        for (id_, entry), result in zip(account.entries.items(), results, strict=True):
            wanted = entry.envelope.options.store_result
            if entry.is_removed:
                continue
            if result is not None and result.state != entry.end:
                raise Violation(f"the result of {id_} says {result.state}, and its message ended as {entry.end}")
            if wanted and result is None:
                raise Violation(f"{id_} ended as {entry.end}, and its sender finds no result")
        for n in sorted(self._sends):
            self._check_end(n)
        if self._engine.lines:
            raise Violation(f"at rest {len(self._engine.lines)} processes are left")

    def _check_end(self, n: int) -> None:
        """The message ended as its scenario says, or by a cancellation or its ttl."""
        send = self._scenario.sends[n]
        if not isinstance(send, scenarios.Send):
            return
        entry = self._engine.account.entries.get(f"job-{n}")
        if entry is None or entry.is_removed:  # there was no room for it, or an operator has removed it
            return
        wrong = [id_ for id_ in send.never if id_ in self._engine.account.entries]
        if wrong:
            raise Violation(f"job-{n} was not acknowledged, and its outbox was sent: {', '.join(wrong)}")
        if send.ends and entry.end not in {send.ends, "cancelled", "expired", "dropped"}:
            raise Violation(f"job-{n} ended as {entry.end}, and {send.actor} ends as {send.ends}")
        missing = [id_ for id_ in send.leads_to if id_ not in self._engine.account.entries]
        if missing and entry.end == "success":
            raise Violation(f"job-{n} was acknowledged without its outbox: {', '.join(missing)}")


class _Process:
    """One slot of the fleet: whatever process runs in it now."""

    line: Line
    scope: trio.CancelScope

    def __init__(self, name: str) -> None:
        self.name = name
        self.worker: Worker | None = None
        self.is_killed = False
        self.was_deployed = False
        self.back_at = 0.0
        self.began = 0.0
        self.stopped_at: float | None = None

    def is_well(self, since: float, faults: Disturbances, stops: Disturbances) -> bool:
        """Whether its worker has run since then, and a second before, and had nothing to suffer."""
        since, now = since - 1.0, trio.current_time()
        has_run = self.worker is not None and self.began <= since
        return has_run and not faults.excuse(self.name, since, now) and not stops.excuse(self.name, since, now)

    def stop(self, now: float) -> None:
        """Ask the worker to stop gracefully."""
        if self.worker is not None:
            self.stopped_at = now if self.stopped_at is None else self.stopped_at
            self.worker.stop()

    def was_struck(self, faults: Disturbances) -> bool:
        """Whether any fault struck it up to now."""
        return faults.excuse(self.name, 0.0, trio.current_time())


def _brief(report: Report) -> str:
    counts = ((name, getattr(report, name)) for name in report.__struct_fields__)
    return ", ".join(f"{name} {count}" for name, count in counts if count) or "nothing done"


@asynccontextmanager
async def _opened(app: Repid) -> AsyncIterator[None]:
    """The app's connections, opened as soon as the engine can be reached."""
    async with AsyncExitStack() as stack:
        await _patiently(lambda: stack.enter_async_context(app.magic()))
        yield


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await call()
        except BrokerUnavailable:
            await trio.sleep(0.5)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """The history tells what happened; the log would tell it again, with faults that are meant to be there."""
    logger = logging.getLogger("repid")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
