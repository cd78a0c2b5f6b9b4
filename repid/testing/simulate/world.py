"""One history: a fleet lives through its plan in virtual time, and everything is judged.

Each worker process has an app and a server of its own over the one engine, and something that starts it again, as a
supervisor does. A producer sends the jobs as a careful program would: what it gets no answer for it sends again under the
same id. When the plan is over, all faults are healed, and the fleet must come to rest: no message alive, every worker
stopped within its bounds, every report in agreement with the account.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from random import Random
from typing import TypeVar

import msgspec
import trio
import trio.testing

from ...app import Repid
from ...errors import BrokerUnavailable, DuplicateId, PublishUnknown, ResultError
from ...job import Job
from ...runtime import Report
from ...servers import Connection
from ...worker import Worker
from . import scenario as scenarios
from .account import Disturbances, Violation
from .engine import Engine, Line
from .freezing import Freezer
from .history import History
from .plan import CALL_FAULTS, Fault, Stage, draw_plan
from .scenario import MakeScenario, Scenario
from .seeding import seeded
from .watchdog import Watchdog

T = TypeVar("T")

WALL = 1_800_000_000.0
"""The wall clock at the start of each history: some moment in 2027."""

PATIENCE = 300.0
"""Seconds in which the callers must have their answers, and after that the fleet must have come to rest."""

HARMLESS = frozenset({"deploy", "step_clock"})
"""What goes wrong without losing anything: a worker that is stopped settles and gives back what it holds."""

ENDING_TIME = 60.0
"""Seconds in which a worker must have ended once its grace is over: what actors, verdicts and the link may take together."""


class Outcome(msgspec.Struct, frozen=True):
    """What one seed led to. `plan` is what it gives; `kept` and `sends` are the indexes of the faults and messages that were
    not left out. `error`: what was found, if anything was.
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
    clock = trio.testing.MockClock(autojump_threshold=0)
    world = World(scenario, plan, frozenset(kept), frozenset(kept_sends))
    with seeded(str(seed), lambda: WALL + clock.current_time() + world.wall_step), _quiet_logs():
        error: BaseException | None = None
        try:
            trio.run(world.live, clock=clock, instruments=world.instruments)
            if scenario.check is not None and world.violation is None:
                scenario.check([scenario.sends[n] for n in kept_sends])
        except Exception as caught:  # noqa: BLE001  whatever it is, it is what this seed has found
            error = caught
    return Outcome(seed, plan, kept, kept_sends, world.history, world.violation or error)


