"""Every example runs as a program of its own, ends by itself, and says what its docstring promises."""

from __future__ import annotations

import ast
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from engines.postgres import Postgres
from engines.starting import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))


def run(name: str, *arguments: str, **environment: str) -> list[str]:
    """The lines an example prints; it must succeed and complain about nothing."""
    result = subprocess.run(
        [sys.executable, f"examples/{name}", *arguments],
        cwd=EXAMPLES.parent,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
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


def test_the_pipeline_takes_every_page_through_its_stages_and_does_not_wait_for_one_that_failed() -> None:
    lines = run("pipeline.py")
    counted = [f"a page has {words} words" for words in (4, 8, 9)]
    assert sorted(lines[:-1]) == ["a page failed: KeyError: '/gone'", *counted]
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


def test_flask_enqueues_jobs_and_looks_at_their_results(tmp_path: Path) -> None:
    pytest.importorskip("flask")
    assert run("flask_app.py", TMPDIR=str(tmp_path)) == [
        "ordered: {'state': 'ready'}",
        "done: {'words': 6}",
        "never ordered: 404 NOT FOUND",
    ]


PROGRESS = "fastapi_progress.py"


def test_a_job_tells_its_progress_from_another_process(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    httpx = pytest.importorskip("httpx")
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    port = str(free_port())
    web = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), f"{PROGRESS[:-3]}:app", "--port", port]
    worker = [sys.executable, str(EXAMPLES / PROGRESS), "worker"]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for command in (web, worker)]
    try:
        transport = httpx.HTTPTransport(retries=7)  # until it listens
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=30) as client:
            id_ = client.post("/films", params={"minutes": 3}).json()
            with client.stream("GET", f"/films/{id_}/progress") as events:
                lines = [line for line in events.iter_lines() if line]
            assert client.get(f"/films/{id_}").json() == "a film of 3 minutes"
    finally:
        for process in processes:
            process.terminate()
            process.wait(timeout=30)
    # The job ends as soon as it has told the third minute, so a watcher may hear of the end alone.
    assert_order(lines, "data: running 1", "data: running 2", "data: success 0")


def test_some_of_many_jobs_fail_and_the_others_are_gathered() -> None:
    assert run("fan_out.py") == [
        "3 of 5 answered; cheapest: market",
        "  night shop: TimeoutError",
        "  closed shop: KeyError",
        "in total 36.5",
        "no total: 1 of 4 failed",
    ]


def test_pictures_are_made_smaller_in_processes() -> None:
    pytest.importorskip("PIL")
    *bars, outcome = run("thumbnails.py", "20")
    assert outcome == "20 thumbnails, 1 failed"
    assert bars[-1].endswith(f"[{'#' * 40}] 21")


def test_an_import_writes_all_rows_and_counts_the_lines_that_are_none(tmp_path: Path) -> None:
    *bars, outcome = run("import_rows.py", "20000", TMPDIR=str(tmp_path))
    assert outcome == "19998 rows, 2 lines that are none"
    assert bars
    look = "import import_rows; print([actor.bounds.max_size for actor in import_rows.router.actors()])"
    assert subprocess.check_output([sys.executable, "-c", look], cwd=EXAMPLES, text=True) == "[5000, 5000]\n"
    with closing(sqlite3.connect(tmp_path / "weather.db")) as database:
        assert database.execute("SELECT count(*), sum(degrees) FROM weather").fetchall() == [(19998, 390_000.0)]


def test_a_saga_undoes_the_steps_before_one_that_fails() -> None:
    lines = run("saga.py")
    assert_order(lines, "a book: paid", "a book: reserved", "a book: shipped")
    assert_order(lines, "a unicorn: paid", "a unicorn: pay is undone")
    assert_order(lines, "a piano: paid", "a piano: reserved")
    assert sorted(line for line in lines if "undone" in line) == [
        "a piano: pay is undone",
        "a piano: reserve is undone",
        "a unicorn: pay is undone",
    ]


def test_a_nightly_report_catches_up_after_days_without_a_worker() -> None:
    assert run("nightly_report.py") == [
        "02 Jan: the worker starts",
        "02 Jan: report of 01 Jan",
        "06 Jan: the worker starts",
        *[f"06 Jan: report of {day:02} Jan" for day in (2, 3, 4, 5)],
    ]


SITE = {
    "/": '<a href="/a">a</a> <a href="/b">b</a> <a href="http://elsewhere.invalid/">elsewhere</a>',
    "/a": '<a href="/">up</a> <a href="c#top">c</a>',
    "/b": '<a href="/a">a</a> <a href="/gone">gone</a>',
    "/c": "no links",
}


class Site(BaseHTTPRequestHandler):
    """A small site whose pages are `SITE`; it notes which were asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if self.path in SITE else 404)
        self.end_headers()
        self.wfile.write(SITE.get(self.path, "").encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_crawler_follows_the_links_of_a_site_and_fetches_each_page_once() -> None:
    pytest.importorskip("httpx")
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        Thread(target=server.serve_forever).start()
        start = f"http://127.0.0.1:{server.server_port}/"
        lines = run("crawler.py", start)
        server.shutdown()
    assert sorted(lines) == [*[f"200 {start}{page}" for page in ("", "a", "b", "c")], f"404 {start}gone"]
    assert sorted(Site.asked) == ["/", "/a", "/b", "/c", "/gone"]


def test_tasks_of_django_run_on_repid(tmp_path: Path) -> None:
    pytest.importorskip("django")
    assert run("django_project.py", TMPDIR=str(tmp_path)) == [
        "READY READY",
        "SUCCESSFUL a mail to ada@example.org",
        "FAILED builtins.ConnectionError",
    ]


def test_a_job_is_sent_with_the_order_that_is_committed(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("DATABASE_URL", postgres.url)
    try:
        assert run("orders_in_postgres.py") == ["in the table: ['Ada']", "order 1: a mail to Ada"]
    finally:
        postgres.execute("DROP SCHEMA IF EXISTS repid_example CASCADE")


def test_every_example_has_a_test() -> None:
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text(encoding="utf-8")))
    assert tested | {PROGRESS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert f"Run it: python examples/{name}\n" in text
    assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_what_else_has_to_be_installed(name: str) -> None:
    tree = ast.parse((EXAMPLES / name).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {PACKAGES.get(each, each) for each in {each.partition(".")[0] for each in imported}}
    needs = re.findall(r"Needs: pip install ([\w ',.\[\]-]+)", ast.get_docstring(tree) or "")
    missing = packages - sys.stdlib_module_names - {"repid", "trio"} - set(re.findall(r"[\w-]+", "".join(needs)))
    assert missing == set()


PACKAGES = {"PIL": "pillow", "django_tasks": "django"}
"""Those that are imported by another name than they are installed by."""


def test_the_tests_of_the_example_app_pass() -> None:
    assert run("testing_an_app.py") == [
        "test_an_order_that_was_charged_is_shipped: passed",
        "test_without_the_bank_nothing_is_shipped: passed",
    ]
