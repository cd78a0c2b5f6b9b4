"""What is measured, by whom, and what repid is to reach. Everything here is data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Argument = int | float | str

Store = Literal["memory", "sqlite", "redis", "postgres"]
"""Where the messages of a workload wait."""

HOME = "repid"
"""repid where it is at home, on trio: what most targets are about."""

FASTEST = "the fastest peer"
"""Names, in a target, whichever peer has the best figure of those that ran."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A library and the modules of `contenders` that use it, by where messages wait.

    It runs in an environment with just `requirements`; None: in the harness's own.
    """

    name: str
    title: str
    modules: Mapping[Store, str] = field(hash=False)
    requirements: tuple[str, ...] | None = None

    @property
    def of_checkout(self) -> bool:
        """Whether it is the repid of a checkout that is measured."""
        return self.requirements is None and self.name != "bare"


@dataclass(frozen=True, slots=True)
class Target:
    """`bound` times the figure of `peer`, which can be `FASTEST`, or `bound` itself where no peer is named."""

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

    Where the store is a file, the argument `folder` is added: a temporary one, for this measurement only; where it is a
    server, `url` and `pid`: those of one that was just started. The targets are about the contender `subject`.
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

    @property
    def counts_processor_time(self) -> bool:
        """Whether its figures mean something by the processor's time: rates of one process that never waits."""
        return self.name not in ("sleep", "processes") and any(metric.unit.endswith("/s") for metric in self.metrics)

    def rounds_of(self, wanted: int) -> int:
        """How many rounds there are if so many are wanted."""
        return 1 if self.once else wanted

    def arguments_for(self, *, quick: bool) -> dict[str, Argument]:
        """The arguments of a full or a smoke run."""
        return {**self.arguments, **(self.quick if quick else {})}


CONTENDERS = (
    Contender(
        HOME,
        "repid (trio)",
        {"memory": "repid_trio", "sqlite": "repid_sqlite", "redis": "repid_redis", "postgres": "repid_postgres"},
    ),
    Contender(
        "upstream",
        "repid 2.1.4",
        {"memory": "repid_upstream", "redis": "upstream_redis"},
        (
            "repid[redis]==2.1.4",
            "uvloop==0.23.0",
            "pydantic==2.14.3",
            "redis==7.4.1",
            "hiredis==3.5.0",
            "anyio==4.16.0",
        ),
    ),
    Contender("huey", "huey", {"memory": "huey_memory", "sqlite": "huey_sqlite"}, ("huey==3.5.4",)),
    Contender(
        "taskiq",
        "taskiq",
        {"memory": "taskiq_memory", "redis": "taskiq_redis"},
        (
            "taskiq==0.13.0",
            "taskiq-redis==1.2.4",
            "uvloop==0.23.0",
            "pydantic==2.14.3",
            "redis==8.1.0",
            "hiredis==3.5.0",
            "anyio==4.16.0",
        ),
    ),
    Contender(
        "saq",
        "saq",
        {"redis": "saq_queues", "postgres": "saq_queues"},
        (
            "saq==0.26.4",
            "uvloop==0.23.0",
            "orjson==3.13.0",
            "redis==7.4.1",
            "hiredis==3.5.0",
            "psycopg[binary,pool]==3.3.9",
            "anyio==4.16.0",
        ),
    ),
    Contender(
        "streaq",
        "streaq",
        {"redis": "streaq_redis"},
        ("streaq==7.2.0", "coredis==6.9.0", "trio==0.35.0", "anyio==4.16.0"),
    ),
    Contender(
        "dramatiq",
        "dramatiq",
        {"redis": "dramatiq_redis"},
        ("dramatiq==2.2.1", "redis==8.1.0", "hiredis==3.5.0", "anyio==4.16.0"),
    ),
    Contender(
        "procrastinate",
        "procrastinate",
        {"postgres": "procrastinate_postgres"},
        ("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9", "uvloop==0.23.0", "anyio==4.16.0"),
    ),
    Contender(
        "pgqueuer",
        "pgqueuer",
        {"postgres": "pgqueuer_postgres"},
        ("pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0", "anyio==4.16.0"),
    ),
    Contender(
        "bare",
        "bare loop",
        {"memory": "bare_loops", "sqlite": "bare_sqlite", "redis": "bare_redis", "postgres": "bare_postgres"},
    ),
    Contender(
        "hosted",
        "repid (asyncio)",
        {"memory": "repid_hosts", "redis": "hosted_redis", "postgres": "hosted_postgres"},
    ),
    Contender("sixteen", "repid (16 workers)", {"redis": "repid_processes", "postgres": "repid_processes"}),
    Contender("four", "repid (4 processes)", {"sqlite": "repid_processes"}),
)

