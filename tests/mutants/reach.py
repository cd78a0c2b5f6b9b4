"""A pytest plugin that notes which tests reach which lines of repid, and how long each test takes.

`-p tests.mutants.reach` with `REPID_REACH=<file>`. A line is known by its function and its text, so the notes stay
useful when lines move. Processes that a test starts are not seen: lines which only run there are reached by no test here.
"""

from __future__ import annotations

import ast
import json
import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest
from coverage import Coverage

ROOT = Path(__file__).parents[2]


class Notes:
    """What is noted while the suite runs, written at its end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._coverage = Coverage(data_file=None, config_file=False, source=[str(ROOT / "repid")])
        self._durations: dict[str, float] = {}

    def pytest_sessionstart(self) -> None:
        """Look from here on. Imports belong to no test."""
        self._coverage.start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """All that runs from now on runs for this test."""
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up the parts of a test."""
        self._durations[report.nodeid] = self._durations.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        """Write the notes: for each file and line the numbers of the tests."""
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
        self._file.write_text(json.dumps({"tests": self._durations, "lines": lines}))


def pytest_configure(config: pytest.Config) -> None:
    """Take notes if it is said where to."""
    if "REPID_REACH" in os.environ:
        config.pluginmanager.register(Notes(Path(os.environ["REPID_REACH"])))


def keys(source: str) -> dict[int, str]:
    """What each line of a module is known by: the function it is in, and its text."""
    lines = source.splitlines()
    within = [""] * (len(lines) + 1)

    def visit(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}".lstrip(".")
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                within[first : (child.end_lineno or first) + 1] = [inner] * ((child.end_lineno or first) + 1 - first)
                visit(child, inner)
            else:
                visit(child, name)

    visit(ast.parse(source), "")
    return {number: f"{within[number]}|{text.strip()}" for number, text in enumerate(lines, 1)}
