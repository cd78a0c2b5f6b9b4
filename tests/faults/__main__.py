"""`python -m tests.faults`: the long form of the harnesses, each with its seed."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import trio

from . import comparing, disk, statements


def main(command_line: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Let statements of SQLite fail, let the disk be full, compare the brokers; account for every message.",
    )
    add = parser.add_argument
    add("--seed", type=int, default=0, metavar="N", help="which runs are chosen, and what happens in them (default 0)")
    add("--long", action="store_true", help="every step of the scenario with every error, and ten times as many others")
    add("--minutes", type=float, default=20, metavar="N", help="no harness goes on for longer (default 20)")
    add("--only", choices=HARNESSES, help="one of the harnesses")
    options = parser.parse_args(command_line)
    logging.disable(logging.CRITICAL)
    troubles = 0
    for name in [options.only] if options.only else HARNESSES:
        began, runs, end = time.monotonic(), 0, ""
        for found in HARNESSES[name](options.seed, long=options.long):
            runs += 1
            troubles += bool(found)
            for trouble in found[:5]:
                sys.stdout.write(f"!! {name}: {trouble}\n")
                sys.stdout.flush()
            if time.monotonic() - began > options.minutes * 60:
                end = ", and then the time was up"
                break
        sys.stdout.write(f"{name}: {runs} runs in {time.monotonic() - began:.0f} s{end}\n")
        sys.stdout.flush()
    sys.stdout.write("NOT EVERYTHING IS EXPLAINED\n" if troubles else "Every message is accounted for.\n")
    return 1 if troubles else 0


def _statements(seed: int, *, long: bool) -> Iterator[list[str]]:
    for plan in statements.plans(seed, None if long else 300):
        with tempfile.TemporaryDirectory(prefix="repid-faults-") as folder:
            yield trio.run(statements.run_plan, plan, Path(folder) / "repid.db")


def _disk(seed: int, *, long: bool) -> Iterator[list[str]]:
    for number in range(30 if long else 3):
        with tempfile.TemporaryDirectory(prefix="repid-faults-") as folder:
            yield disk.run_in_a_process(seed + number, Path(folder) / "repid.db")


def _comparing(seed: int, *, long: bool) -> Iterator[list[str]]:
    for number in range(500 if long else 50):
        with tempfile.TemporaryDirectory(prefix="repid-faults-") as folder:
            yield comparing.compare(seed + number, Path(folder) / "repid.db")


HARNESSES: dict[str, Callable[..., Iterator[list[str]]]] = {
    "statements": _statements,
    "disk": _disk,
    "comparing": _comparing,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
