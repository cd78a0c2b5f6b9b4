"""The harness in benchmarks/ is whole: who takes part can measure, what is judged is shown, what is there is told."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.judging import Row, judge
from benchmarks.measuring import Outcome
from benchmarks.plot import draw
from benchmarks.report import table
from benchmarks.workloads import CONTENDERS, HOME, WORKLOADS, Metric, Target, Workload

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = [contender.name for contender in CONTENDERS]

HOSTED = Workload(
    name="hosted",
    title="Hosted",
    contenders=("hosted", HOME),
    arguments={},
    metrics=(Metric("rate", "Rate", "messages/s", targets=(Target(0.6, HOME),)),),
    subject="hosted",
)


def measurements(module: str) -> set[str]:
    """What a contender's module measures; read, since the peers' modules import in their own environments only."""
    tree = ast.parse((BENCHMARKS / "contenders" / f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "MEASUREMENTS":
            assert isinstance(node.value, ast.Dict)
            return {str(ast.literal_eval(key)) for key in node.value.keys if key is not None}
    raise AssertionError(f"{module} has no MEASUREMENTS")


def judged(figures: dict[str, float], selected: list[str]) -> Row:
    samples = {name: [{"rate": figure}] for name, figure in figures.items()}
    (row,) = judge([HOSTED], selected, Outcome(samples={"hosted": samples}))
    return row


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_whoever_takes_part_in_a_workload_has_a_measurement_for_it(workload: Workload) -> None:
    for contender in CONTENDERS:
        if contender.name in workload.contenders:
            assert workload.name in measurements(contender.modules[workload.store])


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_whom_a_target_is_about_and_whom_it_names_take_part(workload: Workload) -> None:
    peers = {target.peer for metric in workload.metrics for target in metric.targets if target.peer}
    assert {workload.subject, *peers} <= set(workload.contenders) <= set(NAMES)


@pytest.mark.parametrize(("figure", "reached"), [(600, True), (599, False)])
def test_a_target_is_judged_by_the_figure_of_the_workloads_subject(figure: float, reached: bool) -> None:
    (judgement,) = judged({"hosted": figure, HOME: 1000}, NAMES).judgements
    assert (judgement.measured, judgement.reached) == (figure / 1000, reached)


def test_a_target_is_not_judged_if_its_subject_was_not_selected() -> None:
    assert judged({HOME: 1000}, [HOME]).judgements == ()


def test_a_target_is_missed_if_its_subject_brought_no_figure() -> None:
    (judgement,) = judged({HOME: 1000}, NAMES).judgements
    assert not judgement.reached


def test_every_target_is_in_the_table_and_in_the_plot() -> None:
    samples = {
        workload.name: {name: [{metric.key: 1.0 for metric in workload.metrics}] for name in workload.contenders}
        for workload in WORKLOADS
    }
    rows = judge(WORKLOADS, NAMES, Outcome(samples=samples))
    text, page = table(rows, CONTENDERS), draw(rows, CONTENDERS, "")
    with_targets = [row.metric.title for row in rows if row.metric.targets]
    assert [title for title in with_targets if title not in text or title not in page] == []


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_every_workload_is_explained(workload: Workload) -> None:
    assert f"`{workload.name}`" in (BENCHMARKS / "README.md").read_text(encoding="utf-8")
