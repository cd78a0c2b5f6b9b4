"""Measure repid and its peers in one run: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from .ageing import ageing_parts, draw_ageing
from .comparing import PAIRS, NoSuchCommit, commit_of, compare_with, comparison_table, present_commit
from .flame import draw_flames
from .judging import judge, missed
from .measuring import MeasurementFailed, measure, plan, run
from .plot import draw
from .profile import describe
from .progress import Progress
from .report import document, machine, table, target_text, write_json
from .scaling import draw_scaling, scaling_lines, scaling_table
from .workloads import CONTENDERS, HOME, PROFILED, WORKLOADS, Contender, Workload, profile_of

RESULTS = Path(__file__).resolve().parent / "results"

EPILOG = """\
examples:
  python -m benchmarks --quick                     does everything work? about a minute, figures are rough
  python -m benchmarks                             the full run, some twenty-five minutes; leave the machine alone meanwhile
  python -m benchmarks --only noop,typed --repeat 9
  python -m benchmarks --contenders repid --only latency
  python -m benchmarks --only scaling              how costs grow with whatever there can be many of
  python -m benchmarks --profile                   where the time of the no-op drain goes
  python -m benchmarks --only noop --save before   keep these figures, and the commit, under a name
  python -m benchmarks --only noop --against before    in turns with that commit, or any other: faster or slower?
  python -m benchmarks --check                     for CI: exit code 1 if a target is missed

