"""What is measured, by whom, and what repid is to reach. Everything here is data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Argument = int | float | str

Store = Literal["memory", "sqlite"]
"""Where the messages of a workload wait."""

HOME = "repid"
"""repid where it is at home, on trio: what most targets are about."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A library and the modules of `contenders` that use it, by where messages wait.

    It runs in an environment with just `requirements`; None: in the harness's own.
    """

    name: str
    title: str
    modules: Mapping[Store, str] = field(hash=False)
    requirements: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """`bound` times the figure of `peer`, or `bound` itself where no peer is named."""

    bound: float
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a workload. A target is a lower bound where more is better, else an upper one."""

    key: str
    title: str
    unit: str
    better: Literal["more", "less"] = "more"
    targets: tuple[Target, ...] = ()
    limit: float | None = None
    """What arithmetic allows at most."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One thing to measure. `quick` replaces arguments in a smoke run; `once`: more rounds would say nothing new.

    Where the store is a file, the argument `folder` is added: a temporary one, for this measurement only. The targets
    are about the contender `subject`.
    """

    name: str
    title: str
    contenders: tuple[str, ...]
    arguments: Mapping[str, Argument]
    metrics: tuple[Metric, ...]
    quick: Mapping[str, Argument] = field(default_factory=dict)
    once: bool = False
    store: Store = "memory"
    subject: str = HOME

    def arguments_for(self, *, quick: bool) -> dict[str, Argument]:
        """The arguments of a full or a smoke run."""
        return {**self.arguments, **(self.quick if quick else {})}


CONTENDERS = (
    Contender(HOME, "repid (trio)", {"memory": "repid_trio", "sqlite": "repid_sqlite"}),
    Contender(
        "upstream",
        "repid 2.1.4",
        {"memory": "repid_upstream"},
        ("repid==2.1.4", "uvloop==0.23.0", "pydantic==2.14.3"),
    ),
    Contender("huey", "huey", {"memory": "huey_memory", "sqlite": "huey_sqlite"}, ("huey==3.5.4",)),
    Contender(
        "taskiq",
        "taskiq",
        {"memory": "taskiq_memory"},
        ("taskiq==0.13.0", "uvloop==0.23.0", "pydantic==2.14.3"),
    ),
    Contender("bare", "bare loop", {"memory": "bare_loops", "sqlite": "bare_sqlite"}),
    Contender("hosted", "repid (asyncio)", {"memory": "repid_hosts"}),
    Contender("four", "repid (4 processes)", {"sqlite": "repid_processes"}),
)

EVERYBODY = (HOME, "upstream", "huey", "taskiq")
WITH_QUEUE = (HOME, "upstream", "huey")
WITH_FILE = (HOME, "huey", "bare")
"""The bare loop is no library: it is what the platform allows at most, with nothing around it."""

LOOPS = ("asyncio", "uvloop")
"""The hosts beside trio."""

FIVE_TIMES_UPSTREAM = Target(5, "upstream")
DRAIN_TARGETS = (FIVE_TIMES_UPSTREAM, Target(1.2, "huey"))