PEERS = tuple(contender.name for contender in CONTENDERS if contender.requirements is not None)

ON_A_SERVER: Mapping[Store, tuple[str, ...]] = {
    "redis": ("upstream", "taskiq", "saq", "streaq", "dramatiq"),
    "postgres": ("pgqueuer", "procrastinate", "saq"),
}
"""The peers on servers that are programs of their own."""

WITH_BULK: Mapping[Store, tuple[str, ...]] = {"redis": ("streaq",), "postgres": ("pgqueuer", "procrastinate")}
"""Those that have a call for many messages."""

WITH_RESULTS: Mapping[Store, tuple[str, ...]] = {"redis": ("taskiq", "saq", "streaq", "dramatiq"), "postgres": ("saq",)}
"""Those whose jobs can be waited for until what they returned is there."""

EVERYBODY = (HOME, "upstream", "huey", "taskiq")
WITH_QUEUE = (HOME, "upstream", "huey")
EVERYBODY_WITH_RESULTS = (HOME, "huey", "taskiq")
WITH_FILE = (HOME, "huey", "bare")
"""The bare loop is no library: it is what the platform allows at most, with nothing around it."""

LOOPS = ("asyncio", "uvloop")
"""The hosts beside trio."""

SCALES = {
    "waiting": "waiting messages",
    "delayed": "delayed messages",
    "leased": "leased with a ttl",
    "queues": "queues",
    "topics": "topics",
    "actors": "actors",
    "schedules": "schedules",
    "waiters": "waiters for results",
    "watchers": "watchers",
}
"""What there is ever more of in the workloads `scaling-…`."""

STORES_TO_SCALE: tuple[tuple[Store, str], ...] = (("memory", "Memory"), ("sqlite", "SQLite"))

N_LOG_N = Target(1.3)
"""The exponent of n log n is between 1.07 and 1.13 for these sizes. The rest is for caches, which larger sizes leave behind."""

FIVE_TIMES_UPSTREAM = Target(5, "upstream")
BATCH_METRICS = (
    Metric("single", "Rows one at a time", "rows/s"),
    Metric("batch", "Rows 500 at a time", "rows/s"),
    Metric("ratio", "Rows 500 at a time over one", "× the rate", targets=(Target(3),)),
    Metric("written", "The same, written into SQLite", "× the rate", targets=(Target(3),)),
)

DRAIN_TARGETS = (FIVE_TIMES_UPSTREAM, Target(1.2, "huey"))


def _server_time(what: str) -> Metric:
    return Metric("server", f"{what}, server", "µs a message", better="less")


