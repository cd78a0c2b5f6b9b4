"""`python -m tests.crash`: the full run, with its figures."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .checker import Account
from .harness import Harness, Plan


def main(command_line: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash",
        description="Kill and stop producers and workers on one SQLite file, and account for every id.",
    )
    add = parser.add_argument
    add("--jobs", type=int, default=20_000, metavar="N", help="messages to publish for certain (default 20000)")
    add("--kills", type=int, default=100, metavar="N", help="processes to kill at the least (default 100)")
    add("--seed", type=int, default=0, metavar="N", help="who is killed, when and where (default 0)")
    add("--rate", type=float, default=300.0, metavar="N", help="messages published per second (default 300)")
    add("--folder", type=Path, metavar="DIR", help="keep the file and the journals here (default: a temporary one)")
    options = parser.parse_args(command_line)
    plan = Plan(jobs=options.jobs, kills=options.kills, seed=options.seed, rate=options.rate)
    with _folder(options.folder) as folder:
        harness = Harness(plan, folder)
        account = harness.run()
    sys.stderr.write("\n")
    sys.stdout.write(report(account, harness.troubles) + "\n")
    return 1 if account.faults or harness.troubles else 0


@contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    """The chosen folder, or a temporary one: only then is one made that is to be removed."""
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
        return
    with tempfile.TemporaryDirectory(prefix="repid-crash-") as temporary:
        yield Path(temporary)


def report(account: Account, troubles: Sequence[str], most: int = 20) -> str:
    """The figures as a table, then what is wrong."""
    width = max(map(len, account.figures), default=0)
    lines = [f"{name.ljust(width)}  {figure:>8}" for name, figure in account.figures.items()]
    lines += [f"!! {fault.rule}: {fault.id}: {fault.text}" for fault in account.faults[:most]]
    lines += [f"!! and {len(account.faults) - most} more"] if len(account.faults) > most else []
    lines += [f"!! {trouble}" for trouble in troubles]
    lines.append("NOT EVERYTHING IS EXPLAINED" if account.faults or troubles else "Every id is accounted for.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
