# ruff: noqa: RUF001 - the multiplication sign and the dash are meant
"""Whether this checkout is faster or slower than another commit: pairs of measurements, and the ratio with an interval.

The two sides take turns within each pair, and another one begins each pair, so what the machine does meanwhile hits both
alike. The ratio of a pair does not depend on how fast the machine was just then. Of the ratios, the Hodges-Lehmann estimate is
taken (the median of the means of any two), with the interval that belongs to it, that of Wilcoxon's signed ranks. Neither
asks how the ratios are distributed, and a few bad pairs do no harm.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from .environments import ROOT
from .measuring import MeasurementFailed, measure
from .progress import Progress
from .report import aligned, figure
from .workloads import Contender, Metric, Workload

CONFIDENCE = 0.99
"""With some fifty figures in a run, one in twenty would call something slower in every run."""

PAIRS = 20
"""So many pairs, each off by some 3 %, show a difference of 3 %."""


class NoSuchCommit(Exception):  # noqa: N818 - it says what happened
    """What to compare with is neither a saved run nor a commit."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """An estimate with its interval, which is open where there are too few pairs for one."""

    estimate: float
    low: float = 0.0
    high: float = math.inf

    @property
    def verdict(self) -> str:
        """What the interval allows to say: faster, slower, or nothing."""
        if self.low > 1:
            return "faster"
        return "SLOWER" if self.high < 1 else ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one contender: what was measured then and now, pair by pair."""

    contender: Contender
    metric: Metric
    then: tuple[float, ...]
    now: tuple[float, ...]

    @property
    def ratio(self) -> Ratio | None:
        """How many times as good it is now, whether more or less of it is better. None where figures are not above 0."""
        if min(*self.then, *self.now) <= 0:
            return None
        gains = [now / then for then, now in zip(self.then, self.now, strict=True)]
        return ratio_of(gains if self.metric.better == "more" else [1 / gain for gain in gains])


def ratio_of(ratios: Sequence[float]) -> Ratio:
    """The Hodges-Lehmann estimate of `ratios` and its interval, on their logarithms: twice as fast is as far as half."""
    logs = [math.log(ratio) for ratio in ratios]
    means = sorted((one + other) / 2 for one, other in combinations_with_replacement(logs, 2))
    middle = math.exp(median(means))
    left_out = _left_out(len(logs))
    return Ratio(middle, math.exp(means[left_out - 1]), math.exp(means[-left_out])) if left_out else Ratio(middle)


def _left_out(count: int) -> int:
    """The place, from either end, of the mean that bounds the interval; 0: there is no such interval."""
    ways = [1]  # in how many ways the ranks up to n add up to an index, each taken or not
    for rank in range(1, count + 1):
        ways = [
            (ways[total] if total < len(ways) else 0) + (ways[total - rank] if total >= rank else 0)
            for total in range(len(ways) + rank)
        ]
    allowed = (1 - CONFIDENCE) / 2 * 2**count
    place, beyond = 0, 0
    for way in ways:
        beyond += way
        if beyond > allowed:
            return place
        place += 1
    return place


def commit_of(name: str, saved_in: Path) -> str:
    """The commit of a saved run, or else the commit that git knows by `name`. Raises `NoSuchCommit`."""
    saved = saved_in / f"{name}.json"
    if saved.exists():
        name = json.loads(saved.read_text(encoding="utf-8"))["commit"]
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except subprocess.CalledProcessError:
        raise NoSuchCommit(f"{name!r} is neither a run saved in {saved_in} nor a commit") from None


def present_commit() -> str:
    """The commit that is checked out. Raises `NoSuchCommit` if what is measured is not what it contains."""
    if _git("status", "--porcelain", "--untracked-files=no"):
        raise NoSuchCommit("there are uncommitted changes; commit them first, since a saved run names its commit")
    return _git("rev-parse", "HEAD")


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A folder with the repid of `commit`, compiled. It is gone afterwards.

    It has nothing but repid, so the benchmarks of this checkout are those that measure it; and git knows nothing of it.
    """
    with TemporaryDirectory(prefix="repid-benchmark-") as folder:
        place, archive = Path(folder) / "then", Path(folder) / "then.zip"
        _git("archive", "--format=zip", f"--output={archive}", commit, "repid")
        with ZipFile(archive) as packed:
            packed.extractall(place)
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(place / "repid")], check=True)
        yield place


def _git(*arguments: str) -> str:
    ended = subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True)
    return ended.stdout.strip()


def compare_with(
    commit: str, workloads: Sequence[Workload], contenders: Sequence[Contender], *, pairs: int, quick: bool
) -> list[Comparison]:
    """Measure repid here and at `commit` in turns. Peers and bare loops are left out: they are the same on both sides."""
    by_processor = os.environ.get("BENCHMARKS_CLOCK") == "processor"
    steps = [
        (workload, contender)
        for workload in workloads
        for contender in contenders
        if contender.of_checkout and contender.name in workload.contenders
        if not by_processor or workload.counts_processor_time
    ]
    found: list[Comparison] = []
    with checkout(commit) as then, Progress(sum(workload.rounds_of(pairs) for workload, _ in steps)) as progress:
        for workload, contender in steps:
            try:
                found += _measure_pairs(workload, contender, then, progress, pairs=pairs, quick=quick)
            except MeasurementFailed as failure:
                progress.note(f"!! {contender.title} failed at {workload.title}: {failure}")
    return found


def _measure_pairs(
    workload: Workload, contender: Contender, then: Path, progress: Progress, *, pairs: int, quick: bool
) -> Iterator[Comparison]:
    samples: dict[Path, list[dict[str, float]]] = {then: [], ROOT: []}
    pairs = workload.rounds_of(pairs)
    for number in range(pairs):
        progress.begin(f"{workload.title} · {contender.title} · pair {number + 1}/{pairs}")
        for place in (then, ROOT) if number % 2 else (ROOT, then):
            answer = measure(contender, workload, Path(sys.executable), progress.tick, quick=quick, of_checkout=place)
            samples[place].append(answer["figures"])
        progress.finish()
    for metric in workload.metrics:
        if all(metric.key in figures for taken in samples.values() for figures in taken):
            before, after = (tuple(figures[metric.key] for figures in samples[place]) for place in (then, ROOT))
            yield Comparison(contender, metric, before, after)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Medians, ratios and verdicts as plain text."""
    head = ["", "contender", "unit", "then", "now", "as good", f"{CONFIDENCE:.0%} interval", ""]
    return aligned([head, *map(_line, comparisons)], left=(0, 1, 2, 7))


def _line(comparison: Comparison) -> list[str]:
    medians = map(median, (comparison.then, comparison.now))
    lead = [comparison.metric.title, comparison.contender.title, comparison.metric.unit, *map(figure, medians)]
    ratio = comparison.ratio
    if ratio is None:
        return [*lead, "–", "", ""]
    interval = f"{ratio.low:.3f} – {ratio.high:.3f}" if ratio.low else ""
    return [*lead, f"{ratio.estimate:.3f} ×", interval, ratio.verdict]
