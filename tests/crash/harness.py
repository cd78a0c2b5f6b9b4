"""Starts producers and workers on one store, kills and stops them, waits until every job is done, and gives the account.

Bounded in number and time. Only its own children are ever signalled, and none outlives it: they are killed when its
block is left, and by the kernel should it be killed itself.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec
import trio

from repid import Envelope, Server
from repid.ports import Category

from .checker import Account, Life, check
from .engines import ENGINES
from .failover import Group
from .journal import Confirmed, Intended, Journal, Stepped, now, read_journal
from .network import CUTS, Cut
from .outages import check_outages
from .steps import HEADERS, NOTHING_SPECIAL, PRODUCER_STEPS, QUEUE, WORKER_STEPS, Orders
from .stores import Store

ROOT = Path(__file__).parents[2]
TICK = 0.02
STOP_TIME = 10.0
"""Seconds for the workers that are left to stop gracefully."""

TIMES = {"publish": 3, "claim": 8, "settle": 8}
"""A step is taken when it is reached for the n-th time, n being at most this: some are reached seldom."""

FREQUENT = 30
"""The same for all others."""

CATEGORIES: tuple[Category, ...] = ("ready", "scheduled", "leased", "dead")

Role = Literal["producer", "worker"]
Ending = Literal["stopped", "killed"]

ENDINGS: Final[tuple[Ending, ...]] = ("killed", "stopped")
"""How a server ends."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do. Times are in seconds, `rate` is messages per second, `tasks` how many a worker does at once.

    It goes on until `jobs` messages are confirmed and `kills` processes were killed, each of `steps` being taken
    once at the least; then everything has `drain_time` to be done. Meanwhile connections are cut `cuts` times, and the
    server is stopped or killed `restarts` times, the last time for `outage` seconds.
    """

    jobs: int
    kills: int
    cuts: int = 0
    restarts: int = 0
    outage: float = 3.0
    seed: int
    rate: float = 300.0
    workers: int = 3
    producers: int = 2
    tasks: int = 50
    lease: float = 1.5
    strike_every: float = 0.5
    time_limit: float = 600.0
    drain_time: float = 180.0
    steps: tuple[str, ...] = (*PRODUCER_STEPS, *WORKER_STEPS)


@dataclass
class Child:
    """One process, and what was done to it."""

    name: str
    role: Role
    process: subprocess.Popen[bytes]
    step: str | None
    count: int
    journal: Path
    complaints: Path
    killed_at: float | None = None
    stopped_at: float | None = None
    continue_at: float = 0.0
    stops: list[tuple[float, float]] = field(default_factory=list)

    @property
    def is_stopped(self) -> bool:
        """Whether SIGSTOP has stopped it, whoever sent it."""
        try:
            status = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] == "T"

    def life(self) -> Life:
        """What the checker has to know of it."""
        lines = read_journal(self.journal)
        killed_at = self.killed_at
        if killed_at is not None and lines and isinstance(lines[-1], Stepped):
            killed_at = lines[-1].at
        return Life(self.name, lines, killed_at, self.stops)

    def confirmed(self) -> int:
        """How many messages it has published for certain."""
        return sum(len(line.ids) for line in read_journal(self.journal) if isinstance(line, Confirmed))


class Harness:
    """One run on one store, with its journals in one folder. `troubles`: what went wrong beside the account, a child that failed or time that ran out."""

    def __init__(self, plan: Plan, folder: Path, store: Store) -> None:
        self.plan = plan
        self.store = store
        self.folder = folder
        self.troubles: list[str] = []
        self._chance = random.Random(plan.seed)
        self._children: list[Child] = []
        self._running: list[Child] = []
        self._confirmed = 0
        self._kills = 0
        self._steps: dict[Role, list[str]] = {
            "producer": [step for step in PRODUCER_STEPS if step in plan.steps],
            "worker": [step for step in WORKER_STEPS if step in plan.steps],
        }
        self._missing = set(plan.steps)
        for steps in self._steps.values():
            self._chance.shuffle(steps)
        self._strike_at = 0.0
        self._is_ahead = True
        self._harm_is_ahead = True
        self._faults = self._plan_faults()
        self._all_faults = len(self._faults)
        self._journal = Journal(folder / "harness.jsonl")
        self._published = 0
        if store.network is not None:
            store.network.returning = self._publish_one

    def run(self) -> Account:
        """Do it all. The account has this run's own figures too."""
        began = now()
        with self._children_killed_at_the_end():
            self._wreak_havoc(began + self.plan.time_limit)
            wrecked = now()
            self._drain()
            drained = now()
            self._stop_workers()
        final = trio.run(_places, self._server())
        lease_time = self.plan.lease - ENGINES[self.store.engine].grain
        lives = [Life("harness", read_journal(self.folder / "harness.jsonl"))]
        lives += [child.life() for child in self._children]
        outages = [] if self.store.network is None else self.store.network.outages
        crashes = [outage.down for outage in outages if outage.crashed]
        is_lax = isinstance(self.store.network, Group) and not self.store.network.wait_replicas
        account = check(lives, final, lease_time, crashes, failovers=crashes if is_lax else ())
        if outages:
            borne = check_outages(lives, outages)
            account.faults += borne.faults
            account.figures.update(borne.figures)
        for kind, count in Counter(self._cuts_made()).items():
            account.figures[f"cut: {kind}"] = count
        for role in ("producer", "worker"):
            dead = [child for child in self._children if child.role == role and child.killed_at is not None]
            account.figures[f"killed: {role}s"] = len(dead)
        account.figures["seconds of killing"] = round(wrecked - began)
        account.figures["seconds of draining"] = round(drained - wrecked)
        self.troubles += self.store.inspect()
        if account.faults and isinstance(self.store.network, Group) and self.store.network.astray:
            self.troubles.append(
                "the sentinel let a replica take over while its primary ran, so for a while there were two, and what was "
                "written to one of them is lost: run this again on a machine that is less busy"
            )
        return account

    @contextmanager
    def _children_killed_at_the_end(self) -> Iterator[None]:
        try:
            yield
        finally:
            for child in self._running:
                child.process.kill()
                child.process.wait()

    # The phases

    def _wreak_havoc(self, deadline: float) -> None:
        told = 0.0
        while not self._is_enough() and not self.troubles:
            if now() > deadline:
                self.troubles.append(f"not done in {self.plan.time_limit:g} s; steps missing: {self._missing}")
            self._tend()
            self._strike()
            self._harm()
            self._restock()
            if now() > told + 1:
                told = now()
                self._take_stock()
                self._tell("killing")
            time.sleep(TICK)

    def _is_enough(self) -> bool:
        done = self._confirmed >= self.plan.jobs and self._kills >= self.plan.kills and not self._missing
        return done and not self._faults and (self.store.network is None or self.store.network.is_calm)

    def _take_stock(self) -> None:
        """See whether enough were killed for so many jobs: so the kills are spread over all of them."""
        under_way = sum(child.confirmed() for child in self._running if child.role == "producer")
        published = self._confirmed + under_way
        self._is_ahead = self._kills * self.plan.jobs >= self.plan.kills * published
        done = self._all_faults - len(self._faults)
        self._harm_is_ahead = (done + 1) * self.plan.jobs > (self._all_faults + 1) * published

    def _drain(self) -> None:
        deadline = now() + self.plan.drain_time
        for child in self._running:
            if child.role == "producer":  # what was ordered is done; the account has what this one adds
                self._kill(child)
        while not self.troubles:
            self._tend()
            self._restock_workers()
            self._tell("draining")
            if trio.run(_live, self._server()) == 0:
                return
            if now() > deadline:
                self.troubles.append(f"not drained after {self.plan.drain_time:g} s")
            time.sleep(0.2)

    def _stop_workers(self) -> None:
        for child in self._running:
            child.process.send_signal(signal.SIGCONT)
            child.process.terminate()
        deadline = now() + STOP_TIME
        while self._running and now() < deadline:
            self._tend()
            time.sleep(TICK)
        self.troubles += [f"{child.name} did not stop {STOP_TIME:g} s after SIGTERM" for child in self._running]

    # The children

    def _tend(self) -> None:
        """Notice who has ended, and let go on who was stopped long enough."""
        for child in list(self._running):
            if child.process.poll() is not None:
                self._running.remove(child)
                self._note_end(child, child.process.returncode)
            elif child.is_stopped:
                self._note_stop(child)

    def _note_end(self, child: Child, code: int) -> None:
        if code == -signal.SIGKILL:
            child.killed_at = child.killed_at or now()
            self._kills += 1
            self._note_step(child)
        elif code == -signal.SIGTERM and not read_journal(child.journal):
            pass  # it was stopped before it had begun to listen
        elif code != 0:
            words = child.complaints.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
            self.troubles.append(f"{child.name} ended with {code}:\n{words}")
        if child.role == "producer":
            self._confirmed += child.confirmed()

    def _note_stop(self, child: Child) -> None:
        if child.stopped_at is None:
            child.stopped_at = now()
            child.continue_at = now() + self.plan.lease * self._chance.uniform(1.4, 2.2)
            self._note_step(child)
            child.step = None  # if it had one, this was it
        elif now() >= child.continue_at:
            child.process.send_signal(signal.SIGCONT)
            child.stops.append((child.stopped_at, now()))
            child.stopped_at = None

    def _note_step(self, child: Child) -> None:
        lines = read_journal(child.journal) if child.step in self._missing else []
        self._missing.difference_update(line.step for line in lines if isinstance(line, Stepped))

    def _strike(self) -> None:
        """From time to time kill or stop somebody who has no step to be taken at."""
        if now() < self._strike_at or self._is_ahead:
            return
        self._strike_at = now() + self._chance.expovariate(1 / self.plan.strike_every)
        role = self._chance.choice(("worker", "worker", "producer"))
        victims = [c for c in self._running if c.role == role and c.step is None and not c.is_stopped]
        if victims:
            victim = self._chance.choice(victims)
            if self._chance.random() < 0.7:
                self._kill(victim)
            else:
                victim.process.send_signal(signal.SIGSTOP)

    def _kill(self, child: Child) -> None:
        child.killed_at = now()
        child.process.kill()

    # The server and the way to it

    def _plan_faults(self) -> list[Cut | Ending]:
        """Cuts and ends of the server in some order, the longest outage last."""
        cuts: list[Cut | Ending] = [CUTS[number % len(CUTS)] for number in range(self.plan.cuts)]
        ends: list[Cut | Ending] = [ENDINGS[number % len(ENDINGS)] for number in range(self.plan.restarts)]
        faults = cuts + ends[1:]
        self._chance.shuffle(faults)
        return ends[:1] + faults  # they are taken from the end

    def _publish_one(self) -> None:
        """Have something to do wait for the workers, which find the server back: so their first claim tells when they did."""
        self._published += 1
        id_ = f"harness-{self._published}"
        self._journal.write(Intended(at=now(), ids=[id_]))
        trio.run(_publish, self._server(), id_)
        self._journal.write(Confirmed(at=now(), ids=[id_]))

    def _cuts_made(self) -> list[Cut]:
        return [] if self.store.network is None else self.store.network.cuts

    def _harm(self) -> None:
        """Cut connections or end the server, whichever comes next, spread over all the jobs."""
        network = self.store.network
        if network is None:
            return
        network.tend()
        if not self._faults or self._harm_is_ahead or not network.is_calm:
            return
        fault = self._faults.pop()
        self._harm_is_ahead = True  # until stock is taken
        match fault:
            case "killed" | "stopped":
                seconds = self._chance.uniform(0.0, 3.0) if self._faults else self.plan.outage
                network.take_away(seconds, killed=fault == "killed")
            case _:
                network.cut(fault)

    def _restock(self) -> None:
        self._restock_workers()
        ordered = [child.count for child in self._running if child.role == "producer"]
        left = self.plan.jobs - self._confirmed - sum(ordered)
        if left <= 0 and not ordered:  # not enough have died yet
            left = max(20, self.plan.jobs // 50)
        if left > 0 and len(ordered) < self.plan.producers:
            self._start("producer", count=-(-left // (self.plan.producers - len(ordered))))

    def _restock_workers(self) -> None:
        if sum(child.role == "worker" for child in self._running) < self.plan.workers:
            self._start("worker")

    def _start(self, role: Role, count: int = 0) -> None:
        name = f"{role[0]}{len(self._children)}"
        step = self._next_step(role)
        orders = Orders(
            engine=self.store.engine,
            address=self.store.childrens_address,
            name=self.store.name,
            options=self.store.options,
            journal=str(self.folder / f"{name}.jsonl"),
            lease=self.plan.lease,
            tasks=self.plan.tasks,
            seed=self.plan.seed,
            life=int(self.plan.time_limit + self.plan.drain_time) + 30,
            step=step,
            nth=self._chance.randint(1, TIMES.get((step or "").rpartition(" ")[2], FREQUENT)),
            prefix=name,
            count=count,
            rate=self.plan.rate / self.plan.producers,
        )
        complaints = self.folder / f"{name}.err"
        command = [sys.executable, "-m", f"tests.crash.{role}", str(os.getpid()), msgspec.json.encode(orders).decode()]
        with complaints.open("wb") as errors:
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        child = Child(name, role, process, step, count, Path(orders.journal), complaints)
        self._children.append(child)
        self._running.append(child)

    def _next_step(self, role: Role) -> str | None:
        """Each step once, then every other child one of them; none while enough were killed."""
        if self._is_enough():
            return None
        if self._steps[role]:
            return self._steps[role].pop()
        if self._is_ahead:
            return None
        missing = sorted(self._missing.intersection(PRODUCER_STEPS if role == "producer" else WORKER_STEPS))
        if missing and all(child.step not in missing for child in self._running):
            return self._chance.choice(missing)
        return self._chance.choice([None] * 12 + list(PRODUCER_STEPS if role == "producer" else WORKER_STEPS))

    def _server(self) -> Server:
        return self.store.server(self.plan.lease)

    def _tell(self, phase: str) -> None:
        kinds = Counter(child.role for child in self._running)
        sys.stderr.write(
            f"\r\x1b[2K{phase}: {self._confirmed} of {self.plan.jobs} jobs confirmed, {self._kills} of "
            f"{self.plan.kills} killed, {len(self._missing)} steps and {len(self._faults)} faults to come, "
            f"{kinds['worker']} workers, "
            f"{kinds['producer']} producers"
        )
        sys.stderr.flush()


async def _publish(server: Server, id_: str) -> None:
    payload = msgspec.json.encode({"number": NOTHING_SPECIAL})
    async with server.connection():
        await server.declare([QUEUE])
        assert await server.publish([Envelope(id_, QUEUE, payload, "application/json", HEADERS)]) == [None]


async def _live(server: Server) -> int:
    async with server.connection():
        counts = await server.counts(QUEUE)
    return counts.ready + counts.scheduled + counts.leased


async def _places(server: Server) -> dict[str, list[str]]:
    """By id every place where it is in the broker."""
    found: dict[str, list[str]] = {}
    async with server.connection():
        for category in CATEGORIES:
            for message in await server.browse(QUEUE, category, limit=10**6):
                found.setdefault(message.envelope.id, []).append(category)
    return found
