"""The command line of the simulation: `python -m repid.testing.simulate --help`."""

from __future__ import annotations

import argparse
import importlib
import math
import multiprocessing
import sys
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial

from .fleet import fleet
from .scenario import MakeScenario
from .simulation import command_for, search, smaller, tell
from .world import live

DESCRIPTION = """\
Let a fleet of workers live through one history for each seed, in virtual time, with faults: lost answers, partitions,
killed and frozen workers, restarts of the engine, deploys. The first history that breaks a promise is made as small as
it can be and shown as a timeline, with the command that shows it again. Exit status: 0 all is well, 1 something was
found.
"""

EXAMPLES = """\
examples:
  python -m repid.testing.simulate --seeds 0:1000                  a thousand histories of repid's own fleet
  python -m repid.testing.simulate --seeds 0:100000 --processes 8  a hundred thousand, on eight cores
  python -m repid.testing.simulate --seeds 0:100000 --within 120   as many of them as fit into two minutes
  python -m repid.testing.simulate --scenario tests.bank:bank      your own actors: a function from a random.Random
                                                                   to a Scenario, see docs/simulate.md
  python -m repid.testing.simulate --seeds 17 --show               the timeline of one history, whatever comes out
  python -m repid.testing.simulate --seeds 17 --faults 0,2         only two of the faults that the seed gives
"""

PIECE = 10
"""Seeds that a process takes at a time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = _parser().parse_args(arguments)
    make: MakeScenario = options.scenario
    if options.show or options.faults is not None or options.messages is not None:
        return _show(make, options.seeds[0], options.faults, options.messages)
    began = time.monotonic()
    done, found = _first_bad(make, options.seeds, options.processes, began + options.within)
    if found is None:
        print(f"{done} histories, all well, in {time.monotonic() - began:.1f} s")  # noqa: T201  its output
        return 0
    small = smaller(make, live(make, found))
    print(tell(small, command_for(make, small)))  # noqa: T201  its output
    return 1


def _show(make: MakeScenario, seed: int, faults: list[int] | None, sends: list[int] | None) -> int:
    outcome = live(make, seed, faults, sends)
    print(tell(outcome, command_for(make, outcome)))  # noqa: T201  its output
    return int(outcome.error is not None)


def _first_bad(make: MakeScenario, seeds: range, processes: int, until: float) -> tuple[int, int | None]:
    """How many histories were lived through by then, and the first seed of those whose history fails."""
    pieces = [seeds[start : start + PIECE] for start in range(0, len(seeds), PIECE)]
    done = 0
    with closing(_search_all(make, pieces, processes)) as searched:
        for piece, bad in zip(pieces, searched, strict=True):
            done += len(piece)
            _show_progress(done, len(seeds))
            if bad is not None:
                return done, bad
            if time.monotonic() >= until:
                break
    return done, None


def _search_all(make: MakeScenario, pieces: Sequence[range], processes: int) -> Generator[int | None]:
    if processes == 1:
        yield from map(partial(search, make), pieces)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(partial(search, make), pieces)
        finally:
            pool.shutdown(cancel_futures=True)


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        filled = 40 * done // total
        end = "\n" if done == total else ""
        print(f"\r[{'#' * filled}{'.' * (40 - filled)}] {done}/{total}", end=end, file=sys.stderr, flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m repid.testing.simulate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seeds",
        type=_seeds,
        default=range(100),
        metavar="A:B",
        help="from A up to B, B left out; or one seed (default 0:100)",
    )
    parser.add_argument(
        "--scenario", type=_scenario, default=fleet, metavar="MODULE:FUNCTION", help="the fleet (default: repid's own)"
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="how many processes search at once (default 1)"
    )
    parser.add_argument(
        "--within",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="the seconds after which it stops (default: never)",
    )
    parser.add_argument(
        "--faults", type=_numbers, metavar="N,N", help="keep only these of the seed's faults, counted from 0; or none"
    )
    parser.add_argument("--messages", type=_numbers, metavar="N,N", help="keep only these of its messages; or none")
    parser.add_argument("--show", action="store_true", help="show the timeline of the first seed, whatever comes out")
    return parser


def _seeds(text: str) -> range:
    first, colon, end = text.partition(":")
    try:
        seeds = range(int(first), int(end)) if colon else range(int(first), int(first) + 1)
    except ValueError:
        seeds = range(0)
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} names no seeds: write 0:100, or one number")
    return seeds


def _numbers(text: str) -> list[int]:
    try:
        return [] if text == "none" else [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,2, nor none") from None


def _scenario(text: str) -> MakeScenario:
    module, colon, name = text.partition(":")
    try:
        make = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be imported: {error}") from None
    if not callable(make):
        raise argparse.ArgumentTypeError(f"{text!r} is no function: write MODULE:FUNCTION, such as tests.bank:bank")
    return make  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main())
