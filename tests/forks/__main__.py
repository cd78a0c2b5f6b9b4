"""`python -m tests.forks --forks 500`: threads that send and run jobs while others fork, in a process of its own.

Who has the app open: `client`, nobody but `app.sync()`; `trio` or `asyncio`, a loop of that kind in the main thread, in
which a worker runs, too. Each forked child sends one message through a client of its own. At the end every confirmed
message must be in the file once, and every job must have run once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sqlite3
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from repid import Client, Connection, Queue, Repid, Router, SQLiteServer

CHILD_TIME = 30
"""Seconds after which a child is taken for hung."""


class Harness:
    """The threads of one run, and what they have seen."""

    def __init__(self, path: Path, forks: int) -> None:
        self._path = path
        self._forks = forks
        self._is_over = threading.Event()
        self._pipe = os.pipe()
        self.confirmed: list[str] = []
        self.by_children: list[str] = []
        self.ran: Counter[str] = Counter()
        self.troubles: list[str] = []
        self.app = Repid(Connection(SQLiteServer(path)))
        router = Router(queue="jobs")

        @router.actor
        def job(number: str) -> None:
            self.ran[number] += 1

        self.app.include_router(router)

    def run_threads(self) -> None:
        """Send and fork until the forks are done."""
        client = self.app.sync()
        client.run(Queue("q", app=self.app).declare)
        others = [threading.Thread(target=self._watched, args=[self._send, client, who]) for who in range(2)]
        forkers = [threading.Thread(target=self._watched, args=[self._fork, client]) for _ in range(3)]
        for thread in [*others, *forkers]:
            thread.start()
        for thread in forkers:
            thread.join()
        self._is_over.set()
        for thread in others:
            thread.join()
        client.close()
        os.close(self._pipe[1])
        with os.fdopen(self._pipe[0]) as pipe:
            self.by_children = pipe.read().split()

    def _watched(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is shown
            self.troubles.append(f"a thread: {error!r}")

    def _send(self, client: Client, who: int) -> None:
        number = 0
        while not self._is_over.is_set():
            self.confirmed.append(client.send_message_json(channel="q").id)
            number += 1
            client.send_message_json(
                channel="jobs",
                payload={"number": f"{who} {number}"},
                headers={"topic": "job"},
                message_id=f"{who} {number}",
            )

    def _fork(self, client: Client) -> None:
        for _ in range(self._forks // 3 + 1):
            child = os.fork()
            if child == 0:
                self._be_child(client)
            status = os.waitpid(child, 0)[1]
            if status:
                self.troubles.append("a child hung" if status == signal.SIGALRM else f"a child ended with {status}")

    def _be_child(self, client: Client) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CHILD_TIME)
        status = 1
        try:
            os.write(self._pipe[1], (client.send_message_json(channel="q").id + "\n").encode())
            client.close()
            status = 0
        finally:
            os._exit(status)

    def account(self) -> None:
        """Hold what is in the file against what was confirmed."""
        file = sqlite3.connect(self._path)
        [[verdict]] = file.execute("PRAGMA integrity_check(1)").fetchall()
        if verdict != "ok":
            self.troubles.append(f"the file is damaged: {verdict}")
        there = Counter(row[0].hex() for row in file.execute("SELECT id FROM message"))
        file.close()
        for who, ids in (("a thread", self.confirmed), ("a child", self.by_children)):
            lost = sum(there[id_] != 1 for id_ in ids)
            if lost:
                self.troubles.append(f"{lost} messages that {who} has sent are lost")
        again = sum(times > 1 for times in self.ran.values())
        if again:
            self.troubles.append(f"{again} jobs ran more than once")


def host_client(harness: Harness) -> None:
    """Nobody has the app open but its clients."""
    harness.run_threads()
    harness.app.run(burst=True)


def host_trio(harness: Harness) -> None:
    """A trio run has it open, and a worker runs there."""

    async def main() -> None:
        async with harness.app.magic(), trio.open_nursery() as nursery:
            worker = await nursery.start(harness.app.run_worker)
            await trio.to_thread.run_sync(harness.run_threads)
            worker.stop()
        await harness.app.run_worker(burst=True)

    trio.run(main)


def host_asyncio(harness: Harness) -> None:
    """An asyncio loop has it open, and a worker runs there."""

    async def main() -> None:
        async with harness.app.magic():
            worker = asyncio.create_task(harness.app.run_worker(handle_signals=[]))
            await asyncio.to_thread(harness.run_threads)
            worker.cancel()
            await asyncio.wait([worker])
            await harness.app.run_worker(burst=True)

    asyncio.run(main())


HOSTS: dict[str, Callable[[Harness], None]] = {"client": host_client, "trio": host_trio, "asyncio": host_asyncio}


def main(command_line: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.forks", description=__doc__)
    parser.add_argument("--forks", type=int, default=500, metavar="N", help="for each host (default 500)")
    parser.add_argument("--host", choices=HOSTS, action="append", help="who has the app open (default: each in turn)")
    options = parser.parse_args(command_line)
    logging.basicConfig(level=logging.WARNING)  # what `app.run` would log else is no trouble
    status = 0
    for name in options.host or HOSTS:
        with tempfile.TemporaryDirectory(prefix="repid-forks-") as folder:
            harness = Harness(Path(folder) / "jobs.db", options.forks)
            HOSTS[name](harness)
            harness.account()
        sys.stdout.write(
            f"{name}: {len(harness.by_children)} forks, {len(harness.confirmed)} messages, {len(harness.ran)} jobs: "
            f"{'; '.join(harness.troubles) or 'every message is there once'}\n"
        )
        status |= bool(harness.troubles)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
