"""Run the rounds: every measurement is a fresh process, and contenders take turns so that drift hits all alike."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import servers
from .environments import ROOT, NotInstalled, interpreter
from .progress import Progress
from .workloads import Contender, Workload

RUNNER = Path(__file__).resolve().parent / "contenders" / "run.py"
TIMEOUT = 600.0
"""Seconds after which one measurement counts as hanging."""


class MeasurementFailed(Exception):  # noqa: N818 - it says what happened
    """A contender ended without figures; the text is its last word."""


@dataclass(slots=True)
class Outcome:
    """What a run brought: per workload and contender the figures of each round, and what went wrong."""

    samples: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement to take."""

    workload: Workload
    contender: Contender
    round: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.workload.title} · {self.contender.title} · round {self.round}/{self.rounds}"


def plan(workloads: Sequence[Workload], contenders: Sequence[Contender], rounds: int) -> list[Step]:
    """Workload by workload, round by round; in every round another contender begins."""
    return [step for workload in workloads for step in _turns(workload, contenders, workload.rounds_of(rounds))]


def _turns(workload: Workload, contenders: Sequence[Contender], rounds: int) -> Iterator[Step]:
    taking_part = [contender for contender in contenders if contender.name in workload.contenders]
    for number in range(rounds):
        first = number % len(taking_part) if taking_part else 0
        for contender in taking_part[first:] + taking_part[:first]:
            yield Step(workload, contender, number + 1, rounds)


def run(steps: Sequence[Step], progress: Progress, *, quick: bool) -> Outcome:
    """Carry out `steps`. A contender that cannot be installed, or fails a workload, is reported and left out there."""
    outcome = Outcome()
    pythons = _interpreters(steps, progress, outcome)
    given_up: set[tuple[str, str]] = set()
    for step in steps:
        at = step.workload.name, step.contender.name
        if step.contender.name in pythons and at not in given_up:
            progress.begin(str(step))
            try:
                _take(step, pythons[step.contender.name], outcome, progress.tick, quick=quick)
            except MeasurementFailed as failure:
                given_up.add(at)
                _report(f"{step.contender.title} failed at {step.workload.title}: {failure}", progress, outcome)
        progress.finish()
    return outcome


def _interpreters(steps: Sequence[Step], progress: Progress, outcome: Outcome) -> dict[str, Path]:
    pythons: dict[str, Path] = {}
    for contender in dict.fromkeys(step.contender for step in steps):
        try:
            pythons[contender.name] = interpreter(contender, on_wait=progress.note)
        except NotInstalled as failure:
            _report(f"{contender.title} could not be installed: {failure}", progress, outcome)
    return pythons


def _report(text: str, progress: Progress, outcome: Outcome) -> None:
    outcome.failures.append(text.replace(str(ROOT), ".").replace(str(Path.home()), "~"))
    progress.note(f"!! {text}")


def _take(step: Step, python: Path, outcome: Outcome, on_wait: Callable[[], None], *, quick: bool) -> None:
    answer = measure(step.contender, step.workload, python, on_wait, quick=quick)
    of_workload = outcome.samples.setdefault(step.workload.name, {})
    of_workload.setdefault(step.contender.name, []).append(answer["figures"])
    outcome.versions.setdefault(step.contender.name, {}).update(answer["versions"])


def measure(
    contender: Contender,
    workload: Workload,
    python: Path,
    on_wait: Callable[[], None],
    *,
    quick: bool,
    of_checkout: Path = ROOT,
) -> dict[str, Any]:
    """One measurement in a process of its own, of the repid in `of_checkout`. Raises `MeasurementFailed`.

    The code that measures is that of this checkout.
    """
    with _place(workload) as place:
        arguments = json.dumps({**workload.arguments_for(quick=quick), **place})
        answer = _answer(
            [str(python), str(RUNNER), contender.modules[workload.store], workload.name, arguments],
            _environment(contender, of_checkout),
            on_wait,
        )
    if contender.of_checkout and not Path(answer["origin"]).is_relative_to(of_checkout):
        raise MeasurementFailed(f"repid was imported from {answer['origin']}, not from {of_checkout}")
    return answer


@contextmanager
def _place(workload: Workload) -> Iterator[servers.Place]:
    """Where the workload's messages are: a folder on the checkout's disk, or a server. What is in it goes with it."""
    if workload.store == "memory":
        yield {}
        return
    with TemporaryDirectory(prefix=".benchmark-", dir=ROOT) as folder:
        if workload.store == "sqlite":
            yield {"folder": folder}
            return
        try:
            start = servers.redis if workload.store == "redis" else servers.postgres
            with start(folder) as place:
                yield place
        except servers.NoServer as error:
            raise MeasurementFailed(str(error)) from error


def _answer(command: Sequence[str], environment: Mapping[str, str], on_wait: Callable[[], None]) -> dict[str, Any]:
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            output, errors = _wait(process, on_wait)
        except BaseException:
            process.kill()
            raise
    lines = output.strip().splitlines()
    if process.returncode or not lines:
        complaints = errors.strip().splitlines()
        raise MeasurementFailed(complaints[-1] if complaints else f"exit code {process.returncode}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _wait(process: subprocess.Popen[str], on_wait: Callable[[], None]) -> tuple[str, str]:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            return process.communicate(timeout=0.5)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise MeasurementFailed(f"no answer within {TIMEOUT:.0f} s") from None
            on_wait()


def _environment(contender: Contender, of_checkout: Path) -> dict[str, str]:
    """A peer must not find the checkout's own `repid` through the path of whoever started the harness."""
    if contender.requirements is None:
        path = [str(of_checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