def _on_a_server(store: Store, title: str, within: float) -> tuple[Workload, ...]:
    """Workloads that are the same on every server; a result is to be there `within` milliseconds."""
    peers = ON_A_SERVER[store]
    return (
        Workload(
            name=f"{store}-asyncio",
            title=f"{title}: under asyncio",
            contenders=(HOME, "hosted"),
            arguments={"messages": 50_000, "executors": 100},
            quick={"messages": 5_000},
            metrics=(
                Metric("rate", f"{title}: no-op drain, asyncio", "messages/s", targets=(Target(0.8, HOME),)),
                Metric("bulk", f"{title}: enqueue in bulk, asyncio", "messages/s", targets=(Target(0.8, HOME),)),
            ),
            store=store,
            subject="hosted",
        ),
        Workload(
            name=f"{store}-workers",
            title=f"{title}: sixteen workers",
            contenders=(HOME, "sixteen"),
            arguments={"noop": 150_000, "compute": 8_000, "executors": 100},
            quick={"noop": 60_000, "compute": 5_000},
            metrics=(
                Metric("noop", f"{title}: no-op, 16 / cores", "jobs/s", targets=(Target(0.8, HOME),)),
                Metric("compute", f"{title}: 1 ms, 16 / cores", "jobs/s", targets=(Target(0.8, HOME),)),
            ),
            store=store,
            subject="sixteen",
        ),
        Workload(
            name=f"{store}-single",
            title=f"{title}: enqueue one by one",
            contenders=(HOME, *peers),
            arguments={"messages": 5_000, "publishers": 1},
            quick={"messages": 500},
            metrics=(
                Metric("rate", f"{title}: enqueue one by one", "messages/s", targets=(Target(0.8, FASTEST),)),
                _server_time(f"{title}: one by one"),
            ),
            store=store,
        ),
        Workload(
            name=f"{store}-result",
            title=f"{title}: round trip to a result",
            contenders=(HOME, *WITH_RESULTS[store]),
            arguments={"samples": 1_000},
            quick={"samples": 100},
            metrics=(
                Metric("p50", f"{title}: round trip to a result, p50", "ms", better="less", targets=(Target(within),)),
                Metric("p99", f"{title}: round trip to a result, p99", "ms", better="less"),
            ),
            store=store,
        ),
        Workload(
            name=f"{store}-sleep",
            title=f"{title}: jobs that wait 100 ms, 1000 at once",
            contenders=(HOME, *peers, "bare"),
            arguments={"messages": 20_000, "executors": 1_000},
            quick={"messages": 2_000},
            metrics=(Metric("share", f"{title}: jobs that wait 100 ms", "% of arithmetic", targets=(Target(93),)),),
            store=store,
        ),
        Workload(
            name=f"{store}-chain",
            title=f"{title}: chains of two",
            contenders=(HOME, *peers),
            arguments={"messages": 10_000, "executors": 100},
            quick={"messages": 1_000},
            metrics=(
                Metric("plain", f"{title}: chains, sent at once", "messages/s", targets=(Target(3, FASTEST),)),
                Metric("outbox", f"{title}: chains, by the outbox", "messages/s"),
            ),
            store=store,
        ),
    )


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
        metrics=(Metric("rate", "Enqueue one by one", "messages/s", targets=(Target(1, "upstream"),)),),
    ),
    Workload(
        name="calls",
        title="Calls by the function",
        contenders=(HOME,),
        arguments={"messages": 30_000, "limit": 1_000},
        quick={"messages": 3_000},
        metrics=(
            Metric(
                "enqueue", "app.enqueue over send_message_json", "× the time", better="less", targets=(Target(1.15),)
            ),
        ),
    ),
    Workload(
        name="map",
        title="Map",
        contenders=(*EVERYBODY_WITH_RESULTS, "bare"),
        arguments={"messages": 20_000, "limit": 1_000},
        quick={"messages": 2_000},
        metrics=(
            Metric("rate", "Map", "calls/s"),
            Metric("drain", "Map of a no-op over its plain drain", "× the rate", targets=(Target(0.6),)),
            Metric("both", "Map of a no-op over sending and draining", "× the rate"),
            Metric("kept", "Drain with results over the plain one", "× the rate"),
        ),
    ),
    Workload(
        name="batch",
        title="Batch actor",
        contenders=(HOME,),
        arguments={"messages": 30_000, "written": 2_000},
        quick={"messages": 3_000, "written": 500},
        metrics=BATCH_METRICS,
    ),
    Workload(
        name="mixed",
        title="Mixed drain",
        contenders=(HOME,),
        arguments={"messages": 1_000_000},
        quick={"messages": 10_000},
        metrics=(
            Metric("rate", "Mixed: priorities, delays, a limit, retries", "messages/s"),
            Metric("share", "Mixed drain over the plain one", "× the rate", targets=(Target(0.5),)),
        ),
        once=True,
    ),
    Workload(
        name="stages",
        title="Three stages",
        contenders=(HOME,),
        arguments={"messages": 1_000_000, "compared": 50_000},
        quick={"messages": 10_000, "compared": 5_000},
        metrics=(
            Metric("rate", "Lines through three stages", "lines/s"),
            Metric("peak", "Three stages: memory of the process", "MB", better="less", targets=(Target(100),)),
            Metric("share", "Three stages: bounded", "% of unbounded", targets=(Target(80),)),
        ),
        once=True,
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
                Metric("guest", f"No-op, {loop}, trio actors", "messages/s", targets=(Target(0.9, HOME),)),
                Metric(
                    "rate",
                    f"No-op, {loop}, its own",
                    "messages/s",
                    targets=(Target(1.5, "upstream"), Target(0.75, HOME)),
                ),
            ),
            subject="hosted",
        )
        for loop in LOOPS
    ),
    *(
        Workload(
            name=f"sends-{loop}",
            title=f"One by one on {loop}",
            contenders=("hosted", "upstream", "taskiq"),
            arguments={"messages": 50_000, "executors": 100},
            quick={"messages": 2_500},
            metrics=(
                Metric("rate", f"Enqueue one by one, {loop}", "messages/s", targets=(Target(0.9, "upstream"),)),
                Metric(
                    "chain",
                    f"Chains of two, {loop}",
                    "chains/s",
                    targets=(Target(3, "upstream"), Target(2, "taskiq")),
                ),
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
            quick={"samples": 100, "rounds": 100},
            metrics=(
                Metric("one", f"A send from {loop}", "µs", better="less", targets=(Target(250),)),
                Metric("rested", f"A send from {loop}, rested", "µs", better="less"),
                Metric("many", f"100 sends from {loop}, each", "µs", better="less", targets=(Target(2, "bare"),)),
            ),
            subject="hosted",
        )
        for loop in LOOPS
    ),
    Workload(
        name="start",
        title="Start",
        contenders=(HOME,),
        arguments={"samples": 15},
        quick={"samples": 3},
        metrics=(
            Metric("import", "import repid", "ms", better="less", targets=(Target(40),)),
            Metric("worker", "A worker of one job", "ms", better="less", targets=(Target(250),)),
        ),
        once=True,
    ),
    Workload(
        name="memory-ready",
        title="Memory of ready messages",
        contenders=WITH_QUEUE,
        arguments={"messages": 1_000_000, "batch": 1_000},
        quick={"messages": 20_000},
        metrics=(Metric("bytes", "A ready message", "bytes", better="less", targets=(Target(300),)),),
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
        name="sqlite-batch",
        title="SQLite: batch actor",
        contenders=(HOME,),
        arguments={"messages": 10_000, "written": 2_000},
        quick={"messages": 2_000, "written": 500},
        metrics=tuple(replace(metric, title=f"SQLite: {metric.title}") for metric in BATCH_METRICS),
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
        name="sqlite-single",
        title="SQLite: enqueue one by one",
        contenders=(HOME, "bare"),
        arguments={"messages": 5_000, "publishers": 1},
        quick={"messages": 500},
        metrics=(Metric("rate", "SQLite: enqueue one by one", "messages/s", targets=(Target(0.9, "bare"),)),),
        store="sqlite",
    ),
    Workload(
        name="sqlite-noop",
        title="SQLite: no-op drain",
        contenders=WITH_FILE,
        arguments={"messages": 50_000, "executors": 100, "batch": 100},
        quick={"messages": 10_000},
        metrics=(
            Metric("rate", "SQLite: no-op drain", "messages/s", targets=(Target(8, "huey"), Target(0.45, "bare"))),
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
            Metric("p50", "SQLite: idle latency, p50", "ms", better="less", targets=(Target(1.5),)),
            Metric("p99", "SQLite: idle latency, p99", "ms", better="less", targets=(Target(5),)),
            Metric("idle", "SQLite: an idle worker", "% of a core", better="less", targets=(Target(0.2),)),
        ),
        store="sqlite",
    ),
    Workload(
        name="sqlite-result",
        title="SQLite: round trip to a result",
        contenders=(HOME,),
        arguments={"samples": 1_000},
        quick={"samples": 100},
        metrics=(
            Metric("p50", "SQLite: round trip to a result, p50", "ms", better="less", targets=(Target(3),)),
            Metric("p99", "SQLite: round trip to a result, p99", "ms", better="less"),
        ),
        store="sqlite",
    ),
    Workload(
        name="processes",
        title="SQLite: four processes",
        contenders=(HOME, "four"),
        arguments={"noop": 100_000, "compute": 4_000, "processes": 4, "executors": 100},
        quick={"noop": 20_000, "compute": 2_000},
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
    *(
        Workload(
            name=f"scaling-{store}",
            title=f"{title}: growth of cost",
            contenders=(HOME,),
            arguments={"largest": 1_000_000, "fitted_from": 1_000},
            quick={"largest": 1_000, "fitted_from": 10},
            metrics=tuple(
                Metric(key, f"{title}: {what}", "exponent", better="less", targets=(N_LOG_N,))
                for key, what in SCALES.items()
            ),
            once=True,
            store=store,
        )
        for store, title in STORES_TO_SCALE
    ),
    Workload(
        name="redis-noop",
        title="Redis: no-op drain",
        contenders=(HOME, *ON_A_SERVER["redis"], "bare"),
        arguments={"messages": 50_000, "executors": 100},
        quick={"messages": 10_000},
        metrics=(
            Metric("rate", "Redis: no-op drain", "messages/s", targets=(Target(3, FASTEST), Target(0.5, "bare"))),
            _server_time("Redis: no-op drain"),
        ),
        store="redis",
    ),
    Workload(
        name="redis-typed",
        title="Redis: typed payload drain",
        contenders=(HOME, *ON_A_SERVER["redis"]),
        arguments={"messages": 50_000, "executors": 100},
        quick={"messages": 10_000},
        metrics=(
            Metric("rate", "Redis: typed payload drain", "messages/s"),
            _server_time("Redis: typed payload"),
        ),
        store="redis",
    ),
    Workload(
        name="redis-bulk",
        title="Redis: enqueue in bulk",
        contenders=(HOME, *WITH_BULK["redis"], "bare"),
        arguments={"messages": 50_000, "batch": 1_000},
        quick={"messages": 10_000},
        metrics=(
            Metric("rate", "Redis: enqueue in bulk", "messages/s", targets=(Target(2, FASTEST),)),
            _server_time("Redis: in bulk"),
        ),
        store="redis",
    ),
    Workload(
        name="redis-publishers",
        title="Redis: 50 concurrent publishers",
        contenders=(HOME, *ON_A_SERVER["redis"]),
        arguments={"messages": 50_000, "publishers": 50},
        quick={"messages": 10_000},
        metrics=(
            Metric("rate", "Redis: 50 publishers", "messages/s", targets=(Target(3, FASTEST),)),
            _server_time("Redis: 50 publishers"),
        ),
        store="redis",
    ),
    *_on_a_server("redis", "Redis", 2.0),
    *_on_a_server("postgres", "PostgreSQL", 4.0),
    Workload(
        name="redis-idle",
        title="Redis: an idle worker",
        contenders=(HOME,),
        arguments={"idle": 60.0},
        quick={"idle": 5.0},
        metrics=(
            Metric("queries", "Redis: an idle worker asks", "commands/s", better="less", targets=(Target(1.0),)),
            Metric("idle", "Redis: its processor time", "% of a core", better="less", targets=(Target(0.5),)),
        ),
        once=True,
        store="redis",
    ),
    Workload(
        name="redis-latency",
        title="Redis: idle latency",
        contenders=(HOME, *ON_A_SERVER["redis"]),
        arguments={"samples": 1_000, "idle": 10.0},
        quick={"samples": 200, "idle": 2.0},
        metrics=(
            Metric("p50", "Redis: idle latency, p50", "ms", better="less", targets=(Target(1.0, FASTEST),)),
            Metric("p99", "Redis: idle latency, p99", "ms", better="less"),
            Metric("idle", "Redis: an idle worker", "% of a core", better="less", targets=(Target(0.5),)),
        ),
        store="redis",
    ),
    Workload(
        name="redis-size",
        title="Redis: size of a ready message",
        contenders=(HOME,),
        arguments={"messages": 100_000, "batch": 1_000},
        quick={"messages": 20_000},
        metrics=(Metric("bytes", "Redis: a ready message", "bytes", better="less", targets=(Target(350),)),),
        once=True,
        store="redis",
    ),
    Workload(
        name="redis-growth",
        title="Redis: what stays of messages",
        contenders=(HOME,),
        arguments={"messages": 1_000_000, "rounds": 100, "executors": 100},
        quick={"messages": 20_000, "rounds": 10},
        metrics=(Metric("growth", "Redis: kept per processed one", "bytes", better="less", targets=(Target(0.01),)),),
        once=True,
        store="redis",
    ),
    Workload(
        name="postgres-noop",
        title="PostgreSQL: no-op drain",
        contenders=(HOME, *ON_A_SERVER["postgres"], "bare"),
        arguments={"messages": 50_000, "executors": 100},
        quick={"messages": 5_000},
        metrics=(
            Metric("rate", "PostgreSQL: no-op drain", "messages/s", targets=(Target(2, FASTEST), Target(0.5, "bare"))),
            _server_time("PostgreSQL: no-op drain"),
        ),
        store="postgres",
    ),
    Workload(
        name="postgres-typed",
        title="PostgreSQL: typed payload drain",
        contenders=(HOME, *ON_A_SERVER["postgres"]),
        arguments={"messages": 50_000, "executors": 100},
        quick={"messages": 5_000},
        metrics=(
            Metric("rate", "PostgreSQL: typed payload drain", "messages/s"),
            _server_time("PostgreSQL: typed payload"),
        ),
        store="postgres",
    ),
    Workload(
        name="postgres-bulk",
        title="PostgreSQL: enqueue in bulk",
        contenders=(HOME, *WITH_BULK["postgres"], "bare"),
        arguments={"messages": 50_000, "batch": 1_000},
        quick={"messages": 5_000},
        metrics=(
            Metric("rate", "PostgreSQL: enqueue in bulk", "messages/s", targets=(Target(2, FASTEST),)),
            _server_time("PostgreSQL: in bulk"),
        ),
        store="postgres",
    ),
    Workload(
        name="postgres-publishers",
        title="PostgreSQL: 50 concurrent publishers",
        contenders=(HOME, *ON_A_SERVER["postgres"]),
        arguments={"messages": 20_000, "publishers": 50},
        quick={"messages": 2_000},
        metrics=(
            Metric("rate", "PostgreSQL: 50 publishers", "messages/s", targets=(Target(3, FASTEST),)),
            _server_time("PostgreSQL: 50 publishers"),
        ),
        store="postgres",
    ),
    Workload(
        name="postgres-ageing",
        title="PostgreSQL: a drain under an old snapshot",
        contenders=(HOME,),
        arguments={"ready": 1_000_000, "dead": 10_000_000},
        quick={"ready": 10_000, "dead": 10_000},
        metrics=(
            Metric("growth", "PostgreSQL: a claim at the end / at first", "×", better="less", targets=(Target(1.5),)),
            Metric(
                "settling", "PostgreSQL: a settlement at the end / at first", "×", better="less", targets=(Target(1.5),)
            ),
            Metric("claim", "PostgreSQL: a claim of 100 at the end, p50", "ms", better="less"),
            Metric("dead_rows", "PostgreSQL: rows that cannot be vacuumed", "millions", better="less"),
            Metric("size", "PostgreSQL: all tables at the end", "MB", better="less"),
        ),
        once=True,
        store="postgres",
    ),
    Workload(
        name="postgres-idle",
        title="PostgreSQL: an idle worker",
        contenders=(HOME,),
        arguments={"idle": 60.0},
        quick={"idle": 5.0},
        metrics=(
            Metric("queries", "PostgreSQL: an idle worker asks", "statements/s", better="less", targets=(Target(1.0),)),
            Metric("idle", "PostgreSQL: its processor time", "% of a core", better="less", targets=(Target(0.5),)),
        ),
        once=True,
        store="postgres",
    ),
    Workload(
        name="postgres-latency",
        title="PostgreSQL: idle latency",
        contenders=(HOME, *ON_A_SERVER["postgres"]),
        arguments={"samples": 500, "idle": 10.0},
        quick={"samples": 100, "idle": 2.0},
        metrics=(
            Metric("p50", "PostgreSQL: idle latency, p50", "ms", better="less", targets=(Target(1.0, FASTEST),)),
            Metric("p99", "PostgreSQL: idle latency, p99", "ms", better="less"),
            Metric("idle", "PostgreSQL: an idle worker", "% of a core", better="less", targets=(Target(0.5),)),
        ),
        store="postgres",
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
