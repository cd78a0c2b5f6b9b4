"""repid's `app.run(processes=N)` on a SQLite file or a server. The worker processes import this module too.

They are not timed while they start and end: each waits, just before it gets its app, until all have come that far. Every
process writes down when its runs ended, and the rate is that of all while every process runs jobs (`rate_while_all_run`).
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio

from repid import PostgresServer, RedisServer, Repid, Router, Server, SQLiteServer

from ._shared import Arguments, Figures, Measurement, chunks, now, typed_payloads

CHANNEL = "bench"
FOLDER, PROCESSES, URL = "REPID_BENCHMARK_FOLDER", "REPID_BENCHMARK_PROCESSES", "REPID_BENCHMARK_URL"
"""Variables of the environment by which worker processes learn where they meet, how many they are, and which server is
theirs; without one, it is a file where they meet.
"""

PATIENCE = 60.0
"""Seconds within which all worker processes must have come to the start."""

DOCUMENT = typed_payloads(1_800)

router = Router(channel=CHANNEL)
ended: list[float] = []


@router.actor
async def noop() -> None:
    ended.append(now())


@router.actor
async def compute() -> None:
    """About a millisecond of what jobs do between two waits: encode, hash, decode."""
    encoded = json.dumps(DOCUMENT).encode()
    hashlib.sha256(encoded).hexdigest()
    json.loads(encoded)
    ended.append(now())


def new_app(folder: Path) -> Repid:
    app, url = Repid(title="bench", version="1"), os.environ.get(URL, "")
    server: Server = SQLiteServer(str(folder / "jobs.db"))
    if url:
        server = RedisServer(url) if url.startswith("redis") else PostgresServer(url)
    app.servers.register_server("default", server, is_default=True)
    app.include_router(router)
    return app


def worker_app() -> Repid:
    """The app as a worker process gets it: when all of them are there."""
    folder = Path(os.environ[FOLDER])
    atexit.register(write_down, folder)
    (folder / f"{os.getpid()}.there").touch()
    deadline = now() + PATIENCE
    while len(list(folder.glob("*.there"))) < int(os.environ[PROCESSES]):
        assert now() < deadline, f"not all worker processes have started within {PATIENCE:.0f} s"
        time.sleep(0.002)
    return new_app(folder)


def write_down(folder: Path) -> None:
    (folder / f"{os.getpid()}.ended").write_text(json.dumps(ended))


async def fill(folder: Path, topic: str, count: int) -> None:
    app, payloads = new_app(folder), list[dict[str, Any]]([{}] * count)
    async with app.servers.default.connection():
        for part in chunks(payloads, 1000):
            await app.send_messages_json(channel=CHANNEL, payloads=part, headers={"topic": topic})


def drain(folder: Path, topic: str, count: int, processes: int, executors: int) -> float:
    """Runs per second while every process runs some."""
    folder.mkdir()
    os.environ.update({FOLDER: str(folder), PROCESSES: str(processes)})
    trio.run(fill, folder, topic, count)
    ended.clear()
    new_app(folder).run(processes=processes, burst=True, tasks_limit=executors, target=f"{__name__}:worker_app")
    of_processes: list[list[float]] = [json.loads(file.read_text()) for file in folder.glob("*.ended")]
    of_processes = [moments for moments in [*of_processes, ended] if moments]
    found = sum(map(len, of_processes))
    assert found == count, f"{found} of {count} ran"
    assert len(of_processes) == processes, f"{len(of_processes)} of {processes} processes ran something"
    return rate_while_all_run(of_processes)


def rate_while_all_run(of_processes: Sequence[Sequence[float]]) -> float:
    """Runs per second in all processes together, from when the last of them began to run until the first had nothing left.

    Each gives the moments at which its runs ended, in order.
    """
    start, end = max(moments[0] for moments in of_processes), min(moments[-1] for moments in of_processes)
    assert start < end, "one process had nothing left before another one began: there were too few jobs"
    return sum(start < moment <= end for moments in of_processes for moment in moments) / (end - start)


def measure(processes: int | None, arguments: Arguments) -> Figures:
    """Both drains, one after the other; `processes` is what the arguments say, if it is not given."""
    folder, count = Path(arguments["folder"]), processes or arguments["processes"]
    return {
        topic: drain(folder / topic, topic, arguments[topic], count, arguments["executors"])
        for topic in ("noop", "compute")
    }


def measure_workers(processes: int | None, arguments: Arguments) -> Figures:
    """Both drains by so many workers on the server, or by as many as there are cores."""
    os.environ[URL] = arguments["url"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with TemporaryDirectory() as folder:
        return measure(processes or cores, {**arguments, "folder": folder})


measure_one: Measurement = partial(measure, 1)

MEASUREMENTS: dict[str, Measurement] = {
    "processes": partial(measure, None),
    "redis-workers": partial(measure_workers, 16),
    "postgres-workers": partial(measure_workers, 16),
}
DISTRIBUTIONS = ("repid-trio", "trio", "msgspec")
