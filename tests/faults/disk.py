"""The disk is full, again and again: for real, by a limit on the size of files, so in a process of its own.

A worker waits all the time. `python -m tests.faults.disk SEED FILE` is that process; it prints what does not add up.
"""

from __future__ import annotations

import logging
import random
import resource
import subprocess
import sys
from pathlib import Path

import trio

from repid import Envelope, SQLiteServer
from repid.ports import Consumer

from .accounts import PATIENCE, Account

ROUNDS = 40
ROOT = Path(__file__).parents[2]


def run_in_a_process(seed: int, path: Path) -> list[str]:
    """What does not add up afterwards."""
    command = [sys.executable, "-m", "tests.faults.disk", str(seed), str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    troubles = ended.stdout.splitlines()
    if ended.returncode:
        troubles.append(f"the process ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return [f"seed {seed}: {trouble}" for trouble in troubles]


async def fill(seed: int, path: Path) -> list[str]:
    """Publish while there is space and while there is none."""
    chooser = random.Random(seed)
    account = Account(SQLiteServer(path, synchronous=chooser.choice(["NORMAL", "FULL"])))
    server = account.server
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer, trio.open_nursery() as standing:
            standing.start_soon(account.for_ever, lambda: _take(account, consumer))
            standing.start_soon(account.for_ever, consumer.events)
            for number in range(ROUNDS):
                _limit(path, chooser)
                for part in range(chooser.randrange(1, 4)):
                    size = chooser.choice([10, 1000, 30_000])
                    await account.publish([Envelope(f"{number}-{part}", "q", bytes(size))])
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await account.insist(lambda: server.publish([Envelope("last", "q", b"")]))
            account.confirmed.add("last")
            with trio.move_on_after(PATIENCE):
                while not account.is_done:
                    await trio.sleep(0.001)
            standing.cancel_scope.cancel()
    if not account.refused:
        account.troubles.append("the disk was never full, so nothing was tried")
    return account.close(path)


async def _take(account: Account, consumer: Consumer) -> None:
    await account.settle(consumer, await consumer.receive(3))


def _limit(path: Path, chooser: random.Random) -> None:
    """From here on files may grow by a little, or not at all, or as they like."""
    used = max(file.stat().st_size for file in (path, path.with_name(f"{path.name}-wal")))
    room = chooser.choice([0, 100, 5000, 100_000, None, None])
    limit = resource.RLIM_INFINITY if room is None else used + room
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    sys.stdout.write("".join(f"{trouble}\n" for trouble in trio.run(fill, int(sys.argv[1]), Path(sys.argv[2]))))
