"""The profile as a flame graph: who called whom from bottom to top, each as wide as its share of the samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

WIDTH, ROW, HEAD = 1400, 17, 48
LETTER = 6.6
"""Units that a letter is wide, about."""
NARROWEST = 0.3
"""What would be narrower, in units, is left out."""
FONT = "ui-monospace, Menlo, Consolas, monospace"
OURS, TRIO, OTHER = "#f0a04b", "#8fb8de", "#d5d9de"


@dataclass(slots=True)
class Flame:
    """A function as it was called from one place, and what it called there."""

    count: int = 0
    callees: dict[str, Flame] = field(default_factory=dict)

    def depth(self) -> int:
        """How many rows it takes, itself included."""
        return 1 + max((callee.depth() for callee in self.callees.values()), default=0)


def grow(stacks: Iterable[tuple[list[str], int]]) -> Flame:
    """One tree of all stacks, each of which names functions from the outermost on."""
    root = Flame()
    for names, count in stacks:
        flame = root
        flame.count += count
        for name in names:
            flame = flame.callees.setdefault(name, Flame())
            flame.count += count
    return root


def draw_flames(stacks: Iterable[tuple[list[str], int]], title: str) -> str:
    """The SVG document. A function's share shows when the mouse rests on it; what is repid's has a colour of its own."""
    root = grow(stacks)
    height = HEAD + ROW * root.depth()
    elements = list(_boxes(root, "all", 0.0, height - ROW, WIDTH / max(root.count, 1), root.count))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="{FONT}" font-size="11">',
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="8" y="20" font-size="15">{escape(title)}</text>',
            f'<text x="8" y="38" fill="#68727d">{root.count} samples; orange: repid, blue: trio, grey: the rest</text>',
            *elements,
            "</svg>",
            "",
        ]
    )


def _boxes(flame: Flame, name: str, x: float, y: float, scale: float, samples: int) -> Iterable[str]:
    width = flame.count * scale
    if width < NARROWEST:
        return
    module = name.partition(":")[0]
    colour = {"repid": OURS, "trio": TRIO}.get(module.partition(".")[0], OTHER)
    label = name.rpartition(":")[2][: max(int((width - 4) / LETTER), 0)]
    yield f"<g><title>{escape(name)}: {flame.count / samples:.1%}, {flame.count} samples</title>"
    yield f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}" rx="1" fill="{colour}"/>'
    yield f'<text x="{x + 2:.1f}" y="{y + 12}">{escape(label) if len(label) > 1 else ""}</text></g>'
    for callee, below in sorted(flame.callees.items()):
        yield from _boxes(below, callee, x, y - ROW, scale, samples)
        x += below.count * scale
