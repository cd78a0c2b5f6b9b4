"""How many seeds each defect takes: `python tests/simulate/seeds_of_defects.py` prints the table of `docs/simulate.md`."""

from __future__ import annotations

import statistics
import sys
from itertools import islice

import pytest
from defects import DEFECTS

from repid.testing.simulate import fleet
from repid.testing.simulate.world import live

STARTS = range(0, 1000, 200)
"""Where the search begins: several times, so that there is a median."""

MOST = 40
"""Seeds after which a search is given up."""


def seeds_needed(name: str, start: int) -> int:
    """How many histories, from that seed on, until one fails."""
    with pytest.MonkeyPatch.context() as patch:
        DEFECTS[name](patch)
        for n in range(MOST):
            if live(fleet, start + n).error is not None:
                return n + 1
    return MOST + 1


def main() -> None:
    print("| defect | median | worst |\n|---|---|---|")  # noqa: T201
    wanted = sys.argv[1:] or DEFECTS
    for name in wanted:
        needed = [seeds_needed(name, start) for start in islice(STARTS, 5)]
        print(f"| {name.replace('_', ' ')} | {statistics.median(needed):g} | {max(needed)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
