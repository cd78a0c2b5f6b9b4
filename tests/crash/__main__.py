"""`python -m tests.crash`: the full run, with its figures."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from .checker import Account
from .engines import ENGINES, Name
from .harness import ROOT, Harness, Plan
from .stores import Store, in_file, in_postgres, in_redis, in_redis_group

EMBEDDED = "embedded"
"""Instead of an address: a server that is started for the run."""


def main(command_line: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash",
        description="Kill and stop producers and workers on one SQLite file or server, cut their connections, stop and kill "
        "a server that was started for this, and account for every id.",
    )
    add = parser.add_argument
    add("--engine", choices=list(ENGINES), default="sqlite", help="where the messages are (default sqlite)")
    add("--server", default=EMBEDDED, metavar="URL", help="of PostgreSQL or Redis (default: one is started)")
    add(
        "--sentinel",
        action="store_true",
        help="Redis with a replica and a sentinel: what is stopped or killed is the primary, and connections are not cut",
    )
    add("--wait-replicas", type=int, choices=(0, 1), default=0, help="of the clients, with --sentinel (default 0)")
    add("--minutes", type=float, default=10.0, metavar="N", help="how long it may kill at the most (default 10)")
    add("--jobs", type=int, default=20_000, metavar="N", help="messages to publish for certain (default 20000)")
    add("--kills", type=int, default=100, metavar="N", help="processes to kill at the least (default 100)")
    add("--cuts", type=int, default=100, metavar="N", help="times to cut connections to a server (default 100)")
    add("--restarts", type=int, default=10, metavar="N", help="times to stop or kill a server (default 10)")
    add("--outage", type=float, default=60.0, metavar="S", help="the last time it is away so long (default 60)")
    add("--seed", type=int, default=0, metavar="N", help="who is killed, when and where (default 0)")
    add("--rate", type=float, default=300.0, metavar="N", help="messages published per second (default 300)")
    add(
        "--folder", type=Path, metavar="DIR", help="keep SQLite's file and the journals here (default: a temporary one)"
    )
    options = parser.parse_args(command_line)
    if options.engine == "sqlite" and options.server != EMBEDDED:
        parser.error("--server is for PostgreSQL and Redis: SQLite's file is in --folder")
    if options.sentinel and (options.engine != "redis" or options.server != EMBEDDED):
        parser.error("--sentinel goes with --engine redis, whose servers are started then")
    if options.wait_replicas and not options.sentinel:
        parser.error("--wait-replicas goes with --sentinel")
    limit = options.minutes * 60
    with _folder(options.folder) as folder, _store(options, folder) as store:
        plan = Plan(
            jobs=options.jobs,
            kills=options.kills,
            cuts=options.cuts if store.network is not None and not options.sentinel else 0,
            restarts=options.restarts if store.network is not None and store.network.can_end else 0,
            outage=options.outage,
            seed=options.seed,
            rate=options.rate,
            time_limit=limit,
        )
        harness = Harness(plan, folder, store)
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


def _store(options: argparse.Namespace, folder: Path) -> AbstractContextManager[Store]:
    if options.sentinel:
        return in_redis_group(options.wait_replicas)
    return STORES[options.engine](folder, options.server)


@contextmanager
def _file(folder: Path, _: str) -> Iterator[Store]:
    yield in_file(folder)


@contextmanager
def _postgres(_: Path, address: str) -> Iterator[Store]:
    from engines.postgres import running

    with running(address) as server, in_postgres(server) as store:
        yield store


@contextmanager
def _redis(_: Path, address: str) -> Iterator[Store]:
    from engines.redis import embedded, running

    own = embedded("--appendonly", "yes", "--appendfsync", "always")
    with own if address == EMBEDDED else running(address) as server, in_redis(server) as store:
        yield store


STORES: dict[Name, Callable[[Path, str], AbstractContextManager[Store]]] = {
    "sqlite": _file,
    "postgres": _postgres,
    "redis": _redis,
}


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
    sys.path.insert(0, str(ROOT / "tests"))  # where tests find `engines`
    sys.exit(main(sys.argv[1:]))
