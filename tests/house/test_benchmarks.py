"""The harness in benchmarks/ is whole: who takes part can measure, what is judged is shown, what is there is told."""

from __future__ import annotations

import ast
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import pytest

from benchmarks.__main__ import arguments_of
from benchmarks.ageing import ageing_parts, draw_ageing
from benchmarks.comparing import (
    PAIRS,
    Comparison,
    NoSuchCommit,
    Ratio,
    checkout,
    commit_of,
    comparison_table,
    ratio_of,
)
from benchmarks.contenders._peers_on_a_server import measurements as of_a_peer
from benchmarks.contenders._repid_scaling import SERIES, exponent
from benchmarks.flame import draw_flames, grow
from benchmarks.judging import Row, judge
from benchmarks.measuring import Outcome, measure
from benchmarks.plot import draw
from benchmarks.report import table
from benchmarks.scaling import draw_scaling, scaling_lines, scaling_table
from benchmarks.workloads import (
    CONTENDERS,
    FASTEST,
    HOME,
    PEERS,
    SCALES,
    WORKLOADS,
    Contender,
    Metric,
    Target,
    Workload,
)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GIT = ["git", "-C", str(BENCHMARKS.parent)]
NAMES = [contender.name for contender in CONTENDERS]

HOSTED = Workload(
    name="hosted",
    title="Hosted",
    contenders=("hosted", HOME),
    arguments={},
    metrics=(Metric("rate", "Rate", "messages/s", targets=(Target(0.6, HOME),)),),
    subject="hosted",
)


