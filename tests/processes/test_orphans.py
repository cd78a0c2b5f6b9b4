"""What becomes of worker processes, and of what they ran, when their supervisor is killed. Real time."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from .aids_supervisor import Program, is_alive, slow, until, with_signals

pytestmark = with_signals

STUCK = """
@router.actor
async def stuck(number: int) -> None:
    note(f"begin {number} {os.getpid()}")
    import ctypes
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)  # PyDLL: without giving the lock back
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

app.include_router(router)
"""


@pytest.fixture
def no_last_resort(program: Program) -> None:
    program.tune("orphan", NOTICE=64)  # so many seconds: no test waits for that


@pytest.mark.usefixtures("no_last_resort")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT])
def test_processes_end_with_their_supervisor_and_release_what_they_ran(
    program: Program, number: signal.Signals
) -> None:
    program.send("slow", slow(4, 60))
    program.start("--processes", "2", "--tasks-limit", "2")
    until(lambda: len(program.noted("begin")) == 4)
    pids = program.started
    program.signal(number)
    assert program.wait() == -number
    until(lambda: not any(map(is_alive, pids)))
    assert program.counts() == (4, 0)
    assert "Traceback" not in program.log


@pytest.mark.usefixtures("no_last_resort")
def test_a_process_that_does_not_end_by_itself_is_ended(program: Program) -> None:
    program.tune("child", ORPHAN_TIME=1)
    program.send("stubborn", [{"number": 1}])
    program.start("--max-jobs", "10")
    until(lambda: program.noted("begin") == [1])
    pids = program.started
    program.signal(signal.SIGKILL)
    program.wait()
    until(lambda: not any(map(is_alive, pids)))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death in C")
def test_a_process_that_is_stuck_in_c_code_with_the_interpreters_lock_is_ended(program: Program) -> None:
    program.tune("orphan", NOTICE=signal.SIGQUIT)  # 3: so many seconds
    program.add(STUCK)
    program.send("stuck", [{"number": 1}])
    program.start("--max-jobs", "10")
    until(lambda: program.noted("begin") == [1])
    pids = program.started
    program.signal(signal.SIGKILL)
    program.wait()
    until(lambda: not any(map(is_alive, pids)))


@pytest.mark.usefixtures("no_last_resort")
def test_a_process_that_is_still_importing_the_program_ends_with_its_supervisor(program: Program) -> None:
    program.add("if is_worker: note(f'begin 0 {os.getpid()}'); time.sleep(60)")
    program.start("--processes", "2")
    until(lambda: len(program.notes) == 2)
    program.signal(signal.SIGKILL)
    program.wait()
    until(lambda: not any(is_alive(pid) for _, _, pid in program.notes))


def test_nothing_is_left_among_the_temporary_files(program: Program, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program.start("--processes", "2", variables={"TMPDIR": str(temporary)})
    until(lambda: len(program.started) == 2)
    program.signal(signal.SIGKILL)
    program.wait()
    until(lambda: not any(map(is_alive, program.started)))
    assert list(temporary.iterdir()) == []
