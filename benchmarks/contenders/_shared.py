"""What every contender shares: the payloads, the clock, the resident size and how figures follow from them.

Contenders run in environments of their own, so what is not in the standard library is imported where it is needed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

now = time.process_time if os.environ.get("BENCHMARKS_CLOCK") == "processor" else time.perf_counter
"""Seconds; of processor time where the harness was told so, since that hardly depends on what else the machine does."""

TEXT = "what the customer wrote"

LATENCY_WARM_UP = 50
"""Samples taken before those that count: whatever is compiled on first use is compiled by then."""

NAP = 0.1
"""Seconds that a job waits where it is asked how many jobs that wait are done of those that arithmetic allows."""

Arguments = Mapping[str, Any]
Figures = dict[str, Any]
Measurement = Callable[[Arguments], Figures]


async def seconds_of(call: Awaitable[object], pause: float = 0.0) -> float:
    """How long an awaited call takes, after a pause."""
    await asyncio.sleep(pause)
    start = now()
    await call
    return now() - start


def run_on_uvloop(coroutine: Coroutine[Any, Any, Figures]) -> Figures:
    """Not every platform has uvloop: only what is measured on it needs it."""
    import uvloop  # noqa: PLC0415

    return uvloop.run(coroutine)


def on_uvloop(measure: Callable[[Arguments], Coroutine[Any, Any, Figures]]) -> Measurement:
    """A measurement that is async, on uvloop."""
    return lambda arguments: run_on_uvloop(measure(arguments))


def on_asyncio(measure: Callable[[Arguments], Coroutine[Any, Any, Figures]]) -> Measurement:
    """A measurement that is async, on asyncio's own loop."""
    return lambda arguments: asyncio.run(measure(arguments))


def on_trio(measure: Callable[[Arguments], Awaitable[Figures]]) -> Measurement:
    """A measurement that is async, on trio."""
    import trio  # noqa: PLC0415

    return lambda arguments: trio.run(measure, arguments)


def later(module: str, name: str) -> Callable[..., Any]:
    """A function of another module beside this one, which is imported when it is called.

    With `--against` a workload is measured at a commit that may lack what other workloads use.
    """

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"{__package__}.{module}"), name)(*arguments)

    return call


def typed_payloads(count: int) -> list[dict[str, Any]]:
    """Payloads of two fields, an integer and a text."""
    return [{"number": number, "text": TEXT} for number in range(count)]


def payload_size(count: int) -> float:
    """Mean size in bytes of `typed_payloads(count)` as compact JSON: the payload that memory figures leave out."""
    fixed = len(json.dumps({"number": 0, "text": TEXT}, separators=(",", ":"))) - 1
    return fixed + sum(len(str(number)) for number in range(count)) / count


def resident_size() -> int:
    """Bytes of memory that are resident now (Linux), elsewhere the most that ever were."""
    gc.collect()
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return peak_size()


def peak_size() -> int:
    """The most bytes of memory that ever were resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rate(count: int, start: float, end: float) -> Figures:
    return {"rate": count / (end - start), "seconds": end - start}


def share_of_naps(figures: Figures, arguments: Arguments) -> Figures:
    """Percent that a rate of jobs that wait for `NAP` is of what so many executors could do if they did nothing else."""
    return {"share": 100 * NAP * figures["rate"] / arguments["executors"]}


def idle_pauses(samples: int, shortest: float = 0.002) -> list[float]:
    """Seconds to wait after each latency sample: the worker is idle again, and no polling falls into step with it."""
    chance = random.Random(0)  # noqa: S311 - nothing here is secret
    return [chance.uniform(shortest, 2 * shortest) for _ in range(samples + LATENCY_WARM_UP)]


def latency(samples: Sequence[float]) -> Figures:
    """Percentiles in milliseconds of `samples` in seconds, without the warm-up."""
    ordered = sorted(samples[LATENCY_WARM_UP:])
    at = {name: ordered[min(int(len(ordered) * share), len(ordered) - 1)] for name, share in PERCENTILES.items()}
    return {name: seconds * 1000 for name, seconds in at.items()}


def microseconds(samples: Sequence[float]) -> float:
    """The median of `samples` in seconds, without the warm-up."""
    return median(samples[LATENCY_WARM_UP:]) * 1e6


PERCENTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def ready_cost(count: int, before: int, after: int) -> Figures:
    """Bytes that one ready message costs beyond its payload."""
    return {"bytes": (after - before) / count - payload_size(count), "payload": payload_size(count)}


def growth(batch: int, sizes: Sequence[int]) -> Figures:
    """Bytes kept per processed message. The first fifth is left out: the allocator is finding its size then."""
    settled = sizes[len(sizes) // 5 :]
    return {"growth": (settled[-1] - settled[0]) / (batch * (len(settled) - 1)), "resident": list(sizes)}


def file_size(file: str) -> int:
    """Bytes of an SQLite file and what lies beside it."""
    return sum(part.stat().st_size for part in Path(file).parent.glob(f"{Path(file).name}*"))


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
