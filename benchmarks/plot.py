"""The result as an SVG page: bars against one peer, and repid against its limits. No library is needed for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from .judging import Judgement, Row
from .report import figure, measured_text, target_text
from .workloads import HOME, Contender

WIDTH, MARGIN, LABELS, NUMBERS = 960, 28, 270, 170
BAR, GAP, GROUP_GAP, LINE = 15, 3, 16, 24
PLOT_LEFT = MARGIN + LABELS
PLOT_WIDTH = WIDTH - PLOT_LEFT - NUMBERS - MARGIN
COLOURS = {HOME: "#1f5fa8", "upstream": "#9aa5b1", "huey": "#d9a441", "taskiq": "#7fb069", "bare": "#4d4d4d"}
COLOURS |= {"hosted": "#4f93d6", "four": "#0f3460", "sixteen": "#0a2342", "pgqueuer": "#c2703d"}
COLOURS |= {"saq": "#a585c9", "streaq": "#e0b4a0", "dramatiq": "#b0506b", "procrastinate": "#c9b458"}
OTHER, INK, FAINT, GRID = "#b58db6", "#22272e", "#68727d", "#e3e7eb"
REACHED, MISSED = "#2c7a3f", "#b3261e"
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
BOLD, END, CENTRE = 'font-weight="600"', 'text-anchor="end"', 'text-anchor="middle"'

CROWDED = 9
"""Grid lines at most."""

COMPARED = (
    ("memory", "upstream", "in memory"),
    ("sqlite", "huey", "on SQLite"),
    ("redis", "upstream", "on Redis"),
    ("postgres", "pgqueuer", "on PostgreSQL"),
)
"""Where messages wait, and whose rates those of everybody are multiples of there."""

FARTHEST = 2.0
"""A bar against a limit is cut here: how far beyond it is told by its number."""


@dataclass(slots=True)
class Page:
    """SVG elements, and how far down the page they reach."""

    y: float = MARGIN
    elements: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, *, size: int = 12, fill: str = INK, extra: str = "") -> None:
        """A line of text that begins, ends or is centred at `x`."""
        at = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}"'
        self.elements.append(f"<text {at} {extra}>{escape(text)}</text>")

    def box(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """A filled rectangle, at least one unit wide."""
        at = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}"'
        self.elements.append(f'<rect {at} rx="1.5" fill="{fill}"/>')

    def upright(self, x: float, top: float, bottom: float, stroke: str, width: float = 1) -> None:
        """A vertical line."""
        at = f'x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"'
        self.elements.append(f'<line {at} stroke="{stroke}" stroke-width="{width}"/>')

    def line(self, points: Sequence[tuple[float, float]], stroke: str, width: float = 1.5) -> None:
        """Straight lines from point to point."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.elements.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width}"/>')

    def svg(self) -> str:
        """The finished document, on white."""
        size = f'width="{WIDTH}" height="{self.y + MARGIN:.0f}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.y + MARGIN:.0f}" {size}'
        ground = f'<rect {size} fill="#ffffff"/>'
        return "\n".join([f'{head} font-family="{FONT}">', ground, *self.elements, "</svg>", ""])


def draw(rows: Sequence[Row], contenders: Sequence[Contender], subtitle: str) -> str:
    """The page. Rates of several contenders are drawn as multiples of one of them, what has a limit as its share."""
    page = Page()
    page.text(MARGIN, page.y + 8, "repid and its peers", size=18, extra=BOLD)
    page.text(MARGIN, page.y + 28, subtitle, fill=FAINT)
    page.y += 48
    _legend(page, contenders)
    compared = [row for row in rows if row.metric.better == "more" and row.metric.limit is None]
    drawn: list[Row] = []
    for store, peer, where in COMPARED:
        of_store = [row for row in compared if row.workload.store == store]
        base = next((name for name in (peer, HOME) if any(name in row.medians for row in of_store)), None)
        if base is not None:
            title = next(contender.title for contender in contenders if contender.name == base)
            with_base = [row for row in of_store if base in row.medians and (len(row.medians) > 1 or base == HOME)]
            if with_base:
                _comparison(page, with_base, contenders, base, f"Throughput {where}, relative to {title}")
            drawn += with_base
    limits = [
        (row, judgement)
        for row in rows
        if row not in drawn
        for judgement in row.judgements
        if judgement.measured is not None
    ]
    if limits:
        _limits(page, limits)
    return page.svg()


