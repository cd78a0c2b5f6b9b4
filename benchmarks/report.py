# ruff: noqa: RUF001 - the multiplication sign and the dash are meant
"""What a reader gets: the table on the terminal and the JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .judging import Judgement, Row
from .measuring import Outcome
from .workloads import FASTEST, Contender, Metric, Target, Workload


def figure(value: float | None) -> str:
    """A number as a person reads it: three significant digits, thousands apart."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 0.995 or value == 0 else f"{value:.3f}"


def target_text(metric: Metric, target: Target) -> str:
    sign = "≥" if metric.better == "more" else "≤"
    if target.peer is None and metric.limit is not None:
        return f"{sign} {target.bound / metric.limit:.0%} of {figure(metric.limit)}"
    return f"{sign} {target.bound:g} × {target.peer}" if target.peer else f"{sign} {figure(target.bound)}"


def measured_text(metric: Metric, judgement: Judgement) -> str:
    if judgement.measured is None:
        return "no figure"
    if judgement.target.peer == FASTEST:
        return f"{judgement.measured:.2f} × {judgement.against}"
    if judgement.target.peer is not None:
        return f"{judgement.measured:.2f} ×"
    return figure(judgement.measured) if metric.limit is None else f"{judgement.measured / metric.limit:.1%}"


def table(rows: Sequence[Row], contenders: Sequence[Contender]) -> str:
    """The result as plain text: one line for each metric, one more for each further target."""
    head = ["", "unit", *(contender.title for contender in contenders), "measured", "target", "reached"]
    lines = [head]
    for row in rows:
        figures = [figure(row.medians.get(contender.name)) for contender in contenders]
        lead = [row.metric.title, row.metric.unit, *figures]
        for judgement in row.judgements or (None,):
            lines.append([*lead, *_verdict(row.metric, judgement)])
            lead = [""] * len(lead)
    return aligned(lines, left=(0, 1, len(head) - 2, len(head) - 1))


def _verdict(metric: Metric, judgement: Judgement | None) -> list[str]:
    if judgement is None:
        return ["", "", ""]
    reached = "yes" if judgement.reached else "NO"
    return [measured_text(metric, judgement), target_text(metric, judgement.target), reached]


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Lines of cells as a table, its first line as the head. The columns in `left` are aligned to the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "─" * max(map(len, texts)), *texts[1:]])


def machine() -> dict[str, Any]:
    """Facts that figures depend on. Nothing that names the machine or its owner."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def document(
    rows: Sequence[Row],
    workloads: Sequence[Workload],
    contenders: Sequence[Contender],
    outcome: Outcome,
    *,
    quick: bool,
    rounds: int,
) -> dict[str, Any]:
    """Everything that was measured, judged and known, as JSON has it."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "rounds": rounds,
        "machine": machine(),
        "contenders": {
            contender.name: {"title": contender.title, "versions": outcome.versions.get(contender.name)}
            for contender in contenders
        },
        "failures": outcome.failures,
        "results": [_result(row) for row in rows],
        "workloads": {
            workload.name: {
                "title": workload.title,
                "arguments": workload.arguments_for(quick=quick),
                "samples": outcome.samples.get(workload.name, {}),
            }
            for workload in workloads
        },
    }


def _result(row: Row) -> dict[str, Any]:
    return {
        "workload": row.workload.name,
        "metric": row.metric.key,
        "subject": row.workload.subject,
        "title": row.metric.title,
        "unit": row.metric.unit,
        "better": row.metric.better,
        "medians": row.medians,
        "targets": [
            {
                "bound": judgement.target.bound,
                "times": judgement.target.peer,
                "against": judgement.against,
                "measured": judgement.measured,
                "reached": judgement.reached,
            }
            for judgement in row.judgements
        ],
    }


def write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
