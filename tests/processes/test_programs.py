"""`app.run` in programs: how processes find their app. Real time."""

from __future__ import annotations

import signal

import pytest

from repid import Report

from .aids_supervisor import Program, slow, until, with_signals

pytestmark = with_signals

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
async def hello() -> None: print(f"hello from {__name__}\\n", end="", flush=True)
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


def test_run_in_a_program_without_a_guard_says_so_once(program: Program) -> None:
    (program.folder / "program.py").write_text(UNGUARDED, encoding="utf-8")
    program.start(command=["program.py"])
    assert program.wait() == 1
    assert 'put it under `if __name__ == "__main__":`, or' in program.log
    assert program.log.count("Traceback") == 1


def test_run_of_an_app_that_cannot_be_imported_says_so(program: Program) -> None:
    (program.folder / "program.py").write_text(HIDDEN, encoding="utf-8")
    program.start(command=["program.py"])
    assert program.wait() == 1
    assert "several processes need an app they can import" in program.log


@pytest.mark.parametrize("options", ["", "processes=2, "])
@pytest.mark.parametrize("is_configured", [False, True])
def test_run_shows_its_log_if_the_program_has_not_said_how(
    program: Program, options: str, *, is_configured: bool
) -> None:
    (program.folder / "program.py").write_text(RUN.replace("processes=2, ", options), encoding="utf-8")
    if is_configured:
        program.add("import logging\nlogging.getLogger('repid').addHandler(logging.NullHandler())")
    program.send("slow", slow(1, 0))
    program.start(command=["program.py"])
    assert program.wait() == 0
    assert (" INFO " in program.log) is not is_configured


def test_a_worker_that_is_stopped_while_it_starts_does_not_say_that_it_has_started(program: Program) -> None:
    program.add("""
        @app.lifespan
        async def open_late():
            os.kill(os.getpid(), signal.SIGINT)
            await trio.sleep(60)
            yield
    """)
    program.start()
    assert program.wait() == 0
    assert "has started" not in program.log
    assert "repid.processes: the worker was stopped before it had started\n" in program.log


@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["one", "two"])
def test_the_first_signal_tells_what_another_one_does_and_that_is_told_too(
    program: Program, options: list[str]
) -> None:
    program.send("slow", slow(1, 60))
    program.start(*options)
    until(lambda: program.noted("begin"))
    program.signal(signal.SIGINT)
    until(lambda: "or until another signal comes" in program.log)
    assert "stopping at once" not in program.log
    program.signal(signal.SIGINT)
    assert program.wait() == 0
    assert "stopping at once, without waiting for the grace: another signal has come" in program.log
    assert "the worker has ended: 1 processed, 1 released" in program.log


def test_a_report_shows_what_is_not_zero() -> None:
    assert repr(Report(processed=2, dead=1)) == str(Report(processed=2, dead=1)) == "Report(processed=2, dead=1)"
    assert repr(Report()) == "Report()"
    assert eval(repr(Report(succeeded=1))) == Report(succeeded=1)
