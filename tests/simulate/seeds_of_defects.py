"""How many seeds each defect takes: `python tests/simulate/seeds_of_defects.py` writes the table of `docs/simulate.md`.

With names it prints their lines only.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest
from defects import DEFECTS

from repid.testing.simulate import fleet
from repid.testing.simulate.world import live

STARTS = range(0, 900, 300)
"""Where the search begins: several times, so that there is a median."""

PAGE = Path(__file__).parents[2] / "docs" / "simulate.md"

BEGIN = "| defect | median | worst |\n|---|---|---|"
END = "\nWhere the table"
"""What stands around the table."""

MOST = 60
"""Seeds after which a search is given up."""


def seeds_needed(name: str, start: int) -> int:
    """How many histories, from that seed on, until one fails."""
    with pytest.MonkeyPatch.context() as patch:
        DEFECTS[name](patch)
        for n in range(MOST):
            if live(fleet, start + n).error is not None:
                return n + 1
    return MOST + 1


def line_of(name: str) -> str:
    """The line of the table for one defect. One that was not found from some start counts as more than `MOST`."""
    needed = [seeds_needed(name, start) for start in STARTS]
    median, worst = (f"more than {MOST}" if n > MOST else f"{n:g}" for n in (statistics.median(needed), max(needed)))
    return f"| {name.replace('_', ' ')} | {median} | {worst} |"


def main() -> None:
    wanted = sys.argv[1:] or [*DEFECTS]
    lines = []
    for name in wanted:
        lines.append(line_of(name))
        print(lines[-1], flush=True)  # noqa: T201
    if not sys.argv[1:]:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text("\n".join([before + BEGIN, *lines, END]) + after)


if __name__ == "__main__":
    main()
