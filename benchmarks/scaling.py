"""How costs grow: the table of all points, and a log-log plot for each store, in which what is flat or falls is linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .measuring import Outcome
from .plot import BOLD, CENTRE, END, FAINT, GRID, INK, MARGIN, WIDTH, Page
from .report import aligned, figure
from .workloads import HOME, SCALES, WORKLOADS

HUES = ("#1f5fa8", "#d9a441", "#7fb069", "#b3261e", "#7b5ea7", "#4d4d4d", "#3ba7a0", "#c46a9a", "#8a6d3b")
LEFT, RIGHT, HEIGHT, NAME = MARGIN + 52, WIDTH - 250, 340, 14
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class Line:
    """One cost by size: microseconds for each message. `hue` is the same for all lines of one scale."""

    store: str
    scale: str
    what: str
    points: tuple[tuple[int, float], ...]
    exponent: float
    hue: str


def scaling_lines(outcome: Outcome) -> list[Line]:
    """All lines that were measured; none, if the workloads were not among those that were run."""
    return [
        Line(workload.title.partition(":")[0], SCALES[scale], what, tuple((n, cost) for n, cost in points), k, hue)
        for workload in WORKLOADS
        for figures in outcome.samples.get(workload.name, {}).get(HOME, [])
        for (scale, costs), hue in zip(figures.get("points", {}).items(), HUES, strict=False)
        for what, points in costs.items()
        for k in [figures["exponents"][scale][what]]
    ]


def scaling_table(lines: Sequence[Line]) -> str:
    """Microseconds of processor time for each message, by size, and the exponent of all messages together."""
    sizes = sorted({size for line in lines for size, _ in line.points})
    head = ["µs a message", "", "", *(_power(size) for size in sizes), "exponent"]
    rows = [
        [
            line.store,
            line.scale,
            line.what,
            *(figure(dict(line.points).get(size)) for size in sizes),
            f"{line.exponent:.2f}",
        ]
        for line in lines
    ]
    return aligned([head, *rows], left=(0, 1, 2))


def draw_scaling(lines: Sequence[Line], subtitle: str) -> str:
    """The SVG page, a panel for each store."""
    page = Page()
    page.text(MARGIN, page.y + 8, "How costs grow", size=18, extra=BOLD)
    page.text(MARGIN, page.y + 28, subtitle, fill=FAINT)
    page.y += 48
    for store in dict.fromkeys(line.store for line in lines):
        _panel(page, store, [line for line in lines if line.store == store])
    return page.svg()


def _panel(page: Page, store: str, lines: Sequence[Line]) -> None:
    page.text(MARGIN, page.y + 14, f"{store}: processor time for each message", size=14, extra=BOLD)
    top = page.y + 34
    widest = math.log10(max(size for line in lines for size, _ in line.points))
    costs = [math.log10(cost) for line in lines for _, cost in line.points]
    lowest, highest = math.floor(min(costs)), math.ceil(max(costs))

    def at(size: float, cost: float) -> tuple[float, float]:
        return (
            LEFT + (RIGHT - LEFT) * math.log10(size) / widest,
            top + HEIGHT * (highest - math.log10(cost)) / (highest - lowest),
        )

    for power in range(lowest, highest + 1):
        y = at(1, 10.0**power)[1]
        page.line([(LEFT, y), (RIGHT, y)], GRID, 1)
        page.text(LEFT - 8, y + 4, f"{10.0**power:g} µs", size=10, fill=FAINT, extra=END)
    for power in range(int(widest) + 1):
        x = at(10**power, 1)[0]
        page.upright(x, top, top + HEIGHT, GRID)
        page.text(x, top + HEIGHT + 14, _power(10**power), size=10, fill=FAINT, extra=CENTRE)
    for number, line in enumerate(sorted(lines, key=lambda line: -line.points[-1][1])):
        page.line([at(size, cost) for size, cost in line.points], line.hue)
        y = top + 8 + number * NAME
        page.line([(RIGHT + 16, y - 4), (RIGHT + 32, y - 4)], line.hue, 3)
        page.text(RIGHT + 38, y, f"{line.scale}, {line.what}: n{_exponent(line)}", size=11, fill=INK)
    page.y = top + max(HEIGHT, len(lines) * NAME) + 44


def _exponent(line: Line) -> str:
    return f"{line.exponent:.2f}".translate(SUPERSCRIPTS).replace(".", "·")


def _power(size: int) -> str:
    power = round(math.log10(size))
    return "10" + str(power).translate(SUPERSCRIPTS) if power else "1"
