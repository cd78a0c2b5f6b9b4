"""What a changed file does. Real time."""

from __future__ import annotations

import re
import signal
import time

import pytest

from .aids_supervisor import Program, slow, until, with_signals

pytestmark = with_signals


@pytest.fixture(autouse=True)
def watcher() -> None:
    pytest.importorskip("watchfiles")


def write(program: Program, old: str, new: str) -> None:
    file = program.folder / "jobs.py"
    code = file.read_text(encoding="utf-8")
    file.write_text(code.replace(old, new), encoding="utf-8")


def start(program: Program, *options: str) -> None:
    program.start("--reload", *options)
    until(lambda: len(program.started) == 1)
    time.sleep(0.5)  # until the watcher watches, of which it gives no sign


def test_a_changed_file_reloads(program: Program) -> None:
    start(program)
    write(program, 'note(f"done', 'note(f"changed')
    until(lambda: len(program.started) == 2)
    program.send("slow", slow(1, 0))
    until(lambda: program.noted("changed") == [0])
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


def test_code_that_cannot_be_imported_is_waited_for_until_it_can(program: Program) -> None:
    start(program)
    write(program, "hoard = []", "hoard = [")
    until(lambda: "it is started at the next change" in program.log)
    [place] = re.findall(r'File ".*', program.log)
    assert str(program.folder / "jobs.py") in place
    assert "SyntaxError: " in program.log
    assert "repid: jobs:app cannot be loaded: see above" in program.log
    assert "watchfiles" not in program.log
    write(program, "hoard = [", "hoard = []")
    until(lambda: len(program.started) == 2)
    write(program, "app.include_router(router)", "del app")
    until(lambda: "no worker can run: module 'jobs' has no 'app'" in program.log)
    write(program, "del app", "app.include_router(router)")
    until(lambda: len(program.started) == 3)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


def test_what_the_program_raises_is_shown_from_where_it_begins_and_without_passwords(program: Program) -> None:
    start(program)
    write(program, "hoard = []", "raise OSError('redis://u:s3cret@h')")
    until(lambda: "it is started at the next change" in program.log)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert "OSError: redis://u:***@h\nrepid: jobs:app cannot be loaded: see above\n" in program.log
    assert program.log.count("  File ") == 1
    assert "s3cret" not in program.log


def test_a_change_during_the_drain_starts_nothing(program: Program) -> None:
    program.send("slow", slow(1, 2))
    start(program)
    until(lambda: program.noted("begin") == [0])
    program.signal(signal.SIGTERM)
    until(lambda: "stopping:" in program.log)
    write(program, "hoard = []", "hoard = [1]")
    assert program.wait() == 0
    assert program.noted("done") == [0]
    assert len(program.started) == 1


def test_changes_while_jobs_run_let_these_end_and_start_once(program: Program) -> None:
    program.send("slow", slow(1, 2))
    start(program)
    until(lambda: program.noted("begin") == [0])
    write(program, "hoard = []", "hoard = [1]")
    until(lambda: "reloading" in program.log)
    until(lambda: len(program.started) == 2)
    assert program.noted("done") == [0]
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert len(program.started) == 2