class World:
    """A fleet that lives through one plan."""

    def __init__(
        self, scenario: Scenario, plan: Sequence[Fault], kept: Collection[int], sends: Collection[int]
    ) -> None:
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
        self.instruments: list[trio.abc.Instrument] = [Watchdog(self._stop)]
        if any(fault.kind == "freeze" for fault in plan):
            self.instruments.append(self._freezer)

    async def live(self) -> None:
        """From the start to the rest."""
        scenario = self._scenario
        self._engine = engine = Engine(scenario.lease_timeout, self.history, self._faults, self._stop)
        with self._scope:
            async with engine.driver.link(frozenset()), trio.open_nursery() as nursery:
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
            process.line = Line(self._engine, process.name, self._couriers)
            await self._run_once(process)
            if not self._is_ending and process.is_killed:
                await trio.sleep_until(process.back_at)
            process.is_killed = False

    async def _run_once(self, process: _Process) -> None:
        app = Repid(Connection(process.line.server()))
        options = {"handle_signals": (), **self._scenario.options}
        process.worker = Worker(self._scenario.routers, app=app, **options)  # type: ignore[arg-type]
        self._say(process.name, "starts")
        before = process.settled(self._engine)
        report: Report | None = None

        async def run(worker: Worker) -> None:  # in a task of its own, so that it can be frozen
            nonlocal report
            report = await worker.run()

        async with trio.open_nursery() as nursery:
            process.scope = nursery.cancel_scope
            nursery.start_soon(run, process.worker)
        del self._engine.lines[process.line]
        self._say(process.name, "is gone" if report is None else f"has ended: {_brief(report)}")
        if process.stopped_at is not None:
            self._check_ending(process, trio.current_time() - process.stopped_at)
            process.stopped_at = None
        if report is not None:
            self._check_report(process, report, before)

    def _check_ending(self, process: _Process, took: float) -> None:
        grace = self._scenario.options.get("graceful_shutdown_time", 25.0)
        assert isinstance(grace, float | int)
        if took > grace + ENDING_TIME:
            raise Violation(f"{process.name} took {took:.1f} s to end, with a grace of {grace:g} s")

    def _check_report(self, process: _Process, report: Report, before: dict[str, int]) -> None:
        """What a worker reports as settled is what the engine has accepted from it, but for answers that were lost."""
        after = process.settled(self._engine)
        for word, count in after.items():
            accepted, told = count - before.get(word, 0), getattr(report, word)
            if told > accepted or (told < accepted and not process.was_struck(self._faults)):
                raise Violation(f"{process.name} reports {told} messages as {word}, and the engine accepted {accepted}")

    # The plan

    async def _strike(self, n: int) -> None:
        fault = self._plan[n]
        await trio.sleep_until(fault.at)
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
            self._faults.add(fault.process, now, now + fault.seconds + 10.0)
        if fault.kind == "restart":
            self._engine.restart(fault.seconds)
        elif fault.kind == "step_clock":
            self.wall_step += fault.seconds
        elif fault.kind == "freeze":
            self._freezer.freeze(fault.process)
            await trio.sleep(fault.seconds)
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
            self._engine.runs.stops.add(process.name, now, now + 90.0)
            process.stop(now)
        elif fault.kind == "kill":
            line.is_dead, process.is_killed, process.back_at = True, True, now + fault.seconds
            line.break_link()
            process.scope.cancel()

    # Producers and callers

    async def _produce(self) -> None:
        scenarios.process.set("producer")
        self._producer_line = Line(self._engine, "producer", self._couriers)
        app = Repid(Connection(self._producer_line.server()))
        async with _opened(app), trio.open_nursery() as nursery:
            queues = sorted({send.queue for send in self._scenario.sends})
            await _patiently(lambda: app.server().declare(queues))
            for n in range(len(self._scenario.sends)):
                nursery.start_soon(self._send, app, n)
        del self._engine.lines[self._producer_line]

    async def _send(self, app: Repid, n: int) -> None:
        send = self._scenario.sends[n]
        await trio.sleep_until(send.at)
        if n not in self._sends:
            return
        job = Job(send.actor, queue=send.queue, args=dict(send.args), app=app, id_=f"job-{n}", **send.options)
        await self._enqueue(job)
        self._say("producer", f"knows that job-{n} was accepted")
        if f"job-{n}" not in self._engine.account.entries:
            self._stop(Violation(f"job-{n} was confirmed to its producer, and the engine never accepted it"))
        if send.then:
            await self._follow(job, send)

    async def _enqueue(self, job: Job) -> None:
        """Again under the same id, until there is an answer. Refused as a duplicate after that: it was accepted before."""
        is_unknown = False
        while True:
            try:
                await job.enqueue()
            except DuplicateId:
                if not is_unknown:
                    raise
            except (PublishUnknown, BrokerUnavailable):
                is_unknown = True
                await trio.sleep(0.5)
                continue
            return

    async def _follow(self, job: Job, send: scenarios.Send) -> None:
        if send.then == "cancel":
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
        """Wait until no message is alive."""
        with trio.move_on_after(PATIENCE) as patience:
            while self._engine.account.alive():
                await self._engine.changed.wait()
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
            if found != (0, 0, 0, account.buried[queue]):
                raise Violation(f"at rest queue {queue} has (ready, scheduled, leased, dead) = {found}")
        results = await driver.fetch_results(list(account.entries))
        for (id_, entry), result in zip(account.entries.items(), results, strict=True):
            wanted = entry.envelope.options.store_result
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
        send, entry = self._scenario.sends[n], self._engine.account.entries[f"job-{n}"]
        if send.ends and entry.end not in {send.ends, "cancelled", "expired"}:
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
        self.back_at = 0.0
        self.stopped_at: float | None = None

    def stop(self, now: float) -> None:
        """Ask the worker to stop gracefully."""
        if self.worker is not None:
            self.stopped_at = now if self.stopped_at is None else self.stopped_at
            self.worker.stop()

    def settled(self, engine: Engine) -> dict[str, int]:
        """How many of its verdicts the engine has accepted so far."""
        return dict(engine.account.settled.get(self.name, {}))

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
