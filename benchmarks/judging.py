"""From samples to verdicts: medians, ratios to the peers, targets reached or missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .measuring import Outcome
from .workloads import FASTEST, PEERS, Metric, Target, Workload


@dataclass(frozen=True, slots=True)
class Judgement:
    """A target and what came of it. `measured` is in the target's own terms: a ratio or a figure; None: no figure.

    `against`: the contender whose figure it is a ratio to; None: none.
    """

    target: Target
    measured: float | None
    reached: bool
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A metric of a workload: the contenders' medians and the judgements on its targets."""

    workload: Workload
    metric: Metric
    medians: dict[str, float]
    judgements: tuple[Judgement, ...]


def judge(workloads: Sequence[Workload], selected: Sequence[str], outcome: Outcome) -> list[Row]:
    """A row for each metric that somebody has a figure for or that has targets.

    A target is judged when the workload's subject and the peer it names were `selected`, or any peer where it is about the
    fastest one; if the subject or that peer brought no figure, the target is missed.
    """
    rows: list[Row] = []
    for workload in workloads:
        for metric in workload.metrics:
            medians = _medians(workload, metric, outcome)
            judged = tuple(
                _judge(workload, metric, target, medians)
                for target in metric.targets
                if _applies(workload, target, selected)
            )
            if medians or judged:
                rows.append(Row(workload, metric, medians, judged))
    return rows


def missed(rows: Sequence[Row]) -> int:
    return sum(not judgement.reached for row in rows for judgement in row.judgements)


def _medians(workload: Workload, metric: Metric, outcome: Outcome) -> dict[str, float]:
    found: dict[str, float] = {}
    for contender, rounds in outcome.samples.get(workload.name, {}).items():
        figures = [figures[metric.key] for figures in rounds if metric.key in figures]
        if figures:
            found[contender] = median(figures)
    return found


def _rivals(workload: Workload, target: Target) -> tuple[str, ...]:
    """Those with whom a target compares: the best of them counts."""
    if target.peer == FASTEST:
        return tuple(name for name in workload.contenders if name in PEERS)
    return () if target.peer is None else (target.peer,)


def _applies(workload: Workload, target: Target, selected: Sequence[str]) -> bool:
    rivals = _rivals(workload, target)
    return workload.subject in selected and (target.peer is None or any(name in selected for name in rivals))


def _judge(workload: Workload, metric: Metric, target: Target, medians: dict[str, float]) -> Judgement:
    ours = medians.get(workload.subject)
    rivals = [name for name in _rivals(workload, target) if name in medians]
    if ours is None or (target.peer is not None and not rivals):
        return Judgement(target, None, reached=False)
    best = max if metric.better == "more" else min
    against = best(rivals, key=medians.__getitem__) if rivals else None
    measured = ours / (medians[against] if against else 1.0)
    reached = measured >= target.bound if metric.better == "more" else measured <= target.bound
    return Judgement(target, measured, reached, against)
