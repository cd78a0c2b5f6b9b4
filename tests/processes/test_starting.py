"""Processes that do not get as far as working, or end of themselves: when others are started, and when not. Real time."""

from __future__ import annotations

import os
import signal
import sqlite3
import time

import pytest

from .aids_supervisor import Program, is_alive, until, with_signals

pytestmark = with_signals

QUICKLY = {"FIRST_DELAY": 0.01, "LIMIT": 2}
MANY_TIMES = "and that too often within a minute"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_import_of_the_program_ends_at_once(program: Program, number: signal.Signals) -> None:
    program.add("if is_worker: note(f'begin 0 {os.getpid()}'); time.sleep(60)")
    program.start("--processes", "2")
    until(lambda: len(program.notes) == 2)
    program.signal_group(number)
    assert program.wait() == 0
    assert not any(is_alive(pid) for _, _, pid in program.notes)


STARTING = """
import os, pathlib, sys, time
if sys.orig_argv[-1].startswith("worker 1 of"):
    with open(pathlib.Path(__file__).parent / "notes", "a") as file:
        file.write(f"starting 0 {os.getpid()}\\n")
    time.sleep(0.3)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_everybody_while_processes_start_ends_quietly(program: Program, number: signal.Signals) -> None:
    (program.folder / "sitecustomize.py").write_text(STARTING, encoding="utf-8")
    program.start("--processes", "2")
    until(lambda: program.noted("starting"))
    program.signal(number)
    for _, _, pid in program.notes:
        os.kill(pid, number)
    assert program.wait() == 0
    assert "Traceback" not in program.log


def test_a_signal_between_a_crash_and_the_next_start_ends_at_once(program: Program) -> None:
    program.tune("restarts", FIRST_DELAY=60, LONGEST_DELAY=60)
    program.send("die", [{}])
    program.start("--max-jobs", "10")
    until(lambda: "exit code 7; again in 60 s" in program.log)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert len(program.started) == 1


def test_processes_have_the_flags_of_their_supervisor_s_interpreter(program: Program) -> None:
    program.add("""
        @router.actor
        async def look(number: int) -> None:
            assert False, "-O takes this away"
            import warnings
            try:
                warnings.warn("see me", UserWarning)
            except UserWarning:
                note(f"raised {sys.flags.dev_mode:d} {os.getpid()}")
        app.include_router(router)
    """)
    program.send("look", [{"number": 1}])
    flags = ["-X", "dev", "-W", "error::UserWarning", "-O"]
    program.start(command=[*flags, "-m", "repid", "worker", "jobs:app", "--max-jobs", "10", "--burst"])
    assert program.wait() == 0
    assert program.noted("raised") == [1]


def test_a_crash_loop_is_given_up(program: Program) -> None:
    program.tune("restarts", **QUICKLY)
    program.send("die", [{}] * 3)
    program.start("--max-jobs", "10")
    assert program.wait() == 1
    assert len(program.started) == 3
    assert f"ended: exit code 7, {MANY_TIMES}" in program.log


def test_a_process_that_ends_with_exit_code_0_but_without_having_ended_its_worker_has_crashed(program: Program) -> None:
    program.tune("restarts", **QUICKLY)
    program.add("""
        @router.actor
        async def vanish() -> None:
            os._exit(0)
        app.include_router(router)
    """)
    program.send("vanish", [{}] * 3)
    program.start("--max-jobs", "10")
    assert program.wait() == 1
    assert f"ended: exit code 0, in the middle of its work, {MANY_TIMES}" in program.log


def test_a_program_whose_import_fails_is_given_up(program: Program) -> None:
    program.tune("restarts", **QUICKLY)
    program.add("if is_worker: raise RuntimeError('no database')")
    program.start("--max-jobs", "10")
    assert program.wait() == 1
    assert program.log.count("RuntimeError: no database") == 3
    assert f"ended: exit code 1, {MANY_TIMES}" in program.log


def test_a_process_that_cannot_be_started_at_all_is_given_up(program: Program) -> None:
    program.tune("restarts", **QUICKLY)
    program.add("sys.executable = '/nowhere/python'")
    program.start("--max-jobs", "10")
    assert program.wait() == 1
    assert "worker 1 could not be started: [Errno 2] No such file or directory: '/nowhere/python'" in program.log
    assert MANY_TIMES in program.log


@pytest.mark.parametrize("options", [[], ["--max-jobs", "10"]], ids=["one worker", "supervised"])
def test_a_lifespan_that_fails_ends_the_worker_with_exit_code_1(program: Program, options: list[str]) -> None:
    program.tune("restarts", **QUICKLY)
    program.add("""
        @app.lifespan
        async def connect():
            raise ConnectionRefusedError("nobody listens")
            yield
    """)
    program.start(*options)
    assert program.wait() == 1
    assert "the worker was not started: opening connect() raised ConnectionRefusedError: nobody listens" in program.log


def test_an_app_that_is_not_there_is_said_once_and_not_tried_again(program: Program) -> None:
    program.add("if __name__ == '__main__': app.run(processes=3, target='nowhere:app')")
    program.start(command=["jobs.py"])
    assert program.wait() == 1
    assert program.log.count("there is no module nowhere: looked in") == 1
    assert program.log.count("Traceback") == 1  # that of the program itself


def test_a_limit_of_memory_that_no_process_can_keep_is_given_up(program: Program) -> None:
    program.tune("restarts", **QUICKLY)
    program.add("if is_worker: hoard.append(bytearray(200_000_000))")
    program.start("--max-memory", "150MB")
    assert program.wait() == 1
    assert f"took more than max_memory before it had run anything, {MANY_TIMES}" in program.log


@pytest.mark.parametrize("options", [["--max-jobs", "10"], []])
def test_a_server_that_is_away_is_waited_for_and_said_once(program: Program, options: list[str]) -> None:
    program.tune("restarts", **QUICKLY)
    program.add("""
        from repid import BrokerUnavailable
        class Away(SQLiteServer):
            def connection(self):
                raise BrokerUnavailable("nobody answers at example.org:6379")
        app = Repid(Connection(Away(HERE / "jobs.db")))
        app.include_router(router)
    """)
    program.start(*options)
    until(lambda: "nobody answers" in program.log)
    time.sleep(1)  # it is tried several times
    assert program.is_running
    program.signal(signal.SIGTERM)
    assert program.wait() == (0 if options else -signal.SIGTERM)
    assert program.log.count("cannot start yet, and tries until the server answers: nobody answers at example.org") == 1
    assert "Traceback" not in program.log


@pytest.mark.real_time
def test_processes_that_start_while_the_file_is_locked_wait_for_it(program: Program) -> None:
    program.tune("restarts", **QUICKLY)
    program.add("from repid.brokers.sqlite import transactions; transactions.PATIENCE = 0.1")
    program.send("slow", [{"number": 1, "seconds": 0}])
    other = sqlite3.connect(program.folder / "jobs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    program.start("--processes", "2")
    until(lambda: program.log.count("cannot start yet") == 2)
    time.sleep(1)
    assert program.is_running
    other.execute("ROLLBACK")
    other.close()
    until(lambda: program.noted("done") == [1])
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert program.log.count("cannot start yet") == 2


def test_a_signal_before_anything_listens_ends_the_command_as_it_ends_any_program(program: Program) -> None:
    program.add("note(f'begin 0 {os.getpid()}'); time.sleep(60)")
    program.start("--processes", "2")
    until(lambda: program.noted("begin") == [0])
    program.signal(signal.SIGINT)
    assert program.wait() == 130
    assert "Traceback" not in program.log
