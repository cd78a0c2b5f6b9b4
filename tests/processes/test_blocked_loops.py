"""Two worker processes on one file or server, and an actor that blocks the event loop of one of them. Real time."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from engines.postgres import running
from engines.redis import embedded

import repid
from repid import Connection, Repid, Server

from .aids_supervisor import with_signals

pytestmark = with_signals

LEASE = 1.0

WORKER = """
import os, sys, time
import trio
import repid
from repid import Connection, Repid, Router

seconds, timeout = float(sys.argv[1]), float(sys.argv[2])
router = Router()
app = Repid(Connection(getattr(repid, sys.argv[3])(sys.argv[4], lease_timeout=1.0, **dict([sys.argv[5:]] if sys.argv[5:] else []))))

def note(word):
    with open("notes", "a") as file:
        file.write(f"{word} {os.getpid()}\\n")

@router.actor(timeout=timeout)
async def blocks() -> None:
    note("starts")
    time.sleep(seconds)
    note("ends")

@router.actor(timeout=60)
async def waits() -> None:
    note("waits")
    await trio.sleep(0.5)

@router.actor
async def quick() -> None:
    note("quick")

app.include_router(router)
if __name__ == "__main__":
    app.run()
"""


@dataclass
class Place:
    """Where the jobs are: a server of this class with these arguments. `consumers` counts those that it knows."""

    server: str
    address: str
    options: dict[str, str]
    """What gives it a place of its own on a server."""
    consumers: Callable[[], int]

    def open(self) -> Server:
        opened: Server = getattr(repid, self.server)(self.address, lease_timeout=LEASE, **self.options)
        return opened


class Workers:
    """Processes that take jobs from one place, and what their actors noted."""

    def __init__(self, folder: Path, place: Place) -> None:
        self.folder = folder
        self.place = place
        self.app = Repid(Connection(place.open()))
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "worker.py").write_text(WORKER, encoding="utf-8")

    def send(self, *actors: str) -> None:
        with self.app.sync() as client:
            for actor in actors:
                client.send_message_json(channel="default", payload={}, headers={"topic": actor})

    def start_two(self, *, blocks_for: float, timeout: float) -> None:
        """Two workers, which wait for jobs when this returns."""
        place, options = self.place, [part for option in self.place.options.items() for part in option]
        command = [sys.executable, "worker.py", str(blocks_for), str(timeout), place.server, place.address, *options]
        with (self.folder / "log").open("ab") as log:
            for _ in range(2):
                self.processes.append(subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log))
        self.wait_until(lambda: self.place.consumers() == 2)

    def noted(self, word: str) -> list[int]:
        """The processes that noted it."""
        file = self.folder / "notes"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [int(pid) for each, pid in map(str.split, lines) if each == word]

    def wait_until(self, is_so: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, (self.folder / "log").read_text(encoding="utf-8")
            time.sleep(0.02)

    def end(self) -> str:
        """Stop them; what they logged."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            assert process.wait(30) == 0
        return (self.folder / "log").read_text(encoding="utf-8")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@contextmanager
def on_sqlite(folder: Path) -> Iterator[Place]:
    def consumers() -> int:
        with suppress(sqlite3.Error), closing(sqlite3.connect(folder / "jobs.db")) as file:
            count: int = file.execute("SELECT count(*) FROM consumer").fetchone()[0]
            return count
        return 0

    yield Place("SQLiteServer", str(folder / "jobs.db"), {}, consumers)


@contextmanager
def on_postgres(_: Path) -> Iterator[Place]:
    def consumers() -> int:
        if postgres.execute("SELECT to_regclass(%s)", f"{schema}.consumer") == [(None,)]:
            return 0
        [(count,)] = postgres.execute(f"SELECT count(*) FROM {schema}.consumer")
        return int(count)

    with running("embedded") as postgres, postgres.schema() as schema:
        yield Place("PostgresServer", postgres.url, {"schema": schema}, consumers)


@contextmanager
def on_redis(_: Path) -> Iterator[Place]:
    with embedded() as redis, redis.prefix() as prefix:
        yield Place(
            "RedisServer", redis.url, {"prefix": prefix}, lambda: int(redis.execute("HLEN", f"{{{prefix}}}:consumers"))
        )


@pytest.fixture(params=[on_sqlite, on_postgres, on_redis])
def workers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workers]:
    with request.param(tmp_path) as place:
        workers = Workers(tmp_path, place)
        try:
            yield workers
        finally:
            workers.close()


def test_nobody_takes_what_is_under_way_in_a_blocked_loop_within_its_timeout(workers: Workers) -> None:
    """Neither the run that blocks it for three leases, nor one beside it, nor one whose verdict is not settled yet."""
    workers.start_two(blocks_for=3 * LEASE, timeout=30)
    workers.send("waits", "blocks", "quick")
    workers.wait_until(lambda: all(map(workers.noted, ["waits", "ends", "quick"])))
    log = workers.end()
    assert len(workers.noted("starts")) == len(workers.noted("waits")) == len(workers.noted("quick")) == 1
    assert "came too late" not in log
    with workers.app.sync() as client:
        counts = client.run(lambda: workers.app.server().counts("default"))
    assert (counts.ready, counts.leased, counts.dead) == (0, 0, 0)


def test_what_blocks_the_loop_beyond_its_timeout_is_taken_over(workers: Workers) -> None:
    workers.start_two(blocks_for=30, timeout=3 * LEASE)
    workers.send("blocks")
    workers.wait_until(lambda: bool(workers.noted("starts")))
    began = time.monotonic()
    workers.wait_until(lambda: len(workers.noted("starts")) == 2)
    assert time.monotonic() - began > 2.5 * LEASE
    assert len(set(workers.noted("starts"))) == 2


def test_a_process_that_is_frozen_as_a_whole_loses_its_leases(workers: Workers) -> None:
    workers.start_two(blocks_for=30, timeout=60)
    workers.send("blocks")
    workers.wait_until(lambda: bool(workers.noted("starts")))
    os.kill(workers.noted("starts")[0], signal.SIGSTOP)
    workers.wait_until(lambda: len(workers.noted("starts")) == 2)
    assert len(set(workers.noted("starts"))) == 2