WORKLOADS = (
    Workload(
        name="noop",
        title="No-op drain",
        contenders=EVERYBODY,
        arguments={"messages": 100_000, "executors": 100},
        quick={"messages": 5_000},
        metrics=(Metric("rate", "No-op drain", "messages/s", targets=DRAIN_TARGETS),),
    ),
    Workload(
        name="typed",
        title="Typed payload drain",
        contenders=EVERYBODY,
        arguments={"messages": 100_000, "executors": 100},
        quick={"messages": 5_000},
        metrics=(Metric("rate", "Typed payload drain", "messages/s", targets=DRAIN_TARGETS),),
    ),
    Workload(
        name="enqueue-bulk",
        title="Enqueue in bulk",
        contenders=EVERYBODY,
        arguments={"messages": 100_000, "batch": 1_000},
        quick={"messages": 10_000},
        metrics=(
            Metric("rate", "Enqueue in bulk", "messages/s", targets=(Target(3, "upstream"),)),
            Metric("bare", "Enqueue past the app", "messages/s"),
        ),
    ),
    Workload(
        name="enqueue-one",
        title="Enqueue one by one",
        contenders=EVERYBODY,
        arguments={"messages": 100_000},
        quick={"messages": 10_000},
        metrics=(Metric("rate", "Enqueue one by one", "messages/s", targets=(Target(0.7, "upstream"),)),),
    ),
    Workload(
        name="chain",
        title="Chains of two",
        contenders=EVERYBODY,
        arguments={"messages": 50_000, "executors": 100},
        quick={"messages": 2_500},
        metrics=(
            Metric("rate", "Chains of two", "chains/s", targets=(FIVE_TIMES_UPSTREAM,)),
            Metric("outbox", "Chains of two, outbox", "chains/s"),
        ),
    ),
    Workload(
        name="sleep",
        title="Jobs that sleep 100 ms",
        contenders=(*WITH_QUEUE, "bare"),
        arguments={"messages": 20_000, "executors": 1_000, "seconds": 0.1},
        quick={"messages": 5_000},
        metrics=(
            Metric("rate", "Sleep 100 ms, 1000 at once", "jobs/s", targets=(Target(9_500),), limit=10_000),
            Metric("embedded", "Sleep 100 ms, embedded", "jobs/s"),
        ),
    ),
    Workload(
        name="latency",
        title="Idle latency",
        contenders=EVERYBODY,
        arguments={"samples": 1_000, "executors": 100},
        quick={"samples": 200},
        metrics=(
            Metric("p50", "Idle latency, p50", "ms", better="less", targets=(Target(0.3),)),
            Metric("p99", "Idle latency, p99", "ms", better="less", targets=(Target(2.0),)),
        ),
    ),
    *(
        Workload(
            name=f"hosts-{loop}",
            title=f"No-op drain on {loop}",
            contenders=(HOME, "hosted", "upstream"),
            arguments={"messages": 100_000, "executors": 100},
            quick={"messages": 5_000},
            metrics=(
                Metric("guest", f"No-op, {loop}, trio actors", "messages/s", targets=(Target(0.6, HOME),)),
                Metric("rate", f"No-op, {loop}, its own", "messages/s", targets=(Target(1.5, "upstream"),)),
            ),
            subject="hosted",
        )
        for loop in LOOPS
    ),
    *(
        Workload(
            name=f"crossing-{loop}",
            title=f"Sends from {loop}",
            contenders=("hosted", "bare"),
            arguments={"samples": 500, "rounds": 300, "at_once": 100},
            quick={"samples": 100, "rounds": 50},
            metrics=(
                Metric("one", f"A send from {loop}", "µs", better="less", targets=(Target(250),)),
                Metric("rested", f"A send from {loop}, rested", "µs", better="less"),
                Metric("many", f"100 sends from {loop}, each", "µs", better="less", targets=(Target(30),)),
            ),
            subject="hosted",
        )
        for loop in LOOPS
    ),
    Workload(
        name="memory-ready",
        title="Memory of ready messages",
        contenders=WITH_QUEUE,
        arguments={"messages": 1_000_000, "batch": 1_000},
        quick={"messages": 20_000},
        metrics=(Metric("bytes", "A ready message", "bytes", better="less", targets=(Target(700),)),),
        once=True,
    ),
    Workload(
        name="memory-processed",
        title="Memory kept after processing",
        contenders=EVERYBODY,
        arguments={"messages": 1_000_000, "rounds": 100, "executors": 100},
        quick={"messages": 40_000},
        # Flat means that nothing stays: the smallest object Python can leave behind takes 16 bytes.
        metrics=(Metric("growth", "Kept per processed one", "bytes", better="less", targets=(Target(8),)),),
        once=True,
    ),
    Workload(
        name="sqlite-bulk",
        title="SQLite: enqueue in bulk",
        contenders=WITH_FILE,
        arguments={"messages": 100_000, "batch": 100},
        quick={"messages": 10_000},
        metrics=(
            Metric("rate", "SQLite: enqueue in bulk", "messages/s", targets=(Target(0.5, "bare"),)),
            Metric("thousands", "SQLite: 1000 a call", "messages/s"),
        ),
        store="sqlite",
    ),
    Workload(
        name="sqlite-publishers",
        title="SQLite: 50 concurrent publishers",
        contenders=(HOME, "huey"),
        arguments={"messages": 20_000, "publishers": 50},
        quick={"messages": 5_000},
        metrics=(Metric("rate", "SQLite: 50 publishers", "messages/s", targets=(Target(6, "huey"),)),),
        store="sqlite",
    ),
    Workload(
        name="sqlite-noop",
        title="SQLite: no-op drain",
        contenders=WITH_FILE,
        arguments={"messages": 50_000, "executors": 100, "batch": 100},
        quick={"messages": 10_000},
        metrics=(
            Metric("rate", "SQLite: no-op drain", "messages/s", targets=(Target(8, "huey"), Target(0.4, "bare"))),
        ),
        store="sqlite",
    ),
    Workload(
        name="sqlite-latency",
        title="SQLite: idle latency to another process",
        contenders=(HOME,),
        arguments={"samples": 500, "executors": 100, "idle": 10.0},
        quick={"samples": 100, "idle": 2.0},
        metrics=(
            Metric("p50", "SQLite: idle latency, p50", "ms", better="less", targets=(Target(10),)),
            Metric("p99", "SQLite: idle latency, p99", "ms", better="less"),
            Metric("idle", "SQLite: an idle worker", "% of a core", better="less", targets=(Target(2),)),
        ),
        store="sqlite",
    ),
    Workload(
        name="processes",
        title="SQLite: four processes",
        contenders=(HOME, "four"),
        arguments={"noop": 40_000, "compute": 4_000, "processes": 4, "executors": 100},
        quick={"noop": 5_000, "compute": 500},
        metrics=(
            Metric("noop", "SQLite: no-op, processes", "jobs/s"),  # bound by the one writer a file can have
            Metric("compute", "SQLite: 1 ms, processes", "jobs/s", targets=(Target(1.6, HOME),)),
        ),
        store="sqlite",
        subject="four",
    ),
    Workload(
        name="sqlite-row",
        title="SQLite: size of a ready message",
        contenders=WITH_FILE,
        arguments={"messages": 100_000, "batch": 1_000},
        quick={"messages": 20_000},
        metrics=(Metric("bytes", "SQLite: a ready message", "bytes", better="less", targets=(Target(400),)),),
        once=True,
        store="sqlite",
    ),
    Workload(
        name="sqlite-depth",
        title="SQLite: claims from a long queue",
        contenders=(HOME,),
        arguments={"messages": 1_000_000, "few": 1_000, "claims": 300, "batch": 100},
        quick={"messages": 20_000, "claims": 50},
        metrics=(Metric("slowdown", "SQLite: claim, 1 M queued", "×", better="less", targets=(Target(1.3),)),),
        once=True,
        store="sqlite",
    ),
    Workload(
        name="sqlite-growth",
        title="SQLite: the file after processing",
        contenders=(HOME,),
        arguments={"messages": 1_000_000, "rounds": 100, "executors": 100},
        quick={"messages": 20_000},
        # What passes through again and again fits where it was the first time, but for a page here and there.
        metrics=(Metric("growth", "SQLite: file, 1 M / 0.2 M", "×", better="less", targets=(Target(1.01),)),),
        once=True,
        store="sqlite",
    ),
)

PROFILED = ("noop", "typed", "chain", "outbox", "sleep")
"""The drains that can be profiled; "outbox" is "chain" with job 2 held back."""


def profile_of(drain: str) -> Workload:
    """A profile of one of repid's drains."""
    messages, executors = (20_000, 1_000) if drain == "sleep" else (200_000, 100)
    return Workload(
        name="profile",
        title=f"Profile of {drain}",
        contenders=(HOME,),
        arguments={"messages": messages, "executors": executors, "drain": drain, "interval": 0.001},
        quick={"messages": messages // 10},
        metrics=(),
        once=True,
    )