Peers are installed once under .venvs/, with the versions that benchmarks/workloads.py pins. Every measurement is a
fresh process; contenders take turns; the table shows medians. How each peer is used is told in benchmarks/README.md.
"""


def arguments_of(command_line: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure repid and its peers on the same work, in one run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="few messages, one round: a smoke run, not a measurement")
    add("--repeat", type=int, metavar="N", help=f"rounds (default 5; {PAIRS} with --against; 1 with --quick)")
    add(
        "--only",
        type=_names(w.name for w in WORKLOADS),
        metavar="W,W",
        help="these workloads only; sqlite, scaling and the like are all whose names begin so",
    )
    add("--contenders", type=_names(c.name for c in CONTENDERS), metavar="C,C", help="these contenders only")
    one_of = parser.add_mutually_exclusive_group().add_argument  # the others measure nothing that could be saved
    one_of("--list", action="store_true", help="list the workloads, their targets and the contenders, and stop")
    one_of(
        "--profile",
        nargs="?",
        const=PROFILED[0],
        choices=PROFILED,
        metavar="DRAIN",
        help=f"instead of measuring, profile one of repid's drains: {', '.join(PROFILED)} (default {PROFILED[0]})",
    )
    add(
        "--processor-time",
        action="store_true",
        help="with --against: compare rates by the processor's time, on a machine that has other things to do",
    )
    one_of("--save", metavar="NAME", help="also keep the figures as NAME.json, with the commit they belong to")
    one_of(
        "--against",
        metavar="NAME|COMMIT",
        help="instead of measuring peers, measure repid in turns with its former self: the commit of a saved run, or any",
    )
    add(
        "--check",
        action="store_true",
        help="exit with 1 if a target was missed or could not be judged; with --against, if something is slower",
    )
    add("--output", type=Path, default=RESULTS, metavar="DIR", help="where the files go (default benchmarks/results)")
    options = parser.parse_args(command_line)
    if options.processor_time and not options.against:
        parser.error("--processor-time goes with --against: targets are about the clock on the wall")
    if options.repeat is not None and options.repeat < 1:
        parser.error("--repeat takes a number from 1 on")
    return options


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    choices = list(known)

    def parse(text: str) -> list[str]:
        chosen: list[str] = []
        for name in text.split(","):
            found = [choice for choice in choices if name in (choice, choice.partition("-")[0])]
            chosen += found
            if not found:
                close = get_close_matches(name, choices, n=1)
                hint = f", did you mean {close[0]!r}?" if close else ""
                raise argparse.ArgumentTypeError(f"unknown name {name!r}{hint} Known: {', '.join(choices)}")
        return chosen

    return parse


def listing() -> str:
    lines = ["workloads:"]
    for workload in WORKLOADS:
        lines.append(f"  {workload.name:21}{workload.title} ({', '.join(workload.contenders)})")
        lines += [
            f"  {'':18}  {metric.title}: {target_text(metric, target)} {metric.unit}"
            for metric in workload.metrics
            for target in metric.targets
        ]
    lines.append("contenders:")
    lines += [f"  {c.name:21}{' '.join(c.requirements or ('this environment',))}" for c in CONTENDERS]
    return "\n".join(lines)


def print_profile(workload: Workload, output: Path, *, quick: bool) -> int:
    home = next(contender for contender in CONTENDERS if contender.name == HOME)
    with Progress(1) as progress:
        progress.begin(workload.title)
        try:
            answer = measure(home, workload, Path(sys.executable), progress.tick, quick=quick)
        except MeasurementFailed as failure:
            progress.note(f"!! {home.title} failed at {workload.title}: {failure}")
            return 1
    print(describe(answer["figures"]))
    output.mkdir(parents=True, exist_ok=True)
    flames = output / f"profile-{workload.arguments['drain']}.svg"
    flames.write_text(draw_flames(answer["figures"]["stacks"], workload.title), encoding="utf-8")
    print(f"\nFlame graph: {flames}")
    return 0


def print_comparison(
    commit: str, workloads: Sequence[Workload], contenders: Sequence[Contender], *, pairs: int, quick: bool
) -> int:
    """Measure in turns with another commit, print the table. How many figures are worse."""
    comparisons = compare_with(commit, workloads, contenders, pairs=pairs, quick=quick)
    print(f"As good as {commit[:12]} how many times? Above 1 is better, whatever the unit.\n")
    print(comparison_table(comparisons))
    return sum(comparison.ratio is not None and comparison.ratio.high < 1 for comparison in comparisons)


def compare(
    workloads: Sequence[Workload],
    contenders: Sequence[Contender],
    *,
    rounds: int,
    quick: bool,
    output: Path,
    saved_as: str | None,
) -> int:
    """Measure, print the table, write `results.json` and `results.svg`. How many targets were missed."""
    commit = present_commit() if saved_as else None
    steps = plan(workloads, contenders, rounds)
    with Progress(len(steps)) as progress:
        outcome = run(steps, progress, quick=quick)
    rows = judge(workloads, [contender.name for contender in contenders], outcome)
    print(table(rows, contenders))
    print(*(f"!! {failure}" for failure in outcome.failures), sep="\n", end="\n" if outcome.failures else "")
    output.mkdir(parents=True, exist_ok=True)
    content = document(rows, workloads, contenders, outcome, quick=quick, rounds=rounds)
    write_json(content, output / "results.json")
    lines = scaling_lines(outcome)
    if lines:
        print(f"\n{scaling_table(lines)}")
        (output / "scaling.svg").write_text(draw_scaling(lines, subtitle(rounds, quick=quick)), encoding="utf-8")
    if parts := ageing_parts(outcome):
        (output / "ageing.svg").write_text(draw_ageing(parts, machine_text()), encoding="utf-8")
    if saved_as:
        write_json({"commit": commit, **content}, output / f"{saved_as}.json")
    (output / "results.svg").write_text(draw(rows, contenders, subtitle(rounds, quick=quick)), encoding="utf-8")
    if quick:
        print("A smoke run: so few messages say nothing about speed.")
    return missed(rows)


def subtitle(rounds: int, *, quick: bool) -> str:
    return f"{machine_text()} · {'smoke run' if quick else f'medians of {rounds} rounds'}"


def machine_text() -> str:
    facts = machine()
    return f"{facts['implementation']} {facts['python']} · {facts['system']}, {facts['usable_cores']} cores"


def main(command_line: Sequence[str]) -> int:
    options = arguments_of(command_line)
    if options.list:
        print(listing())
        return 0
    if options.profile:
        return print_profile(profile_of(options.profile), options.output, quick=options.quick)
    workloads = [workload for workload in WORKLOADS if not options.only or workload.name in options.only]
    taking_part = {name for workload in workloads for name in workload.contenders}
    contenders = [
        one
        for one in CONTENDERS
        if one.name in taking_part and (not options.contenders or one.name in options.contenders)
    ]
    try:
        if options.against:
            if options.processor_time:
                os.environ["BENCHMARKS_CLOCK"] = "processor"
            commit = commit_of(options.against, options.output)
            pairs = options.repeat or (1 if options.quick else PAIRS)
            count = print_comparison(commit, workloads, contenders, pairs=pairs, quick=options.quick)
        else:
            rounds = options.repeat or (1 if options.quick else 5)
            count = compare(
                workloads, contenders, rounds=rounds, quick=options.quick, output=options.output, saved_as=options.save
            )
    except NoSuchCommit as error:
        print(f"!! {error}", file=sys.stderr)
        return 2
    return 1 if options.check and count else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what was made for the run goes with it
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
