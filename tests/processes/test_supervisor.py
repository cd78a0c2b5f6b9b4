"""Real processes and real signals: what the supervisor promises. Real time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aids_supervisor import Program, is_alive, until

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals on Windows"),
]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    program.close()


def slow(count: int, seconds: float) -> list[dict[str, float]]:
    return [{"number": n, "seconds": seconds} for n in range(count)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_drains_all_processes_and_nothing_is_lost(program: Program, number: signal.Signals) -> None:
    program.send("slow", slow(40, 0.4))
    program.start("--processes", "2", "--tasks-limit", "5")
    until(lambda: len({pid for _, _, pid in program.notes}) == 2)
    program.signal(number)
    assert program.wait() == 0
    begun, done = program.noted("begin"), program.noted("done")
    assert begun == done == sorted(set(done))
    assert program.counts() == (40 - len(done), 0)
    assert not any(map(is_alive, program.started))


def test_two_signals_cut_short_and_what_ran_is_released(program: Program) -> None:
    program.send("slow", slow(10, 60))
    program.start("--processes", "2", "--tasks-limit", "5")
    until(lambda: len(program.noted("begin")) == 10)
    program.signal(signal.SIGTERM)
    until(lambda: "stopping:" in program.log)
    time.sleep(0.2)
    assert program.is_running
    start = time.monotonic()
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert time.monotonic() - start < 5
    assert program.counts() == (10, 0)


def test_a_signal_that_reaches_everybody_stops_once(program: Program) -> None:
    """As systemd sends it: to the supervisor and to its processes."""
    program.send("slow", slow(2, 0.5))
    program.start("--processes", "2")
    until(lambda: len(program.noted("begin")) == 2 and len(program.started) == 2)
    program.signal(signal.SIGTERM)
    for pid in program.started:
        os.kill(pid, signal.SIGTERM)
    assert program.wait() == 0
    assert program.noted("done") == [0, 1]


def test_a_killed_process_is_replaced_and_its_job_is_recovered(program: Program) -> None:
    program.send("slow", slow(1, 1.2))
    program.start("--processes", "2")
    until(lambda: program.noted("begin") == [0])
    victim = program.notes[0][2]
    os.kill(victim, signal.SIGKILL)
    until(lambda: program.noted("done") == [0] and len(program.started) == 3)
    assert "killed by SIGKILL; again in 0.1 s" in program.log
    assert victim not in {pid for word, _, pid in program.notes if word == "done"}
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert program.counts() == (0, 0)


def test_processes_end_with_a_killed_supervisor_and_release_what_they_ran(program: Program) -> None:
    program.send("slow", slow(4, 60))
    program.start("--processes", "2", "--tasks-limit", "2")
    until(lambda: len(program.noted("begin")) == 4)
    pids = program.started
    program.signal(signal.SIGKILL)
    program.wait()
    until(lambda: not any(map(is_alive, pids)), seconds=5)
    assert program.counts() == (4, 0)


def test_a_process_that_does_not_end_after_its_supervisor_was_killed_is_ended(program: Program) -> None:
    program.tune("child", ORPHAN_TIME=1)
    program.send("stubborn", [{"number": 1}])
    program.start("--max-jobs", "10")
    until(lambda: program.noted("begin") == [1])
    pids = program.started
    program.signal(signal.SIGKILL)
    program.wait()
    until(lambda: not any(map(is_alive, pids)), seconds=8)


def test_a_crash_loop_is_given_up(program: Program) -> None:
    program.tune("restarts", FIRST_DELAY=0.01, LIMIT=2)
    program.start("--max-jobs", "10")
    program.send("die", [{}] * 3)
    assert program.wait() == 1
    assert len(program.started) == 3
    assert "repid: worker 1 ended too often within a minute, the last time: exit code 7" in program.log


def test_a_process_is_replaced_after_max_jobs(program: Program) -> None:
    program.send("slow", slow(25, 0))
    program.start("--max-jobs", "10", "--burst")
    assert program.wait() == 0
    assert program.noted("done") == list(range(25))
    assert len(program.started) == 3
    runs = [sum(pid == each for word, _, pid in program.notes if word == "done") for each in program.started]
    assert runs == [10, 10, 5]


def test_a_process_is_replaced_when_it_takes_too_much_memory(program: Program) -> None:
    program.start("--max-memory", "150MB")
    until(lambda: len(program.started) == 1)
    program.send("eat", [{"number": n} for n in range(3)])
    until(lambda: len(program.started) == 2)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert program.noted("done") == [0, 1, 2]


def test_the_limit_of_messages_is_that_of_each_worker_and_nobody_takes_its_place(program: Program) -> None:
    program.send("slow", slow(30, 0))
    program.start("--processes", "2", "--messages-limit", "10", "--max-jobs", "6")
    assert program.wait() == 0
    assert len(program.noted("done")) == 20
    assert program.counts() == (10, 0)


def test_a_changed_file_reloads(program: Program) -> None:
    pytest.importorskip("watchfiles")
    program.start("--reload")
    until(lambda: len(program.started) == 1)
    time.sleep(0.3)  # until the watcher watches
    code = (program.folder / "jobs.py").read_text(encoding="utf-8")
    (program.folder / "jobs.py").write_text(code.replace('note(f"done', 'note(f"changed'), encoding="utf-8")
    until(lambda: len(program.started) == 2)
    program.send("slow", slow(1, 0))
    until(lambda: program.noted("changed") == [0])
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


def test_a_process_that_ignores_its_end_is_killed_and_the_exit_code_says_so(program: Program) -> None:
    program.tune("supervisor", MARGIN=0.3)
    program.send("stubborn", [{"number": 1}])
    program.start("--max-jobs", "10", "--graceful-shutdown-time", "0.2")
    until(lambda: program.noted("begin") == [1])
    program.signal(signal.SIGTERM)
    assert program.wait() == 1
    assert "did not end in time and was killed" in program.log


RUN = """
import jobs
app = jobs.app
if __name__ == "__main__":
    print(app.run(processes=2, burst=True))
