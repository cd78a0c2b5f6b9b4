"""The profile as text: where the time of a drain goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHOWN = 20


def describe(figures: dict[str, Any]) -> str:
    """Three tables: time by module, time by function, calls per message; and what taking them cost."""
    seconds, messages = figures["seconds"], figures["messages"]
    per_message = seconds["plain"] / messages * 1e6
    sampling, counting = (seconds[key] / seconds["plain"] - 1 for key in ("sampled", "counted"))
    modules = [
        (f"{share:6.1%}", f"{share * per_message:6.2f} µs", module) for module, share in figures["modules"][:SHOWN]
    ]
    functions = [
        (f"{own:6.1%}", f"{total:6.1%}", f"{own * per_message:6.2f} µs", f"{module}:{name}, line {line}")
        for module, name, own, total, line in figures["functions"][:SHOWN]
    ]
    calls = [(f"{count:7.2f}", f"{module}: {name}") for module, name, count in figures["calls"][:SHOWN]]
    return "\n".join(
        [
            f"{messages} messages in {seconds['plain']:.3f} s without a profiler: {per_message:.2f} µs each, "
            f"{messages / seconds['plain']:,.0f}/s".replace(",", " "),
            "",
            f"Time by module, {figures['samples']} samples (sampling added {sampling:+.1%})",
            *_table(("own", "per message", "module"), modules),
            "",
            "Time by function: its own, with what it calls, its hottest line",
            *_table(("own", "total", "per message", "function"), functions),
            "",
            f"Calls per message, counted by cProfile (which added {counting:+.0%}, so no times from it)",
            *_table(("calls", "function"), calls),
        ]
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (head, *lines)) for column in range(len(head) - 1)]
    return [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in (head, *lines)
    ]
