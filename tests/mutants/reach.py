"""A pytest plugin that notes which tests reach which lines of repid, and how long each test takes.

`-p tests.mutants.reach` with `REPID_REACH=<folder>`, where each test file gets a file of notes when its last test has run: if
the suite breaks off, what was noted before is there. A line is known by its function and its text, so notes stay useful when
lines move. Processes that a test starts are not seen: lines which only run there are reached by no test here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest
from coverage import Coverage

from .changes import ROOT, keys


class Recorder:
    """Notes what each test reaches while the suite runs, file by file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._coverage = self._new_coverage()
        self._durations: dict[str, float] = {}
        self._file: str | None = None

    def _new_coverage(self) -> Coverage:
        return Coverage(data_file=None, config_file=False, source=[str(ROOT / "repid")])

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """All that runs from now on runs for this test."""
        file = item.nodeid.partition("::")[0]
        if file != self._file:
            self._write()
            self._file = file
            self._coverage.start()
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up the parts of a test."""
        self._durations[report.nodeid] = self._durations.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        """Write the notes of the last file, if it was not broken off."""
        self._write()

    def _write(self) -> None:
        """Write the notes of the present test file: for each file and line of repid the numbers of the tests."""
        if self._file is None:
            return
        self._coverage.stop()
        numbers = {test: number for number, test in enumerate(self._durations)}
        lines = {}
        data = self._coverage.get_data()
        for name in data.measured_files():
            path = Path(name)
            found: defaultdict[str, set[int]] = defaultdict(set)
            known = keys(path.read_text())
            for line, tests in data.contexts_by_lineno(name).items():
                if line in known:  # code that was made at run time may say otherwise
                    found[known[line]].update(numbers[test] for test in tests if test in numbers)
            lines[str(path.relative_to(ROOT))] = {key: sorted(tests) for key, tests in found.items()}
        notes = {"digest": digest(self._file), "tests": self._durations, "lines": lines}
        place = notes_of(self._folder, self._file)
        unfinished = place.with_suffix(".unfinished")  # the suite may be killed at any time
        unfinished.write_text(json.dumps(notes))
        unfinished.replace(place)
        self._coverage, self._durations, self._file = self._new_coverage(), {}, None


def notes_of(folder: Path, test_file: str) -> Path:
    """Where the notes of a test file are."""
    return folder / f"{test_file.removesuffix('.py').replace('/', '.')}.json"


def digest(test_file: str) -> str:
    """Changes with the text of a test file."""
    return hashlib.sha256((ROOT / test_file).read_bytes()).hexdigest()


def are_up_to_date(folder: Path, test_file: str) -> bool:
    """Whether a test file has not changed since its notes were taken."""
    notes = notes_of(folder, test_file)
    return notes.exists() and json.loads(notes.read_text())["digest"] == digest(test_file)


def pytest_configure(config: pytest.Config) -> None:
    """Take notes if it is said where to."""
    if "REPID_REACH" in os.environ:
        config.pluginmanager.register(Recorder(Path(os.environ["REPID_REACH"])))
