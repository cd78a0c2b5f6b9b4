"""The files in examples/deploy start a worker that exists, and give it the time that it needs to end."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

import typer
import yaml

from repid.cli import cli

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
TIME_TO_CLOSE = 10
"""Seconds that a worker may need after its grace: five to settle what ended, and the bounds of closing."""


def grace_of(command: list[str]) -> float:
    """The grace in a command that starts a worker, as the command line reads it."""
    assert command[1:4] == ["-m", "repid", "worker"]
    group = typer.main.get_group(cli)
    with group.commands["worker"].make_context("repid worker", command[4:]) as context:
        assert context.params["target"] == "shop.jobs:app"
        return float(context.params["graceful_shutdown_time"])


def test_systemd_starts_a_worker_and_waits_for_its_end() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # systemd's names have capital letters
    unit.read(DEPLOY / "shop-worker.service", encoding="utf-8")
    service = unit["Service"]
    assert int(service["TimeoutStopSec"]) >= grace_of(shlex.split(service["ExecStart"])) + TIME_TO_CLOSE
    assert service["KillMode"] == "mixed"


def test_kubernetes_starts_a_worker_and_waits_for_its_end() -> None:
    deployment = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert deployment["kind"] == "Deployment"
    template = deployment["spec"]["template"]
    assert template["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    [container] = template["spec"]["containers"]
    assert template["spec"]["terminationGracePeriodSeconds"] >= grace_of(container["command"]) + TIME_TO_CLOSE
