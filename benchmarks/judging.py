"""From samples to verdicts: medians, ratios to the peers, targets reached or missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .measuring import Outcome
from .workloads import Metric, Target, Workload


@dataclass(frozen=True, slots=True)
class Judgement:
    """A target and what came of it. `measured` is in the target's own terms: a ratio or a figure; None: no figure."""

    target: Target
    measured: float | None
    reached: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A metric of a workload: the contenders' medians and the judgements on its targets."""

    workload: Workload
    metric: Metric
    medians: dict[str, float]
    judgements: tuple[Judgement, ...]


def judge(workloads: Sequence[Workload], selected: Sequence[str], outcome: Outcome) -> list[Row]:
    """A row for each metric that somebody has a figure for or that has targets.

    A target is judged when the workload's subject and the peer it names were `selected`; if one of them brought no
    figure, the target is missed.
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


def _applies(workload: Workload, target: Target, selected: Sequence[str]) -> bool:
    return workload.subject in selected and (target.peer is None or target.peer in selected)


def _judge(workload: Workload, metric: Metric, target: Target, medians: dict[str, float]) -> Judgement:
    ours = medians.get(workload.subject)
    theirs = 1.0 if target.peer is None else medians.get(target.peer)
    if ours is None or theirs is None:
        return Judgement(target, None, reached=False)
    measured = ours / theirs
    return Judgement(
        target, measured, measured >= target.bound if metric.better == "more" else measured <= target.bound
    )
