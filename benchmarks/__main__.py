"""Measure repid and its peers in one run: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from .judging import judge, missed
from .measuring import MeasurementFailed, measure, plan, run
from .plot import draw
from .profile import describe
from .progress import Progress
from .report import document, machine, table, target_text, write_json
from .workloads import CONTENDERS, HOME, PROFILED, WORKLOADS, Contender, Workload, profile_of

RESULTS = Path(__file__).resolve().parent / "results"

EPILOG = """\
examples:
  python -m benchmarks --quick                     does everything work? about a minute, figures are rough
  python -m benchmarks                             the full run, some twenty-five minutes; leave the machine alone meanwhile
  python -m benchmarks --only noop,typed --repeat 9
  python -m benchmarks --contenders repid --only latency
  python -m benchmarks --profile                   where the time of the no-op drain goes
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
    add("--repeat", type=int, metavar="N", help="rounds (default 5; 1 with --quick)")
    add("--only", type=_names(w.name for w in WORKLOADS), metavar="W,W", help="these workloads only")
    add("--contenders", type=_names(c.name for c in CONTENDERS), metavar="C,C", help="these contenders only")
    add("--list", action="store_true", help="list the workloads, their targets and the contenders, and stop")
    add(
        "--profile",
        nargs="?",
        const=PROFILED[0],
        choices=PROFILED,
        metavar="DRAIN",
        help=f"instead of measuring, profile one of repid's drains: {', '.join(PROFILED)} (default {PROFILED[0]})",
    )
    add("--check", action="store_true", help="exit with 1 if a target was missed or could not be judged")
    add("--output", type=Path, default=RESULTS, metavar="DIR", help="where the files go (default benchmarks/results)")
    options = parser.parse_args(command_line)
    if options.repeat is not None and options.repeat < 1:
        parser.error("--repeat takes a number from 1 on")
    return options


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    choices = list(known)

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in choices:
                close = get_close_matches(name, choices, n=1)
                hint = f", did you mean {close[0]!r}?" if close else ""
                raise argparse.ArgumentTypeError(f"unknown name {name!r}{hint} Known: {', '.join(choices)}")
        return chosen

    return parse


def listing() -> str:
    lines = ["workloads:"]
    for workload in WORKLOADS:
        lines.append(f"  {workload.name:18}{workload.title} ({', '.join(workload.contenders)})")
        lines += [
            f"  {'':18}  {metric.title}: {target_text(metric, target)} {metric.unit}"
            for metric in workload.metrics
            for target in metric.targets
        ]
    lines.append("contenders:")
    lines += [f"  {c.name:18}{' '.join(c.requirements or ('this environment',))}" for c in CONTENDERS]
    return "\n".join(lines)


def print_profile(workload: Workload, *, quick: bool) -> int:
    home = next(contender for contender in CONTENDERS if contender.name == HOME)
    with Progress(1) as progress:
        progress.begin(workload.title)
        try:
            answer = measure(home, workload, Path(sys.executable), progress.tick, quick=quick)
        except MeasurementFailed as failure:
            progress.note(f"!! {home.title} failed at {workload.title}: {failure}")
            return 1
    print(describe(answer["figures"]))
    return 0


def compare(
    workloads: Sequence[Workload], contenders: Sequence[Contender], *, rounds: int, quick: bool, output: Path
) -> int:
    """Measure, print the table, write `results.json` and `results.svg`. How many targets were missed."""
    steps = plan(workloads, contenders, rounds)
    with Progress(len(steps)) as progress:
        outcome = run(steps, progress, quick=quick)
    rows = judge(workloads, [contender.name for contender in contenders], outcome)
    print(table(rows, contenders))
    print(*(f"!! {failure}" for failure in outcome.failures), sep="\n", end="\n" if outcome.failures else "")
    output.mkdir(parents=True, exist_ok=True)
    content = document(rows, workloads, contenders, outcome, quick=quick, rounds=rounds)
    write_json(content, output / "results.json")
    (output / "results.svg").write_text(draw(rows, contenders, subtitle(rounds, quick=quick)), encoding="utf-8")
    if quick:
        print("A smoke run: so few messages say nothing about speed.")
    return missed(rows)


def subtitle(rounds: int, *, quick: bool) -> str:
    facts = machine()
    run_of = "smoke run" if quick else f"medians of {rounds} rounds"
    return f"{facts['implementation']} {facts['python']} · {facts['system']}, {facts['usable_cores']} cores · {run_of}"


def main(command_line: Sequence[str]) -> int:
    options = arguments_of(command_line)
    if options.list:
        print(listing())
        return 0
    if options.profile:
        return print_profile(profile_of(options.profile), quick=options.quick)
    count = compare(
        [workload for workload in WORKLOADS if not options.only or workload.name in options.only],
        [contender for contender in CONTENDERS if not options.contenders or contender.name in options.contenders],
        rounds=options.repeat or (1 if options.quick else 5),
        quick=options.quick,
        output=options.output,
    )
    return 1 if options.check and count else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
