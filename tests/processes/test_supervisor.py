"""Real processes and real signals: what the supervisor promises. Real time."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from .aids_supervisor import Program, is_alive, slow, until, with_signals

pytestmark = with_signals


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
    assert "stopping at once, without waiting for the grace: another signal has come" in program.log


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["here", "processes"])
def test_ctrl_c_in_a_terminal_drains(program: Program, options: tuple[str, ...]) -> None:
    """It signals the whole process group."""
    program.send("slow", slow(2, 0.7))
    program.start(*options)
    until(lambda: len(program.noted("begin")) == 2)
    program.signal_group(signal.SIGINT)
    assert program.wait() == 0
    assert program.noted("done") == [0, 1]
    assert "Traceback" not in program.log


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


def test_signals_that_come_while_a_process_leaves_do_not_kill_it(program: Program) -> None:
    program.add("""
        import atexit
        def leave():
            for _ in range(3):  # the third one would end a worker at once
                os.kill(os.getpid(), signal.SIGTERM)
            note(f"left 0 {os.getpid()}")
        if is_worker:
            atexit.register(leave)
    """)
    program.send("slow", slow(1, 0))
    program.start("--max-jobs", "2", "--burst")
    assert program.wait() == 0
    assert len(program.noted("left")) == len(program.started) == 1


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


def test_a_process_is_replaced_after_max_jobs(program: Program) -> None:
    program.send("slow", slow(25, 0))
    program.start("--max-jobs", "10", "--burst")
    assert program.wait() == 0
    assert program.noted("done") == list(range(25))
    assert len(program.started) == 3
    runs = [sum(pid == each for word, _, pid in program.notes if word == "done") for each in program.started]
    assert runs == [10, 10, 5]


def test_each_run_may_have_a_process_of_its_own(program: Program) -> None:
    program.send("slow", slow(4, 0))
    program.start("--processes", "2", "--max-jobs", "1", "--burst")
    assert program.wait(30) == 0
    assert program.noted("done") == list(range(4))
    assert len({pid for _, _, pid in program.notes}) == 4


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


def test_a_process_that_ignores_its_end_is_killed_and_the_exit_code_says_so(program: Program) -> None:
    program.tune("supervisor", MARGIN=0.3)
    program.send("stubborn", [{"number": 1}])
    program.start("--max-jobs", "10", "--graceful-shutdown-time", "0.2")
    until(lambda: program.noted("begin") == [1])
    program.signal(signal.SIGTERM)
    assert program.wait() == 1
    assert "did not end in time and was killed" in program.log


def test_a_process_that_is_killed_while_it_drains_is_a_failure(program: Program) -> None:
    program.send("slow", slow(1, 60))
    program.start("--processes", "2")
    until(lambda: program.noted("begin") == [0])
    program.signal(signal.SIGTERM)
    until(lambda: "stopping:" in program.log)
    os.kill(program.notes[0][2], signal.SIGKILL)
    assert program.wait() == 1
    assert "failed while it was stopping: killed by SIGKILL" in program.log


def test_a_broken_pipe_for_the_log_harms_no_work(program: Program) -> None:
    """As in `repid worker … | head`."""
    program.send("slow", slow(3, 0))
    reading, writing = os.pipe()
    os.close(reading)
    program.start("--max-jobs", "2", "--burst", output=writing)
    os.close(writing)
    assert program.wait() == 0
    assert program.noted("done") == [0, 1, 2]


def test_closed_standard_streams_harm_no_work(program: Program) -> None:
    program.send("slow", slow(3, 0))
    program.add("sys.stdout and sys.stdout.write('noise')")
    line = f"exec {sys.executable} -m repid worker jobs:app --max-jobs 2 --burst <&- >&- 2>&-"
    program.start(command=["-c", f"import os; os.execvp('sh', ['sh', '-c', {line!r}])"])
    assert program.wait() == 0
    assert program.noted("done") == [0, 1, 2]
