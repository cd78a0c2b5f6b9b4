"""A program in a folder of its own, run by `python -m repid worker` as people do, and watched from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from repid import Connection, Repid, SQLiteServer

with_signals = [
    pytest.mark.real_time,
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals on Windows"),
]
"""The marks of tests that start a supervisor, as most of them end it by a signal."""

PATIENCE = 60.0
"""Seconds that a test waits for what takes less than one on an idle machine: others may keep every core busy."""

PROGRAM = """
import os, pathlib, signal, sys, time
import trio
from repid import Connection, Repid, Router, SQLiteServer

HERE = pathlib.Path(__file__).parent
app = Repid(Connection(SQLiteServer(HERE / "jobs.db", lease_timeout=1)))
router = Router()
hoard = []

def note(text):
    with open(HERE / "notes", "a") as file:
        file.write(text + "\\n")

@router.actor
async def slow(number: int, seconds: float) -> None:
    note(f"begin {number} {os.getpid()}")
    await trio.sleep(seconds)
    note(f"done {number} {os.getpid()}")

@router.actor
async def stubborn(number: int) -> None:
    note(f"begin {number} {os.getpid()}")
    with trio.CancelScope(shield=True):
        await trio.sleep(60)

@router.actor
async def eat(number: int) -> None:
    hoard.append(bytearray(60_000_000))
    note(f"done {number} {os.getpid()}")

@router.actor
async def die() -> None:
    os._exit(7)

app.include_router(router)
"""


def slow(count: int, seconds: float) -> list[dict[str, float]]:
    """Payloads for the actor `slow`."""
    return [{"number": n, "seconds": seconds} for n in range(count)]


Notes = list[tuple[str, int, int]]


class Program:
    """The program, its queue, and the supervisor that runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs.py").write_text(PROGRAM, encoding="utf-8")
        self.app = Repid(Connection(SQLiteServer(folder / "jobs.db", lease_timeout=1)))
        self.supervisor: subprocess.Popen[bytes] | None = None

    def send(self, actor: str, payloads: list[dict[str, Any]]) -> None:
        with self.app.sync() as client:
            client.send_messages_json(channel="default", payloads=payloads, headers={"topic": actor})

    def counts(self) -> tuple[int, int]:
        """How many messages are ready and leased."""
        with self.app.sync() as client:
            counts = client.run(lambda: self.app.server().counts("default"))
        return counts.ready, counts.leased

    def tune(self, module: str, **constants: float) -> None:
        """Give constants of one of the supervisor's modules other values, in all its processes."""
        lines = [f"import repid.supervisor.{module} as module"]
        lines += [f"module.{name} = {value}" for name, value in constants.items()]
        with (self.folder / "sitecustomize.py").open("a", encoding="utf-8") as file:
            file.write("\n".join([*lines, ""]))

    def add(self, code: str) -> None:
        """Add code to the end of the program. `is_worker` says there whether this is a process of a supervisor."""
        file = self.folder / "jobs.py"
        prelude = "from repid.supervisor.child import is_child as is_worker\n"
        file.write_text(file.read_text(encoding="utf-8") + prelude + dedent(code), encoding="utf-8")

    def start(
        self,
        *options: str,
        command: list[str] | None = None,
        variables: Mapping[str, str] | None = None,
        output: int | None = None,
    ) -> None:
        """Start the supervisor, as a terminal does: in a process group of its own."""
        command = command or ["-m", "repid", "worker", "jobs:app", *options]
        environment = {
            **os.environ,
            **(variables or {}),
            "PYTHONPATH": os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")]),
        }
        with (self.folder / "log").open("ab") as log:
            to = log.fileno() if output is None else output
            self.supervisor = subprocess.Popen(
                [sys.executable, *command], cwd=self.folder, env=environment, stdout=to, stderr=to, process_group=0
            )

    def signal_group(self, number: signal.Signals) -> None:
        """As a terminal does for Ctrl-C."""
        assert self.supervisor is not None
        os.killpg(self.supervisor.pid, number)

    def signal(self, number: signal.Signals) -> None:
        assert self.supervisor is not None
        self.supervisor.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code."""
        assert self.supervisor is not None
        return self.supervisor.wait(seconds)

    @property
    def is_running(self) -> bool:
        return self.supervisor is not None and self.supervisor.poll() is None

    def close(self) -> None:
        """End the supervisor, if a test failed; its processes end with it."""
        if self.supervisor is not None and self.is_running:
            self.supervisor.kill()
            self.supervisor.wait()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    @property
    def notes(self) -> Notes:
        """What the actors noted: (word, number, process)."""
        file = self.folder / "notes"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [(word, int(number), int(pid)) for word, number, pid in map(str.split, lines)]

    def noted(self, word: str) -> list[int]:
        """Which numbers were noted with that word, sorted."""
        return sorted(number for each, number, _ in self.notes if each == word)

    @property
    def started(self) -> list[int]:
        """The processes that have started a worker, in that order."""
        return [
            int(pid) for pid in re.findall(r"(\d+) repid\.processes: (?:worker \d+|the worker) has started", self.log)
        ]


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z")
