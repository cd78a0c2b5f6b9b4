# mypy: ignore-errors
# Reason: huey lives in another environment.
"""huey on SQLite: `SqliteHuey` as it comes, in WAL with `fsync` at its default, and its own `Consumer` with one thread.

That default leaves SQLite's own, which is synchronous=FULL: every commit is on the disk, as with the others here. It
has no call for many, so enqueueing in bulk is one by one. More threads take turns at one connection's lock.

It gets a tenth of the messages: every one costs it a commit, so its figures do not depend on how many there are.
"""

from __future__ import annotations

import threading
from pathlib import Path

from huey import SqliteHuey

from ._shared import Arguments, Figures, Measurement, file_size, now, rate, ready_cost, typed_payloads

POLLING = 0.001
"""Seconds between two looks at an empty queue, as in memory."""


def count_of(arguments: Arguments) -> int:
    return arguments["messages"] // 10


class Bench:
    """Tasks on a file in the measurement's folder."""

    def __init__(self, arguments: Arguments) -> None:
        self.path = str(Path(arguments["folder"]) / "huey.db")
        self.huey = SqliteHuey(filename=self.path, results=False)
        self.finished = threading.Event()
        synchronous = self.huey.storage.conn.execute("pragma synchronous").fetchone()[0]
        assert synchronous == 2, f"synchronous is {synchronous}, not FULL: figures would not compare"
        self.noop = self.huey.task(name="noop")(lambda: None)
        self.typed = self.huey.task(name="typed")(lambda number, text: None)  # noqa: ARG005
        self.finish = self.huey.task(name="finish")(self.finished.set)

    def enqueue(self, count: int) -> float:
        """Seconds that enqueueing takes, one by one."""
        payloads = typed_payloads(count)
        start = now()
        for payload in payloads:
            self.typed(payload["number"], payload["text"])
        return now() - start


def measure_enqueue(arguments: Arguments) -> Figures:
    seconds = Bench(arguments).enqueue(count_of(arguments))
    return {"rate": count_of(arguments) / seconds, "seconds": seconds}


def measure_noop(arguments: Arguments) -> Figures:
    """Time from the consumer's start to the report of the last task; stopping its thread is not counted."""
    bench = Bench(arguments)
    for _ in range(count_of(arguments) - 1):
        bench.noop()
    bench.finish()
    consumer = bench.huey.create_consumer(
        workers=1, periodic=False, initial_delay=POLLING, max_delay=POLLING, check_worker_health=False
    )
    start = now()
    consumer.start()
    bench.finished.wait()
    end = now()
    consumer.stop(graceful=True)
    return rate(count_of(arguments), start, end)


def measure_row(arguments: Arguments) -> Figures:
    bench = Bench(arguments)
    before = file_size(bench.path)
    bench.enqueue(count_of(arguments))
    bench.huey.storage.close()
    return ready_cost(count_of(arguments), before, file_size(bench.path))


MEASUREMENTS: dict[str, Measurement] = {
    "sqlite-bulk": measure_enqueue,
    "sqlite-publishers": measure_enqueue,
    "sqlite-noop": measure_noop,
    "sqlite-row": measure_row,
}
DISTRIBUTIONS = ("huey",)
