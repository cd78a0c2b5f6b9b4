"""Runs the tests that can reach a mutant, in a copy of the project that has the fault in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from .changes import ROOT, Mutant

Outcome = Literal["killed", "survived", "untried"]
"""untried: the time was up before any test had run, on a busy machine say."""

FOLDERS = {
    "blocking": ["tests/blocking"],
    "brokers": ["tests/brokers", "tests/conformance"],
    "brokers.memory": ["tests/brokers/test_memory_*.py", "tests/conformance/test_memory.py"],
    "brokers.postgres": ["tests/brokers/test_postgres_*.py", "tests/conformance/test_postgres.py"],
    "brokers.redis": ["tests/brokers/test_redis_*.py", "tests/conformance/test_redis.py"],
    "brokers.redis.scripts": ["tests/brokers/test_redis_*.py", "tests/conformance/test_redis.py"],
    "brokers.shared": ["tests/brokers", "tests/conformance"],
    "brokers.sqlite": ["tests/brokers/test_sqlite_*.py", "tests/conformance/test_sqlite.py"],
    "hosts": ["tests/hosts"],
    "inject": ["tests/inject", "tests/runtime/test_worker_dependencies.py"],
    "modules": ["tests/actors", "tests/api", "tests/jobs", "tests/processes/test_cli.py"],
    "ports": ["tests/conformance/test_memory.py", "tests/jobs"],
    "runtime": ["tests/runtime", "tests/api", "tests/jobs"],
    "supervisor": ["tests/processes"],
}
"""Where to look for a line that no test reaches in its own process, or that is newer than the notes."""


class Notes:
    """What `reach` has noted of all test files."""

    def __init__(self, folder: Path) -> None:
        self._durations: dict[str, float] = {}
        self._lines: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for file in sorted(folder.glob("*.json")):
            notes = json.loads(file.read_text())
            self._durations.update(notes["tests"])
            tests = list(notes["tests"])
            for path, lines in notes["lines"].items():
                for line, numbers in lines.items():
                    self._lines[path][line].update(tests[number] for number in numbers)

    def tests_for(self, mutant: Mutant, present: set[str], most: int) -> list[str]:
        """Which of the tests that are present to run: those that are newer than the notes, then the quickest."""
        lines: Mapping[str, set[str]] = self._lines.get(mutant.file, {})
        function = mutant.line.partition("|")[0] + "|"
        found = set(lines.get(mutant.line, ()))
        if not found and function != "|":
            found = {test for line, tests in lines.items() if line.startswith(function) for test in tests}
        folders = folders_for(mutant.package)
        newer = [test for test in sorted(present - self._durations.keys()) if _is_within(test, folders)]
        quickest = sorted(found & present, key=lambda test: (self._durations[test], test))[:most]
        if quickest:
            return [*newer, *quickest]
        return [str(path.relative_to(ROOT)) for each in folders for path in sorted(ROOT.glob(each))]


def folders_for(package: str) -> Sequence[str]:
    """Where the tests of a package are."""
    return FOLDERS.get(package) or ["tests/" + package.partition(".")[0]]


def _is_within(test: str, folders: Sequence[str]) -> bool:
    path = Path(test.partition("::")[0])
    return any(path.is_relative_to(folder) or path.match(folder) for folder in folders)


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

    def collect(self) -> set[str]:
        """The names of all tests."""
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
        environ = {**os.environ, "PYTHONPATH": str(self.path)}
        done = subprocess.run(command, cwd=self.path, env=environ, capture_output=True, text=True, check=True)
        return {line for line in done.stdout.splitlines() if "::" in line}

    def run(self, mutant: Mutant, tests: Sequence[str], limit: float) -> Outcome:
        """Whether a test fails that passes without the fault.

        Tests that have not ended `limit` seconds later than they should are taken for a failure.
        """
        left = list(tests)
        while left:
            failed = self._run_with(mutant, left, limit)
            if failed is None:
                return "survived"
            without = self._pytest(failed, limit) if failed else []
            if not without:
                return "untried" if without == [] else "killed"
            print(f"         fails without the fault as well: {', '.join(failed[:3])}", flush=True)
            left = [test for test in left if test not in failed]
        return "survived"

    def _run_with(self, mutant: Mutant, tests: Sequence[str], limit: float) -> list[str] | None:
        file = self.path / mutant.file
        source = file.read_text()
        file.write_text(mutant.apply(source))
        try:
            return self._pytest(tests, limit)
        finally:
            file.write_text(source)

    def _pytest(self, tests: Sequence[str], limit: float) -> list[str] | None:
        """The test that failed, or all of them if it is not known which one did; None if none did, [] if none has run."""
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
                return list(tests)
        lines = output.decode().splitlines()
        if process.returncode in {0, 5}:
            return [] if lines and " skipped" in lines[-1] and " passed" not in lines[-1] else None
        named = [line[7:].partition(" - ")[0] for line in lines if line.startswith("FAILED ")]
        return [test for test in tests if test in named] or list(tests)
