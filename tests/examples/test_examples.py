"""Every example runs as a program of its own, ends by itself, and says what its docstring promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))


def run(name: str) -> list[str]:
    """The lines an example prints; it must succeed and complain about nothing."""
    result = subprocess.run(
        [sys.executable, f"examples/{name}"],
        cwd=EXAMPLES.parent,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    return result.stdout.splitlines()


def assert_order(lines: list[str], *expected: str) -> None:
    """The expected lines are all there, in this order; others may stand between them."""
    rest = iter(lines)
    for line in expected:
        assert line in rest, f"{line!r} is missing, or comes too early, in {lines}"


def test_hello_greets_everybody() -> None:
    assert run("hello.py") == ["Hello, Ada!", "Good morning, Grace!", "2 of 2 messages succeeded."]


def test_the_chain_takes_every_order_through_its_steps_in_order() -> None:
    lines = run("chain.py")
    for order in (1, 2, 3):
        steps = [f"order {order}: charged", f"order {order}: packed", f"order {order}: shipped as P-00{order}"]
        assert [line for line in lines if line.startswith(f"order {order}:")] == steps
    assert_order(lines, "3 orders placed", "done: 9 of 9 steps succeeded")


def test_a_failing_job_is_retried_until_it_succeeds() -> None:
    lines = run("retries_and_timeouts.py")
    assert_order(lines, "fetch, attempt 1", "fetch, attempt 2", "fetch, attempt 3", "fetch succeeded")
    assert lines[-1] == "5 runs: 1 succeeded, 3 retried, 1 dead"


def test_a_hanging_job_is_cancelled_retried_and_ends_as_a_dead_letter() -> None:
    assert_order(
        run("retries_and_timeouts.py"),
        "hang, attempt 1",
        "hang was cancelled and cleans up",
        "hang, attempt 2",
        "hang was cancelled and cleans up",
        "dead letter: hang, actor 'hang' ran longer than its timeout of 0.3 s",
    )


def test_jobs_in_a_file_outlive_a_worker_that_is_killed() -> None:
    assert run("durable_workers.py") == [
        "3 jobs are in the file",
        "a worker was killed in the middle of its work",
        "picture 1 is 10 pixels wide",
        "picture 2 is 20 pixels wide",
        "picture 3 is 30 pixels wide",
        "the other worker left with exit code 0",
    ]


def test_a_job_is_watched_and_its_result_fetched() -> None:
    lines = run("results_and_progress.py")
    assert any(re.fullmatch(r"running: \d of 6 words", line) for line in lines)
    assert_order(
        lines,
        "over: success",
        "{'to': 2, 'be': 2, 'or': 1, 'not': 1}",
        next(line for line in lines if line.endswith("it ended as 'failure': ZeroDivisionError: division by zero")),
    )


def test_schedules_tick_are_paused_and_removed() -> None:
    lines = run("schedules.py")
    assert_order(
        lines,
        "stored: default:heartbeat, default:remind, default:tidy_up",
        "heartbeat",
        "heartbeat",
        "the heartbeat is paused",
        "remember: drink water",
    )
    assert "heartbeat" not in lines[lines.index("the heartbeat is paused") :]


def test_a_request_gets_its_reply() -> None:
    assert run("request_reply.py") == [
        "the actor divides 84 by 2",
        "the answer is 42",
        "the actor divides 1 by 8",
        "the answer is 0.125",
    ]


def test_the_pipeline_takes_every_page_through_its_stages_and_gives_the_results_to_the_application() -> None:
    lines = run("pipeline.py")
    for path, words in (("/", 8), ("/shop", 9), ("/about", 4)):
        assert_order(lines, f"download {path}", f"count {path}", f"{path} has {words} words")
    assert lines[-1] == "most common: small (5 times)"


def test_priorities_decide_what_is_sent_first() -> None:
    sent = [line for line in run("priorities.py") if line.startswith("sent: ")]
    assert sent == [
        "sent: reset your password",
        "sent: your invoice",
        "sent: your delivery is on its way",
        "sent: our newsletter",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to catch on Windows")
def test_a_signal_lets_short_work_finish_and_gives_long_work_back() -> None:
    lines = run("graceful_shutdown.py")
    assert_order(lines, "short report: started", "SIGTERM", "short report: finished")
    assert_order(
        lines,
        "long report: started",
        "SIGTERM",
        "long report: cancelled, cleaning up",
        "worker ended: 1 succeeded, 1 released",
        "in the queue for the next worker: 1",
    )


def test_processes_compute_and_a_timeout_kills_them() -> None:
    lines = run("cpu_in_processes.py")
    for below, primes in ((100, 25), (1_000, 168), (10_000, 1_229)):
        assert f"count_primes({{'below': {below}}}) = {primes}" in lines
    assert_order(lines, "spin was killed: actor 'spin' ran longer than its timeout of 1 s", "3 succeeded, 1 failed")


def test_a_dependency_commits_what_succeeds_and_rolls_back_what_fails() -> None:
    assert run("dependencies.py") == [
        "2 apples left",
        "first: committed",
        "second: rolled back",
        "1 succeeded, 1 dead, in stock: {'apples': 2}",
    ]


def test_fastapi_enqueues_jobs_and_runs_a_worker_in_its_lifespan() -> None:
    pytest.importorskip("fastapi")
    assert run("fastapi_app.py") == ["a report of 6 words, and the worker has ended"]


def test_starlette_sends_messages_and_runs_a_worker_in_its_lifespan() -> None:
    pytest.importorskip("starlette")
    assert run("starlette_app.py") == ["[202, 202, 202] [0, 1, 2]"]


def test_every_example_has_a_test() -> None:
    tested = set(re.findall(r'run\("(\w+\.py)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert tested == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert f"Run it: python examples/{name}\n" in text
    assert len(text.splitlines()) < 60