def _legend(page: Page, contenders: Sequence[Contender]) -> None:
    x: float = MARGIN
    for contender in contenders:
        width = 36 + 7 * len(contender.title)
        if x + width > WIDTH - MARGIN:
            x, page.y = MARGIN, page.y + 20
        page.box(x, page.y, 12, 12, COLOURS.get(contender.name, OTHER))
        page.text(x + 17, page.y + 10.5, contender.title)
        x += width
    if x + 160 > WIDTH - MARGIN:
        x, page.y = MARGIN - 6, page.y + 20
    page.upright(x + 6, page.y - 2, page.y + 14, INK, 2)
    page.text(x + 14, page.y + 10.5, "what repid is to reach", fill=FAINT)
    page.y += 34


def _panel(page: Page, title: str, hint: str) -> None:
    page.y += 14
    page.text(MARGIN, page.y, title, size=14, extra=BOLD)
    page.text(WIDTH - MARGIN, page.y, hint, fill=FAINT, extra=END)
    page.y += 30


def _grid(page: Page, top: float, bottom: float, highest: float, *, percent: bool) -> None:
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if highest / step <= CROWDED)
    for number in range(int(highest / step) + 1):
        x = PLOT_LEFT + PLOT_WIDTH * number * step / highest
        page.upright(x, top, bottom, GRID)
        label = f"{number * step:.0%}" if percent else f"{number * step:g}×"
        page.text(x, top - 6, label, size=10, fill=FAINT, extra=CENTRE)


def _comparison(page: Page, rows: Sequence[Row], contenders: Sequence[Contender], base: str, title: str) -> None:
    _panel(page, title, "longer is better")
    shown = {row.metric.title: _marks(row, base) for row in rows}
    ratios = [value / row.medians[base] for row in rows for value in row.medians.values()]
    highest = max([*ratios, *(mark for marks in shown.values() for mark in marks)]) * 1.03
    lines = sum(len(row.medians) * (BAR + GAP) + GAP + GROUP_GAP for row in rows)
    _grid(page, page.y, page.y + lines - GROUP_GAP + GAP, highest, percent=False)
    for row in rows:
        _group(page, row, contenders, base, highest)


def _group(page: Page, row: Row, contenders: Sequence[Contender], base: str, highest: float) -> None:
    present = [contender for contender in contenders if contender.name in row.medians]
    page.y += GAP
    page.text(PLOT_LEFT - 12, page.y + len(present) * (BAR + GAP) / 2 + 3, row.metric.title, extra=END)
    for contender in present:
        ratio = row.medians[contender.name] / row.medians[base]
        end = PLOT_LEFT + PLOT_WIDTH * ratio / highest
        page.box(PLOT_LEFT, page.y, end - PLOT_LEFT, BAR, COLOURS.get(contender.name, OTHER))
        for mark in _marks(row, base) if contender.name == row.workload.subject else ():
            x = PLOT_LEFT + PLOT_WIDTH * mark / highest
            page.upright(x, page.y - 2, page.y + BAR + 2, "#ffffff", 4)
            page.upright(x, page.y - 2, page.y + BAR + 2, INK, 2)
            end = max(end, x)
        words = f"{figure(row.medians[contender.name])} {row.metric.unit} · {ratio:.1f}×"
        page.text(end + 7, page.y + 12, words, size=11)
        page.y += BAR + GAP
    page.y += GROUP_GAP


def _marks(row: Row, base: str) -> list[float]:
    """What repid is to reach here, whichever peer it is measured against, as multiples of `base`."""
    subject = row.workload.subject
    if subject not in row.medians:
        return []
    ours = row.medians[subject] / row.medians[base]
    return [ours * judgement.target.bound / judgement.measured for judgement in row.judgements if judgement.measured]


def _limits(page: Page, limits: Sequence[tuple[Row, Judgement]]) -> None:
    page.y += GROUP_GAP
    _panel(page, "repid against its limits", "≥: longer is better · ≤: shorter is better")
    shares = [max(0.0, (judgement.measured or 0) / judgement.target.bound) for _, judgement in limits]
    highest = min(max([1.0, *shares]), FARTHEST) * 1.05
    line = PLOT_LEFT + PLOT_WIDTH / highest
    top, bottom = page.y, page.y + len(limits) * LINE
    _grid(page, top, bottom, highest, percent=True)
    for (row, judgement), share in zip(limits, shares, strict=True):
        width = PLOT_WIDTH * min(share, FARTHEST) / highest
        page.text(PLOT_LEFT - 12, page.y + 16, row.metric.title, extra=END)
        page.box(PLOT_LEFT, page.y + 4, width, BAR, COLOURS[row.workload.subject])
        unit = "" if row.metric.limit is not None or judgement.target.peer is not None else f" {row.metric.unit}"
        words = f"{measured_text(row.metric, judgement)}{unit}, {target_text(row.metric, judgement.target)}"
        colour = REACHED if judgement.reached else MISSED
        page.text(max(PLOT_LEFT + width, line) + 9, page.y + 16, words, size=11, fill=colour)
        page.y += LINE
    page.upright(line, top, bottom, INK, 2)
