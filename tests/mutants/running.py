"""Runs the tests that can reach a mutant, in a copy of the project that has the fault in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from .changes import Mutant
from .reach import ROOT

Outcome = Literal["killed", "survived"]

FOLDERS = {
    "blocking": ["tests/blocking"],
    "brokers": ["tests/brokers", "tests/conformance"],
    "brokers.memory": ["tests/brokers/test_memory_*.py", "tests/conformance/test_memory.py"],
    "brokers.shared": ["tests/brokers", "tests/conformance"],
    "brokers.sqlite": ["tests/brokers/test_sqlite_*.py", "tests/conformance/test_sqlite.py"],
    "hosts": ["tests/hosts"],
    "inject": ["tests/inject", "tests/runtime/test_worker_dependencies.py"],
    "modules": ["tests/actors", "tests/api", "tests/jobs", "tests/processes/test_cli.py"],
    "runtime": ["tests/runtime", "tests/api", "tests/jobs"],
    "supervisor": ["tests/processes"],
}
"""Where to look for a line that no test reaches in its own process, or that is newer than the notes."""

MOST_TESTS = 400
"""The quickest of those which reach a line; that more of them see nothing is taken for the answer of all."""


class Notes:
    """What `reach` has noted."""

    def __init__(self, file: Path) -> None:
        known = json.loads(file.read_text())
        self._tests = list(known["tests"])
        self._durations = list(known["tests"].values())
        self._lines: dict[str, dict[str, list[int]]] = known["lines"]

    def tests_for(self, mutant: Mutant) -> list[str]:
        """Which tests to run, the quickest first."""
        lines = self._lines.get(mutant.file, {})
        function = mutant.line.partition("|")[0] + "|"
        found = set(lines.get(mutant.line, ()))
        if not found and function != "|":
            found = {test for line, tests in lines.items() if line.startswith(function) for test in tests}
        folders = FOLDERS.get(mutant.package) or ["tests/" + mutant.package.partition(".")[0]]
        quickest = sorted(found, key=lambda test: self._durations[test])[:MOST_TESTS]
        return [self._tests[test] for test in quickest] or [
            str(path.relative_to(ROOT)) for each in folders for path in sorted(ROOT.glob(each))
        ]


class Copy(NamedTuple):
    """A copy of the project, of which one file at a time is changed."""

    path: Path

    @classmethod
    def make(cls, path: Path) -> Copy:
        """Copy it into this empty folder."""
        for name in ("repid", "tests", "examples", "benchmarks"):
            shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        for file in ROOT.iterdir():
            if file.is_file():
                shutil.copy(file, path)
        return cls(path)

    def run(self, mutant: Mutant, tests: Sequence[str], limit: float) -> Outcome:
        """Whether a test fails. One that has not ended `limit` seconds later than it should is taken for a failure."""
        file = self.path / mutant.file
        source = file.read_text()
        file.write_text(mutant.apply(source))
        try:
            return self._pytest(tests, limit)
        finally:
            file.write_text(source)

    def _pytest(self, tests: Sequence[str], limit: float) -> Outcome:
        chosen = self.path / "chosen-tests"
        chosen.write_text("\n".join(tests))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", f"@{chosen}"]
        command += ["-p", "tests.mutants.budget", "-o", "faulthandler_timeout=30"]
        environ = {
            **os.environ,
            "PYTHONPATH": str(self.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "REPID_BUDGET": str(limit),
            "HYPOTHESIS_PROFILE": "ci",
        }
        with subprocess.Popen(
            command,
            cwd=self.path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=2 * limit + 60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                return "killed"
        if b"ERROR: not found: " in output:  # a test of that name is no more
            files = sorted({test.partition("::")[0] for test in tests})
            if list(tests) == files:
                raise RuntimeError(output.decode())
            return self._pytest(files, limit)
        return "survived" if process.returncode in {0, 5} else "killed"
