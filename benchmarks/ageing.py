"""A drain under an old snapshot, drawn: what a claim and a settlement take while rows that are done with pile up."""

from __future__ import annotations

from collections.abc import Sequence

from .contenders._shared import Figures
from .measuring import Outcome
from .plot import BOLD, CENTRE, END, FAINT, GRID, MARGIN, WIDTH, Page
from .workloads import HOME

WORKLOAD = "postgres-ageing"
LINES = (("claim", "#1f5fa8", "a claim of 100"), ("settlement", "#d9a441", "a settlement of 100"))
LEFT, RIGHT, HEIGHT, STEPS = MARGIN + 52, WIDTH - 190, 220, 4


def ageing_parts(outcome: Outcome) -> list[Figures]:
    """What was measured in each part of the drain; nothing, if the workload was not among those that were run."""
    return [part for figures in outcome.samples.get(WORKLOAD, {}).get(HOME, [])[:1] for part in figures["parts"]]


def draw_ageing(parts: Sequence[Figures], subtitle: str) -> str:
    """The SVG page."""
    page = Page()
    page.text(MARGIN, page.y + 8, "PostgreSQL: a drain while nothing can be vacuumed", size=18, extra=BOLD)
    page.text(MARGIN, page.y + 28, f"another connection holds an old snapshot · {subtitle}", fill=FAINT)
    top = page.y + 60
    highest = 1.2 * max(part[name] for part in parts for name, _, _ in LINES)

    def at(number: float, milliseconds: float) -> tuple[float, float]:
        return LEFT + (RIGHT - LEFT) * (number + 0.5) / len(parts), top + HEIGHT * (1 - milliseconds / highest)

    for step in range(STEPS + 1):
        y = at(0, highest * step / STEPS)[1]
        page.line([(LEFT, y), (RIGHT, y)], GRID, 1)
        page.text(LEFT - 8, y + 4, f"{highest * step / STEPS:.1f} ms", size=10, fill=FAINT, extra=END)
    for number, part in enumerate(parts):
        x = at(number, 0)[0]
        page.text(x, top + HEIGHT + 16, f"{100 * (number + 1) // len(parts)} %", size=10, fill=FAINT, extra=CENTRE)
        page.text(x, top + HEIGHT + 30, f"{part['dead_rows']:.1f} M", size=10, fill=FAINT, extra=CENTRE)
        page.text(x, top + HEIGHT + 44, f"{part['size'] / 1024:.1f} GB", size=10, fill=FAINT, extra=CENTRE)
    for line, text in enumerate(("drained", "rows to be vacuumed", "all tables")):
        page.text(RIGHT + 16, top + HEIGHT + 16 + 14 * line, text, size=10, fill=FAINT)
    for line, (name, hue, text) in enumerate(LINES):
        page.line([at(number, part[name]) for number, part in enumerate(parts)], hue, 2)
        page.line([(RIGHT + 16, top + 4 + 18 * line), (RIGHT + 32, top + 4 + 18 * line)], hue, 3)
        page.text(RIGHT + 38, top + 8 + 18 * line, text, size=11)
    page.y = top + HEIGHT + 60
    return page.svg()
