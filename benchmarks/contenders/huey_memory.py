# mypy: ignore-errors
# Reason: huey lives in another environment.
"""huey in memory: `MemoryHuey` and its own `Consumer` with threads, in this process.

One thread for work that does not wait (more only fight for the interpreter's lock: its best figure has one), as many
threads as executors for work that sleeps. No results are kept, no periodic tasks looked for. The last message is a
task that reports the end; with one thread the queue's order makes it the last to run.
"""

from __future__ import annotations

import itertools
import threading
import time

from huey import MemoryHuey
from huey.consumer import Consumer

from ._shared import (
    Arguments,
    Figures,
    Measurement,
    growth,
    idle_pauses,
    latency,
    now,
    rate,
    ready_cost,
    resident_size,
    typed_payloads,
)

POLLING = 0.001
"""Seconds between two looks at an empty queue; memory storage cannot block. The default is 0.1, growing to 10."""

huey = MemoryHuey(results=False)
keeping = MemoryHuey("keeping")
"""One that keeps results."""

started: list[float] = []
arrived = threading.Event()
finished = threading.Event()
completed = itertools.count(1)


@huey.task()
def noop() -> None:
    pass


@huey.task()
def typed(number: int, text: str) -> None:
    pass


@keeping.task()
def echo(number: int) -> int:
    return number


@keeping.task()
def finish_map() -> None:
    finished.set()


@huey.task()
def first() -> None:
    noop()


@huey.task()
def first_of_last_chain() -> None:
    finish()


@huey.task()
def finish() -> None:
    finished.set()


@huey.task()
def sleep(seconds: float, of: int) -> None:
    time.sleep(seconds)
    if next(completed) == of:
        finished.set()


@huey.task()
def ping() -> None:
    started.append(now())
    arrived.set()


def new_consumer(workers: int, of: MemoryHuey = huey) -> Consumer:
    return of.create_consumer(
        workers=workers, periodic=False, initial_delay=POLLING, max_delay=POLLING, check_worker_health=False
    )


def drain(count: int, workers: int) -> Figures:
    """Time from the consumer's start to the report of the last task; stopping its threads is not counted."""
    finished.clear()
    consumer = new_consumer(workers)
    start = now()
    consumer.start()
    finished.wait()
    end = now()
    consumer.stop(graceful=True)
    return rate(count, start, end)


def measure_noop(arguments: Arguments) -> Figures:
    for _ in range(arguments["messages"] - 1):
        noop()
    finish()
    return drain(arguments["messages"], workers=1)


def measure_typed(arguments: Arguments) -> Figures:
    enqueue(arguments["messages"] - 1)
    finish()
    return drain(arguments["messages"], workers=1)


def measure_chain(arguments: Arguments) -> Figures:
    for _ in range(arguments["messages"] - 1):
        first()
    first_of_last_chain()
    return drain(arguments["messages"], workers=1)


def measure_map(arguments: Arguments) -> Figures:
    """All at once, since `map` has no limit. Its results are asked for when all are there: it would wait by polling."""
    count = arguments["messages"]
    consumer = new_consumer(1, keeping)
    consumer.start()
    start = now()
    group = echo.map(range(count))
    finish_map()
    finished.wait()
    assert group.get() == list(range(count))
    end = now()
    consumer.stop(graceful=True)
    return rate(count, start, end)


def measure_sleep(arguments: Arguments) -> Figures:
    count = arguments["messages"]
    for _ in range(count):
        sleep(arguments["seconds"], count)
    return drain(count, workers=arguments["executors"])


def enqueue(count: int) -> None:
    for payload in typed_payloads(count):
        typed(**payload)


def measure_enqueue_bulk(arguments: Arguments) -> Figures:
    pairs = [(payload["number"], payload["text"]) for payload in typed_payloads(arguments["messages"])]
    start = now()
    for position in range(0, len(pairs), arguments["batch"]):
        typed.map(pairs[position : position + arguments["batch"]])
    return rate(len(pairs), start, now())


def measure_enqueue_one(arguments: Arguments) -> Figures:
    payloads = typed_payloads(arguments["messages"])
    start = now()
    for payload in payloads:
        typed(payload["number"], payload["text"])
    return rate(len(payloads), start, now())


def measure_latency(arguments: Arguments) -> Figures:
    consumer = new_consumer(workers=1)
    consumer.start()
    sent: list[float] = []
    for pause in idle_pauses(arguments["samples"]):
        arrived.clear()
        sent.append(now())
        ping()
        arrived.wait()
        time.sleep(pause)
    consumer.stop(graceful=True)
    return latency([start - send for send, start in zip(sent, started, strict=True)])


def measure_ready(arguments: Arguments) -> Figures:
    enqueue(100)
    before = resident_size()
    for _ in range(0, arguments["messages"], arguments["batch"]):
        enqueue(arguments["batch"])
    return ready_cost(arguments["messages"], before, resident_size())


def measure_processed(arguments: Arguments) -> Figures:
    batch = arguments["messages"] // arguments["rounds"]
    sizes: list[int] = []
    for _ in range(arguments["rounds"]):
        enqueue(batch - 1)
        finish()
        drain(batch, workers=1)
        sizes.append(resident_size())
    return growth(batch, sizes)


MEASUREMENTS: dict[str, Measurement] = {
    "noop": measure_noop,
    "typed": measure_typed,
    "enqueue-bulk": measure_enqueue_bulk,
    "enqueue-one": measure_enqueue_one,
    "chain": measure_chain,
    "map": measure_map,
    "sleep": measure_sleep,
    "latency": measure_latency,
    "memory-ready": measure_ready,
    "memory-processed": measure_processed,
}
DISTRIBUTIONS = ("huey",)
