"""The processes of actors with `run_in_process`, and the signals that reach them as they reach their worker. Real time."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from .aids_supervisor import Program, is_alive, until, with_signals

pytestmark = with_signals

IN_PROCESS = """
    @router.actor(run_in_process=True)
    def compute(number: int, seconds: float) -> None:
        note(f"begin {number} {os.getpid()}")
        time.sleep(seconds)
        note(f"done {number} {os.getpid()}")

    def leave_a_child(number: int) -> None:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        note(f"ended {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])} {os.getpid()}")

    router.actor(leave_a_child)
    router.actor(run_in_process=True, name="leave_from_process")(leave_a_child)

    @router.actor
    async def leave_from_loop(number: int) -> None:
        leave_a_child(number)

    app.include_router(router)
"""

STARTING = """
import os, pathlib, sys, time
if "--multiprocessing-fork" in sys.orig_argv:
    with open(pathlib.Path(__file__).parent / "notes", "a") as file:
        file.write(f"starting 0 {os.getpid()}\\n")
    time.sleep(0.3)
"""

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def in_process(program: Program) -> None:
    program.add(IN_PROCESS)


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["here", "processes"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_everybody_lets_what_runs_in_processes_end(
    program: Program, number: signal.Signals, options: tuple[str, ...]
) -> None:
    """As a terminal sends Ctrl-C, and systemd SIGTERM unless it is told otherwise."""
    program.send("compute", [{"number": 0, "seconds": 0.5}])
    program.start(*options)
    until(lambda: program.noted("begin"))
    program.signal(number)
    for _, _, pid in program.notes:
        os.kill(pid, number)
    assert program.wait() == 0
    assert program.noted("done") == [0]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_everybody_while_processes_start_harms_no_message(program: Program, number: signal.Signals) -> None:
    (program.folder / "sitecustomize.py").write_text(STARTING, encoding="utf-8")
    program.send("compute", [{"number": 0, "seconds": 0}])
    program.start("--processes-limit", "1")
    until(lambda: program.noted("starting"))
    program.signal_group(number)
    assert program.wait() == 0
    assert program.noted("done") == [0]
    assert "Traceback" not in program.log


def test_three_signals_to_everybody_end_all_processes(program: Program) -> None:
    program.send("compute", [{"number": 0, "seconds": 60}])
    program.start()
    until(lambda: program.noted("begin"))
    [pid] = [pid for _, _, pid in program.notes]
    os.kill(pid, signal.SIGTERM)
    assert is_alive(pid)

    def is_told() -> bool:
        if is_alive(pid):
            os.kill(pid, signal.SIGTERM)  # two that come at once are one
        return "was killed by SIGTERM" in program.log

    until(is_told)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["here", "processes"])
@pytest.mark.parametrize("actor", ["leave_a_child", "leave_from_process", "leave_from_loop"])
def test_a_child_that_an_actor_forks_has_signals_as_usual(
    program: Program, actor: str, options: tuple[str, ...]
) -> None:
    program.send(actor, [{"number": 0}])
    program.start("--burst", *options)
    assert program.wait() == 0
    assert program.noted("ended") == [-signal.SIGTERM]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell no process of its parent's death")
def test_what_runs_in_a_process_ends_with_a_worker_that_is_killed(program: Program) -> None:
    program.send("compute", [{"number": 0, "seconds": 60}])
    program.start()
    until(lambda: program.noted("begin"))
    [pid] = [pid for _, _, pid in program.notes]
    program.signal(signal.SIGKILL)
    until(lambda: not is_alive(pid), 5)