def measurements(contender: Contender, module: str) -> set[str]:
    """What a contender's module measures; read where it belongs to a peer, since it imports in the peer's environment only."""
    if contender.requirements is None:
        return set(import_module(f"benchmarks.contenders.{module}").MEASUREMENTS)
    tree = ast.parse((BENCHMARKS / "contenders" / f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "MEASUREMENTS":
            return set(names_in(node.value))
    raise AssertionError(f"{module} has no MEASUREMENTS")


def names_in(table: ast.expr | None) -> Iterator[str]:
    """The keys of a table of measurements, or of a call that makes one for a peer on a server."""
    if isinstance(table, ast.Call):
        store, given = ast.literal_eval(table.args[2]), {each.arg: each.value for each in table.keywords}
        without = ast.literal_eval(given["without"]) if "without" in given else ()
        yield from of_a_peer(lambda _: lambda _: {}, nullcontext, store, without=without)
    elif isinstance(table, ast.Dict):
        for key, value in zip(table.keys, table.values, strict=True):
            yield from names_in(value) if key is None else [str(ast.literal_eval(key))]


def judged(figures: dict[str, float], selected: list[str]) -> Row:
    samples = {name: [{"rate": figure}] for name, figure in figures.items()}
    (row,) = judge([HOSTED], selected, Outcome(samples={"hosted": samples}))
    return row


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_whoever_takes_part_in_a_workload_has_a_measurement_for_it(workload: Workload) -> None:
    for contender in CONTENDERS:
        if contender.name in workload.contenders:
            assert workload.name in measurements(contender, contender.modules[workload.store])


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_whom_a_target_is_about_and_whom_it_names_take_part(workload: Workload) -> None:
    peers = {target.peer for metric in workload.metrics for target in metric.targets if target.peer}
    assert {workload.subject, *peers - {FASTEST}} <= set(workload.contenders) <= set(NAMES)
    assert FASTEST not in peers or set(PEERS) & set(workload.contenders)


@pytest.mark.parametrize(("figure", "reached"), [(600, True), (599, False)])
def test_a_target_is_judged_by_the_figure_of_the_workloads_subject(figure: float, reached: bool) -> None:
    (judgement,) = judged({"hosted": figure, HOME: 1000}, NAMES).judgements
    assert (judgement.measured, judgement.reached) == (figure / 1000, reached)


@pytest.mark.parametrize(("better", "best"), [("more", "saq"), ("less", "upstream")])
def test_a_target_about_the_fastest_peer_is_judged_by_the_best_figure_of_those_that_ran(
    better: Literal["more", "less"], best: str
) -> None:
    metric = Metric("rate", "Rate", "messages/s", better=better, targets=(Target(3, FASTEST),))
    workload = replace(HOSTED, contenders=(HOME, "upstream", "taskiq", "saq", "bare"), metrics=(metric,), subject=HOME)
    figures = {HOME: 600.0, "upstream": 100.0, "saq": 300.0, "bare": 1e6}
    samples = {"hosted": {name: [{"rate": figure}] for name, figure in figures.items()}}
    (row,) = judge([workload], NAMES, Outcome(samples=samples))
    (judgement,) = row.judgements
    assert (judgement.against, judgement.measured) == (best, 600 / figures[best])
    assert not judgement.reached
    assert f"× {best}" in table([row], CONTENDERS)


def test_a_target_about_the_fastest_peer_is_missed_if_none_brought_a_figure() -> None:
    workload = replace(
        HOSTED,
        contenders=(HOME, "saq"),
        subject=HOME,
        metrics=(replace(HOSTED.metrics[0], targets=(Target(3, FASTEST),)),),
    )
    (row,) = judge([workload], NAMES, Outcome(samples={"hosted": {HOME: [{"rate": 1.0}]}}))
    assert [judgement.reached for judgement in row.judgements] == [False]
    assert judge([workload], [HOME], Outcome(samples={"hosted": {HOME: [{"rate": 1.0}]}}))[0].judgements == ()


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


def slowed_down(share: float, noise: float = 0.03) -> Ratio:
    """What 20 pairs say of a slow-down, each of them off by some `noise`, two of them by a lot."""
    chance = random.Random(0)
    pairs = [(1 - share) * chance.gauss(1, noise) for _ in range(PAIRS)]
    return ratio_of([pairs[0] * 2, pairs[1] / 3, *pairs[2:]])


def test_a_slow_down_of_three_in_a_hundred_shows() -> None:
    ratio = slowed_down(0.03)
    assert ratio.estimate == pytest.approx(0.97, abs=0.01)
    assert ratio.verdict == "SLOWER"


def test_no_verdict_is_given_on_what_did_not_change() -> None:
    ratio = slowed_down(0.0)
    assert ratio.low < 1 < ratio.high
    assert ratio.verdict == ""


def test_the_interval_leaves_out_as_many_means_as_wilcoxons_tables_say() -> None:
    ratios = [1 + number / 100 for number in range(20)]
    means = sorted((one + other) / 2 for one, other in combinations_with_replacement(map(math.log, ratios), 2))
    assert ratio_of(ratios).low == math.exp(means[37])  # 20 pairs, two-sided, 1 %: the critical value is 37
    assert ratio_of(ratios).high == math.exp(means[-38])


def test_too_few_pairs_have_an_open_interval() -> None:
    assert (ratio_of([0.5] * 7).low, ratio_of([0.5] * 7).high) == (0.0, math.inf)
    assert ratio_of([0.5] * 8).high == pytest.approx(0.5)


@pytest.mark.parametrize(("better", "verdict"), [("more", "faster"), ("less", "SLOWER")])
def test_more_of_a_figure_is_faster_or_slower_as_the_metric_says(better: Literal["more", "less"], verdict: str) -> None:
    metric = Metric("figure", "Figure", "units", better=better)
    comparison = Comparison(CONTENDERS[0], metric, then=(1.0,) * PAIRS, now=(2.0,) * PAIRS)
    assert comparison.ratio is not None
    assert comparison.ratio.verdict == verdict
    assert verdict in comparison_table([comparison])


def test_what_is_shown_of_an_even_number_of_pairs_is_their_median() -> None:
    metric = Metric("figure", "Figure", "units")
    text = comparison_table([Comparison(CONTENDERS[0], metric, then=(2.0, 3.0), now=(4.0, 9.0))])
    assert text.splitlines()[-1].split()[-4:-2] == ["2.50", "6.50"]


def skip_outside_of_a_repository() -> None:
    if subprocess.run([*GIT, "rev-parse", "HEAD"], check=False, capture_output=True).returncode:
        pytest.skip("these are not the sources of a repository")


def test_a_checkout_of_another_commit_is_what_a_measurement_imports() -> None:
    skip_outside_of_a_repository()
    with checkout("HEAD") as place:
        workload = replace(WORKLOADS[0], arguments={"messages": 10, "executors": 1})
        answer = measure(CONTENDERS[0], workload, Path(sys.executable), lambda: None, quick=False, of_checkout=place)
        assert Path(answer["origin"]) == place / "repid" / "__init__.py"
    assert not place.exists()


def test_it_is_the_present_benchmarks_that_measure_another_commit() -> None:
    skip_outside_of_a_repository()
    script = "import benchmarks; print(benchmarks.__file__)"
    with checkout("HEAD") as place:
        path = os.pathsep.join([str(place), str(BENCHMARKS.parent)])
        run = subprocess.run(
            [sys.executable, "-P", "-c", script],
            check=True,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
    assert run.stdout.strip() == str(BENCHMARKS / "__init__.py")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_nothing_is_left_of_a_checkout_when_the_benchmarks_are_terminated(tmp_path: Path) -> None:
    skip_outside_of_a_repository()
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "noop", "--against", "HEAD"]
    with subprocess.Popen(command, cwd=BENCHMARKS.parent, env={**os.environ, "TMPDIR": str(tmp_path)}) as run:
        while not list(tmp_path.glob("*/then/repid/__init__.py")) and run.poll() is None:
            time.sleep(0.01)
        run.terminate()
    assert run.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_saved_run_stands_for_its_commit(tmp_path: Path) -> None:
    (tmp_path / "before.json").write_text('{"commit": "HEAD"}', encoding="utf-8")
    assert commit_of("before", tmp_path) == commit_of("HEAD", tmp_path)
    with pytest.raises(NoSuchCommit, match="'after' is neither a run saved in"):
        commit_of("after", tmp_path)


def test_a_flame_is_as_wide_as_its_share_and_names_what_it_is() -> None:
    stacks = [(["a:run", "repid.x:fast"], 1), (["a:run", "repid.x:slow<1>"], 3)]
    tree = grow(stacks)
    assert {name: flame.count for name, flame in tree.callees["a:run"].callees.items()} == {
        "repid.x:fast": 1,
        "repid.x:slow<1>": 3,
    }
    assert "<title>repid.x:slow&lt;1&gt;: 75.0%, 3 samples</title>" in draw_flames(stacks, "Profile")


def test_the_exponent_is_that_of_all_messages_together() -> None:
    assert exponent([(size, 3.0) for size in (1, 10, 100)], 1) == pytest.approx(1)
    assert exponent([(size, 5.0 * size) for size in (1, 10, 100)], 1) == pytest.approx(2)
    assert exponent([(1, 1000.0), (10, 1.0), (100, 1.0)], 10) == pytest.approx(1)


def test_every_scale_that_is_measured_has_a_metric_a_row_and_a_line() -> None:
    assert list(SCALES) == list(SERIES)
    points = {scale: {"sent": [(1, 5.0), (1000, 20.0)]} for scale in SCALES}
    figures = {"points": points, "exponents": {key: {"sent": 1.2} for key in SCALES}}
    lines = scaling_lines(Outcome(samples={"scaling-memory": {HOME: [figures]}, "scaling-sqlite": {HOME: [figures]}}))
    text, page = scaling_table(lines), draw_scaling(lines, "")
    assert len(lines) == 2 * len(SCALES)
    assert [name for name in SCALES.values() if name not in text or name not in page] == []
    assert len(list(ET.fromstring(page).iter("{http://www.w3.org/2000/svg}polyline"))) > len(lines)


def test_a_drain_under_an_old_snapshot_is_drawn_tenth_by_tenth() -> None:
    parts = [{"claim": 2.0, "settlement": 4.0, "dead_rows": n / 10, "size": 1024.0 * n} for n in range(1, 11)]
    measured = ageing_parts(Outcome(samples={"postgres-ageing": {HOME: [{"parts": parts}]}}))
    page = ET.fromstring(draw_ageing(measured, "a machine"))
    texts = [each.text for each in page.iter("{http://www.w3.org/2000/svg}text")]
    assert measured == parts
    assert [text for text in texts if text and text.endswith(" %")] == [f"{n}0 %" for n in range(1, 11)]
    assert {"0.1 M", "1.0 M", "1.0 GB", "10.0 GB", "a claim of 100"} <= set(texts)


def test_a_family_of_workloads_is_chosen_by_what_its_names_begin_with() -> None:
    assert arguments_of(["--only", "scaling,noop"]).only == ["scaling-memory", "scaling-sqlite", "noop"]
    with pytest.raises(SystemExit):
        arguments_of(["--only", "scalping"])


def test_what_would_be_ignored_is_refused() -> None:
    for ignored in (["--save", "a", "--against", "b"], ["--profile", "--save", "a"], ["--processor-time"]):
        with pytest.raises(SystemExit):
            arguments_of(ignored)
