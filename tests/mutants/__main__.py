"""`python -m tests.mutants`: small faults in repid, one at a time; the suite should fail with each. Needs coverage.

A sample is drawn by seed over packages and kinds of faults. First it is noted which tests reach which line: each test file
that is new or has changed since the last time runs once. For all of them that takes some ten minutes, and at most
`--gathering` minutes; with `--only`, the test files of these packages run. A mutant whose line is in no notes gets the tests in
the folders of its package. Then each mutant gets the tests that reach it, the quickest first, and `--limit` seconds; the
test that fails must pass without the fault. `equivalent.toml` has those that change nothing anyone could see, with the reasons.
`--part 1/3` tries a third of the sample; what was tried before with the same seed is not tried again (`--anew`: it is),
but for those that had survived: `--limit 15 --most 100` first, and all that survived once more without them, is quickest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

from .changes import ROOT, Mutant, compiles, equivalent_mutants, find
from .reach import are_up_to_date
from .running import Copy, Notes, folders_for

FOLDER = ROOT / ".mutants"
NOTES = FOLDER / "reach"
"""Which tests reach which line, by test file."""

LEFT_OUT = ("repid/testing/", "repid/_version.py", "repid/__init__.py")
"""`tests/conformance` has mutants of its own for the checks of `repid.testing`: brokers with defects."""


def main() -> int:
    """Try the mutants and print the score."""
    options = _options()
    FOLDER.mkdir(exist_ok=True)
    sample = draw(options.seed, options.count, options.only)
    _take_notes({mutant.package for mutant in sample} if options.only else None, options.gathering * 60)
    number, parts = map(int, options.part.split("/"))
    results = FOLDER / f"seed-{options.seed}.json"
    known = {} if options.anew or not results.exists() else json.loads(results.read_text())
    equivalent = equivalent_mutants()
    reach = Notes(NOTES)
    with TemporaryDirectory(dir=FOLDER, ignore_cleanup_errors=True) as place:
        copy = Copy.make(Path(place))
        present = copy.collect()
        for mutant in sample[number - 1 :: parts]:
            if mutant.name in equivalent or known.get(mutant.name) == "killed":
                continue
            outcome = copy.run(mutant, reach.tests_for(mutant, present, options.most), options.limit)
            print(f"{outcome:8} {mutant.place} {mutant.operator}: {mutant.old!r} -> {mutant.new!r}", flush=True)
            if results.exists():
                known = {**known, **json.loads(results.read_text())}  # of the other parts
            known[mutant.name] = outcome
            results.write_text(json.dumps(known, indent=0))
    return show(sample, known, equivalent)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--count", type=int, default=150, help="how many mutants")
    parser.add_argument("--limit", type=float, default=45.0, help="seconds for the tests of one mutant")
    parser.add_argument("--most", type=int, default=400, help="how many of the tests that reach a mutant, the quickest")
    parser.add_argument("--part", default="1/1", help="which part of the sample, such as 2/3")
    parser.add_argument("--only", default="", help="mutants of files whose path begins with this")
    parser.add_argument("--anew", action="store_true", help="forget what was tried before")
    parser.add_argument("--gathering", type=float, default=20.0, help="minutes to note which tests reach which line")
    return parser.parse_args()


def _take_notes(packages: set[str] | None, limit: float) -> None:
    """Run the tests of these packages (None: of all) that have no notes or old ones, for `limit` seconds at most."""
    NOTES.mkdir(exist_ok=True)
    places = ["tests"] if packages is None else sorted({each for package in packages for each in folders_for(package)})
    files = _test_files(places)
    wanted = [file for file in files if not are_up_to_date(NOTES, file)]
    if not wanted or limit <= 0:
        return
    print(f"noting which lines {len(wanted)} of {len(files)} test files reach …", flush=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=no",
        "-p",
        "tests.mutants.reach",
        "-p",
        "no:cacheprovider",
        *wanted,
    ]
    environ = {**os.environ, "REPID_REACH": str(NOTES), "HYPOTHESIS_PROFILE": "ci"}
    with subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True) as process:
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    missing = [file for file in wanted if not are_up_to_date(NOTES, file)]
    if missing:
        print(
            f"nothing new is noted of {len(missing)} test files, since the tests did not come so far; a line that is in no notes gets the "
            "tests in the folders of its package",
            flush=True,
        )


def _test_files(places: Iterable[str]) -> list[str]:
    found = [path for place in places for path in ROOT.glob(place)]
    files = {each for path in found for each in (path.rglob("test_*.py") if path.is_dir() else [path])}
    return sorted(str(file.relative_to(ROOT)) for file in files)


def draw(seed: str, count: int, only: str = "") -> list[Mutant]:
    """Packages in proportion, none without any; in each the kinds of faults take turns."""
    packages: defaultdict[str, list[Mutant]] = defaultdict(list)
    for path in sorted((ROOT / "repid").rglob("*.py")):
        file = str(path.relative_to(ROOT))
        if file.startswith(only or "repid") and not file.startswith(LEFT_OUT):
            for mutant in find(ROOT, file):
                packages[mutant.package].append(mutant)
    total = sum(map(len, packages.values()))
    ordered: list[tuple[float, str, Mutant]] = []
    for mutants in packages.values():
        for place, mutant in enumerate(_taking_turns(mutants, seed)):
            ordered.append(((place + 0.5) * total / len(mutants), mutant.rank(seed), mutant))
    wanted = (mutant for _, _, mutant in sorted(ordered) if compiles(ROOT, mutant))
    return list(islice(wanted, count))


def _taking_turns(mutants: Iterable[Mutant], seed: str) -> list[Mutant]:
    kinds: defaultdict[str, list[Mutant]] = defaultdict(list)
    for mutant in sorted(mutants, key=lambda mutant: mutant.rank(seed)):
        kinds[mutant.operator].append(mutant)
    order = sorted(kinds.values(), key=lambda kind: kind[0].rank(seed))
    return [mutant for turn in zip_longest(*order) for mutant in turn if mutant is not None]


def show(sample: list[Mutant], outcomes: dict[str, str], equivalent: dict[str, str]) -> int:
    """Print the score; 1 if it is below 95 %."""
    tried = [mutant for mutant in sample if mutant.name in outcomes or mutant.name in equivalent]
    killed: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for mutant in tried:
        if mutant.name not in equivalent and outcomes[mutant.name] != "untried":
            counted[mutant.package] += 1
            killed[mutant.package] += outcomes[mutant.name] == "killed"
    print()
    for mutant in tried:
        if mutant.name in equivalent:
            print(f"equivalent: {mutant.place} {equivalent[mutant.name]}")
        elif outcomes[mutant.name] == "untried":
            print(f"untried, raise --limit: {mutant.place} {mutant.old!r} -> {mutant.new!r}")
        elif outcomes[mutant.name] != "killed":
            print(f"SURVIVED: {mutant.place} {mutant.old!r} -> {mutant.new!r}\n    {mutant.name}")
    print()
    for package in sorted(counted):
        print(f"{package:20} {killed[package]:4} of {counted[package]:4}")
    total, alive = counted.total(), counted.total() - killed.total()
    share = killed.total() / total if total else 1.0
    print(
        f"{share:.1%} of {total} that are not equivalent were killed ({len(tried)} of {len(sample)} tried, {alive} live)"
    )
    return int(share < 0.95)


if __name__ == "__main__":
    sys.exit(main())