"""

MAIN = """
from repid import Connection, Repid, Router, SQLiteServer
router = Router()
app = Repid(Connection(SQLiteServer("jobs.db")))
@router.actor
async def hello() -> None: print("hello from", __name__, flush=True)
app.include_router(router)
if __name__ == "__main__":
    print(app.run(processes=2, burst=True, messages_limit=3))
"""

UNGUARDED = MAIN.replace('if __name__ == "__main__":', "if True:").replace("messages_limit=3", "")
HIDDEN = MAIN.replace("    print(app.run", "    other = [app]; del app; print(other[0].run")


def test_run_finds_an_app_of_a_module(program: Program) -> None:
    (program.folder / "program.py").write_text(RUN, encoding="utf-8")
    program.send("slow", slow(5, 0))
    program.start(command=["program.py"])
    assert program.wait() == 0
    assert program.noted("done") == list(range(5))
    assert "Report(processed=5, succeeded=5" in program.log


@pytest.mark.parametrize("command", [["program.py"], ["-m", "program"]])
def test_run_finds_an_app_of_the_program_itself(program: Program, command: list[str]) -> None:
    (program.folder / "program.py").write_text(MAIN, encoding="utf-8")
    program.send("hello", [{}] * 3)
    program.start(command=command)
    assert program.wait() == 0
    assert program.log.count("hello from __mp_main__") == 3


def test_run_in_a_program_without_a_guard_says_so(program: Program) -> None:
    program.tune("restarts", LIMIT=0)
    (program.folder / "program.py").write_text(UNGUARDED, encoding="utf-8")
    program.start(command=["program.py"])
    assert program.wait() == 1
    assert 'put it under `if __name__ == "__main__":`, or' in program.log


def test_run_of_an_app_that_cannot_be_imported_says_so(program: Program) -> None:
    (program.folder / "program.py").write_text(HIDDEN, encoding="utf-8")
    program.start(command=["program.py"])
    assert program.wait() == 1
    assert "several processes need an app they can import" in program.log
