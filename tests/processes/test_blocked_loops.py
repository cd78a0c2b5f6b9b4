"""Two worker processes on one file, and an actor that blocks the event loop of one of them. Real time."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from repid import Connection, Repid, SQLiteServer

from .aids_supervisor import with_signals

pytestmark = with_signals

LEASE = 1.0

WORKER = """
import os, sys, time
import trio
from repid import Connection, Repid, Router, SQLiteServer

seconds, timeout = float(sys.argv[1]), float(sys.argv[2])
router = Router()
app = Repid(Connection(SQLiteServer("jobs.db", lease_timeout=1.0)))

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


class Workers:
    """Processes that take jobs from one file, and what their actors noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = Repid(Connection(SQLiteServer(folder / "jobs.db", lease_timeout=LEASE)))
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "worker.py").write_text(WORKER, encoding="utf-8")

    def send(self, *actors: str) -> None:
        with self.app.sync() as client:
            for actor in actors:
                client.send_message_json(channel="default", payload={}, headers={"topic": actor})

    def start_two(self, *, blocks_for: float, timeout: float) -> None:
        """Two workers, which wait for jobs when this returns."""
        command = [sys.executable, "worker.py", str(blocks_for), str(timeout)]
        with (self.folder / "log").open("ab") as log:
            for _ in range(2):
                self.processes.append(subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log))
        self.wait_until(lambda: self._consumers() == 2)

    def _consumers(self) -> int:
        with suppress(sqlite3.Error), closing(sqlite3.connect(self.folder / "jobs.db")) as file:
            count: int = file.execute("SELECT count(*) FROM consumer").fetchone()[0]
            return count
        return 0

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


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(tmp_path)
    yield workers
    workers.close()


def test_nobody_takes_what_is_under_way_in_a_blocked_loop_within_its_timeout(workers: Workers) -> None:
    """Neither the run that blocks it for three leases, nor one beside it, nor one whose verdict is not settled yet."""
    workers.start_two(blocks_for=3 * LEASE, timeout=30)
    workers.send("waits", "blocks", "quick")
    workers.wait_until(lambda: bool(workers.noted("ends")))
    log = workers.end()
    assert len(workers.noted("starts")) == len(workers.noted("waits")) == len(workers.noted("quick")) == 1
    assert "came too late" not in log
    with workers.app.sync() as client:
        counts = client.call(lambda: workers.app.server().counts("default"))
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
